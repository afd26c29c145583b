"""The command line: parse, call, show. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qmd_remote import (
    __version__,
    cli_bench,
    cli_completion,
    cli_compose,
    cli_config,
    cli_doctor,
    cli_key,
    cli_life,
    cli_models,
    cli_service,
    cli_settings,
    cli_test,
)
from qmd_remote.cli_run import new_app
from qmd_remote.errors import UsageError
from qmd_remote.output import Output

# as one comes to need them
ORDER = (
    *("up", "status", "logs", "restart", "down", "service", "serve", "compose"),
    *("test", "bench", "doctor", "config", "settings", "models", "pull", "key", "completion"),
)
EVERYWHERE = {"--json", "-q", "--quiet", "-v", "--verbose"}  # options that commands have, and groups of them have not
COMPLETING = "_QMD_REMOTE_COMPLETE"  # set by a shell that asks for completions


class Root(TyperGroup):
    """All commands, in their natural order; `completion` stands for Typer's own options about it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, as the help lists them."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def get_params(self, ctx: Any) -> list[Any]:
        """The options, without those that Typer adds along with its answers to completing shells."""
        typers = {"install_completion", "show_completion"}
        return [parameter for parameter in super().get_params(ctx) if parameter.name not in typers]


app = new_app(cls=Root)


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
app.add_typer(cli_bench.app)
app.add_typer(cli_doctor.app)
app.add_typer(cli_compose.app)
app.add_typer(cli_models.app)
app.add_typer(cli_completion.app)
app.add_typer(cli_config.app, name="config", short_help="Write, check, edit and remove QMD's remote: block.")
app.add_typer(cli_service.app, name="service", short_help="Have systemd start both with the machine, without root.")
app.add_typer(cli_settings.app, name="settings", short_help="Show every setting with its origin; set, unset, edit.")
app.add_typer(cli_key.app, name="key", short_help="Show or replace the API key that other machines need.")


def main() -> None:
    """Entry point of the console script."""
    if COMPLETING in os.environ:
        os.environ["COLUMNS"] = "1000"  # Typer sends meanings through rich, which would break them into lines
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        # Typer's usage errors share no public base class across its versions; this method is what they have in common
        if not hasattr(error, "format_message"):
            raise
        code = refuse(error, as_json="--json" in sys.argv)
    sys.exit(code)


def refuse(error: Any, *, as_json: bool) -> int:
    """End with a command line that Typer could not read; returns the exit code."""
    context, words = error.ctx, list[str]()
    at = context
    while at is not None and at.parent is not None:
        words.insert(0, at.info_name)
        at = at.parent
    if context is not None and error.format_message() == context.get_help():
        error.show()  # a group without a command: its help is the answer
        return int(error.exit_code)
    line = " ".join(["qmd-remote", *words])
    said, hint = " ".join(error.format_message().split()), f"{line} --help"
    option = getattr(error, "option_name", "")
    if option in EVERYWHERE and hasattr(context.command, "commands"):
        said, hint = f"{option} stands behind the command that it is for", f"{line} COMMAND {option}"
    return Output(" ".join(words) or "qmd-remote", as_json=as_json).fail(UsageError(said, hint=hint))


if __name__ == "__main__":
    main()
