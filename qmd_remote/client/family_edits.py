"""A family of clients and the endpoints of a server → the edit of its file, or the lines for a shell. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qmd_remote.client import json_splice
from qmd_remote.client.families import Family, Path
from qmd_remote.client.own_values import SHARED_BLOCK, before_ours, is_mine, keys_of, mapping_of
from qmd_remote.client.remote_block import ModelNames, Tree, require_variable
from qmd_remote.client.yaml_cut import cut
from qmd_remote.client.yaml_document import Document, Node, parse
from qmd_remote.client.yaml_splice import splice_block
from qmd_remote.errors import ConfigError, UsageError


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """A server: base URLs without /v1, its models' names, and its key.

    `key` is written into a file as it is, so it is None where no key belongs there; `key_variable` names the
    variable that a shell's lines refer to.
    """

    embed_url: str
    generation_url: str
    models: ModelNames = field(default_factory=ModelNames)
    key: str | None = field(default=None, repr=False)
    key_variable: str | None = None


def values(family: Family, endpoints: Endpoints) -> dict[str, str]:
    """What the parts of the family's templates stand for; what is not known is not there."""
    known = {
        "{embed_url}": endpoints.embed_url + family.base_path,
        "{generation_url}": endpoints.generation_url + family.base_path,
        "{embed}": endpoints.models.embed,
        "{rerank}": endpoints.models.rerank,
        "{generate}": endpoints.models.generate,
        "{key}": endpoints.key,
    }
    return {part: value for part, value in known.items() if value}


def filled(template: str, known: Mapping[str, str]) -> str | None:
    """The template with its parts in place, in one pass; None where one of them is not known."""
    parts = re.findall(r"\{\w+\}", template)
    if any(part not in known for part in parts):
        return None
    return re.sub(r"\{\w+\}", lambda found: known[found[0]], template)


def trees(family: Family, endpoints: Endpoints) -> dict[str, Tree]:
    """The keys that the family's file shall hold, by top-level block.

    Raises UsageError for two URLs where one fits, ConfigError where a URL cannot be written without a model's name.
    """
    _require_one_server(family, endpoints)
    known = values(family, endpoints)
    found: dict[str, Tree] = {}
    for path, template in family.paths:
        value = filled(template, known)
        if value is not None:
            _put(found, path, value)
        elif "_url}" in template:
            raise ConfigError(
                f"{family.name} needs the embedding model's name in `{'.'.join(path)}`, and that is not known",
                hint="start the server, or give --url where one answers, and write again",
                code="client.no_model",
            )
    return found


def _put(found: dict[str, Tree], path: Path, value: str | None) -> None:
    tree = found.setdefault(path[0], {})
    for name in path[1:-1]:
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            return
        tree = below
    tree[path[-1]] = value


def _require_one_server(family: Family, endpoints: Endpoints) -> None:
    if family.one_url and len(family.roles) > 1 and endpoints.embed_url != endpoints.generation_url:
        raise UsageError(
            f"{family.name} has one URL for everything", hint="name the embed server with --url: it answers for both"
        )


def written(text: str | None, family: Family, wanted: Mapping[str, Tree], *, name: str) -> str:
    """The file's text with the wanted keys; every other byte stays.

    Raises ConfigError, naming line and fix, for a text that cannot be edited safely.
    """
    after = text or ""
    for block, tree in wanted.items():
        if family.file == "json":
            after = json_splice.splice(after, block, tree, name=name)
        else:
            after = splice_block(after, block, tree, name=name)
    return after


def removed(text: str | None, family: Family, *, name: str, earlier: Sequence[str] = ()) -> str | None:
    """The file's text without the family's keys, and without a block that has nothing else; None for no file.

    Names of local models stay, and those that gave way come back from the `earlier` texts of the file, the newest
    first. Raises ConfigError as `written` does.
    """
    if text is None:
        return None
    if family.file == "json":
        gone: Tree = {path[1]: None for path, _ in family.paths}
        there = json_splice.read(text, name)
        mine = isinstance(there.get("remote"), dict) and any(key in there["remote"] for key in gone)
        return json_splice.splice(text, "remote", gone, name=name) if mine else text
    after = text
    # `models:` first: what `llm:` looks up there belongs to it as long as that is there
    for block in sorted({path[0] for path, _ in family.paths}, reverse=True):
        after = _without_block(after, family, block, name, earlier)
    return after


def _without_block(text: str, family: Family, block: str, name: str, earlier: Sequence[str]) -> str:
    document = parse(text, name)
    node = mapping_of(document, block)
    if node is None:
        return text
    gone = [key for key in keys_of(family, block) if is_mine(document, family, node, key)]
    if not gone:
        return text
    back = before_ours(family, gone, earlier) if block == SHARED_BLOCK else {}
    if len(gone) == len(node.pairs) and not back:
        return cut(text, block, name=name)
    # a text cannot take the place of keys in one step
    wide = [key for key, value in back.items() if isinstance(value, str) and _has_keys(document, node, key)]
    if wide:
        text = splice_block(text, block, dict.fromkeys(wide), name=name)
    tree: Tree = {key: back.get(key) for key in gone if key in back or key not in wide}
    return splice_block(text, block, tree, name=name)


def _has_keys(document: Document, node: Node, key: str) -> bool:
    pair = node.get(key)
    return pair is not None and document.resolve(pair[1]).kind == "mapping"


def shell_lines(family: Family, endpoints: Endpoints) -> list[str]:
    """The `export NAME=value` lines for a POSIX shell; a key is a reference to its variable, never the key.

    Raises ConfigError for a family that our server does not serve, UsageError for one without variables, for a name
    that no variable has, and for two URLs where one fits.
    """
    require_variables(family)
    _require_one_server(family, endpoints)
    known = values(family, replace(endpoints, key=None))
    lines = []
    for name, template in family.variables:
        if template == "{key}":
            if endpoints.key_variable:
                require_variable(endpoints.key_variable)
                lines.append(f'export {name}="${{{endpoints.key_variable}}}"')
        elif (value := filled(template, known)) is not None:
            lines.append(f"export {name}={shlex.quote(value)}")
    return lines


def require_variables(family: Family) -> None:
    """Raise as `shell_lines` does, where there are no lines for this family whatever the server is."""
    if not family.served:
        raise unserved(family)
    if not family.variables:
        hint = f"qmd-remote config write --client {family.name}"
        raise UsageError(f"{family.name} reads a file, and no variables are known for it", hint=hint)


def unserved(family: Family) -> ConfigError:
    """The error for a family whose protocol our server does not speak."""
    return ConfigError(
        f"our server cannot serve {family.name}: {family.limits}",
        hint="use another client: qmd-remote config write --client chronologos",
        code="client.not_served",
    )
