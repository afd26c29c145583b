"""An orderly end: requests that run may finish, new ones are refused, and only then does the server stop to listen.

uvicorn by itself stops to accept first: callers then wait in the queue of a socket that nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmd_remote.reception import shutting_down
from qmd_remote.server.auth import OPEN_PATHS
from qmd_remote.server.engine import Engine
from qmd_remote.server.responses import error_response, json_response

log = logging.getLogger(__name__)

ANSWERED_S = 1.5  # for the answers of requests that were cut short; the engine's come at once
UNREAD_S = 5.0  # for the body of a refused request
SETTLE_S = 0.2  # between the last accepted connection and its request
POLL_S = 0.02
CLOSE = (b"connection", b"close")
STOPPING = {"status": "stopping"}
WHAT = "the server"


class Gate:
    """Which requests run, and whether new ones are let in; for one event loop."""

    def __init__(self) -> None:
        self.closed = False
        self.ending = False
        self._inside: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._inside)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling task runs a request during the block."""
        task = asyncio.current_task()
        assert task is not None
        self._inside.add(task)
        self._empty.clear()
        try:
            yield
        finally:
            self._inside.discard(task)
            if not self._inside:
                self._empty.set()

    def end_all(self) -> None:
        """Cancel the requests that run."""
        self.ending = True
        for task in self._inside:
            task.cancel()

    async def empty(self, within_s: float) -> bool:
        """Wait until no request runs; False when some still do after `within_s` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        return not self.running


class Draining:
    """ASGI middleware: counts the requests that run, and refuses new ones with 503 once the gate is closed.

    /livez goes on to answer, and /health says "stopping". Every connection ends with its next answer then.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            if self.gate.closed and message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, CLOSE]}
            await send(message)

        if scope["path"] in OPEN_PATHS:
            stopping = self.gate.closed and scope["path"] == "/health"
            await (json_response(STOPPING, 503) if stopping else self.app)(scope, receive, answer)
            return
        if self.gate.closed:
            await _read_to_end(scope, receive)
            await error_response(shutting_down(WHAT))(scope, receive, answer)
            return
        with self.gate.inside():
            try:
                await self.app(scope, receive, answer)
            except asyncio.CancelledError:
                if begun or not self.gate.ending:
                    raise
                await error_response(shutting_down(WHAT))(scope, receive, answer)


async def _read_to_end(scope: Scope, receive: Receive) -> None:
    """Take in a body that nobody wants: what is unread when a connection closes becomes a reset, which eats answers."""
    if (b"expect", b"100-continue") in scope["headers"]:
        return  # it has not been sent, and reading would ask for it
    with suppress(TimeoutError):
        async with asyncio.timeout(UNREAD_S):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body"):
                message = await receive()


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains when it is told to stop, for at most `limit_s` seconds.

    `cut_short` tells afterwards that work was given up: a loading, or requests at the limit.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, engine: Engine, *, limit_s: float) -> None:
        super().__init__(config)
        self.cut_short = False
        self._gate, self._engine, self._limit_s = gate, engine, limit_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._until = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: begin to drain; a second one changes nothing."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop, and drained."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the server, its connections last."""
        for server in self.servers:
            server.close()
        # what was accepted a moment ago is still to be read, and refused
        await asyncio.sleep(SETTLE_S)
        await self._sent()
        # every answer is out. Idle connections with TLS would wait for clients that do not look at them
        self.config.timeout_graceful_shutdown = 1
        await super().shutdown(sockets)

    def _begin(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        self._until = loop.time() + self._limit_s
        self._gate.closed = True
        log.info("stopping; %d running requests have %g s to finish", self._gate.running, self._limit_s)
        if self._engine.state == "loading":
            self._cut()  # who waits for the models would wait in vain
        if not await self._gate.empty(self._limit_s):
            log.warning("%d requests are cut short after %g s", self._gate.running, self._limit_s)
            self._cut()
            if not await self._gate.empty(ANSWERED_S):
                self._gate.end_all()  # not with the engine: with the generation service, or still being sent
                await self._gate.empty(ANSWERED_S)
        self.should_exit = True

    def _cut(self) -> None:
        """End all work of the engine: requests get a 503 for it at once."""
        self.cut_short = True
        # in a thread, since it waits for the batch that is being computed; the application's end calls it again
        asyncio.get_running_loop().run_in_executor(None, self._engine.close)

    async def _sent(self) -> None:
        """Wait until the answers have left this process, for clients that read slowly; at most to the limit."""
        loop = asyncio.get_running_loop()
        until = max(self._until, loop.time() + ANSWERED_S)
        # uvicorn's connections tell nobody when they have sent all
        while any(map(_unsent, list(self.server_state.connections))) and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


def _unsent(connection: Any) -> int:
    return int(connection.transport.get_write_buffer_size())
