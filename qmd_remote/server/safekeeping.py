"""The worker's side of `orphans.py`: each request that is worked on lies where the parent finds it if the worker dies.

With its first request a connection is given to the parent, together with a file in memory. Each request of that
connection is then written into the file, and the file emptied when its answer begins: a few microseconds, and nothing
for the parent to do. Nothing here fails a request: one that cannot be kept is answered all the same, and lost only if
the worker dies over it.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import resource
import socket
from collections import deque
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmd_remote.server.gateway import CHAT, COMPLETIONS, TO_SERVICE
from qmd_remote.server.orphans import GONE, HANDOVER, KEEP, MESSAGE, RESENT

# all of them can be worked on a second time, as long as nobody has a byte of the first answer
ENDPOINTS = frozenset({"/v1/embeddings", "/v1/rerank", CHAT, COMPLETIONS, "/v2/embed", "/api/embed", "/api/generate"})
CONNECTIONS = 128
DESCRIPTORS_SHARE = 8  # at most the limit of open files by this, too: each takes two of the parent's
BYTES = 64 * 2**20
HEAD_BYTES = 4096  # a write within one page is whole, whenever this process is killed
LENGTH_BYTES = 14  # ten digits, and the empty line
RETRY_S = 0.05
PASSED_ON = TO_SERVICE | {b"authorization"}

_CALLER = "qmd_remote.caller"


class Safe:
    """The way to the parent: `end` is a socket that it listens to, `token` marks what it sends again.

    It holds at most CONNECTIONS, and the requests on them at most BYTES together.
    """

    def __init__(self, end: socket.socket, token: str) -> None:
        self._end = end
        self._end.setblocking(False)
        self._token = token.encode()
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, files // DESCRIPTORS_SHARE)
        self._numbers = itertools.count()
        self._untold: deque[int] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self.connections = 0
        self.bytes = 0

    def accept(self, scope: Scope) -> Keepsake | None:
        """A place for the request with this scope; None when there is no room, or it must not be kept."""
        caller = scope.get("state", {}).get(_CALLER)
        if caller is None or caller.transport.is_closing() or self._is_resent(scope):
            return None
        if caller.place is None:
            caller.place = self._place(caller.transport)
        head = self._head(scope)
        return Keepsake(caller.place, head) if caller.place and len(head) + LENGTH_BYTES <= HEAD_BYTES else None

    def _place(self, transport: Any) -> Place | None:
        """What the parent will find the requests of a connection in; None when it cannot be told of another one."""
        if self.connections >= self._most or not self._tell():
            return None
        try:
            file = os.memfd_create("qmd-remote-request")
        except OSError:  # no room for another file, or a system that allows none in memory
            return None
        number = next(self._numbers)
        try:
            connection = transport.get_extra_info("socket").fileno()
            socket.send_fds(self._end, [MESSAGE.pack(KEEP, number)], [connection, file])
        except OSError:
            os.close(file)
            return None
        return Place(self, number, file, transport)

    def release(self, number: int) -> None:
        """Tell the parent that a connection has ended."""
        self._untold.append(number)
        self._tell()

    def _tell(self) -> bool:
        """Say what is not said yet; False when the parent has not read what was said before."""
        try:
            while self._untold:
                self._end.send(MESSAGE.pack(GONE, self._untold[0]))
                self._untold.popleft()
        except BlockingIOError:
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)
        except OSError:  # it is gone, and we shall be soon
            self._untold.clear()
        return not self._untold

    def _try_again(self) -> None:
        self._retry = None
        self._tell()

    def _is_resent(self, scope: Scope) -> bool:
        return any(name == RESENT and hmac.compare_digest(value, self._token) for name, value in scope["headers"])

    def _head(self, scope: Scope) -> bytes:
        """The request up to its body, with the place of the length left open."""
        lines = [
            b"POST %b HTTP/%b" % (scope["path"].encode(), scope["http_version"].encode()),
            b"host: localhost",
            b"connection: close",
            b"%b: %b" % (RESENT, self._token),
            *(b"%b: %b" % (name, value) for name, value in scope["headers"] if name in PASSED_ON),
            b"content-length: ",
        ]
        return b"\r\n".join(lines)


class Place:
    """A connection that the parent holds as well, and the file for the request that is worked on."""

    def __init__(self, safe: Safe, number: int, file: int, transport: Any) -> None:
        self.safe, self._number, self._transport = safe, number, transport
        self.file = file
        safe.connections += 1

    @property
    def unsent(self) -> bool:
        """Whether a part of an answer is still on its way, and would be lost with this process."""
        return bool(self._transport.get_write_buffer_size())

    def close(self) -> None:
        """The connection has ended, and what was asked on it needs no answer."""
        os.ftruncate(self.file, 0)
        os.close(self.file)
        self.file = -1
        self.safe.connections -= 1
        self.safe.release(self._number)


class Keepsake:
    """One request in its place, `head` first."""

    def __init__(self, place: Place, head: bytes) -> None:
        self._place, self._head = place, head
        self._size = 0
        self._open = True
        self._whole = False

    def add(self, body: bytes, *, more: bool) -> None:
        """The next part of the body. With the last one the request is whole, and counts."""
        if not self._open or self._whole:
            return
        safe = self._place.safe
        at = len(self._head) + LENGTH_BYTES + self._size
        self._size += len(body)
        safe.bytes += len(body)
        try:
            kept = safe.bytes <= BYTES and os.pwrite(self._place.file, body, at) == len(body)
            if kept and not more:
                # behind an answer that is not out the next one would be taken for its end
                kept = self._whole = not self._place.unsent
                if kept:
                    # the head comes last: a file without one holds no request
                    os.pwrite(self._place.file, b"%b%010d\r\n\r\n" % (self._head, self._size), 0)
        except OSError:
            kept = False
        if not kept:
            self.close()

    def close(self) -> None:
        """It is answered from here on, or needs no answer any more: it will not be sent again."""
        if not self._open:
            return
        self._open = False
        self._place.safe.bytes -= self._size
        if self._place.file >= 0:
            os.ftruncate(self._place.file, 0)


class Safekeeping:
    """ASGI middleware: the bodies of requests to ENDPOINTS go to the safe as they come. To stand behind KeyAuth."""

    def __init__(self, app: ASGIApp, safe: Safe) -> None:
        self.app = app
        self.safe = safe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and keep it until its answer begins."""
        wanted = scope["type"] == "http" and scope["path"] in ENDPOINTS and scope["method"] == "POST"
        keepsake = self.safe.accept(scope) if wanted else None
        if keepsake is None:
            await self.app(scope, receive, send)
            return

        async def read() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                keepsake.add(message.get("body", b""), more=message.get("more_body", False))
            return message

        async def write(message: Message) -> None:
            keepsake.close()
            await send(message)

        try:
            await self.app(scope, read, write)
        finally:
            keepsake.close()


class Caller:
    """A connection, with its place if it has one."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.place: Place | None = None


def inherited() -> Safe | None:
    """The safe that the parent has handed over, if it has."""
    handover = os.environ.pop(HANDOVER, "")
    if not handover:
        return None
    number, _, token = handover.partition(" ")
    end = socket.socket(fileno=int(number))
    end.set_inheritable(False)
    return Safe(end, token)


def introducing(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """uvicorn's `protocol`, such that the requests of a connection know it, and its place ends with it.

    The address in a scope does not lead to the connection: a proxy's header can replace it.
    """

    def connection_made(self: Any, transport: asyncio.BaseTransport) -> None:
        self.caller = Caller(transport)
        self.app_state = {**self.app_state, _CALLER: self.caller}
        protocol.connection_made(self, transport)

    def connection_lost(self: Any, error: Exception | None) -> None:
        protocol.connection_lost(self, error)
        if self.caller.place:
            self.caller.place.close()

    return type("Introducing", (protocol,), {"connection_made": connection_made, "connection_lost": connection_lost})
