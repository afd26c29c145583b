"""`config write` and `remove` for each family of QMD's clients: the edit of its file, or its variables for a shell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmd_remote import config_flow, local
from qmd_remote.client import backups, config_facts, families, family_edits, json_splice, own_values, qmd_config
from qmd_remote.client.families import DEFAULT, Entry, Family
from qmd_remote.client.family_choice import check_for
from qmd_remote.client.family_edits import Endpoints
from qmd_remote.client.qmd_config import HIDDEN, Change
from qmd_remote.client.remote_block import RemoteBlock, is_literal, references
from qmd_remote.config_files import ConfigFile
from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.output import Output


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says of the server."""

    url: str | None = None
    embed_url: str | None = None
    generation_url: str | None = None
    key_variable: str | None = None
    literal: bool = False

    @property
    def any_url(self) -> bool:
        """Whether the user names the server."""
        return bool(self.url or self.embed_url or self.generation_url)


def plan_write(out: Output, family: Family, files: list[ConfigFile], given: Given) -> list[Change]:
    """What writing does to each file; nothing is written, so that a file which cannot be edited leaves all as they are.

    Raises UsageError for options that contradict each other, ConfigError for a file that cannot be edited safely, for
    a key that is asked for and not there, and for a family that our server does not serve.
    """
    _require_file(family)
    if family.name == DEFAULT:
        return [_plan_remote(out, file.path, given) for file in files]
    return [_plan_other(out, family, file.path, given) for file in files]


def plan_remove(family: Family, files: list[ConfigFile]) -> list[Change]:
    """What taking the family's keys out does to each file; nothing is written. Raises as `plan_write`."""
    _require_file(family)
    if family.name == DEFAULT:
        return [qmd_config.plan_remove(file.path) for file in files]
    changes = []
    for path in (file.path for file in files):
        earlier = [backup.text for backup in backups.newest_first(path)]

        def edit(text: str | None, name: str = path.name, earlier: Sequence[str] = earlier) -> str | None:
            return family_edits.removed(text, family, name=name, earlier=earlier)

        changes.append(qmd_config.plan_edit(path, edit, removal=True, mask=_mask(family)))
    return changes


def print_env(out: Output, family: Family, given: Given) -> int:
    """Print the lines that set the family's variables in a POSIX shell. Raises as `plan_write`."""
    family_edits.require_variables(family)
    _require_use_of_key(family, family.variables, given, "variable")
    endpoints, block = _endpoints(out, family, None, given)
    lines = family_edits.shell_lines(family, endpoints)
    if isinstance(block.api_key, str):
        _require_place(family, family.variables)
    for line in lines:
        out.raw(f"{line}\n")
    if family.limits:
        out.warn(f"{family.name}: {family.limits}")
    if family.note:
        out.note(f"{family.name}: {family.note}")
    names = [line.removeprefix("export ").partition("=")[0] for line in lines]
    return out.finish({"client": family.name, "variables": names, "lines": lines})


def _require_file(family: Family) -> None:
    if not family.served:
        raise family_edits.unserved(family)
    if family.file is None:
        raise UsageError(
            f"{family.name} reads no file, but variables of the environment",
            hint=f"qmd-remote config write --client {family.name} --print-env",
        )


def _plan_remote(out: Output, path: Path, given: Given) -> Change:
    wanted = config_flow.wanted_block(
        out,
        url=given.url,
        embed_url=given.embed_url,
        generation_url=given.generation_url,
        key_variable=given.key_variable,
        literal=given.literal,
        there=qmd_config.read(path),
    )
    return qmd_config.plan_write(path, wanted)


def _plan_other(out: Output, family: Family, path: Path, given: Given) -> Change:
    _require_use_of_key(family, (*family.file_keys, *family.variables), given, "place")
    endpoints, block = _endpoints(out, family, path, given)
    trees = family_edits.trees(family, endpoints)
    if isinstance(block.api_key, str):
        _tell_of_the_key(out, family, endpoints, given)

    def edit(text: str | None) -> str:
        return family_edits.written(text, family, trees, name=path.name)

    change = qmd_config.plan_edit(path, edit, private=endpoints.key is not None, mask=_mask(family))
    if family.limits:
        out.warn(f"{family.name}: {family.limits}")
    if family.note:
        out.note(f"{family.name}: {family.note}")
    return change


