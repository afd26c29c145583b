"""A relay before a small engine on real sockets, and requests as clients send them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import select
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from qmd_remote.launch import dialect, relay
from qmd_remote.launch.keeper import free_port
from qmd_remote.supervision import listen

LIMIT_S = 15
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Stage:
    """A relay with its public port, and a private port on which an engine comes and goes."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener, self.port = listener, free_port()
        self.errors: list[dict[str, Any]] = []
        self.engine: asyncio.Server | None = None
        self.relay: relay.Relay | None = None
        self.restarts = 0

    async def up(self, serve: Serve) -> None:
        """Start the engine; it has one request after the other, each on a connection of its own."""

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            finally:
                writer.close()

        self.engine = await asyncio.start_server(one, "127.0.0.1", self.port)

    async def down(self) -> None:
        """The engine's port is closed."""
        assert self.engine is not None
        self.engine.close()
        self.engine = None

    def waits(self) -> bool:
        """Whether somebody is in the queue of the public port."""
        return bool(select.select([self.listener], [], [], 0)[0])

    async def call(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the public port."""
        return await asyncio.open_connection(*self.listener.getsockname()[:2])

    async def ask(self, request: bytes) -> bytes:
        """Send a request, and read the answer to its end."""
        reader, writer = await self.call()
        writer.write(request)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer


def play(scene: Callable[[Stage], Coroutine[Any, Any, None]], *, patience_s: float = 60, adapt: Any = None) -> None:
    """Run a scene before a relay; nothing may be left working, and no error unhandled, at its end."""

    async def run() -> None:
        with listen("127.0.0.1", 0) as listener:
            stage = Stage(listener)
            asyncio.get_running_loop().set_exception_handler(lambda _, context: stage.errors.append(context))
            door = relay.Door(stage.port, adapt or dialect.unchanged, patience_s, lambda: stage.restarts)
            stage.relay = await relay.serve_relay(listener, door)
            async with asyncio.timeout(LIMIT_S):
                await scene(stage)
                if stage.engine:
                    await stage.down()
                while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - tasks that end set no event
                    await asyncio.sleep(0.01)
            if listener.fileno() >= 0:
                await stage.relay.close()
            assert [] == stage.errors

    asyncio.run(run())


def request(body: bytes = b"{}", path: str = "/v1/completions", *headers: str) -> bytes:
    """A whole request, as HTTP clients send it."""
    lines = [f"POST {path} HTTP/1.1", "Host: box:8000", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def response(body: bytes) -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a request with a content-length."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    return head, await reader.readexactly(length)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that answers with what it was sent, as JSON."""
    head, body = await read_request(reader)
    facts = {"head": head.decode(), "digest": hashlib.sha256(body).hexdigest(), "body": body[:1000].decode("latin-1")}
    writer.write(response(json.dumps(facts).encode()))
    await writer.drain()


def said(answer: bytes) -> dict[str, Any]:
    """What `echo` tells of the request."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return json.loads(body)


def refusal(answer: bytes, status: int) -> dict[str, Any]:
    """The error of a refusal in OpenAI's shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head.lower()
    return json.loads(body)["error"]
