"""From requests to batches and back: bounded admission, one model thread, every future resolved."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.server.batching import Lane, Limits, Pending, choose
from qmd_remote.server.model import Float32, Model, Prepared
from qmd_remote.server.observer import SILENT, Batch, Observer, Role
from qmd_remote.server.recovery import Outcome, outcomes

log = logging.getLogger(__name__)


class Admission:
    """How many texts may be inside at once, first come, first served; for one event loop.

    A request larger than the whole capacity enters when nothing else is inside.
    """

    def __init__(self, capacity: int, wait_s: float) -> None:
        self._capacity = capacity
        self._wait_s = wait_s
        self._inside = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, texts: int) -> AsyncIterator[None]:
        """Be inside with so many texts while the block runs. Raises Unavailable when there is no room in time."""
        if self._waiting or not self._fits(texts):
            await self._wait(texts)
        else:
            self._inside += texts
        try:
            yield
        finally:
            self._inside -= texts
            self._admit()

    async def _wait(self, texts: int) -> None:
        turn = (texts, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn[1]
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # admitted at the very moment of giving up
                self._inside -= texts
            self._admit()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Unavailable(
                f"{self._inside} texts are waiting and there was no room for {texts} more within {self._wait_s:g} s",
                code="overloaded",
                retry_after=max(1, round(self._wait_s)),
            ) from None

    def _fits(self, texts: int) -> bool:
        return self._inside == 0 or self._inside + texts <= self._capacity

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            texts, turn = self._waiting.popleft()
            self._inside += texts
            if not turn.done():
                turn.set_result(None)


class _Job:
    """What one `submit` waits for: a row per item, or the first error."""

    def __init__(self, size: int, role: Role, since: float) -> None:
        self.future: Future[Float32] = Future()
        self.role: Role = role
        self.since: float | None = since  # when its wait began (time.monotonic); None when it is over
        self._rows: list[Float32 | None] = [None] * size
        self._missing = size

    def resolve(self, position: int, outcome: Outcome) -> None:
        if isinstance(outcome, ApiError):
            self.fail(outcome)
            return
        self._rows[position] = outcome
        self._missing -= 1
        if not self._missing:
            # a cancelled caller no longer wants it
            with suppress(InvalidStateError):
                self.future.set_result(np.stack([row for row in self._rows if row is not None]))

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Entry:
    model: Model[Any]
    item: Prepared
    pending: Pending
    job: _Job
    position: int


class Scheduler:
    """One thread that owns the device and runs batch after batch, chosen by the policy in `batching`.

    What is submitted before `start` waits for it. `on_lost` is called once, from that thread, when it cannot go on:
    the device refuses all further work, say. `observer` is told of waits and batches, from that thread too.
    """

    def __init__(self, *, on_lost: Callable[[BaseException], None] | None = None, observer: Observer = SILENT) -> None:
        self._on_lost = on_lost
        self._observer = observer
        self._changed = threading.Condition()
        self._waiting: list[_Entry] = []
        self._running: Sequence[_Entry] = ()
        self._stopped: Unavailable | None = None
        self._progress = time.monotonic()
        self._thread: threading.Thread | None = None

    def start(self, limits: Limits) -> None:
        """Start the model thread, with batches of at most `limits`."""
        self._thread = threading.Thread(target=self._loop, args=(limits,), name="model", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> float:
        """When (time.monotonic) the model thread last finished a batch."""
        return self._progress

    @property
    def queued(self) -> int:
        """How many items wait for a batch."""
        return len(self._waiting)

    def submit(
        self, model: Model[Any], items: Sequence[Prepared], lane: Lane, *, role: Role = "embed", waited: float = 0.0
    ) -> Future[Float32]:
        """Queue `items` (at least one); the future gives float32 [len(items), width], or an ApiError.

        Cancelling the future drops what has not run yet. `role` and `waited`, the seconds that they have waited
        elsewhere, are for the observer.
        """
        job = _Job(len(items), role, time.monotonic() - waited)
        with self._changed:
            if self._stopped is not None:
                job.fail(self._stopped)
                return job.future
            self._waiting.extend(
                _Entry(model, item, Pending(item.length, lane, id(model)), job, position)
                for position, item in enumerate(items)
            )
            self._changed.notify()
        return job.future

    def close(self, timeout: float = 5.0) -> None:
        """Stop: everything pending ends with Unavailable at once; a forward pass in progress is waited for."""
        self._stop(Unavailable("the server is shutting down", code="shutting_down"))
        if self._thread is not None:
            self._thread.join(timeout)

    def _stop(self, error: Unavailable) -> None:
        with self._changed:
            if self._stopped is None:
                self._stopped = error
            left = [*self._running, *self._waiting]
            self._waiting = []
            self._changed.notify()
        for entry in left:
            entry.job.fail(error)

    def _loop(self, limits: Limits) -> None:
        try:
            self._work(limits)
        except BaseException as error:  # whatever it is, nobody may be left waiting for a thread that is gone
            log.critical("the model thread ended", exc_info=error)
            self._stop(Unavailable("the model failed and the server has to restart", code="failed"))
            if self._on_lost is not None:
                self._on_lost(error)

    def _work(self, limits: Limits) -> None:
        streak = 0
        while (chosen := self._next(limits, streak)) is not None:
            batch, streak = chosen
            began = time.monotonic()
            self._end_waits(batch, began)
            results = outcomes(batch[0].model, [entry.item for entry in batch], self._observer)
            self._progress = time.monotonic()
            self._observer.ran(_describe(batch, self._progress - began))
            for entry, outcome in zip(batch, results, strict=True):
                entry.job.resolve(entry.position, outcome)

    def _end_waits(self, batch: Sequence[_Entry], now: float) -> None:
        for entry in batch:
            job = entry.job
            if job.since is not None:
                self._observer.waited(entry.pending.lane, now - job.since)
                job.since = None

    def _next(self, limits: Limits, streak: int) -> tuple[list[_Entry], int] | None:
        """Wait for work and take the next batch out of the queue; None when stopped."""
        with self._changed:
            self._running = ()
            while True:
                if self._stopped is not None:
                    return None
                self._waiting = [entry for entry in self._waiting if not entry.job.future.done()]
                if self._waiting:
                    break
                self._changed.wait()
            choice = choose([entry.pending for entry in self._waiting], limits, streak)
            taken = set(choice.positions)
            batch = [self._waiting[position] for position in choice.positions]
            self._waiting = [entry for position, entry in enumerate(self._waiting) if position not in taken]
            self._running = batch
            return batch, choice.streak


def _describe(batch: Sequence[_Entry], seconds: float) -> Batch:
    roles = {entry.job.role for entry in batch}
    longest = max(entry.item.length for entry in batch)
    return Batch(roles.pop() if len(roles) == 1 else "both", len(batch), longest * len(batch), seconds)
