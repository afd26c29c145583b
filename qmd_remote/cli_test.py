"""`qmd-remote test`: does what QMD asks for come back right?"""

from __future__ import annotations

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.output import Output

app = new_app()


@app.command(short_help="Send both services what QMD sends, and judge the answers.")
def test(
    url: options.Url = None,
    embed_url: options.EmbedUrl = None,
    generation_url: options.GenerationUrl = None,
    api_key_env: options.ApiKeyEnv = None,
    api_key_file: options.ApiKeyFile = None,
    index: options.Index = "index",
    file: options.File = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Send both services exactly what QMD sends, judge the answers as QMD does, and say what to fix.

    Without URLs, those in QMD's config are tested, else the services that run here. Exits with 1 when a check fails.

    \b
    Examples:
      qmd-remote test
      qmd-remote test --url http://127.0.0.1:8001
      qmd-remote test --embed-url http://spark:8001 --generation-url http://spark:8000 --api-key-env SPARK_KEY
    """
    where = options.again(file, index)
    asked = {"url": url, "embed_url": embed_url, "generation_url": generation_url}
    key = {"api_key_env": api_key_env, "api_key_file": api_key_file}
    given = " ".join(filter(None, (where, options.typed({**asked, **key}))))
    out = Output("test", as_json=as_json, quiet=quiet, verbose=verbose, again=where, given=given)

    def body() -> int:
        from qmd_remote import commands, paths

        target = commands.find_target(
            url=url,
            embed_url=embed_url,
            generation_url=generation_url,
            api_key=commands.key_from(api_key_env, api_key_file),
            config_file=file or paths.qmd_config_file(index),
        )
        return commands.test(out, target)

    run(out, body)
