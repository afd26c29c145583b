"""Edit only one top-level block of a YAML text, `remote:` or another client's: text in, text out.

An edit replaces, inserts or removes tokens at the places the parser reports, so that comments, quoting and order
survive, in the block too where it can be. The result is parsed again and compared with what was wanted; a text for
which that fails is refused, never written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qmd_remote.client.remote_block import RemoteBlock, Tree
from qmd_remote.client.yaml_document import Document, Node, parse, refuse
from qmd_remote.errors import ConfigError

BLOCK = "remote"
STEP = 2

_HINT = "write it over several lines, one `key: value` on each, indented by spaces"
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9._/:@+%=~-]*(?<!:)")
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])

Pair = tuple[Node, Node]
Place = Literal["beside", "top", "end", "before_last"]


@dataclass(frozen=True)
class _Edit:
    """Put `new` in the place of `text[start:end]`; `lines` are whole lines, so they start on a line of their own."""

    start: int
    end: int
    new: str
    lines: bool = False


def splice(text: str, wanted: RemoteBlock, *, name: str = "index.yml") -> str:
    """`text` with its `remote:` block as `wanted`; keys of the block that `wanted` does not speak of are kept.

    Nothing outside the block changes, and a text that already is as wanted comes back as it is. `name` is the file's
    name for messages. Raises ConfigError, naming line and fix, for what cannot be edited safely: a block in flow style
    or with anchors, aliases, merge keys or tags, several documents, duplicate keys, tabs, `? key`, line separators
    that only YAML 1.1 knows, or broken YAML.
    """
    hint = f"write the block by hand: {BLOCK}: with url, api_key and models below it"
    return splice_block(text, BLOCK, wanted.tree(), name=name, hint=hint)


def splice_block(text: str, block: str, tree: Tree, *, name: str = "index.yml", hint: str = "") -> str:
    """`text` with the keys of `tree` in its top-level block of this name, as `splice` does it with `remote:`.

    A value of one line gives way where `tree` has keys of its own in its place; in `remote:` that is refused.
    """
    document = parse_editable(text, name, block, tree)
    pair = own_pair(document, block)
    places: tuple[Place, ...] = ("beside", "top") if pair else ("end", "before_last")
    for place in places:
        edits = list(
            _change(document, block, pair, tree, step=STEP, place=place)
            if pair
            else _append(document, {block: tree}, place)
        )
        if not edits:
            return text
        after = document.bom + _apply(document.text, edits)
        if _is_as_wanted(document, after, block, tree):
            return after
    raise ConfigError(
        f"{name}: the `{block}:` block cannot be edited safely",
        hint=hint or f"write by hand, below {block}: the keys {', '.join(tree)}",
        code="config_file.unsafe",
    )


def parse_editable(text: str, name: str, block: str = BLOCK, tree: Tree | None = None) -> Document:
    """Read a text whose `block` can be edited safely. Raises ConfigError, as `splice` does, for any other.

    `tree` has the keys of the block that shall hold keys of their own; None stands for those of `remote:`.
    """
    _refuse_unsafe_text(text, name)
    document = parse(text, name)
    _require_editable(document, block, {"models": {}} if tree is None else tree)
    return document


def _refuse_unsafe_text(text: str, name: str) -> None:
    text = text.removeprefix("\ufeff")
    if (mark := text.find("\ufeff")) >= 0:
        problem = "the character U+FEFF means different things to different YAML readers"
        refuse(name, text, mark, problem, 'write it as an escape in double quotes, "\\ufeff", or remove it')
    if lone := re.search(r"\r(?!\n)", text):
        refuse(name, text, lone.start(), "a carriage return stands alone", "end the lines with LF or CRLF")


def _require_editable(document: Document, block: str, tree: Tree) -> None:
    """Raise ConfigError, naming line and fix, for what could be misread or damaged by an edit."""
    if document.explicit_key is not None:
        document.refuse(document.explicit_key, "a key is written as `? key`", "write it as `key: value`")
    root = document.root
    if root is None:
        return
    if root.kind != "mapping":
        document.refuse(root.start, "the file holds no mapping at its top level", "QMD expects `key: value` lines")
    if root.style == "flow":
        document.refuse(root.start, "the whole file is one mapping in braces", _HINT)
    if document.bom and document.column(root.start):
        # YAML readers disagree on whether a byte order mark counts as a column.
        document.refuse(0, "a byte order mark stands before indented keys", "remove the mark or the indentation")
    if pair := root.get(block):
        _require_plain_block(document, block, pair, tree)


def _require_plain_block(document: Document, block: str, pair: Pair, tree: Tree) -> None:
    key, value = pair
    for node in [*key.walk(), *value.walk()]:
        what = "an alias" if node.kind == "alias" else "an anchor" if node.anchor else "a tag" if node.tagged else ""
        if node.kind == "mapping" and (merge := node.get("<<")):
            document.refuse(merge[0].start, f"a merge key stands in the `{block}:` block", "write the values out")
        if what:
            document.refuse(node.start, f"{what} stands in the `{block}:` block", "write the value itself")
    _require_block_mapping(document, block, value)
    for name, child in value.pairs:
        gives_way = block != BLOCK and child.kind == "scalar" and "\n" not in document.text[child.start : child.end]
        if isinstance(tree.get(name.value), dict) and not gives_way:
            _require_block_mapping(document, f"{block}.{name.value}", child)


def _require_block_mapping(document: Document, name: str, node: Node) -> None:
    if node.is_null:
        return
    if node.kind != "mapping":
        what = "a list" if node.kind == "sequence" else "a single value"
        document.refuse(node.start, f"`{name}` holds {what} instead of keys", f"remove that value, or {_HINT}")
    if node.style == "flow":
        document.refuse(node.start, f"`{name}` is written in braces", _HINT)


def _append(document: Document, tree: Tree, place: Place) -> Iterator[_Edit]:
    """The edit that adds the whole block to a file without one."""
    root, text = document.root, document.text
    if place == "before_last" and root is None:
        return
    column = document.column(root.start) if root else 0
    if place == "before_last" and root is not None:
        at = root.pairs[-1][0].start - column
    else:
        at = len(text) if document.end_marker is None else document.end_marker
    yield _Edit(at, at, _lines(document, tree, column, STEP), lines=True)


def _change(document: Document, path: str, pair: Pair, tree: Tree, *, step: int, place: Place) -> Iterator[_Edit]:
    """The edits that make the mapping under `key` hold `tree`. New keys go beside their neighbour, or to the top."""
    key, value = pair
    own = document.column(key.start)
    column = document.column(value.pairs[0][0].start) if value.pairs else own + step
    top = after_line(document, key.end)
    if value.kind == "scalar" and value.start < value.end:
        yield _cut_value(document, value)
    at = top
    for name, new in tree.items():
        child = value.get(name)
        if child is None:
            if new is not None:
                place_at = at if place == "beside" else top
                yield _Edit(place_at, place_at, _lines(document, {name: new}, column, column - own), lines=True)
            continue
        at = after_line(document, content_end(document, child[1]))
        if new is None:
            yield _Edit(child[0].start - column, at, "")
        elif isinstance(new, str):
            yield from _set_scalar(document, f"{path}.{name}", child[1], new, always_quote=_is_key(name))
        else:
            yield from _change(document, f"{path}.{name}", child, new, step=column - own, place=place)


def _is_key(name: str) -> bool:
    return name.lower().endswith(("api_key", "apikey"))


def _cut_value(document: Document, value: Node) -> _Edit:
    """The edit that removes a scalar, a written `~` say, and the spaces before it."""
    before = document.text[: value.start]
    return _Edit(len(before.rstrip(" ")), content_end(document, value), "")


def _set_scalar(document: Document, name: str, old: Node, new: str, *, always_quote: bool) -> Iterator[_Edit]:
    if old.kind != "scalar":
        what = "a list" if old.kind == "sequence" else "keys"
        document.refuse(old.start, f"`{name}` holds {what} instead of a text", "remove what it holds")
    if old.is_text and old.value == new:
        return
    written = _quoted(new) if always_quote else _scalar(new, like=old.style)
    if old.is_null and not old.value:
        yield _Edit(old.start, old.start, f" {written}")
    else:
        yield _Edit(old.start, content_end(document, old), written)


def content_end(document: Document, node: Node) -> int:
    """The offset behind the last visible character of a node.

    A block's own end mark lies behind the comments and blank lines that follow it, which belong to what comes next.
    """
    if node.style == "block":
        last = node.items[-1] if node.items else node.pairs[-1][1]
        return content_end(document, last)
    return node.start + len(document.text[node.start : node.end].rstrip())


def after_line(document: Document, offset: int) -> int:
    """The offset behind the end of the line that holds `offset`."""
    newline = document.text.find("\n", offset)
    return len(document.text) if newline < 0 else newline + 1


def _lines(document: Document, tree: Tree, column: int, step: int) -> str:
    newline = _newline(document.text)
    written = ""
    for name, value in tree.items():
        if isinstance(value, dict):
            written += f"{' ' * column}{name}:{newline}{_lines(document, value, column + step, step)}"
        elif value is not None:
            scalar = _quoted(value) if _is_key(name) else _scalar(value)
            written += f"{' ' * column}{name}: {scalar}{newline}"
    return written


def _newline(text: str) -> str:
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def _scalar(value: str, like: str = "") -> str:
    """`value` so that YAML 1.1 and 1.2 read the same: plain where that is safe, or in the old value's quotes."""
    if like == "'":
        return "'" + value.replace("'", "''") + "'"
    if like == '"' or not _PLAIN.fullmatch(value) or value.lower() in _WORDS:
        return _quoted(value)
    return value


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _apply(text: str, edits: list[_Edit]) -> str:
    out, position = "", 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        out += text[position : edit.start]
        if edit.lines and out and not out.endswith("\n"):
            out += _newline(text)
        out += edit.new
        position = edit.end
    return out + text[position:]


