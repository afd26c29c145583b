"""Requests that outlive their worker: the parent holds them and their callers' connections, and sends them again.

The worker hands over its callers' connections, each with a file in memory that holds the request that it works on
(`safekeeping.py`). What it leaves unanswered when it dies goes to the next worker through the listening socket, as if
the caller had come again, and the answer goes out on the caller's own connection. While the worker lives not a byte
passes through here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.reception import LAST_REFUSALS_S, REFUSAL_S, SHUTDOWN_RETRY_S, refuse, shutting_down, streams

log = logging.getLogger("qmd_remote.serve")

HANDOVER = "QMD_REMOTE_SAFEKEEPING"  # in a worker's environment: the number of its end, a space, the token
# "K": a connection, which comes along with the file for its requests. "G": it has ended
MESSAGE = struct.Struct("=cQ")
KEEP, GONE = b"K", b"G"
BEGINNING = b"P"  # of a file that holds a request: a POST. Before its answer begins the worker empties the file
RESENT = b"x-qmd-remote-resent"  # with the token: is not to be kept by the worker, since it is kept here already

RESENDS = 2  # a request that kills its workers is not tried on all that follow
PATIENCE_S = 25.0  # from the worker's death to the next one's answer; clients of QMD wait for 30 s and more
# the same for generation, whose answers may begin late: a worker gives up itself, after 600 s of the service's silence,
# so that this is only for a worker that does nothing at all
GENERATION_PATIENCE_S = 720.0
GENERATION = (b"POST /v1/chat/completions ", b"POST /v1/completions ")
PART = 65536
WHAT = "the embed server"
LOOK = "its log tells why: qmd-remote logs --crash embed"


class Orphans:
    """What one `serve` keeps for its workers, one after the other. Plain HTTP and Linux only.

    Of a connection with TLS the state lies in the dead process; elsewhere files in memory and sockets that pass
    descriptors as messages are not to be had.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._token = secrets.token_hex(16)
        self._kept: dict[int, list[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None

    @property
    def fd(self) -> int:
        """The end that every worker inherits."""
        return self._theirs.fileno()

    @property
    def env(self) -> Mapping[str, str]:
        """What tells a worker of it."""
        return {HANDOVER: f"{self.fd} {self._token}"}

    def open(self) -> None:
        """Listen to the workers from now on; to be called in the event loop."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        loop.add_reader(self._ours, self._read)

    def adopt(self) -> None:
        """A worker is dead and another will come: send again what it left unanswered."""
        left = self._left()
        if left:
            log.warning("the worker died over %d requests; they are sent again", len(left))
        self._look_after(left)

    async def close(self) -> None:
        """No worker will come any more: tell all callers who wait that the service ends."""
        asyncio.get_running_loop().remove_reader(self._ours)
        if self._ended and not self._ended.done():
            self._ended.set_result(None)
        self._look_after(self._left())
        if tasks := list(self._tasks):
            await asyncio.wait(tasks, timeout=LAST_REFUSALS_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ours.close()
        self._theirs.close()

    def _read(self) -> None:
        """Take in all that the worker has said so far."""
        while True:
            try:
                said, descriptors, _, _ = socket.recv_fds(self._ours, MESSAGE.size, 2)
            except BlockingIOError:
                return
            kind, number = MESSAGE.unpack(said)
            if kind == KEEP and len(descriptors) == 2:
                self._kept[number] = descriptors
            else:  # gone; or there was no room for both descriptors
                _close(descriptors)
                _close(self._kept.pop(number, []))

    def _left(self) -> list[Orphan]:
        """What a dead worker had not begun to answer; its other connections end here."""
        self._read()
        kept, self._kept = list(self._kept.values()), {}
        left = []
        for descriptors in kept:
            if os.pread(descriptors[1], 1, 0) == BEGINNING:
                left.append(Orphan(*descriptors))
            else:
                _close(descriptors)
        return left

    def _look_after(self, orphans: list[Orphan]) -> None:
        for orphan in orphans:
            task = asyncio.ensure_future(self._see_through(orphan))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _see_through(self, orphan: Orphan) -> None:
        """Have a request answered, or refused, unless its caller hangs up; and close its connection."""
        assert self._ended is not None
        with orphan.caller, orphan.request, suppress(OSError):
            gone = asyncio.ensure_future(_hung_up(orphan.caller))
            answer = asyncio.ensure_future(self._answer(orphan))
            try:
                either: set[asyncio.Future[Any]] = {gone, answer}
                await asyncio.wait({*either, self._ended}, return_when=asyncio.FIRST_COMPLETED)
                if orphan.answering:  # whatever ends: this answer may
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                ended = self._ended.done() and not orphan.answering
                problem = shutting_down(WHAT) if ended else answer.result()
                if problem is None:
                    orphan.caller.shutdown(socket.SHUT_WR)
                    # unread bytes at close would turn into a reset that can overtake the answer
                    await asyncio.wait({gone}, timeout=REFUSAL_S)
                    return
            finally:
                for task in (gone, answer):
                    task.cancel()
                await asyncio.gather(gone, answer, return_exceptions=True)
            async with streams(orphan.caller) as (reader, writer):
                await refuse(reader, writer, problem)

    async def _answer(self, orphan: Orphan) -> ApiError | None:
        """Pass a worker's answer on: None. Or what to tell the caller. Raises OSError when the caller is gone."""
        patience = orphan.patience_s
        try:
            async with asyncio.timeout(patience):
                found = await self._begin(orphan)
        except TimeoutError:
            message = f"{WHAT}'s worker died, and no other answered within {patience:g} s: try again soon; {LOOK}"
            return Unavailable(message, code="restarting", retry_after=SHUTDOWN_RETRY_S)
        if found is None:
            message = f"{WHAT}'s worker died {RESENDS + 1} times over this request: send a smaller one; {LOOK}"
            return Unavailable(message, code="worker_died", retry_after=SHUTDOWN_RETRY_S)
        worker, part = found
        loop = asyncio.get_running_loop()
        with worker:
            while part:
                await loop.sock_sendall(orphan.caller, part)
                part = b""
                with suppress(OSError):  # it has died again: the caller sees that the answer is not whole
                    part = await loop.sock_recv(worker, PART)
        return None

    async def _begin(self, orphan: Orphan) -> tuple[socket.socket, bytes] | None:
        """A worker that answers, and the first bytes of its answer; None when all that were tried have died of it."""
        for _ in range(RESENDS):
            worker = socket.socket(self._listener.family, socket.SOCK_STREAM)
            part = b""
            try:
                with suppress(OSError):
                    part = await self._ask(worker, orphan)
            finally:
                if not part:
                    worker.close()
            if part:
                orphan.answering = True
                return worker, part
        return None

    async def _ask(self, worker: socket.socket, orphan: Orphan) -> bytes:
        """Send a request to our own listener: it waits there for a worker, as callers do. The first bytes that come."""
        loop = asyncio.get_running_loop()
        worker.setblocking(False)
        # the address that stands for all of them leads to this machine, too
        await loop.sock_connect(worker, self._listener.getsockname())
        await loop.sock_sendfile(worker, orphan.request)
        return await loop.sock_recv(worker, PART)


class Orphan:
    """A request that nobody answers now, as the bytes to send, and its caller's connection."""

    def __init__(self, caller: int, request: int) -> None:
        self.caller = socket.socket(fileno=caller)
        self.caller.setblocking(False)
        self.request = os.fdopen(request, "rb")
        self.answering = False

    @property
    def patience_s(self) -> float:
        """How long it may take from now until its answer begins."""
        begun = os.pread(self.request.fileno(), max(map(len, GENERATION)), 0)
        return GENERATION_PATIENCE_S if begun.startswith(GENERATION) else PATIENCE_S


def possible(*, tls: bool) -> bool:
    """Whether requests can outlive their worker here."""
    return sys.platform == "linux" and not tls


async def _hung_up(caller: socket.socket) -> None:
    """Wait until the caller closes its connection. What it sends is for nobody: its connection ends with the answer."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while await loop.sock_recv(caller, PART):
            pass


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
