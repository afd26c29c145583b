"""What runs before the first request does, so that what is slow the first time only is over by then.

Libraries choose kernels, compile for a shape, and fetch memory when they first meet a size of batch. So a few sizes
run, the smallest first: single texts, and batches as full as an index job has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Tokens of the texts that are tried; each is four times as long as the one before, and the model's own limit is last.
LENGTHS = (8, 32, 128, 512, 2048)

# A GPU loads a kernel for nearly every size, which takes longer than to run it. A CPU gains little, and a large batch
# takes it seconds.
CPU_S, ELSEWHERE_S = 0.3, 15.0

WORD = "a "  # one token for every tokenizer
SPECIAL = 4  # tokens that a model adds to a text, or to a pair with a query of one


@dataclass(frozen=True)
class Shape:
    """A batch of `rows` texts of about `length` tokens each."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.rows * self.length

    @property
    def text(self) -> str:
        """A text of such a length; a few tokens less rather than more, which would not fit into one batch."""
        return WORD * max(1, self.length - SPECIAL)


def limit_s(device: str) -> float:
    """How many seconds a warm-up may take on a device with this name."""
    return CPU_S if device == "cpu" else ELSEWHERE_S


def shapes(max_length: int, batch_size: int, batch_tokens: int) -> list[Shape]:
    """What to run for a model that takes `max_length` tokens a text, within these limits of a batch. Pure.

    For every length a single text, and as many as fill a batch; fewest tokens first.
    """
    lengths = [length for length in LENGTHS if length < max_length] + [max_length]
    full = {Shape(max(1, min(batch_size, batch_tokens // length)), length) for length in lengths}
    found = full | {Shape(1, length) for length in lengths}
    return sorted(found, key=lambda shape: (shape.tokens, shape.rows))


def within(plan: Sequence[Shape], seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Shape]:
    """The shapes in turn, while the next one should end within `seconds` in all.

    Each has to be run before the next is asked for: how long one took says how long the next will take.
    """
    began = now = clock()
    pace = 0.0  # seconds a token
    for shape in plan:
        if now - began + pace * shape.tokens > seconds:
            return
        yield shape
        before, now = now, clock()
        pace = (now - before) / shape.tokens
