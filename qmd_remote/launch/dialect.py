"""Requests in the words of an engine. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

# QMD sends it with every expansion, vLLM knows it, and transformers 5.23 refuses a request that holds it (422)
UNKNOWN_TO_TRANSFORMERS = frozenset({"top_k"})
COMPLETIONS = ("/v1/chat/completions", "/v1/completions")


def unchanged(path: str, body: bytes) -> bytes:
    """The body as it is."""
    return body


def for_transformers(path: str, body: bytes) -> bytes:
    """A completion request without the fields that `transformers serve` does not know; all else as it is."""
    if path.partition("?")[0] not in COMPLETIONS:
        return body
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body  # the engine says what is wrong with it
    if not isinstance(request, dict) or not UNKNOWN_TO_TRANSFORMERS & request.keys():
        return body
    kept = {name: value for name, value in request.items() if name not in UNKNOWN_TO_TRANSFORMERS}
    return json.dumps(kept).encode()


ADAPT: Mapping[str, Callable[[str, bytes], bytes]] = MappingProxyType({"transformers": for_transformers})
