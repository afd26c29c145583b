"""The door of a generation engine: the public port, which is always open, before a private one, which comes and goes.

Engines bind their port themselves and lose it when they crash. Behind the relay a caller waits through a restart, as
with the embed server, instead of being refused; and a request is put into words that the engine knows.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

import h11

from qmd_remote.errors import ApiError, BadRequest, BodyTooLarge, Unavailable
from qmd_remote.supervision import BACKLOG, CALLER_PATIENCE_S, refuse

RETRY_S = 0.1
CHUNK = 65536
HEAD_LIMIT = 65536  # bytes of a request's head
BODY_LIMIT = 16 * 1024 * 1024
SILENCE_S = 600.0  # between two bytes of an answer; a long answer that is not streamed comes all at once
RESENDS = 1  # of a request whose engine died before its first byte of answer; a second death may be its own doing

# they speak of one connection, and there are two
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"expect", b"upgrade", b"te"}
# the key is for our own server, and an engine writes logs of its own
NOT_THE_ENGINES = {b"authorization", b"cookie"}

Adapt = Callable[[str, bytes], bytes]
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Door:
    """Where the engine is, how long a caller may wait for it, and how (path, body) is put into its words."""

    port: int
    adapt: Adapt
    patience_s: float = CALLER_PATIENCE_S


async def serve_relay(listener: socket.socket, door: Door) -> asyncio.Server:
    """Relay every connection on `listener`, one request each; who waits too long gets a 503 in OpenAI's shape."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(door.patience_s):
                request = await _receive(reader, writer, door.adapt)
            if request:
                await _while_connected(reader, _answer(request, writer, door))
        except ApiError as error:
            await refuse(reader, writer, error)
        except (OSError, TimeoutError):
            pass  # the caller, or the engine in mid-answer, is gone: closing is all that can be said
        finally:
            writer.close()

    return await asyncio.start_server(handle, sock=listener, backlog=BACKLOG)


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, adapt: Adapt) -> bytes:
    """One whole request, ready to be sent to the engine; empty when the caller sent none. Raises BadRequest."""
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
                return _for_engine(head, adapt(head.target.decode("ascii", "replace"), bytes(body)))
            else:
                return b""
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


async def _answer(request: bytes, writer: asyncio.StreamWriter, door: Door) -> None:
    """Send the request to the engine, as soon as it is there, and its answer to the caller as it comes."""
    for _ in range(1 + RESENDS):
        engine = await _connect(door)
        try:
            if await _pass_on(request, engine, writer):
                return
        finally:
            engine[1].close()
    raise Unavailable("the generation engine ended while it worked on this", code="restarting", retry_after=10)


async def _pass_on(request: bytes, engine: Ends, writer: asyncio.StreamWriter) -> bool:
    """Whether the engine answered, if only with a part: after its first byte there is nothing to send again."""
    answered = False
    try:
        engine[1].write(request)
        await engine[1].drain()
        while chunk := await asyncio.wait_for(engine[0].read(CHUNK), SILENCE_S):
            answered = True
            writer.write(chunk)
            await writer.drain()
    except TimeoutError:
        if not answered:
            raise Unavailable(f"the generation engine said nothing for {SILENCE_S:.0f} s", code="stalled") from None
    except OSError:
        pass
    return answered


async def _connect(door: Door) -> Ends:
    """A connection to the engine. Raises Unavailable when it is not up within the caller's patience."""
    try:
        async with asyncio.timeout(door.patience_s):
            while True:
                with suppress(OSError):
                    return await asyncio.open_connection("127.0.0.1", door.port)
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        message = "the generation engine is not up; see: qmd-remote logs generation"
        raise Unavailable(message, code="restarting", retry_after=10) from None


async def _while_connected(reader: asyncio.StreamReader, work: Coroutine[None, None, None]) -> None:
    """Do the work for as long as the caller is there: an engine must not compute for nobody."""
    task = asyncio.ensure_future(work)
    # the request is complete, so the next thing to come from the caller is the end of its connection
    gone = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not gone.exception() and gone.result():
            await asyncio.wait({task})
        if task.done():
            task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
