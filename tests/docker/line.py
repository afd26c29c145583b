"""A TCP line to a port of this machine that is slow, that breaks, and that counts what it carries."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

WHOLE = 1 << 40
FAST = 1e12
PIECE = 1 << 16


class Line:
    """Carries what comes at `listener` to `target`: answers at `rate` bytes a second, and no more after `length`.

    Then what goes on is cut, and what comes is cut at once, until `heal`.
    """

    def __init__(
        self, target: int, *, rate: float = FAST, length: int = WHOLE, listener: socket.socket | None = None
    ) -> None:
        self._target, self._rate, self._left = target, rate, length
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.carried = 0
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def heal(self) -> None:
        """From now on as fast as it goes, and whole."""
        self._rate, self._left = FAST, WHOLE

    def close(self) -> None:
        """No more connections, and an end of those there are."""
        for one in [self._listener, *self._ends]:
            _cut(one)
            one.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._ends += [near, far]
                for ends in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                if counted:
                    if self._left < len(data):
                        break
                    self._left -= len(data)
                    self.carried += len(data)
                    time.sleep(len(data) / self._rate)
                sink.sendall(data)
        # closing alone would not wake the other direction's thread, and so not reach the ends
        _cut(source)
        _cut(sink)


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
