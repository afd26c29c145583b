"""The batch policy, pure: what waits, and the limits → what runs next.

Two lanes. Short query work passes index work at batch boundaries, but after `query_streak` batches of it a waiting
index batch gets its turn, so neither starves. Inside a lane the oldest item is always served; the rest of its batch
are the items nearest to it in length among the next few, because a padded batch costs its longest row times its rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

QUERY_LIMIT = 4


class Lane(Enum):
    """Who waits for the answer: a person at a prompt, or an index job."""

    QUERY = "query"
    INDEX = "index"

    @classmethod
    def of(cls, texts: int) -> Lane:
        """The lane of a request of so many texts."""
        return cls.QUERY if texts <= QUERY_LIMIT else cls.INDEX


@dataclass(frozen=True)
class Pending:
    """One waiting item: its tokens, its lane, and what it shares a batch with (`group`: the model)."""

    length: int
    lane: Lane
    group: Hashable = None


@dataclass(frozen=True)
class Limits:
    """`batch_size` items a batch, chosen among the `window` oldest of a lane."""

    batch_size: int
    window: int = 512
    query_streak: int = 4


@dataclass(frozen=True)
class Choice:
    """The next batch: positions in the list of pending items, shortest first, and the query streak after it."""

    positions: tuple[int, ...]
    streak: int


def choose(pending: Sequence[Pending], limits: Limits, streak: int = 0) -> Choice:
    """Choose the next batch among `pending` (oldest first, not empty).

    `streak` is the number of query batches since the last index batch: what the choice before this one returned.
    """
    lane = _lane(pending, limits, streak)
    oldest = next(position for position, item in enumerate(pending) if item.lane is lane)
    group = pending[oldest].group
    window: list[int] = []
    for position in range(oldest, len(pending)):
        if pending[position].lane is lane and pending[position].group == group:
            window.append(position)
            if len(window) == max(limits.window, limits.batch_size):
                break
    by_length = sorted(window, key=lambda position: (pending[position].length, position))
    run = _tightest_run([pending[p].length for p in by_length], by_length.index(oldest), limits.batch_size)
    return Choice(tuple(by_length[run]), streak + 1 if lane is Lane.QUERY else 0)


def _lane(pending: Sequence[Pending], limits: Limits, streak: int) -> Lane:
    waiting = {item.lane for item in pending}
    if len(waiting) == 1:
        return waiting.pop()
    return Lane.QUERY if streak < limits.query_streak else Lane.INDEX


def _tightest_run(lengths: Sequence[int], must: int, size: int) -> slice:
    """The run of `size` neighbours in ascending `lengths` that includes `must` and needs the least padding."""
    size = min(size, len(lengths))
    first, last = max(0, must - size + 1), min(must, len(lengths) - size)
    total = sum(lengths[first : first + size])
    best, least = first, lengths[first + size - 1] * size - total
    for start in range(first + 1, last + 1):
        total += lengths[start + size - 1] - lengths[start - 1]
        padding = lengths[start + size - 1] * size - total
        if padding < least:
            best, least = start, padding
    return slice(best, best + size)
