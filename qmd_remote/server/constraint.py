"""How an engine is held to the form of an expansion: the ways there are, and which of them one takes, as learnt.

vLLM passes over fields that it does not know, without a word, so its version is asked for; other engines refuse them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from qmd_remote.expansion_repair import MAX_LINES, MIN_LINES
from qmd_remote.expansion_request import Shape, rewritten

Way = Literal["structured_outputs", "guided_regex", "thinking_off", "plain"]

WAYS: tuple[Way, ...] = ("structured_outputs", "guided_regex", "thinking_off", "plain")  # each asks for less
STRUCTURED_OUTPUTS_SINCE = (0, 11)  # of vLLM; guided_regex went in 0.12
KEPT_S = 300.0  # an engine may be replaced without having been missed


def _regex() -> str:
    """MIN_LINES to MAX_LINES lines, one `vec:` at least; each alternative is one place of the first of these."""
    text = r"[^\s][^\n]*"
    line, other = rf"(?:lex|vec|hyde): {text}", rf"(?:lex|hyde): {text}"
    places = (
        rf"(?:{other}\n){{{n}}}vec: {text}(?:\n{line}){{{max(0, MIN_LINES - 1 - n)},{MAX_LINES - 1 - n}}}"
        for n in range(MAX_LINES)
    )
    return f"(?:{'|'.join(places)})"


REGEX = _regex()


def put(way: Way, shape: Shape, request: dict[str, Any], model: str) -> dict[str, Any]:
    """A client's request for an expansion, as `model` gets it this way."""
    body = rewritten(shape, request, model, thinking_off=way != "plain")
    if way == "structured_outputs":
        return {**body, "structured_outputs": {"regex": REGEX}}
    return {**body, "guided_regex": REGEX} if way == "guided_regex" else body


def best_way(version: str) -> Way:
    """The first to try with an engine that gives itself this version: vLLM's, or an empty text."""
    if not version:
        return "thinking_off"
    found = re.match(r"v?(\d+)\.(\d+)", version)
    known = not found or (int(found[1]), int(found[2])) >= STRUCTURED_OUTPUTS_SINCE
    return "structured_outputs" if known else "guided_regex"


class Learnt:
    """What the engine takes, found out from its version (None: it does not answer) and from what it refuses."""

    def __init__(self, version: Callable[[], Awaitable[str | None]]) -> None:
        self._version = version
        self._way: Way | None = None
        self._until = 0.0

    async def ways(self) -> tuple[Way, ...]:
        """Those to try, in this order."""
        if self._way is None or time.monotonic() > self._until:
            version = await self._version()
            if version is None:
                return WAYS
            self._took(best_way(version))
        assert self._way is not None
        return WAYS[WAYS.index(self._way) :]

    def took(self, way: Way) -> None:
        """The engine has answered a request put this way, after it refused those before."""
        if way != self._way:
            self._took(way)

    def forget(self) -> None:
        """The engine is away: the one that comes may be another."""
        self._way = None

    def _took(self, way: Way) -> None:
        self._way, self._until = way, time.monotonic() + KEPT_S
