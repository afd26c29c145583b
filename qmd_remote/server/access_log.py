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
    """Writes to the logger "qmd_remote.access", level INFO. Polls that went well are left out."""

    def began(self, exchange: Exchange) -> None:
        """Nothing yet."""

    def ended(self, exchange: Exchange) -> None:
        """Write the line."""
        if (exchange.polled and exchange.status == 200) or not log.isEnabledFor(logging.INFO):
            return
        log.info("%s", line(exchange))


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
