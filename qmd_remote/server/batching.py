"""The batch policy, pure: what waits, and the limits → what runs next.

Two lanes. Short query work passes index work at batch boundaries, but after `query_streak` batches of it a waiting
index batch gets its turn, so neither starves. Inside a lane the oldest item is always served; the rest of its batch
are the items nearest to it in length among the next few, because a padded batch costs its longest row times its rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

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
    """A batch has at most `batch_size` items and, padding included, `tokens` tokens, though always one item.

    It is chosen among the `window` oldest items of a lane.
    """

    batch_size: int
    tokens: int = 65_536
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
    run = _best_run([pending[p].length for p in by_length], by_length.index(oldest), limits)
    return Choice(tuple(by_length[run]), streak + 1 if lane is Lane.QUERY else 0)


def _lane(pending: Sequence[Pending], limits: Limits, streak: int) -> Lane:
    waiting = {item.lane for item in pending}
    if len(waiting) == 1:
        return waiting.pop()
    return Lane.QUERY if streak < limits.query_streak else Lane.INDEX


def _best_run(lengths: Sequence[int], must: int, limits: Limits) -> slice:
    """Of the runs in ascending `lengths` that include `must`: the one with the most items, then the least padding.

    Short items at its start are left for a batch of their own while they would make more than half of it padding.
    """
    before = [0, *accumulate(lengths)]
    best, most, least = slice(must, must + 1), 0, 0
    for last in range(must, len(lengths)):
        size = min(limits.batch_size, max(1, limits.tokens // lengths[last]))
        first = max(0, last + 1 - size)
        if first > must:
            break
        count = last + 1 - first
        padding = lengths[last] * count - (before[last + 1] - before[first])
        if count > most or (count == most and padding < least):
            best, most, least = slice(first, last + 1), count, padding
    first, stop = best.start, best.stop
    while first < must and 2 * (before[stop] - before[first]) < lengths[stop - 1] * (stop - first):
        first += 1
    return slice(first, stop)
