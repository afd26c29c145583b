"""Whose a key of a client's file is, and what stood there before it was ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qmd_remote.client.families import FAMILIES, LOCAL_NAME, Family
from qmd_remote.client.remote_block import Tree
from qmd_remote.client.yaml_document import Document, Node, parse
from qmd_remote.errors import ConfigError

SHARED_BLOCK = "models"
_SHARED = frozenset(["embed", "rerank", "generate"])  # the keys of `models:` that name local models as well


def mapping_of(document: Document, block: str) -> Node | None:
    """The keys of a top-level block; None where it has none."""
    pair = document.root.get(block) if document.root and document.root.kind == "mapping" else None
    node = document.resolve(pair[1]) if pair else None
    return node if node is not None and node.kind == "mapping" else None


def keys_of(family: Family, block: str) -> list[str]:
    """The keys of a block that the family writes."""
    return list(dict.fromkeys(path[1] for path, _ in family.paths if path[0] == block and len(path) > 1))


def is_server(text: str) -> bool:
    """Whether a text that stands for a model is a server's URL, and not that of a file which QMD fetches."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None and not re.fullmatch(LOCAL_NAME, text)


def is_mine(document: Document, family: Family, node: Node, key: str) -> bool:
    """Whether a key is one that the family wrote: `models.embed` may name a local model, or belong to another one."""
    pair = node.get(key)
    if pair is None:
        return False
    value = document.resolve(pair[1])
    fixed = [(path, text) for path, text in family.paths if len(path) > 2 and path[1] == key and "{" not in text]
    if fixed:
        found = ((value.get(path[2]), text) for path, text in fixed)
        return all(inner is not None and document.resolve(inner[1]).value == text for inner, text in found)
    if key not in _SHARED:
        return True
    if value.kind != "scalar" or family.name == "model-urls":
        return is_server(value.value)
    # what `llm:` looks up in `models:` has no meaning without that block
    looked_up = document.root is not None and document.root.get("llm") is not None
    return looked_up and not is_server(value.value) and not re.fullmatch(LOCAL_NAME, value.value)


def before_ours(family: Family, keys: Iterable[str], earlier: Sequence[str]) -> dict[str, str | Tree]:
    """What the user had under these keys of `models:` before a family's values took their place.

    `earlier` are older texts of the file, the newest first. For each key the first one counts in which it is not ours;
    where that one has nothing there, or what no line can hold, nothing comes back.
    """
    missing = [key for key in keys if key in _SHARED]
    found: dict[str, str | Tree] = {}
    for text in earlier:
        try:
            document = parse(text, "backup")
        except ConfigError:
            continue
        node = mapping_of(document, SHARED_BLOCK) or Node("mapping", 0, 0)
        settled = [key for key in missing if not _is_ours(document, node, key)]
        values = {key: _value(document, family, node, key) for key in settled}
        found |= {key: value for key, value in values.items() if value is not None}
        missing = [key for key in missing if key not in settled]
    return found


def returned(family: Family, before: str, after: str) -> list[str]:
    """The keys, with dots, that were the family's in one text of a file and are the user's in the one that followed."""
    old, new = parse(before, "before"), parse(after, "after")
    were, are = mapping_of(old, SHARED_BLOCK), mapping_of(new, SHARED_BLOCK)
    if were is None or are is None:
        return []
    keys = [key for key in keys_of(family, SHARED_BLOCK) if is_mine(old, family, were, key) and are.get(key)]
    return [f"{SHARED_BLOCK}.{key}" for key in keys]


def _is_ours(document: Document, node: Node, key: str) -> bool:
    """Whether any family wrote it."""
    writers = (family for family in FAMILIES if key in keys_of(family, SHARED_BLOCK))
    return any(is_mine(document, family, node, key) for family in writers)


def _value(document: Document, family: Family, node: Node, key: str) -> str | Tree | None:
    pair = node.get(key)
    value = document.resolve(pair[1]) if pair else None
    if value is None:
        return None
    if value.kind == "scalar":
        return _line(value)
    inner = [path[2] for path, _ in family.paths if path[:2] == (SHARED_BLOCK, key) and len(path) > 2]
    if value.kind != "mapping" or not inner:
        return None
    there = {name: value.get(name) for name in inner}
    return {name: _line(document.resolve(pair[1])) if pair else None for name, pair in there.items()}


def _line(value: Node) -> str | None:
    """A text that one line can hold."""
    plain = value.kind == "scalar" and not value.is_null and value.value and value.value.isprintable()
    return value.value if plain else None
