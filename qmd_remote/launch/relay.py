"""A TCP relay between the public port, which is always open, and the engine's private port, which comes and goes.

Generation engines bind their port themselves and lose it when they crash. With the relay a caller waits through a
restart, as with the embed server, instead of being refused.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from qmd_remote.supervision import CALLER_PATIENCE_S, refuse

RETRY_S = 0.1
CHUNK = 65536
EARLY_LIMIT = 1 << 20  # bytes kept of a request that waits for the engine; the rest waits in the kernel

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def serve_relay(listener: socket.socket, port: int, *, patience_s: float = CALLER_PATIENCE_S) -> asyncio.Server:
    """Relay every connection on `listener` to 127.0.0.1:`port`; who waits longer than `patience_s` gets a 503."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(patience_s):
                connected = await _connect_while_listening(reader, port)
        except TimeoutError:
            await refuse(reader, writer, "the generation engine is not up; see: qmd-remote logs generation", 10)
            return
        if connected is None:
            writer.close()
            return
        early, upstream = connected
        upstream[1].write(early)
        await _join((reader, writer), upstream)

    return await asyncio.start_server(handle, sock=listener)


async def _connect_while_listening(reader: asyncio.StreamReader, port: int) -> tuple[bytes, Ends] | None:
    """Connect to the engine, however long it takes; notice meanwhile when the caller hangs up (None).

    Returns what the caller sent until then, and the connection.
    """
    early = bytearray()
    connecting = asyncio.ensure_future(_connect(port))
    listening = asyncio.ensure_future(reader.read(CHUNK))
    try:
        while not connecting.done():
            waiting = {connecting, listening} if len(early) < EARLY_LIMIT else {connecting}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and not connecting.done():
                if not listening.result():
                    return None
                early += listening.result()
                listening = asyncio.ensure_future(reader.read(CHUNK))
        if listening.done():
            early += listening.result()
        return bytes(early), connecting.result()
    finally:
        listening.cancel()
        if not connecting.done():
            connecting.cancel()


async def _connect(port: int) -> Ends:
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(RETRY_S)


async def _join(caller: Ends, engine: Ends) -> None:
    """Copy both ways until the engine has said all, or either side is gone."""
    to_engine = asyncio.ensure_future(_copy(caller[0], engine[1]))
    to_caller = asyncio.ensure_future(_copy(engine[0], caller[1]))
    try:
        await asyncio.wait({to_engine, to_caller}, return_when=asyncio.FIRST_COMPLETED)
        # a caller may close its sending half and still wait for the answer; an engine that closes has said all
        if to_engine.done() and not to_engine.exception():
            await asyncio.wait({to_caller})
    finally:
        for task in (to_engine, to_caller):
            task.cancel()
        await asyncio.gather(to_engine, to_caller, return_exceptions=True)
        for _, writer in (caller, engine):
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
