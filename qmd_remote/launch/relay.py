"""The door of a generation engine: the public port, which is always open, before a private one, which comes and goes.

Engines bind their port themselves and lose it when they crash. Behind the relay a caller waits through a restart, as
with the embed server, instead of being refused; and a request is put into words that the engine knows. The relay counts
requests, and answers STATUS_PATH itself.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import h11

from qmd_remote.errors import ApiError, BadRequest, BodyTooLarge, Unavailable
from qmd_remote.reception import CALLER_PATIENCE_S, Ends, Reception, refuse, reply, shutting_down, streams

STATUS_PATH = "/qmd-remote/status"
POLLED = frozenset({"/health", "/v1/models"})  # asked again and again by machines: no requests to count
WHAT = "the generation service"
RETRY_S = 0.1
CHUNK = 65536
ARRIVAL_S = 60.0  # for a whole request to arrive, however long one may wait for its answer
HEAD_LIMIT = 65536  # bytes of a request's head
BODY_LIMIT = 16 * 1024 * 1024
SILENCE_S = 600.0  # between two bytes of an answer; a long answer that is not streamed comes all at once
LAST_ANSWERS_S = 3.0  # for the refusals at the very end
RESENDS = 1  # of a request whose engine died before its first byte of answer; a second death may be its own doing

# they speak of one connection, and there are two
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"expect", b"upgrade", b"te"}
# the key is for our own server, and an engine writes logs of its own
NOT_THE_ENGINES = {b"authorization", b"cookie"}

Adapt = Callable[[str, bytes], bytes]


@dataclass(frozen=True)
class Door:
    """Where the engine is, how long a caller may wait for it, and how (path, body) is put into its words."""

    port: int
    adapt: Adapt
    patience_s: float = CALLER_PATIENCE_S
    restarts: Callable[[], int] = lambda: 0  # of the engine, up to now


@dataclass(frozen=True)
class _Request:
    """A whole request: what the caller asked for, and the bytes for the engine."""

    path: str
    for_engine: bytes


@dataclass
class _Exchange:
    """A request, who gets the answer, and the answer's status: 0 before its first byte, 502 when it broke off."""

    request: bytes
    writer: asyncio.StreamWriter
    status: int = 0


async def serve_relay(listener: socket.socket, door: Door) -> Relay:
    """Relay every connection on `listener`, one request each; who waits too long gets a 503 in OpenAI's shape."""
    relay = Relay(listener, door)
    relay.reception.open()
    return relay


