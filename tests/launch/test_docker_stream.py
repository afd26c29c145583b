"""A stream with a limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qmd_remote.launch.docker_stream import limited


class Stalled(Exception):
    pass


def stall() -> None:
    """End the wait."""
    raise Stalled


class Source:
    """A stream that gives some items and then waits until it is closed."""

    def __init__(self, *items: int) -> None:
        self.items = list(items)
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.items:
            return self.items.pop(0)
        assert self.closed.wait(20)
        raise StopIteration

    def close(self) -> None:
        self.closed.set()


def test_items_come_in_order_and_the_end_ends():
    """A stream that ends gives all its items, however many more than may wait."""
    assert list(range(5000)) == list(limited(lambda: iter(range(5000)), silence_s=20, on_silence=stall))


def test_silence_ends_a_stream_and_closes_it():
    """What is called after so many silent seconds may end the wait; the stream below is closed."""
    source, got = Source(1, 2), []
    with pytest.raises(Stalled):
        for item in limited(lambda: source, silence_s=0.3, on_silence=stall):
            got.append(item)
    assert [1, 2] == got
    assert source.closed.wait(10)


def test_a_stream_that_is_quiet_may_go_on():
    """Silence that is no fault is asked about again and again, and later items still come."""
    source, asked = Source(1), []

    def ask() -> None:
        asked.append(1)
        if len(asked) == 2:
            source.close()

    assert [1] == list(limited(lambda: source, silence_s=0.1, on_silence=ask))
    assert 2 <= len(asked)


def test_a_look_can_call_a_stream_off():
    """Somebody who wants to stop need not wait for the next item."""
    source, wanted = Source(1), threading.Event()

    def look() -> None:
        if wanted.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for _ in limited(lambda: source, silence_s=20, on_silence=stall, look=look):
            wanted.set()
    assert source.closed.wait(10)


def test_a_stream_that_is_left_is_closed():
    """A reader that has enough leaves no thread waiting for more."""
    source = Source(1, 2)
    stream = limited(lambda: source, silence_s=20, on_silence=stall)
    assert 1 == next(stream)
    stream.close()
    assert source.closed.wait(10)


def test_what_goes_wrong_comes_to_the_reader():
    """An error while opening or reading is raised where the items are read."""

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the line broke")

    stream = limited(broken, silence_s=20, on_silence=stall)
    assert 1 == next(stream)
    with pytest.raises(OSError, match="the line broke"):
        next(stream)
