"""From items to rows: one model thread that owns the device, and every future resolved."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from qmd_remote.errors import Unavailable
from qmd_remote.server.backlog import Backlog
from qmd_remote.server.batching import Lane, Limits, cost
from qmd_remote.server.budget import Budget
from qmd_remote.server.jobs import Entry, Job
from qmd_remote.server.model import Float32, Model, Prepared
from qmd_remote.server.observer import SILENT, Batch, Observer
from qmd_remote.server.pipeline import Pipeline
from qmd_remote.server.recovery import Outcome

log = logging.getLogger(__name__)


class Scheduler:
    """One thread that owns the device and runs batch after batch, chosen by the policy in `batching`.

    What is submitted before `start` waits for it. `on_lost` is called once, from that thread, when it cannot go on:
    the device refuses all further work, say. `observer` is told of waits and batches, from that thread too.
    """

    def __init__(self, *, on_lost: Callable[[BaseException], None] | None = None, observer: Observer = SILENT) -> None:
        self._on_lost = on_lost
        self._observer = observer
        self._changed = threading.Condition()
        self._backlog: Backlog[Entry] = Backlog()
        self._running: list[Sequence[Entry]] = []  # batches on the device
        self._stopped: Unavailable | None = None
        self._progress = self._began = time.monotonic()
        self._budget: Budget | None = None
        self._thread: threading.Thread | None = None

    def start(self, limits: Limits) -> None:
        """Start the model thread, with batches of at most `limits`."""
        self._budget = budget = Budget(limits)
        self._thread = threading.Thread(target=self._loop, args=(budget,), name="model", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> float:
        """When (time.monotonic) the model thread last finished a batch."""
        return self._progress

    @property
    def limits(self) -> Limits | None:
        """What a batch is limited to at present; None before `start`."""
        return self._budget.limits if self._budget is not None else None

    @property
    def learned_tokens(self) -> int | None:
        """To how many tokens batches were lowered because they ran out of memory; None if they were not."""
        return self._budget.learned if self._budget is not None else None

    def queued(self, lane: Lane) -> int:
        """How many items of a lane wait for a batch."""
        with self._changed:
            return self._backlog.depth(lane)

    def submit(
        self, model: Model[Any], items: Sequence[Prepared], lane: Lane, job: Job | None = None
    ) -> Future[Float32]:
        """Queue `items` (at least one) as `job`; its future gives float32 [len(items), width], or an ApiError.

        Cancelling the future drops what has not run yet.
        """
        job = job or Job()
        entries = job.entries(model, items, lane)
        with self._changed:
            stopped = self._stopped
            if stopped is None:
                self._backlog.add(entries)
                self._changed.notify()
        if stopped is not None:
            job.fail(stopped)
        return job.future

    def close(self, timeout: float = 5.0) -> None:
        """Stop: everything pending ends with Unavailable at once; a forward pass in progress is waited for."""
        self._stop(Unavailable("the server is shutting down", code="shutting_down"))
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def working(self) -> bool:
        """Whether the model's thread lives; after `close`, whether it is inside a batch that goes on."""
        return self._thread is not None and self._thread.is_alive()

    def give_up(self, limit_s: float) -> None:
        """End all work for good if the model thread has been inside one batch for `limit_s` seconds."""
        with self._changed:
            stuck = self._stopped is None and bool(self._running)
            # who waited began to do so a moment before the batch did
            stuck = stuck and time.monotonic() - max(self._began, self._progress) >= 0.9 * limit_s
        if stuck:
            log.critical("the model thread has not finished a batch for %g s", limit_s)
            self._stop(Unavailable("the model failed and the server has to restart", code="failed"))
            if self._on_lost is not None:
                self._on_lost(TimeoutError(f"no batch was finished for {limit_s:g} s"))

    def _stop(self, error: Unavailable) -> None:
        with self._changed:
            if self._stopped is None:
                self._stopped = error
            left = [entry for batch in self._running for entry in batch] + self._backlog.clear()
            self._changed.notify()
        for entry in left:
            entry.job.fail(error)

    def _loop(self, budget: Budget) -> None:
        try:
            self._work(budget)
        except BaseException as error:  # whatever it is, nobody may be left waiting for a thread that is gone
            log.critical("the model thread ended", exc_info=error)
            self._stop(Unavailable("the model failed and the server has to restart", code="failed"))
            if self._on_lost is not None:
                self._on_lost(error)

    def _work(self, budget: Budget) -> None:
        pipeline = Pipeline(self._deliver, budget, self._observer)
        while (batch := self._next(budget.limits, wait=not pipeline.busy)) is not None:
            if batch:
                self._end_waits(batch, time.monotonic())
                pipeline.push(batch)
            else:
                pipeline.drain()

    def _next(self, limits: Limits, *, wait: bool) -> list[Entry] | None:
        """Take the next batch out of the queue: None when stopped, empty when there is none and it shall not `wait`."""
        with self._changed:
            while self._stopped is None:
                batch = self._backlog.take(limits)
                if batch:
                    if not self._running:
                        self._began = time.monotonic()
                    self._running.append(batch)
                if batch or not wait:
                    return batch
                self._changed.wait()
            return None

    def _end_waits(self, batch: Sequence[Entry], now: float) -> None:
        for entry in batch:
            waited = entry.job.end_wait(now)
            if waited is not None:
                self._observer.waited(entry.lane, waited)

    def _deliver(self, batch: Sequence[Entry], found: Sequence[Outcome], seconds: float) -> None:
        self._progress = time.monotonic()
        self._observer.ran(_describe(batch, seconds))
        for entry, outcome in zip(batch, found, strict=True):
            entry.job.resolve(entry.position, outcome)
        with self._changed:
            self._running = [other for other in self._running if other is not batch]


def _describe(batch: Sequence[Entry], seconds: float) -> Batch:
    roles = {entry.job.role for entry in batch}
    tokens = cost([entry.length for entry in batch], packs=batch[0].model.packs)
    return Batch(roles.pop() if len(roles) == 1 else "both", len(batch), tokens, seconds)
