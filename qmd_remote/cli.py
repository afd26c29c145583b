"""The command line: parse, call, show. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qmd_remote import __version__, cli_config, cli_key, cli_life, cli_models, cli_settings, cli_test
from qmd_remote.cli_run import new_app
from qmd_remote.errors import UsageError
from qmd_remote.output import Output

app = new_app()


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Run QMD's embedding, reranking and generation models on this machine, for QMD here or on other machines.

    \b
    Examples:
      qmd-remote up                  start both services, wait until they are ready
      qmd-remote test                send them exactly what QMD sends
      qmd-remote config write        tell QMD about them
    """
    if version:
        sys.stdout.write(f"qmd-remote {__version__}\n")
        raise typer.Exit


app.add_typer(cli_life.app)
app.add_typer(cli_test.app)
app.add_typer(cli_models.app)
app.add_typer(cli_config.app, name="config")
app.add_typer(cli_settings.app, name="settings")
app.add_typer(cli_key.app, name="key")


def main() -> None:
    """Entry point of the console script."""
    if "--json" not in sys.argv:
        app()
        return
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        # Typer's usage errors share no public base class across its versions; this method is what they have in common
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        code = Output("qmd-remote", as_json=True).fail(UsageError(message(), hint="qmd-remote --help"))
    sys.exit(code)


if __name__ == "__main__":
    main()