class Relay:
    """The relay at work. `running` requests are with the engine, or wait for it.

    Of all `requests`, `errors` counts those that got a status of 500 or more, or none, by no fault of the caller's.
    """

    def __init__(self, listener: socket.socket, door: Door) -> None:
        self.reception = Reception(listener, self._handle)
        self.running = self.requests = self.errors = 0
        self._listener, self._door = listener, door
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut = asyncio.Event()

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests, and wait until the running ones have ended.

        Those that have not within `limit_s` seconds get a 503; where a part of the answer was sent before, its end.
        """
        self._stopping = True
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            self._cut.set()
            await self._idle.wait()

    async def close(self) -> None:
        """Refuse all that still wait, and close the listening socket."""
        self._stopping = True
        self._cut.set()
        self.reception.close()
        self.reception.sweep()
        await self.reception.finished(LAST_ANSWERS_S)
        self._listener.close()

    def status(self) -> dict[str, int]:
        """What STATUS_PATH tells."""
        return {
            "running": self.running,
            "requests": self.requests,
            "errors": self.errors,
            "restarts": self._door.restarts(),
        }

    async def _handle(self, connection: socket.socket) -> None:
        with suppress(OSError, TimeoutError):  # the caller is gone: closing is all that can be said
            async with streams(connection) as (reader, writer):
                try:
                    await self._converse(reader, writer)
                except ApiError as error:
                    await refuse(reader, writer, error)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(ARRIVAL_S):
            request = await _receive(reader, writer, self._door.adapt)
        if request is None:
            return
        if request.path == STATUS_PATH:
            await reply(reader, writer, HTTPStatus.OK, self.status())
        elif self._stopping:
            raise shutting_down(WHAT)
        else:
            self.requests += request.path not in POLLED
            await self._relay(_Exchange(request.for_engine, writer), reader)

    async def _relay(self, exchange: _Exchange, reader: asyncio.StreamReader) -> None:
        """Have the engine answer, and keep the books."""
        self.running += 1
        self._idle.clear()
        try:
            await self._while_wanted(reader, exchange)
        except Unavailable:
            self.errors += 1
            raise
        finally:
            self.errors += exchange.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def _while_wanted(self, reader: asyncio.StreamReader, exchange: _Exchange) -> None:
        """Work for as long as the caller is there, since an engine must not compute for nobody, and we may."""
        work = asyncio.ensure_future(self._answer(exchange))
        # the request is complete, so the next thing to come from the caller is the end of its connection
        gone = asyncio.ensure_future(reader.read(1))
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({work, gone, cut}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not gone.exception() and gone.result():
                await asyncio.wait({work, cut}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif cut.done() and exchange.status:
                exchange.status = HTTPStatus.BAD_GATEWAY
            elif cut.done():
                raise shutting_down(WHAT)
        finally:
            for one in (work, gone, cut):
                one.cancel()
            await asyncio.gather(work, gone, cut, return_exceptions=True)

    async def _answer(self, exchange: _Exchange) -> None:
        """Send the request to the engine, as soon as it is there, and its answer to the caller as it comes."""
        for _ in range(1 + RESENDS):
            engine = await self._connect()
            try:
                await _pass_on(exchange, engine)
            finally:
                engine[1].close()
            if exchange.status:
                return
        raise Unavailable("the generation engine ended while it worked on this", code="restarting", retry_after=10)

    async def _connect(self) -> Ends:
        """A connection to the engine. Raises Unavailable when it is not up within the caller's patience."""
        try:
            async with asyncio.timeout(self._door.patience_s):
                while True:
                    with suppress(OSError):
                        return await asyncio.open_connection("127.0.0.1", self._door.port)
                    if self._stopping:  # there will be none
                        raise shutting_down(WHAT)
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            message = "the generation engine is not up; see: qmd-remote logs generation"
            raise Unavailable(message, code="restarting", retry_after=10) from None


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, adapt: Adapt) -> _Request | None:
    """One whole request; None when the caller sent none. Raises BadRequest."""
    caller = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
    head: h11.Request | None = None
    body = bytearray()
    try:
        while True:
            event = caller.next_event()
            if event is h11.NEED_DATA:
                if caller.they_are_waiting_for_100_continue:
                    go_on = caller.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
                    writer.write(go_on or b"")
                caller.receive_data(await reader.read(CHUNK))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > BODY_LIMIT:
                    raise BodyTooLarge(f"the request is larger than {BODY_LIMIT >> 20} MiB: send a shorter prompt")
            elif isinstance(event, h11.EndOfMessage) and head:
                path = head.target.decode("ascii", "replace")
                return _Request(path.partition("?")[0], _for_engine(head, adapt(path, bytes(body))))
            else:
                return None
    except h11.RemoteProtocolError as error:
        raise BadRequest(f"this is no HTTP request: {error}") from None


def _for_engine(head: h11.Request, body: bytes) -> bytes:
    """The request on a connection of its own: the end of the answer is then the end of the connection."""
    engine = h11.Connection(h11.CLIENT)
    headers = [(name, value) for name, value in head.headers if name not in HOP_BY_HOP | NOT_THE_ENGINES]
    if all(name != b"host" for name, _ in headers):  # HTTP/1.0 needs none
        headers.append((b"host", b"127.0.0.1"))
    headers += [(b"connection", b"close"), (b"content-length", str(len(body)).encode())]
    parts = [
        engine.send(h11.Request(method=head.method, target=head.target, headers=headers)),
        engine.send(h11.Data(data=body)) if body else b"",
        engine.send(h11.EndOfMessage()),
    ]
    return b"".join(part for part in parts if part)


async def _pass_on(exchange: _Exchange, engine: Ends) -> None:
    """One try; it leaves the answer's status at 0 when the engine said nothing, and the request may be sent again."""
    try:
        engine[1].write(exchange.request)
        await engine[1].drain()
        while chunk := await asyncio.wait_for(engine[0].read(CHUNK), SILENCE_S):
            exchange.status = exchange.status or _status(chunk)
            exchange.writer.write(chunk)
            await exchange.writer.drain()
    except (OSError, TimeoutError) as error:
        if exchange.status:
            exchange.status = HTTPStatus.BAD_GATEWAY
        elif isinstance(error, TimeoutError):
            raise Unavailable(f"the generation engine said nothing for {SILENCE_S:.0f} s", code="stalled") from None


def _status(start: bytes) -> int:
    """The status that an answer begins with; a bad gateway's when it is no HTTP."""
    found = re.match(rb"HTTP/1\.\d (\d{3})", start)
    return int(found[1]) if found else HTTPStatus.BAD_GATEWAY
