"""A stream of the engine with a limit: the SDK itself waits for the next item for ever, and cannot be called off."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.2
AHEAD = 1000  # items that wait for a slow reader


class _End:
    """After the last item, with what ended the stream, if that was an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


def limited(
    begin: Callable[[], Iterator[T]],
    *,
    silence_s: float,
    on_silence: Callable[[], object],
    look: Callable[[], None] = lambda: None,
) -> Iterator[T]:
    """The items of the stream that `begin` opens, which a thread reads.

    `on_silence` is called after each `silence_s` without an item, `look` a few times a second; what they raise ends the
    stream, as does what reading it raises. A stream that is left is closed.
    """
    items: queue.Queue[T | _End] = queue.Queue(AHEAD)
    left = threading.Event()
    opened: list[Iterator[T]] = []

    def put(item: T | _End) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                items.put(item, timeout=POLL_S)
                return

    def read() -> None:
        try:
            opened.append(begin())
            for item in opened[0]:
                if left.is_set():
                    return
                put(item)
        except Exception as error:  # whatever it is, it belongs to who reads the stream
            put(_End(error))
        else:
            put(_End())

    threading.Thread(target=read, daemon=True, name="stream of the container engine").start()
    try:
        yield from _taken(items, silence_s, on_silence, look)
    finally:
        left.set()
        for stream in opened:
            # one that waits for its next item either can be closed all the same, or ends with that item
            with suppress(ValueError, OSError, AttributeError):
                stream.close()  # type: ignore[attr-defined]


def _taken(
    items: queue.Queue[T | _End], silence_s: float, on_silence: Callable[[], object], look: Callable[[], None]
) -> Iterator[T]:
    last = time.monotonic()
    while True:
        look()
        try:
            item = items.get(timeout=POLL_S)
        except queue.Empty:
            if time.monotonic() - last >= silence_s:
                on_silence()
                last = time.monotonic()
            continue
        if isinstance(item, _End):
            if item.error is not None:
                raise item.error
            return
        yield item
        last = time.monotonic()
