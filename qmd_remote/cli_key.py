"""`qmd-remote key …`: the API key that other machines need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import ConfigError
from qmd_remote.output import Output

if TYPE_CHECKING:
    from qmd_remote.settings import Settings

app = new_app(help="Show or replace the API key that `up --host` made.")


@app.command(short_help="Show the key.")
def show(as_json: options.Json = False) -> None:
    """Write the API key to stdout: the one of the settings, else the one that `up --host` made.

    \b
    Examples:
      qmd-remote key show
      export QMD_REMOTE_API_KEY="$(ssh spark cat .config/qmd-remote/api-key)"
    """
    out = Output("key show", as_json=as_json)

    def body() -> int:
        from qmd_remote import keys, settings

        ours = settings.resolve({})
        path = None if ours.api_key else _file_of(ours)
        if path is not None and not path.exists():
            raise ConfigError(
                "there is no API key yet",
                hint="qmd-remote up --host 0.0.0.0 makes one, and so does: qmd-remote key rotate",
                code="key.none",
            )
        key = keys.read_file(path) if path else ours.api_key
        out.raw(f"{key}\n")
        return out.finish({"key": key, "path": path, "origin": ours.origins["api_key"] if path is None else "file"})

    run(out, body)


@app.command(short_help="Replace the key by a new one.")
def rotate(
    restart: Annotated[
        bool, typer.Option("--restart", help="Restart the embed server if it uses the key, so that it counts at once.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Replace the API key by a new random one. A running embed server takes the new one when it is restarted.

    \b
    Examples:
      qmd-remote key rotate --restart
      qmd-remote key show
    """
    out = Output("key rotate", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import keys, paths, services, settings, up_flow

        ours = settings.resolve({})
        if ours.api_key:
            raise ConfigError(
                f"the key in use comes from: {ours.origins['api_key']}",
                hint="put a new one there, and then: qmd-remote restart embed",
                code="key.foreign",
            )
        used = _file_of(ours)
        if used != paths.key_file():
            raise ConfigError(
                f"the key in use is the one in {used}, which is not ours to replace",
                hint="write a new one there, and then: qmd-remote restart embed",
                code="key.foreign",
            )
        path = keys.rotate()
        out.note(f"a new key is in {path}; every workstation needs it: qmd-remote key show")
        record = services.find(services.EMBED)
        uses_it = record is not None and record.key_file == str(path)
        if uses_it and restart:
            return up_flow.restart(out, (services.EMBED,))
        if record is not None and not uses_it:
            out.note("the embed server that runs here does not use this file")
        if uses_it:
            out.warn("the embed server still takes the old key", hint="qmd-remote restart embed")
        return out.finish({"path": path, "restart_needed": uses_it})

    run(out, body)


@app.command(name="path", short_help="Say where the key lies.")
def show_path(as_json: options.Json = False) -> None:
    """Say in which file the API key lies, whether there is one or not.

    \b
    Example:
      qmd-remote key path
    """
    out = Output("key path", as_json=as_json)

    def body() -> int:
        from qmd_remote import settings

        path = _file_of(settings.resolve({}))
        out.raw(f"{path}\n")
        return out.finish({"path": path, "exists": path.exists()})

    run(out, body)


def _file_of(ours: Settings) -> Path:
    """The key file of the settings, else our own."""
    from qmd_remote import paths

    return Path(paths.in_full(ours.api_key_file)) if ours.api_key_file else paths.key_file()
