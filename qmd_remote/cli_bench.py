"""`qmd-remote bench`: how fast is this box, for QMD?"""

from __future__ import annotations

from typing import Annotated

import typer

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.output import Output

app = new_app()

Seconds = Annotated[
    float, typer.Option("--seconds", metavar="S", min=0.1, max=600, help="How long each phase sends requests.")
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="PHASES", help="Some of: index,query,rerank,mixed,expand [all that there is]."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="The texts of another run again [new ones each time].")
]


@app.command(short_help="Measure how fast both services do QMD's work.")
def bench(
    url: options.Url = None,
    embed_url: options.EmbedUrl = None,
    generation_url: options.GenerationUrl = None,
    api_key_env: options.ApiKeyEnv = None,
    api_key_file: options.ApiKeyFile = None,
    index: options.Index = "index",
    file: options.File = None,
    seconds: Seconds = 10.0,
    only: Only = None,
    seed: Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast both services do QMD's work: indexing, queries, reranking, queries during indexing, expansion.

    Without URLs, those in QMD's config are measured, else the services that run here. Exits with 1 when a request
    fails: figures with errors are no result. Ctrl-C shows what was measured until then.

    \b
    Examples:
      qmd-remote bench
      qmd-remote bench --url http://spark:8001 --api-key-env SPARK_KEY --json > spark.json
      qmd-remote bench --only index,query --seconds 30
    """
    where = options.again(file, index)
    asked = {"url": url, "embed_url": embed_url, "generation_url": generation_url}
    key = {"api_key_env": api_key_env, "api_key_file": api_key_file}
    given = " ".join(filter(None, (where, options.typed({**asked, **key}))))
    out = Output("bench", as_json=as_json, quiet=quiet, again=where, given=given)

    def body() -> int:
        from qmd_remote import bench_flow, commands, paths

        target = bench_flow.find(
            url=url,
            embed_url=embed_url,
            generation_url=generation_url,
            api_key=commands.key_from(api_key_env, api_key_file),
            config_file=file or paths.qmd_config_file(index),
        )
        return bench_flow.bench(out, target, only=only, seconds=seconds, seed=seed)

    run(out, body)
