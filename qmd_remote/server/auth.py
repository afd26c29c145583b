"""One key for the whole server, checked before anything of the request's body is read."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from qmd_remote.errors import Unauthorized
from qmd_remote.server.responses import error_response

OPEN_PATHS = frozenset({"/health", "/livez"})


class KeyAuth:
    """ASGI middleware that lets requests pass which carry `Authorization: Bearer KEY`; without a key, all of them.

    OPEN_PATHS answer everybody; `request.state.authorized` tells their handlers whether to show more than the status.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or hand the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        authorized = not self.key or has_key(scope["headers"], self.key)
        if not authorized and scope["path"] not in OPEN_PATHS:
            await error_response(_refusal(scope["headers"]))(scope, receive, send)
            return
        scope.setdefault("state", {})["authorized"] = authorized
        await self.app(scope, receive, send)


def has_key(headers: list[tuple[bytes, bytes]], key: bytes) -> bool:
    """Whether the first Authorization header is a Bearer header with `key`; takes the same time for every wrong key."""
    scheme, _, given = _authorization(headers).partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), key)


def _authorization(headers: list[tuple[bytes, bytes]]) -> bytes:
    return next((value.strip() for name, value in headers if name == b"authorization"), b"")


def _refusal(headers: list[tuple[bytes, bytes]]) -> Unauthorized:
    if not _authorization(headers):
        return Unauthorized("this server needs a key: send the header `Authorization: Bearer KEY`")
    return Unauthorized("the Authorization header does not hold this server's key: send `Authorization: Bearer KEY`")
