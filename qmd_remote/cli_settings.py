"""`qmd-remote settings …`: every setting with its origin, and the settings file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from qmd_remote import options, paths
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import UsageError
from qmd_remote.output import Output

if TYPE_CHECKING:
    from qmd_remote.settings import Settings

app = new_app()

Changed = Annotated[bool, typer.Option("--changed", help="Only those that are not the default.")]


def complete_name(incomplete: str) -> list[tuple[str, str]]:
    """Settings whose name begins so, with their meaning, for the shell's completion."""
    from qmd_remote.settings import declared

    return [
        (f.name, f.metadata["about"]) for f in declared() if f.name.startswith(incomplete) and not f.metadata["secret"]
    ]


def complete_word(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """A name, or after a name the values that a setting can have, where they can be listed."""
    from qmd_remote.settings import declared

    words = list(ctx.params.get("words") or ())
    name, equals, begun = incomplete.partition("=")
    prefix = f"{name}=" if equals else ""
    if not equals:
        if not words or "=" in words[0]:
            return complete_name(incomplete)
        name, begun = words[0], incomplete
    for f in declared():
        if f.name == name and len(words) < 2:
            values = ("true", "false") if isinstance(f.default, bool) else f.metadata["choices"]
            return [(f"{prefix}{value}", "") for value in values if value and value.startswith(begun)]
    return []


def _effective() -> Settings:
    """What `up` would use now."""
    from qmd_remote.cli_life import settings_from

    return settings_from({})[0]


@app.callback(invoke_without_command=True, no_args_is_help=False)
def root(
    ctx: typer.Context,
    changed: Changed = False,
    preset: options.Preset = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show every setting with its origin; change those in the settings file.

    What is shown is what `up` would use.

    A flag wins over the environment, the environment over the settings file, the file over the preset, the preset over
    the default.

    \b
    Examples:
      qmd-remote settings
      qmd-remote settings --changed
      qmd-remote settings set preset=cpu port=9001
      qmd-remote settings --preset mini
    """
    if ctx.invoked_subcommand is None:
        _show(changed=changed, preset=preset, as_json=as_json, quiet=quiet)
    elif changed or preset or as_json or quiet:
        out = Output("settings", as_json=as_json)

        def body() -> int:
            line = f"qmd-remote settings {ctx.invoked_subcommand}"
            raise UsageError("options stand behind the command that they are for", hint=f"{line} --help")

        run(out, body)


@app.command(short_help="Show every setting with its origin, as `settings` alone does.")
def show(
    changed: Changed = False,
    preset: options.Preset = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show every setting with its value and where that comes from, as `up` would use it.

    \b
    Examples:
      qmd-remote settings show --changed
      qmd-remote settings show --preset mini
    """
    _show(changed=changed, preset=preset, as_json=as_json, quiet=quiet)


def _show(*, changed: bool, preset: str | None, as_json: bool, quiet: bool) -> NoReturn:
    out = Output("settings", as_json=as_json, quiet=quiet)

    def body() -> int:
        from dataclasses import asdict

        from qmd_remote import views_settings
        from qmd_remote.cli_life import settings_from

        settings, why = settings_from({"preset": preset})
        path = paths.settings_file()
        rows = views_settings.rows(settings, changed=changed)
        out.show(views_settings.table(rows))
        if why:
            out.note(f"preset {settings.preset}, since {why}")
        out.note(f"settings file: {path}" + ("" if path.exists() else " (there is none yet)"))
        return out.finish(
            {
                "settings": [asdict(row) for row in rows],
                "preset_reason": why,
                "path": path,
                "exists": path.exists(),
            }
        )

    run(out, body)


@app.command(name="set", short_help="Store settings in the settings file.")
def set_(
    words: Annotated[
        list[str],
        typer.Argument(metavar="NAME VALUE | NAME=VALUE…", help="What to set.", autocompletion=complete_word),
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Store settings in the settings file; its comments and all other lines stay as they are.

    Nothing is written unless every value, and the file as a whole, is valid.

    \b
    Examples:
      qmd-remote settings set embed_model BAAI/bge-m3
      qmd-remote settings set host=0.0.0.0 port=9001 device=cuda:1
      qmd-remote settings set api_key_file ~/secrets/qmd-remote.key
    """
    out = Output("settings set", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import settings_flow

        return settings_flow.set_values(out, words, _effective)

    run(out, body)


@app.command(short_help="Take settings out of the settings file.")
def unset(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="Names of settings.", autocompletion=complete_name)
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Take settings out of the settings file, so that the preset or the default counts again.

    \b
    Example:
      qmd-remote settings unset port device
    """
    out = Output("settings unset", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import settings_flow

        return settings_flow.unset(out, names, _effective)

    run(out, body)


@app.command(short_help="Open the settings file in your editor, and check it afterwards.")
def edit(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Open the settings file in $VISUAL or $EDITOR, and check it afterwards; a mistake is told with its line.

    \b
    Example:
      EDITOR=nano qmd-remote settings edit
    """
    out = Output("settings edit", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import settings_flow

        return settings_flow.edit(out, _effective)

    run(out, body)


@app.command(name="path", short_help="Say where the settings file is.")
def show_path(as_json: options.Json = False) -> None:
    """Say where the settings file is; whether it exists does not matter.

    \b
    Example:
      cat "$(qmd-remote settings path)"
    """
    out = Output("settings path", as_json=as_json)

    def body() -> int:
        path = paths.settings_file()
        if not as_json:
            out.raw(f"{path}\n")
        return out.finish({"path": path, "exists": path.exists()})

    run(out, body)
