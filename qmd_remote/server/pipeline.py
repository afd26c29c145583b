"""Batches on the device: one after the other, or, where it computes while the host goes on, two at a time.

While the device computes batch N, the host launches batch N + 1, and then waits for N: the device is never idle for
what the host does between batches. Everything here runs in the model thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from qmd_remote.server.batching import cost
from qmd_remote.server.budget import Budget
from qmd_remote.server.jobs import Entry
from qmd_remote.server.model import Model, Prepared
from qmd_remote.server.observer import Observer
from qmd_remote.server.recovery import Attempt, Outcome, failure, finished, is_good, is_out_of_memory, outcomes, rescue

# (the batch, an outcome per entry, seconds on the device)
Deliver = Callable[[Sequence[Entry], Sequence[Outcome], float], None]


class _Flight:
    """A batch that has been launched."""

    def __init__(self, batch: Sequence[Entry], began: float) -> None:
        self.batch = batch
        self.began = began
        self.model: Model[Any] = batch[0].model
        self.items: list[Prepared] = [entry.item for entry in batch]
        self.tokens = cost([item.length for item in self.items], packs=self.model.packs)
        self.output: Any = None

    def launch(self) -> Attempt | None:
        """Run it; what went wrong, if anything."""
        try:
            self.output = self.model.run(self.items)
        except Exception as error:  # any failure of a forward pass belongs to its items, not to the model thread
            return failure(error)
        return None

    def land(self) -> Attempt:
        """Wait for its result, and let go of what the device holds for it."""
        output, self.output = self.output, None
        return finished(self.model, output)


class Pipeline:
    """Runs batches, gives each to `deliver` with its outcomes, and teaches `budget` what fits into the memory.

    All its methods raise DeviceLost.
    """

    def __init__(self, deliver: Deliver, budget: Budget, observer: Observer) -> None:
        self._deliver = deliver
        self._budget = budget
        self._observer = observer
        self._flying: _Flight | None = None
        self._landed = 0.0  # when the last batch ended

    @property
    def busy(self) -> bool:
        """Whether a batch is on the device, to be ended by the next `push` or by `drain`."""
        return self._flying is not None

    def push(self, batch: Sequence[Entry]) -> None:
        """Run a batch. It is delivered before this returns, unless its model is deferred."""
        if not batch[0].model.deferred:
            self.drain()  # the answers of a batch in flight would wait for all of this one
        flight = _Flight(batch, time.monotonic())
        problem = flight.launch()
        if problem is not None:
            self.drain()  # what it holds on the device is what the retry may need
            self._conclude(flight, problem)
            return
        before, self._flying = self._flying, flight
        if before is not None:
            self._land(before)
        if not flight.model.deferred:
            self.drain()

    def drain(self) -> None:
        """End the batch in flight, if there is one."""
        flight, self._flying = self._flying, None
        if flight is not None:
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        attempt = flight.land()
        behind = self._flying
        if is_good(attempt) or behind is None:
            self._conclude(flight, attempt)
            return
        # A retry wants all of the device's memory, and may change its precision: the batch behind is ended first.
        self._flying = None
        other = behind.land()
        if is_good(other):
            self._conclude(behind, other)
        self._conclude(flight, attempt)
        if not is_good(other):
            # it was launched under what the first one failed of: its result says nothing
            self._hand_over(behind, outcomes(behind.model, behind.items, self._observer))

    def _conclude(self, flight: _Flight, attempt: Attempt) -> None:
        if is_good(attempt):
            self._budget.sufficed(flight.tokens)
        elif isinstance(attempt, Exception) and is_out_of_memory(attempt) and len(flight.items) > 1:
            self._budget.exceeded(flight.tokens)
        self._hand_over(flight, rescue(flight.model, flight.items, attempt, self._observer))

    def _hand_over(self, flight: _Flight, found: Sequence[Outcome]) -> None:
        now = time.monotonic()
        # the device began with it when it had ended the one before
        seconds, self._landed = now - max(flight.began, self._landed), now
        self._deliver(flight.batch, found, seconds)
