"""The way of a request to the model and back: admitted, cut into slices, tokenised, queued, watched, put together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from qmd_remote.errors import Unavailable
from qmd_remote.server.admission import Admission
from qmd_remote.server.batching import Lane, Limits
from qmd_remote.server.jobs import Job
from qmd_remote.server.model import Float32, Model
from qmd_remote.server.observer import Observer, Role
from qmd_remote.server.scheduler import Scheduler
from qmd_remote.server.slices import about_tokens, slice_tokens, slices
from qmd_remote.settings import Settings

T = TypeVar("T")

CPU_THREADS = 2
INLINE_TEXTS = 4096  # cut on the event loop, in about 3 ms

# Slices of one request at a time: one that runs and one that is tokenised or waits meanwhile. Where the device is left
# alone with two batches, two more.
SLICES_IN_FLIGHT, SLICES_IN_FLIGHT_DEFERRED = 2, 4


@dataclass(frozen=True, eq=False)
class Rows:
    """`values`: float32 [inputs, width], in input order. `tokens`: of all inputs; `truncated`: inputs that were cut."""

    values: Float32
    tokens: int
    truncated: int


class Intake:
    """Takes requests for one event loop, to be run by `scheduler`."""

    def __init__(self, settings: Settings, scheduler: Scheduler, observer: Observer) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._observer = observer
        # threads of its own for each lane: a query is not tokenised behind the slices of index jobs
        self._cpu = {lane: ThreadPoolExecutor(CPU_THREADS, thread_name_prefix=f"cpu-{lane.value}") for lane in Lane}
        # one room per lane: a full index queue never keeps a query out
        self._room = {lane: Admission(settings.max_queue, settings.queue_wait_s) for lane in Lane}

    async def compute(self, model: Model[Any], inputs: Sequence[Any], role: Role) -> Rows:
        """The model's rows for `inputs`, at least one. Raises as Engine.embed does.

        A large request runs slice by slice, so that it neither fills the memory with tokens nor keeps others from the
        model. When it is cancelled, what has not been tokenised or run is dropped.
        """
        lane, asked = Lane.of(len(inputs)), time.monotonic()
        # of a large request only a few slices are ever inside
        ahead = SLICES_IN_FLIGHT_DEFERRED if model.deferred else SLICES_IN_FLIGHT
        async with self._room[lane].hold(min(len(inputs), ahead * self._settings.max_batch_size)):
            rows = await self._in_slices(model, inputs, role, lane, time.monotonic() - asked)
        self._observer.answered(role, len(inputs), rows.tokens, rows.truncated)
        return rows

    async def in_cpu_thread(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises what it raises, and Unavailable."""
        return await self._watched(self._submitted(work, Lane.QUERY))

    def close(self) -> None:
        """Stop the threads; what waits for them ends with Unavailable."""
        for pool in self._cpu.values():
            pool.shutdown(wait=False, cancel_futures=True)

    async def _in_slices(self, model: Model[Any], inputs: Sequence[Any], role: Role, lane: Lane, waited: float) -> Rows:
        cut = partial(self._cut, inputs)
        parts = cut() if len(inputs) <= INLINE_TEXTS else await self.in_cpu_thread(cut)
        ahead = SLICES_IN_FLIGHT_DEFERRED if model.deferred else SLICES_IN_FLIGHT
        running: deque[Job] = deque()
        begun = tokens = truncated = 0
        values: Float32 | None = None
        try:
            for part in parts:
                while begun < len(parts) and len(running) < ahead:
                    running.append(self._begin(model, [inputs[i] for i in parts[begun]], lane, Job(role, waited)))
                    begun, waited = begun + 1, 0.0
                found = await self._watched(running[0].future)
                job = running.popleft()
                tokens, truncated = tokens + job.tokens, truncated + job.truncated
                if values is None:
                    values = np.empty((len(inputs), found.shape[1]), dtype=np.float32)
                values[part] = found
        finally:
            for job in running:
                job.future.cancel()
        assert values is not None
        return Rows(values, tokens, truncated)

    def _cut(self, inputs: Sequence[Any]) -> list[list[int]]:
        limits = self._scheduler.limits or Limits(self._settings.max_batch_size)
        return slices(
            [about_tokens(item) for item in inputs],
            texts=self._settings.max_batch_size,
            tokens=slice_tokens(limits.tokens),
        )

    def _begin(self, model: Model[Any], inputs: Sequence[Any], lane: Lane, job: Job) -> Job:
        """Have a slice tokenised and queued: both in a thread, without coming back to the event loop between."""

        def work() -> None:
            if job.future.done():  # the caller went away
                return
            began = time.monotonic()
            items = model.prepare(inputs)
            self._observer.tokenized(time.monotonic() - began)
            self._scheduler.submit(model, items, lane, job)

        self._submitted(work, lane).add_done_callback(partial(_fail_with, job))
        return job

    def _submitted(self, work: Callable[[], T], lane: Lane) -> Future[T]:
        try:
            return self._cpu[lane].submit(work)
        except RuntimeError:  # the pool is closed
            raise shutting_down() from None

    async def _watched(self, future: Future[T]) -> T:
        """The future's result. Raises Unavailable when nothing has moved for `stall_limit_s`, or `close` was called.

        When it is cancelled itself, or gives up, so is the future.
        """
        loop, limit = asyncio.get_running_loop(), self._settings.stall_limit_s
        started, waiting, stalled = time.monotonic(), asyncio.wrap_future(future), False
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer, stalled
            left = limit - (time.monotonic() - max(started, self._scheduler.progress))
            if left > 0:
                timer = loop.call_later(left, look)
            else:
                stalled = waiting.cancel()
                self._scheduler.give_up(limit)

        timer = loop.call_later(limit, look)
        try:
            return await waiting
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            if stalled:
                raise Unavailable(f"the model has not finished any batch for {limit:g} s", code="stalled") from None
            raise shutting_down() from None
        finally:
            timer.cancel()


def shutting_down() -> Unavailable:
    """What those get who wait when the server closes."""
    return Unavailable("the server is shutting down", code="shutting_down")


def _being_cancelled() -> bool:
    """Whether the caller itself is asked to end, rather than what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fail_with(job: Job, done: Future[None]) -> None:
    """End `job` when its tokenising did not come to its end."""
    if done.cancelled():
        job.fail(shutting_down())
    elif (error := done.exception()) is not None:
        no_memory = Unavailable("there is no memory to tokenise this request", code="out_of_memory")
        job.fail(no_memory if isinstance(error, MemoryError) else error)
