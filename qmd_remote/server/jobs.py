"""What waits in the queue, and who waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from qmd_remote.errors import ApiError
from qmd_remote.server.batching import Lane
from qmd_remote.server.model import Float32, Model, Prepared
from qmd_remote.server.observer import Role
from qmd_remote.server.recovery import Outcome


class Job:
    """A slice of a request. `future` gives float32 [items, width], or the first error; cancelling it drops the rest.

    `role` and `waited`, the seconds that it has waited before it was queued, are for the observer. `tokens` and
    `truncated` are counted when its items are known.
    """

    def __init__(self, role: Role = "embed", waited: float = 0.0) -> None:
        self.future: Future[Float32] = Future()
        self.role: Role = role
        self.tokens = self.truncated = 0
        self._waited = waited
        self._since: float | None = None
        self._rows: list[Float32 | None] = []
        self._missing = 0

    def entries(self, model: Model[Any], items: Sequence[Prepared], lane: Lane) -> list[Entry]:
        """Its `items` (at least one) as they stand in the queue. For once."""
        self.tokens = sum(item.length for item in items)
        self.truncated = sum(item.truncated for item in items)
        self._since = time.monotonic() - self._waited
        self._rows = [None] * len(items)
        self._missing = len(items)
        return [Entry(model, item, lane, self, position) for position, item in enumerate(items)]

    def end_wait(self, now: float) -> float | None:
        """How many seconds it has waited, when asked for the first time; None after that."""
        since, self._since = self._since, None
        return None if since is None else now - since

    def resolve(self, position: int, outcome: Outcome) -> None:
        """Give it what became of an item."""
        if isinstance(outcome, ApiError):
            self.fail(outcome)
            return
        self._rows[position] = outcome
        self._missing -= 1
        if not self._missing:
            # a cancelled caller no longer wants it
            with suppress(InvalidStateError):
                self.future.set_result(np.stack([row for row in self._rows if row is not None]))

    def fail(self, error: BaseException) -> None:
        """End it with `error`, if it has not ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One item of a job in the queue."""

    model: Model[Any]
    item: Prepared
    lane: Lane
    job: Job
    position: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.item.length

    @property
    def dropped(self) -> bool:
        """Whether its job has ended: by an error, or because the caller went away."""
        return self.job.future.done()
