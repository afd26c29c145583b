"""One request and its answer, as a record: who watches the server is told when it begins and when it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_CLOSED_REQUEST = 499
POLLED = frozenset({"/health", "/livez", "/metrics"})  # what machines ask again and again
OTHER = "other"  # the endpoint of every path that is none of the server's

_KEY = "qmd_remote.exchange"


@dataclass
class Exchange:
    """What is known of a request and its answer; texts, keys and headers are not among it.

    `endpoint` is the path of one of the server's routes, or OTHER. `error` is the code in the error's body, or says
    how an exchange without an answer ended. `seconds` and `status` are final when it has ended.
    """

    method: str = ""
    path: str = ""
    client: str = ""
    endpoint: str = OTHER
    status: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    error: str = ""
    answered: bool = False  # to the last byte
    hung_up: bool = False  # before that
    began: float = field(default_factory=time.perf_counter)

    @property
    def polled(self) -> bool:
        """Whether it asks how the server is, instead of for work."""
        return self.path in POLLED


class Watcher(Protocol):
    """Is told of every exchange, on the event loop: be quick."""

    def began(self, exchange: Exchange) -> None:
        """A request has come."""
        ...

    def ended(self, exchange: Exchange) -> None:
        """It is over."""
        ...


def exchange_of(scope: Scope) -> Exchange:
    """The record of the request with this scope; outside of `Watch`, one that nobody reads."""
    found: Exchange = scope.setdefault(_KEY, Exchange())
    return found


class Watch:
    """ASGI middleware, the outermost: keeps an Exchange for every request and tells `watchers` of it."""

    def __init__(self, app: ASGIApp, watchers: Sequence[Watcher]) -> None:
        self.app = app
        self.watchers = watchers
        self._paths: frozenset[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and see what becomes of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = scope.get("client")
        exchange = Exchange(scope["method"], scope["path"], client[0] if client else "")
        scope[_KEY] = exchange

        async def read() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                exchange.bytes_in += len(message.get("body", b""))
            elif not exchange.answered:
                exchange.hung_up = True
            return message

        async def write(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            elif message["type"] == "http.response.body":
                exchange.bytes_out += len(message.get("body", b""))
                exchange.answered = not message.get("more_body", False)
            await send(message)

        for watcher in self.watchers:
            watcher.began(exchange)
        try:
            await self.app(scope, read, write)
        except asyncio.CancelledError:
            exchange.error = "cancelled"
            raise
        finally:
            _settle(exchange)
            exchange.endpoint = self._endpoint(scope)
            for watcher in self.watchers:
                watcher.ended(exchange)

    def _endpoint(self, scope: Scope) -> str:
        """A name from a fixed set, whatever clients ask for: a metric's labels must stay few."""
        path = getattr(scope.get("route"), "path", None)
        if path is None and scope["path"] in self._known(scope["app"]):
            path = scope["path"]  # refused before it reached its route
        return OTHER if path is None else str(path)

    def _known(self, app: Any) -> frozenset[str]:
        if self._paths is None:
            self._paths = frozenset(app.openapi()["paths"])
        return self._paths


def _settle(exchange: Exchange) -> None:
    exchange.seconds = time.perf_counter() - exchange.began
    if exchange.hung_up:
        exchange.status, exchange.error = CLIENT_CLOSED_REQUEST, "client_closed_request"
    elif not exchange.status:
        exchange.status = 500
    if exchange.status >= 400 and not exchange.error:
        exchange.error = "other"
