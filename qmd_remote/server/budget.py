"""The limits of a batch as they are learned: memory that does not suffice is not asked for again and again."""

from __future__ import annotations

import logging
from dataclasses import replace

from qmd_remote.server.batching import Limits

log = logging.getLogger(__name__)

# Once may be the fault of another program that took the memory for a moment.
STRIKES = 2


class Budget:
    """`limits` begin as given; batches that run out of memory again and again lower their tokens for good.

    `learned` is what they were lowered to, None while they were not. Only the model thread changes it.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.learned: int | None = None
        self._strikes: list[int] = []

    def exceeded(self, tokens: int) -> None:
        """A batch of several items, of so many tokens, had not enough memory."""
        self._strikes.append(tokens)
        if len(self._strikes) < STRIKES:
            return
        self.learned = max(1, min(self.limits.tokens, *self._strikes) // 2)
        self._strikes = []
        self.limits = replace(self.limits, tokens=self.learned)
        log.warning("batches run out of memory again and again: from now on at most %d tokens each", self.learned)

    def sufficed(self, tokens: int) -> None:
        """A batch of so many tokens ran at the first try."""
        if self._strikes and tokens >= min(self._strikes):
            self._strikes = []
