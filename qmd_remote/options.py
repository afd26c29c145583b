"""The options that several commands share, each declared once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON envelope on stdout, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more: the services' logs, what is sent, timings.")]


def again(file: Path | None, index: str) -> str:
    """The options that name the same file again, for hints."""
    if file is not None:
        return f"--file {shlex.quote(str(file))}"
    return "" if index == "index" else f"--index {shlex.quote(index)}"


def complete_service(incomplete: str) -> list[str]:
    """Names of services for the shell's completion."""
    return [name for name in ("embed", "generation") if name.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """Names of presets for the shell's completion."""
    from qmd_remote.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="spark, gpu, cpu or mini; chosen by hardware when not named.",
        autocompletion=complete_preset,
    ),
]
EmbedModel = Annotated[str | None, typer.Option("--embed-model", metavar="ID|FOLDER", help="Embedding model.")]
RerankModel = Annotated[
    str | None, typer.Option("--rerank-model", metavar="ID|FOLDER", help="Reranking model (cross- or bi-encoder).")
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cuda, cuda:N, mps or cpu.")]
MaxBatchSize = Annotated[int | None, typer.Option("--max-batch-size", help="Texts in one forward pass.")]
Host = Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on [127.0.0.1].")]
Port = Annotated[int | None, typer.Option("--port", help="Port of the embed server [8001].")]
ApiKeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", metavar="FILE", help="File with the API key (or QMD_REMOTE_API_KEY).")
]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate (PEM) for HTTPS.")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Private key (PEM) of the certificate.")]
InsecureNoAuth = Annotated[
    bool | None, typer.Option("--insecure-no-auth", help="Serve an address other than loopback without a key.")
]
TrustRemoteCode = Annotated[
    list[str] | None,
    typer.Option("--trust-remote-code", metavar="MODEL", help="Let this model run code of its own; may be repeated."),
]
Generation = Annotated[
    str | None, typer.Option("--generation", metavar="ENGINE", help="process, external or off [process].")
]
GenerationModel = Annotated[
    str | None, typer.Option("--generation-model", metavar="ID|FOLDER", help="Generation model.")
]
GenerationPort = Annotated[int | None, typer.Option("--generation-port", help="Port of generation [8000].")]
GenerationCommand = Annotated[
    str | None, typer.Option("--generation-command", metavar="NAME", help="vllm or transformers [what is installed].")
]

Url = Annotated[str | None, typer.Option("--url", metavar="URL", help="One server that answers for everything.")]
EmbedUrl = Annotated[str | None, typer.Option("--embed-url", metavar="URL", help="Embed server, e.g. http://box:8001.")]
GenerationUrl = Annotated[
    str | None, typer.Option("--generation-url", metavar="URL", help="Generation service, e.g. http://box:8000.")
]
ApiKeyEnv = Annotated[
    str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the key.")
]
Index = Annotated[str, typer.Option("--index", metavar="NAME", help="QMD index whose file is meant (NAME.yml).")]
File = Annotated[Path | None, typer.Option("--file", metavar="PATH", help="This file, instead of QMD's own.")]