def _is_as_wanted(before: Document, after: str, block: str, tree: Tree) -> bool:
    """Whether `after` holds `tree` and differs from `before` in nothing else."""
    try:
        now = parse(after, before.name)
    except ConfigError:
        return False
    if now.root is None or now.root.kind != "mapping":
        return False
    old, new = own_pair(before, block), own_pair(now, block)
    if new is None or not same_frame(before, now) or others(before, old) != others(now, new):
        return False
    return _holds(new[1], old and old[1], tree)


def same_frame(one: Document, other: Document) -> bool:
    """Whether two documents agree in byte order mark, `---` and `...`."""
    same_end = (one.end_marker is None) == (other.end_marker is None)
    return one.bom == other.bom and one.explicit_start == other.explicit_start and same_end


def own_pair(document: Document, block: str = BLOCK) -> Pair | None:
    """The block's key and its value, if the file has them."""
    return document.root.get(block) if document.root else None


def others(document: Document, own: Pair | None) -> list[Pair]:
    """Every other key of the file with its value."""
    return [pair for pair in (document.root.pairs if document.root else ()) if pair is not own]


def _holds(new: Node, old: Node | None, tree: Tree) -> bool:
    """Whether the mapping `new` has what `tree` wants, and everything else exactly as `old` had it."""
    unknown, unknown_now = (
        [pair for pair in (node.pairs if node else ()) if pair[0].value not in tree] for node in (old, new)
    )
    if unknown != unknown_now:
        return False
    for name, wanted in tree.items():
        pair = new.get(name)
        if pair is None or wanted is None:
            if pair is not None or wanted is not None:
                return False
        elif isinstance(wanted, str):
            if not (pair[1].is_text and pair[1].value == wanted):
                return False
        else:
            old_pair = old.get(name) if old else None
            if not _holds(pair[1], old_pair and old_pair[1], wanted):
                return False
    return True
