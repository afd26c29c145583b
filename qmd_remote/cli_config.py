"""`qmd-remote config …`: QMD's configuration file. Imports nothing heavy, so that it starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmd_remote import options, paths
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.output import Output

if TYPE_CHECKING:
    from qmd_remote.client.families import Family
    from qmd_remote.client.qmd_config import Change
    from qmd_remote.config_files import ConfigFile


def complete_client(incomplete: str) -> list[tuple[str, str]]:
    """Families of QMD's clients, with what they are, for the shell's completion."""
    from qmd_remote.client.families import names

    return [(name, about) for name, about in names() if name.startswith(incomplete)]


Client = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="FAMILY",
        help="Family of QMD's clients, e.g. api-urls or pr705 [chronologos].",
        autocompletion=complete_client,
    ),
]
OpenClawAgent = Annotated[
    str | None, typer.Option("--openclaw-agent", metavar="ID|all", help="The file of an agent of OpenClaw, or of all.")
]
Diff = Annotated[bool, typer.Option("--diff", help="Show what changes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")]
Offline = Annotated[bool, typer.Option("--offline", help="Look at the file only; ask no service.")]

ALL = "all"  # of OpenClaw's agents

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
    client: Client = None,
    print_env: Annotated[
        bool, typer.Option("--print-env", help="Print the client's variables for a shell; write nothing.")
    ] = False,
    openclaw_agent: OpenClawAgent = None,
    index: options.Index = "index",
    file: options.File = None,
    diff: Diff = False,
    dry_run: DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the remote: block of QMD's index.yml; not one byte outside that block changes.

    Without URLs, those of the services that run here are written; where none runs, those in the file stay. Forks of QMD
    that are told their server in another way are named with --client (docs/clients/README.md).

    \b
    Examples:
      qmd-remote config write --diff
      qmd-remote config write --url http://spark:8001 --api-key-env SPARK_KEY
      qmd-remote config write --index work --dry-run
      qmd-remote config write --client pr705 --url http://spark:8001
      qmd-remote config write --client pr575 --url http://spark:8001 --print-env
      qmd-remote config write --openclaw-agent all --url http://spark:8001
    """
    out = Output("config write", as_json=as_json, quiet=quiet, again=options.again(file, index))

    def body() -> int:
        from qmd_remote import config_clients

        family = config_clients.family_of(client)
        given = config_clients.Given(
            url=url,
            embed_url=embed_url,
            generation_url=generation_url,
            key_variable=api_key_env,
            literal=api_key_literal,
        )
        if print_env:
            if file or openclaw_agent or api_key_literal:
                raise UsageError("--print-env writes no file and prints no key", hint="leave the other options out")
            return config_clients.print_env(out, family, given)
        files = _files(out, client, file=file, index=index, agent=openclaw_agent)
        changes = config_clients.plan_write(out, family, files, given)
        return _applied(out, changes, family, diff=diff, dry_run=dry_run, several=openclaw_agent == ALL)

    run(out, body)


@app.command(short_help="Take the remote: block out of QMD's index.yml.")
def remove(
    client: Client = None,
    openclaw_agent: OpenClawAgent = None,
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
      qmd-remote config remove --client pr705
    """
    out = Output("config remove", as_json=as_json, quiet=quiet, again=options.again(file, index))

    def body() -> int:
        from qmd_remote import config_clients

        family = config_clients.family_of(client)
        files = _files(out, client, file=file, index=index, agent=openclaw_agent)
        changes = config_clients.plan_remove(family, files)
        return _applied(out, changes, family, diff=diff, dry_run=dry_run, several=openclaw_agent == ALL)

    run(out, body)


def _files(out: Output, client: str | None, *, file: Path | None, index: str, agent: str | None) -> list[ConfigFile]:
    """The files that are meant; hints repeat the one of an agent."""
    from qmd_remote import config_files

    found = config_files.find(client, file=file, index=index, agent=agent)
    if agent and len(found) == 1:
        out.again = found[0].again
    return found


def _applied(out: Output, changes: list[Change], family: Family, *, diff: bool, dry_run: bool, several: bool) -> int:
    """Make the changes, and say what became of them."""
    from qmd_remote import config_clients
    from qmd_remote.client import qmd_config

    if not dry_run:
        changes = [qmd_config.apply(change) for change in changes]
    data = config_clients.told(out, changes, family, diff=diff, dry_run=dry_run)
    return out.finish({"files": data} if several else data[0])


@app.command(short_help="Say what QMD will really do with its index.yml, and what to correct.")
def check(
    client: Client = None,
    openclaw_agent: OpenClawAgent = None,
    index: options.Index = "index",
    file: options.File = None,
    offline: Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Say what QMD will really do with its index.yml: where it sends what, or why it stays local; and what to correct.

    Which family of clients the file is for shows in its keys; --client names another. Exits with 4 when QMD would fail
    or use its local models, with 1 when a service refuses the key.

    \b
    Examples:
      qmd-remote config check
      qmd-remote config check --index work --offline
      qmd-remote config check --openclaw-agent all
    """
    out = Output("config check", as_json=as_json, quiet=quiet, verbose=verbose, again=options.again(file, index))

    def body() -> int:
        from qmd_remote import config_flow
        from qmd_remote.client import families

        files = _files(out, client, file=file, index=index, agent=openclaw_agent)
        here = file is None and openclaw_agent is None and index == "index"
        wanted = families.find(client) if client else None
        return config_flow.check(out, files, wanted, here=here, offline=offline)

    run(out, body)


@app.command(short_help="Open QMD's index.yml in your editor, and check it afterwards.")
def edit(
    client: Client = None,
    openclaw_agent: OpenClawAgent = None,
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
        from qmd_remote import config_files, config_flow

        found = _files(out, client, file=file, index=index, agent=openclaw_agent)
        here = file is None and openclaw_agent is None and index == "index"
        return config_flow.edit(out, config_files.one(found, "config edit"), here=here, offline=offline)

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
def show_path(
    client: Client = None,
    openclaw_agent: OpenClawAgent = None,
    index: options.Index = "index",
    as_json: options.Json = False,
) -> None:
    """Say where QMD's configuration file is, by QMD's own rule; whether it exists does not matter.

    \b
    Examples:
      cat "$(qmd-remote config path)"
      qmd-remote config path --client olyashok
    """
    out = Output("config path", as_json=as_json)

    def body() -> int:
        from qmd_remote import config_files

        path = config_files.one(_files(out, client, file=None, index=index, agent=openclaw_agent), "config path").path
        if not as_json:
            out.raw(f"{path}\n")
        return out.finish({"path": path, "exists": path.exists()})

    run(out, body)
