"""The options that several commands share, each declared once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON envelope on stdout, for scripts.")]


def _one_volume(ctx: typer.Context, value: bool) -> bool:
    """Refuse --quiet together with --verbose."""
    if value and (ctx.params.get("quiet") or ctx.params.get("verbose")):
        raise typer.BadParameter("--quiet and --verbose exclude each other", ctx=ctx)
    return value


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.", callback=_one_volume)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is done.", callback=_one_volume)]


def typed(options: Mapping[str, object]) -> str:
    """Options as a user types them, for hints; those that are None or False were not given."""
    from qmd_remote.setting_values import flag_of

    words: list[str] = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one is not False:
                words += [flag_of(name)] if one is True else [flag_of(name), str(one)]
    return shlex.join(words)


def again(file: Path | None, index: str) -> str:
    """The options that name the same file again, for hints."""
    if file is not None:
        return f"--file {shlex.quote(str(file))}"
    return "" if index == "index" else f"--index {shlex.quote(index)}"


def complete_service(incomplete: str) -> list[str]:
    """Names of services for the shell's completion."""
    return _beginning(incomplete, ("embed", "generation"))


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """Names of presets, with what they are for, for the shell's completion."""
    from qmd_remote.presets import PRESETS

    return [(preset.name, preset.summary) for preset in PRESETS.values() if preset.name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Names of models, with their use, for the shell's completion."""
    return _models(incomplete, ("embed", "rerank", "generation"))


def complete_shell(incomplete: str) -> list[str]:
    """Names of shells for the shell's completion."""
    from qmd_remote.completion import SCRIPTS

    return _beginning(incomplete, SCRIPTS)


def _models_for(role: Literal["embed", "rerank", "generation"]) -> Callable[[str], list[tuple[str, str]]]:
    def complete(incomplete: str) -> list[tuple[str, str]]:
        return _models(incomplete, (role,))

    return complete


def _models(incomplete: str, roles: Iterable[str]) -> list[tuple[str, str]]:
    from qmd_remote.catalogue import CATALOGUE

    known = [model for model in CATALOGUE.values() if model.role in roles]
    return [(model.id, model.use) for model in known if model.id.startswith(incomplete)]


def _choices_of(setting: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from qmd_remote.settings import declared

        return next(_beginning(incomplete, f.metadata["choices"]) for f in declared() if f.name == setting)

    return complete


def complete_device(incomplete: str) -> list[str]:
    """Names of devices for the shell's completion."""
    return _beginning(incomplete, ("auto", "cuda", "mps", "cpu"))


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="spark, gpu, cpu or mini; chosen by hardware when not named.",
        autocompletion=complete_preset,
    ),
]
EmbedModel = Annotated[
    str | None,
    typer.Option("--embed-model", metavar="ID|FOLDER", help="Embedding model.", autocompletion=_models_for("embed")),
]
RerankModel = Annotated[
    str | None,
    typer.Option(
        "--rerank-model",
        metavar="ID|FOLDER",
        help="Reranking model (cross- or bi-encoder).",
        autocompletion=_models_for("rerank"),
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cuda, cuda:N, mps or cpu.", autocompletion=complete_device),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="torch or openvino [auto].", autocompletion=_choices_of("backend")),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="NAME", help="float16, bfloat16 or float32 [auto].", autocompletion=_choices_of("dtype")
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads that compute [the cores there are].")]
MaxBatchSize = Annotated[int | None, typer.Option("--max-batch-size", help="Texts in one forward pass.")]
MaxBatchTokens = Annotated[
    int | None, typer.Option("--max-batch-tokens", help="Tokens in one forward pass [by device].")
]
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
    str | None,
    typer.Option(
        "--generation",
        metavar="ENGINE",
        help="docker, process, external or off [by preset].",
        autocompletion=_choices_of("generation_engine"),
    ),
]
GenerationModel = Annotated[
    str | None,
    typer.Option(
        "--generation-model",
        metavar="ID|FOLDER",
        help="Generation model.",
        autocompletion=_models_for("generation"),
    ),
]
GenerationPort = Annotated[int | None, typer.Option("--generation-port", help="Port of generation [8000].")]
GenerationCommand = Annotated[
    str | None,
    typer.Option(
        "--generation-command",
        metavar="NAME",
        help="vllm or transformers [what is installed].",
        autocompletion=_choices_of("generation_command"),
    ),
]
GenerationHost = Annotated[
    str | None, typer.Option("--generation-host", metavar="ADDRESS", help="Publish its container here [127.0.0.1].")
]
GenerationImage = Annotated[
    str | None, typer.Option("--generation-image", metavar="IMAGE", help="Image of its container [NVIDIA's vLLM].")
]
GenerationContainer = Annotated[
    str | None, typer.Option("--generation-container", metavar="NAME", help="Name of its container [qmd-vllm].")
]
GenerationContext = Annotated[
    int | None, typer.Option("--generation-context", help="Tokens of prompt and answer that vLLM has room for [8192].")
]
GenerationSequences = Annotated[
    int | None, typer.Option("--generation-sequences", help="Requests that vLLM works on at once [8].")
]
GenerationGpuShare = Annotated[
    float | None, typer.Option("--generation-gpu-share", help="Share of the GPU's memory for vLLM [memory plan].")
]
GenerationArgs = Annotated[
    str | None, typer.Option("--generation-args", metavar="OPTIONS", help="More options for `vllm serve`, in quotes.")
]
Gpus = Annotated[
    str | None, typer.Option("--gpus", metavar="WHICH", help="GPUs for our containers: all, none, or 0,1 [all].")
]
EmbedEngine = Annotated[
    str | None,
    typer.Option(
        "--embed-engine",
        metavar="NAME",
        help="process or docker [process].",
        autocompletion=_choices_of("embed_engine"),
    ),
]
EmbedImage = Annotated[
    str | None, typer.Option("--embed-image", metavar="IMAGE", help="Image of the embed container [qmd-embed-rerank].")
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
