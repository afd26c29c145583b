"""Take one block out of a YAML text: text in, text out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qmd_remote.client.yaml_document import Document, parse
from qmd_remote.client.yaml_splice import (
    BLOCK,
    Pair,
    after_line,
    content_end,
    others,
    own_pair,
    parse_editable,
    same_frame,
)
from qmd_remote.errors import ConfigError

_BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)*")


def cut(text: str, block: str = BLOCK, *, name: str = "index.yml") -> str:
    """`text` without its top-level block of this name; one that has none comes back as it is.

    The block's lines go, with the comments in them and those right below that are indented deeper than its key. All
    else stays as it is: comments above, since nothing tells whom they belong to, and blank lines. Raises ConfigError,
    naming line and fix, for what `splice` refuses.
    """
    document = parse_editable(text, name, block)
    pair = own_pair(document, block)
    if pair is None:
        return text
    start = pair[0].start - document.column(pair[0].start)
    for end in _ends(document, pair):
        after = document.bom + document.text[:start] + document.text[end:]
        if _is_without(document, block, after):
            return after
    raise ConfigError(
        f"{name}: the `{block}:` block cannot be taken out safely",
        hint=f"remove it by hand, from line {document.line(start)} on",
        code="config_file.unsafe",
    )


def _ends(document: Document, block: Pair) -> Iterator[int]:
    """Where the block may end: behind its comments, or behind blank lines too, which a text above would swallow."""
    key, value = block
    end = after_line(document, max(key.end, content_end(document, value)) if value.start < value.end else key.end)
    column = document.column(key.start)
    deeper = re.compile(rf"(?:[ ]{{{column + 1},}}#.*(?:\n|\Z))*")
    if comments := deeper.match(document.text, end):
        end = comments.end()
    yield end
    if blank := _BLANK_LINES.match(document.text, end):
        yield blank.end()


def _is_without(before: Document, block: str, after: str) -> bool:
    """Whether `after` lacks the block and differs from `before` in nothing else."""
    try:
        now = parse(after, before.name)
    except ConfigError:
        return False
    gone = own_pair(now, block) is None and same_frame(before, now)
    return gone and others(before, own_pair(before, block)) == others(now, None)
