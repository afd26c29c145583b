"""A line of JSON for every request; never a text, a key, a header or a query string."""

from __future__ import annotations

import json
import logging

from qmd_remote.server.exchange import Exchange

log = logging.getLogger("qmd_remote.access")

LONGEST_PATH = 200
LONGEST_METHOD = 20
DELETE = "\x7f"  # the one control character that JSON lets stand


class AccessLog:
    """Writes to the logger "qmd_remote.access", level INFO; for one event loop.

    Polls that went well are left out, and of those that found a server not ready, all but the first in a row: a
    supervisor asks several times a second while models load.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def began(self, exchange: Exchange) -> None:
        """Nothing yet."""

    def ended(self, exchange: Exchange) -> None:
        """Write the line."""
        if log.isEnabledFor(logging.INFO) and not self._is_routine(exchange):
            log.info("%s", line(exchange))

    def _is_routine(self, exchange: Exchange) -> bool:
        if not exchange.polled:
            return False
        last = self._last.get(exchange.path)
        self._last[exchange.path] = exchange.status
        return exchange.status == 200 or exchange.status == last == 503


def line(exchange: Exchange) -> str:
    """The exchange as one line of ASCII JSON."""
    entry = {
        "event": "request",
        "method": exchange.method[:LONGEST_METHOD],
        "path": exchange.path[:LONGEST_PATH],
        "status": exchange.status,
        "ms": round(exchange.seconds * 1000, 1),
        "client": exchange.client,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "texts": exchange.texts,
        "tokens": exchange.tokens,
        "truncated": exchange.truncated,
        "error": exchange.error or None,
    }
    # ASCII: whatever a path holds, no terminal and no log reader is moved by it
    return json.dumps(entry).replace(DELETE, "\\u007f")
