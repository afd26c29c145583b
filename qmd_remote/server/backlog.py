"""What waits for a batch: a queue for each lane and model, from which the policy of `batching` takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

from qmd_remote.server.batching import Lane, Limits, choose, next_lane
from qmd_remote.server.model import Model


class Waiting(Protocol):
    """One item in the queue."""

    @property
    def length(self) -> int:
        """Its tokens, at least one."""
        ...

    @property
    def lane(self) -> Lane:
        """Whether it is query or index work."""
        ...

    @property
    def model(self) -> Model[Any]:
        """What runs it; a batch is for one model."""
        ...

    @property
    def dropped(self) -> bool:
        """Whether nobody wants it any more; once true, always true."""
        ...


Item = TypeVar("Item", bound=Waiting)


class Backlog(Generic[Item]):
    """Items in order of arrival. Taking a batch looks at a window of them, however many wait. Not thread-safe."""

    def __init__(self) -> None:
        self._queues: dict[Lane, dict[int, deque[tuple[int, Item]]]] = {lane: {} for lane in Lane}
        self._arrivals = 0
        self._streak = 0  # query batches since the last index batch

    def add(self, items: Iterable[Item]) -> None:
        """Put `items` behind all others."""
        for item in items:
            queue = self._queues[item.lane].setdefault(id(item.model), deque())
            queue.append((self._arrivals, item))
            self._arrivals += 1

    def depth(self, lane: Lane) -> int:
        """How many items of a lane wait and are wanted."""
        return sum(not item.dropped for queue in self._queues[lane].values() for _, item in queue)

    def take(self, limits: Limits) -> list[Item]:
        """The next batch: items of one lane and model, taken out; empty when nothing waits. Dropped ones vanish."""
        for queues in self._queues.values():
            _forget_dropped(queues)
        waiting = [lane for lane, queues in self._queues.items() if queues]
        if not waiting:
            return []
        lane = next_lane(waiting, limits, self._streak)
        self._streak = self._streak + 1 if lane is Lane.QUERY else 0
        # the model whose first item is the lane's oldest
        return _take(min(self._queues[lane].values(), key=lambda queue: queue[0][0]), limits)

    def clear(self) -> list[Item]:
        """Take everything out."""
        left = [item for queues in self._queues.values() for queue in queues.values() for _, item in queue]
        self._queues = {lane: {} for lane in Lane}
        return left


def _forget_dropped(queues: dict[int, deque[tuple[int, Item]]]) -> None:
    """Have each queue begin with an item that is wanted, and none be empty."""
    for key, queue in list(queues.items()):
        while queue and queue[0][1].dropped:
            queue.popleft()
        if not queue:
            del queues[key]


def _take(queue: deque[tuple[int, Item]], limits: Limits) -> list[Item]:
    """A batch out of a queue whose first item is wanted."""
    packs = queue[0][1].model.packs
    window: list[tuple[int, Item]] = []
    while queue and len(window) < limits.reach(packs=packs):
        place = queue.popleft()
        if not place[1].dropped:
            window.append(place)
    chosen = choose([item.length for _, item in window], limits, packs=packs)
    taken = set(chosen)
    queue.extendleft(window[position] for position in reversed(range(len(window))) if position not in taken)
    return [window[position][1] for position in chosen]
