"""SIGTERM and SIGINT as a wish to stop that a whole process heeds, from before its event loop until after it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class StopWish:
    """`asked` is set by the first signal; `hurry` by a SIGINT (Ctrl-C) after that. A second SIGTERM changes nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Take the signals as a wish during the block; blocks may be nested.

        asyncio's own handlers end with its loop: a second signal would then kill a process that tidies up.
        """
        before = {number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def heeded_in_loop(self) -> Iterator[None]:
        """The same, and signals wake the running event loop, even those that the system hands to another thread."""
        self._loop = loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs, self.heeded():
            for end in (ours, theirs):
                end.setblocking(False)
            loop.add_reader(ours, ours.recv, 4096)
            before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(before)
                loop.remove_reader(ours)

    def _told(self, number: int, _: FrameType | None) -> None:
        if self._loop is None:
            self._note(number)
            return
        # a handler runs between two steps of anything, the loop's own book-keeping included
        with suppress(RuntimeError):  # the loop has ended, as it should
            self._loop.call_soon_threadsafe(self._note, number)

    def _note(self, number: int) -> None:
        if self.asked.is_set() and number == signal.SIGINT:
            self.hurry.set()
        self.asked.set()
