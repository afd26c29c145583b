"""`qmd-remote compose`: both services as a compose file."""

from __future__ import annotations

from typing import Annotated

import typer

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.output import Output

app = new_app()


@app.command(short_help="Write a compose file for both services.")
def compose(
    preset: options.Preset = None,
    embed_model: options.EmbedModel = None,
    rerank_model: options.RerankModel = None,
    device: options.Device = None,
    host: options.Host = None,
    port: options.Port = None,
    generation_model: options.GenerationModel = None,
    generation_image: options.GenerationImage = None,
    generation_port: options.GenerationPort = None,
    generation_host: options.GenerationHost = None,
    generation_context: options.GenerationContext = None,
    generation_sequences: options.GenerationSequences = None,
    generation_gpu_share: options.GenerationGpuShare = None,
    generation_args: options.GenerationArgs = None,
    gpus: options.Gpus = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not look at this machine: plan for the one the preset is for.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write a compose file for both services to stdout, from the same plan as `up`, and refused as by `up`.

    With --no-probe for another machine: a DGX Spark, or GPUs of which you say what share vLLM gets.
    Both are published on 127.0.0.1 unless --host or --generation-host says otherwise. Keys and tokens stay out of it:
    they come from the shell, or from a file .env beside it.

    \b
    Examples:
      qmd-remote compose --preset spark --no-probe
      qmd-remote compose --preset gpu --no-probe --gpus 0,1 --generation-gpu-share 0.5
      qmd-remote compose --gpus none --generation-image IMAGE
      qmd-remote compose > compose.yaml && docker compose up -d --build
    """
    flags = {name: value for name, value in locals().items() if name not in {"no_probe", "as_json"}}
    out = Output("compose", as_json=as_json, given=options.typed({**flags, "no_probe": no_probe}))

    def body() -> int:
        from qmd_remote import compose_flow

        return compose_flow.compose(out, flags, probe=not no_probe)

    run(out, body)
