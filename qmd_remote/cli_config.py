"""`qmd-remote config …`: QMD's configuration file. Imports nothing heavy, so that it starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmd_remote import options, paths
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import ConfigError
from qmd_remote.output import Output

if TYPE_CHECKING:
    from qmd_remote.client.qmd_config import Change

Diff = Annotated[bool, typer.Option("--diff", help="Show what changes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")]
Offline = Annotated[bool, typer.Option("--offline", help="Look at the file only; ask no service.")]

app = new_app(help="Write, check, edit and remove the remote: block of QMD's index.yml.")


@app.command(short_help="Write the remote: block of QMD's index.yml.")
def write(
    url: options.Url = None,
    embed_url: options.EmbedUrl = None,
    generation_url: options.GenerationUrl = None,
    api_key_env: options.ApiKeyEnv = None,
    api_key_literal: Annotated[
        bool, typer.Option("--api-key-literal", help="Copy the key itself into the file (mode 0600), not a reference.")
    ] = False,
    index: options.Index = "index",
    file: options.File = None,
    diff: Diff = False,
    dry_run: DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the remote: block of QMD's index.yml; not one byte outside that block changes.

    Without URLs, those of the services that run here are written; where none runs, those in the file stay.

    \b
    Examples:
      qmd-remote config write --diff
      qmd-remote config write --embed-url http://spark:8001 --generation-url http://spark:8000
      qmd-remote config write --embed-url http://spark:8001 --generation-url http://spark:8000 --api-key-env SPARK_KEY
      qmd-remote config write --index work --dry-run
    """
    out = Output("config write", as_json=as_json, quiet=quiet, again=options.again(file, index))

    def body() -> int:
        from qmd_remote.client import qmd_config
        from qmd_remote.config_flow import wanted_block

        path = file or paths.qmd_config_file(index)
        wanted = wanted_block(
            out,
            url=url,
            embed_url=embed_url,
            generation_url=generation_url,
            key_variable=api_key_env,
            literal=api_key_literal,
            there=qmd_config.read(path),
        )
        change = qmd_config.plan_write(path, wanted)
        if not dry_run:
            change = qmd_config.apply(change)
        return _told(out, change, diff=diff, dry_run=dry_run)

    run(out, body)


@app.command(short_help="Take the remote: block out of QMD's index.yml.")
def remove(
    index: options.Index = "index",
    file: options.File = None,
    diff: Diff = False,
    dry_run: DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Take the remote: block out of QMD's index.yml, so that QMD uses its local models; nothing else changes.

    \b
    Examples:
      qmd-remote config remove --diff
      qmd-remote config remove --index work --dry-run
    """
    out = Output("config remove", as_json=as_json, quiet=quiet, again=options.again(file, index))

    def body() -> int:
        from qmd_remote.client import qmd_config

        change = qmd_config.plan_remove(file or paths.qmd_config_file(index))
        if not dry_run:
            change = qmd_config.apply(change)
        return _told(out, change, diff=diff, dry_run=dry_run)

    run(out, body)


def _told(out: Output, change: Change, *, diff: bool, dry_run: bool) -> int:
    """Say what became of a change."""
    if diff or dry_run:
        out.raw(change.diff)
    if not change.changed and change.wanted is None:
        out.note(f"{change.path} has no remote: block; nothing to remove")
    elif not change.changed:
        out.note(f"{change.path} is as it should be; nothing to write")
    elif dry_run:
        out.note(f"{change.path} was not written (--dry-run)")
    else:
        out.note(f"{change.path} written" + (f"; the old file is {change.backup}" if change.backup else ""))
        out.note("next: qmd-remote test" if change.wanted else "QMD uses its local models now")
    return out.finish(
        {
            "path": change.path,
            "changed": change.changed,
            "created": change.created,
            "written": change.changed and not dry_run,
            "backup": change.backup,
            "diff": change.diff,
        }
    )


@app.command(short_help="Say what QMD will really do with its index.yml, and what to correct.")
def check(
    index: options.Index = "index",
    file: options.File = None,
    offline: Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Say what QMD will really do with its index.yml: where it sends what, or why it stays local; and what to correct.

    Exits with 4 when QMD would fail or use its local models, with 1 when a service refuses the key.

    \b
    Examples:
      qmd-remote config check
      qmd-remote config check --index work --offline
    """
    out = Output("config check", as_json=as_json, quiet=quiet, verbose=verbose, again=options.again(file, index))

    def body() -> int:
        from qmd_remote import config_flow

        path = file or paths.qmd_config_file(index)
        return config_flow.check(out, path, index=index, by_rule=file is None, offline=offline)

    run(out, body)


@app.command(short_help="Open QMD's index.yml in your editor, and check it afterwards.")
def edit(
    index: options.Index = "index",
    file: options.File = None,
    offline: Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Open QMD's index.yml in $VISUAL or $EDITOR, and check it afterwards as `config check` does.

    \b
    Example:
      EDITOR=nano qmd-remote config edit
    """
    out = Output("config edit", as_json=as_json, quiet=quiet, again=options.again(file, index))

    def body() -> int:
        from qmd_remote import config_flow

        path = file or paths.qmd_config_file(index)
        return config_flow.edit(out, path, index=index, by_rule=file is None, offline=offline)

    run(out, body)


@app.command(short_help="Show the remote: block as QMD reads it.")
def show(index: options.Index = "index", file: options.File = None, as_json: options.Json = False) -> None:
    """Show the remote: block as QMD reads it: which URLs it will use, with which key, or why it stays local.

    \b
    Example:
      qmd-remote config show
    """
    out = Output("config show", as_json=as_json, again=options.again(file, index))

    def body() -> int:
        from qmd_remote.client import qmd_config
        from qmd_remote.client.causes import shown

        path = file or paths.qmd_config_file(index)
        config = qmd_config.read(path)
        if not config.exists:
            raise ConfigError(f"there is no file {path}", hint="qmd-remote config write", code="config_file.missing")
        values: dict[str, Any] = {
            "path": path,
            "embed_url": config.embed_url and shown(config.embed_url),
            "generation_url": config.generation_url and shown(config.generation_url),
            "api_key": config.api_key_shown,
            "models": vars(config.models),
            "unset_variables": list(config.unset),
        }
        if config.problem:
            message = f"QMD uses local models: {config.problem}"
            return out.fail(ConfigError(message, hint="qmd-remote config write", code="config_file.incomplete"), values)
        for name in config.unset:
            out.warn(f"the variable {name} has no value here", hint=f"export {name}=…, where QMD runs")
        for name, value in {**values, **{f"models.{k}": v for k, v in vars(config.models).items()}}.items():
            if isinstance(value, str | Path):
                out.raw(f"{name:<16} {value}\n")
        return out.finish(values)

    run(out, body)


@app.command(name="path", short_help="Say where QMD's configuration file is.")
def show_path(index: options.Index = "index", as_json: options.Json = False) -> None:
    """Say where QMD's configuration file is, by QMD's own rule; whether it exists does not matter.

    \b
    Example:
      cat "$(qmd-remote config path)"
    """
    out = Output("config path", as_json=as_json)

    def body() -> int:
        path = paths.qmd_config_file(index)
        if not as_json:
            out.raw(f"{path}\n")
        return out.finish({"path": path, "exists": path.exists()})

    run(out, body)
