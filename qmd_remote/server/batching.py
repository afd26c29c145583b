"""The batch policy, pure: what waits, and the limits → what runs next. `backlog` holds the queue it is applied to.

Two lanes. Short query work passes index work at batch boundaries, but after `query_streak` batches of it a waiting
index batch gets its turn. Inside a lane the oldest item is always served. So an item that n older ones of its lane
stand before begins after at most n + 1 + n // query_streak other batches (query), or n + (n + 1) * query_streak
(index), whatever arrives behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
class Limits:
    """A batch has at most `batch_size` items and costs at most `tokens`, though it always has one item.

    Where rows are padded it is chosen among the `window` oldest items of a lane.
    """

    batch_size: int
    tokens: int = 65_536
    window: int = 256
    query_streak: int = 4

    def reach(self, *, packs: bool) -> int:
        """Among how many of the oldest items to choose: only a batch that pads gains from more than it can hold."""
        return self.batch_size if packs else max(self.window, self.batch_size)


def cost(lengths: Sequence[int], *, packs: bool) -> int:
    """Tokens that a batch of rows of these lengths costs: their sum if it `packs` them, else with their padding."""
    return sum(lengths) if packs else max(lengths) * len(lengths)


def next_lane(waiting: Collection[Lane], limits: Limits, streak: int) -> Lane:
    """Whose turn it is among the lanes in which something waits (at least one).

    `streak` is the number of query batches since the last index batch.
    """
    if Lane.QUERY in waiting and (streak < limits.query_streak or Lane.INDEX not in waiting):
        return Lane.QUERY
    return Lane.INDEX


def choose(lengths: Sequence[int], limits: Limits, *, packs: bool) -> list[int]:
    """The next batch among items of these lengths, oldest first and not empty: positions, the oldest's among them.

    If a batch `packs` its rows: in order of arrival, whatever still fits. Else: the oldest's neighbours in length,
    because such a batch costs its longest row times its rows.
    """
    if packs:
        return _filled(lengths, limits)
    by_length = sorted(range(len(lengths)), key=lambda position: (lengths[position], position))
    return by_length[_best_run([lengths[p] for p in by_length], by_length.index(0), limits)]


def _filled(lengths: Sequence[int], limits: Limits) -> list[int]:
    chosen, left = [0], limits.tokens - lengths[0]
    for position in range(1, len(lengths)):
        if len(chosen) == limits.batch_size or left <= 0:
            break
        if lengths[position] <= left:
            chosen.append(position)
            left -= lengths[position]
    return chosen


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