def _endpoints(out: Output, family: Family, path: Path | None, given: Given) -> tuple[Endpoints, RemoteBlock]:
    """The server as `config write` settles it; without any URL and with nothing that runs here, that in the file."""
    url, embed_url, generation_url = given.url, given.embed_url, given.generation_url
    expands = "expand" in family.roles
    if path and not given.any_url and not local.find().running:
        there = check_for(config_facts.gather(path, os.environ), family)
        embed_url, generation_url = there.embed_url, there.generation_url
        if not (embed_url and generation_url):
            url, embed_url, generation_url = embed_url or generation_url, None, None
    if not expands and generation_url:
        if given.generation_url:
            out.warn(f"{family.name} sends no query expansions, so --generation-url is of no use to it")
        generation_url = None
    if embed_url and not generation_url and (family.one_url or not expands) and not url:
        url, embed_url = embed_url, None
    block = config_flow.wanted_block(
        out,
        url=url,
        embed_url=embed_url,
        generation_url=generation_url,
        key_variable=given.key_variable,
        literal=given.literal,
        expands=expands,
    )
    key = block.api_key if isinstance(block.api_key, str) else None
    literal = key if key and is_literal(key) else None
    variables = references(key) if key and not literal else []
    return Endpoints(
        embed_url=block.url or block.embed_url or "",
        generation_url=block.url or block.generation_url or "",
        models=block.models,
        key=literal,
        key_variable=variables[0] if variables else None,
    ), block


def _tell_of_the_key(out: Output, family: Family, endpoints: Endpoints, given: Given) -> None:
    """A key that the server wants or the user names, and that does not get into the file."""
    _require_place(family, (*family.file_keys, *family.variables))
    if endpoints.key is not None:
        return
    ways = "qmd-remote config write --client {} --api-key-literal, which copies it into the file (mode 0600)"
    if _takes_key(family.variables):
        ways = f"qmd-remote config write --client {{}} --print-env, for the shell that starts QMD; or: {ways}"
    why = "" if given.key_variable else "the server wants a key, and "
    out.warn(
        f"{why}{family.name} is not known to fill in ${{…}}: no key was written",
        hint=ways.format(family.name),
    )


def _takes_key(entries: Sequence[Entry]) -> bool:
    return any(template == "{key}" for _, template in entries)


def _require_use_of_key(family: Family, entries: Sequence[Entry], given: Given, what: str) -> None:
    """Refuse options for a key that this client has no place for, whatever the server says."""
    options = {"--api-key-env": given.key_variable, "--api-key-literal": given.literal}
    named = next((option for option, value in options.items() if value), None)
    if named and not _takes_key(entries):
        raise ConfigError(
            f"{family.name} has no {what} for a key that is known, so {named} cannot be used",
            hint=f"leave {named} out; see docs/clients/{family.name}.md for a server that wants a key",
            code="client.no_key",
        )


def _require_place(family: Family, entries: Sequence[Entry]) -> None:
    if not _takes_key(entries):
        raise ConfigError(
            f"the server wants a key, and {family.name} is not known to have a place for one",
            hint=f"see docs/clients/{family.name}.md; the server needs no key where it listens on its own machine only",
            code="client.no_key",
        )


def _mask(family: Family) -> qmd_config.Mask | None:
    if family.file != "json":
        return None
    return lambda text, _: (json_splice.masked(text, HIDDEN), frozenset())


def told(out: Output, changes: list[Change], family: Family, *, diff: bool, dry_run: bool) -> list[dict[str, Any]]:
    """Say what became of each change, and return it for the envelope."""
    what = "remote: block" if family.name == DEFAULT else f"setting of {family.name}"
    for change in changes:
        if diff or dry_run:
            out.raw(change.diff)
        if not change.changed and change.removal:
            out.note(f"{change.path} has no {what}; nothing to remove")
        elif not change.changed:
            out.note(f"{change.path} is as it should be; nothing to write")
        elif dry_run:
            out.note(f"{change.path} was not written (--dry-run)")
        else:
            out.note(f"{change.path} written" + (f"; the old file is {change.backup}" if change.backup else ""))
            if change.removal:
                _tell_of_the_past(out, family, change)
    if any(change.changed for change in changes) and not dry_run:
        if changes[0].removal:
            out.note("QMD uses its local models now")
        else:
            out.note("next: qmd-remote test" if family.name == DEFAULT else "next: qmd-remote config check")
    return [
        {
            "path": change.path,
            "client": family.name,
            "changed": change.changed,
            "created": change.created,
            "written": change.changed and not dry_run,
            "backup": change.backup,
            "diff": change.diff,
        }
        for change in changes
    ]


def _tell_of_the_past(out: Output, family: Family, change: Change) -> None:
    """Which values of the user are back, and where older files are: one may hold what is not."""
    if family.file == "yaml" and (back := own_values.returned(family, change.before or "", change.after or "")):
        out.note(f"as before `config write` again: {', '.join(back)}")
    older = [str(backup.path) for backup in backups.newest_first(change.path) if backup.text != change.before]
    if older:
        out.note(f"older files: {', '.join(older)}")


def family_of(client: str | None) -> Family:
    """The family that is named, else the default one. Raises UsageError for a name that is none."""
    return families.find(client or DEFAULT)
