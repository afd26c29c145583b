"""The door of a service whose process cannot answer now: connections are accepted, and refused in OpenAI's shape."""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

from qmd_remote.errors import ApiError, Unavailable

CALLER_PATIENCE_S = 60.0
SHUTDOWN_RETRY_S = 5  # what is told to come again after: a restart takes a few seconds
REFUSAL_S = 5.0  # for one refusal, a TLS handshake included
LAST_REFUSALS_S = 3.0  # for all that still wait at the very end
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ROOM_RETRY_S = 0.5

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handle = Callable[[socket.socket], Coroutine[Any, Any, None]]


class Reception:
    """Accepts the connections of a listening socket, each handled by a task of its own.

    asyncio's own server loses callers that it accepts while it closes, and shortens the queue of the socket that it is
    given. Here a connection is taken and handed to its task in one step; what is not taken stays in the queue.
    """

    def __init__(self, listener: socket.socket, handle: Handle) -> None:
        self._listener, self._handle = listener, handle
        # a child that inherited the socket may have changed that for both
        listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = False
        self._retry: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Accept from now on."""
        self._opened, self._retry = True, None
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more; what has been accepted is still handled."""
        self._opened = False
        self._loop.remove_reader(self._listener)
        if self._retry:
            self._retry.cancel()

    def sweep(self) -> bool:
        """Accept all that wait in the queue now; returns whether there were any."""
        found = False
        while self._accept():
            found = True
        return found

    async def finished(self, within_s: float) -> None:
        """Wait until every accepted connection has been handled; those that are not in time are cut off."""
        if tasks := list(self._tasks):
            await asyncio.wait(tasks, timeout=within_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in NO_ROOM and self._opened:
                # the caller still waits, so that the socket would wake us for ever
                self.close()
                self._retry = self._loop.call_later(ROOM_RETRY_S, self.open)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._handle(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True


@asynccontextmanager
async def streams(connection: socket.socket, tls: ssl.SSLContext | None = None) -> AsyncIterator[Ends]:
    """An accepted connection as streams, closed at the end when all that was written has been sent.

    Raises OSError when there is no TLS where there should be, or the other side is gone.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, connection, ssl=tls, ssl_handshake_timeout=REFUSAL_S if tls else None
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        yield reader, writer
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
    finally:
        writer.close()
    await writer.wait_closed()


async def turn_away(server: socket.socket, delay: float, what: str, tls: ssl.SSLContext | None = None) -> None:
    """During a back-off of `delay` seconds: let callers wait for 60 s, then answer 503 until the back-off ends."""
    if delay <= CALLER_PATIENCE_S:
        return  # they wait for the next child
    await asyncio.sleep(CALLER_PATIENCE_S)
    loop = asyncio.get_running_loop()
    until = loop.time() + delay - CALLER_PATIENCE_S

    async def turn_one_away(connection: socket.socket) -> None:
        left = max(1, round(until - loop.time()))
        message = f"{what} crashed and is restarted in {left} s"
        await _refuse_one(Unavailable(message, code="restarting", retry_after=left), tls, connection)

    reception = Reception(server, turn_one_away)
    reception.open()
    try:
        await asyncio.sleep(delay - CALLER_PATIENCE_S)
    finally:
        reception.close()


async def refuse_waiting(server: socket.socket, what: str, tls: ssl.SSLContext | None = None) -> None:
    """The last act of a service: answer 503 to all that still wait in the queue of `server`, and close it.

    Closed with callers in its queue, it would reset their connections.
    """
    reception = Reception(server, functools.partial(_refuse_one, shutting_down(what), tls))
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_REFUSALS_S):
            while reception.sweep():
                await reception.finished(LAST_REFUSALS_S)
    server.close()


def shutting_down(what: str) -> Unavailable:
    """The answer to those who come while a service ends."""
    return Unavailable(f"{what} is shutting down", code="shutting_down", retry_after=SHUTDOWN_RETRY_S)


async def _refuse_one(error: ApiError, tls: ssl.SSLContext | None, connection: socket.socket) -> None:
    with suppress(OSError):  # it is gone, or speaks no TLS
        async with streams(connection, tls) as (reader, writer):
            await refuse(reader, writer, error)


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: ApiError) -> None:
    """Answer one connection with an error in OpenAI's shape; the caller of this closes it."""
    await reply(reader, writer, error.status, error.body(), error.retry_after)


async def reply(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    status: int,
    content: object,
    retry_after: int | None = None,
) -> None:
    """Answer one connection with JSON as its last answer; the caller of this closes it."""
    body = json.dumps(content).encode()
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *([f"retry-after: {retry_after}"] if retry_after else []),
    ]
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(REFUSAL_S):
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            await writer.drain()
            if writer.can_write_eof():  # TLS cannot
                writer.write_eof()
            # unread bytes at close would turn into a reset that can overtake the answer
            while await reader.read(65536):
                pass
