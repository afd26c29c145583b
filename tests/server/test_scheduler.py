"""Admission, the model thread and its recovery, with a model whose every pass the test controls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.server.batching import Lane, Limits
from qmd_remote.server.model import Prepared
from qmd_remote.server.scheduler import Admission, Scheduler
from tests.server import tiny_models as tiny

LIMIT_S = 30


def items(*values: int) -> list[Prepared]:
    """One prepared item a number."""
    return [Prepared({"input_ids": np.array([value])}, 1) for value in values]


class ScriptedModel:
    """A model whose row for an item is the item's number twice; `fault` may raise or change the rows of a batch.

    `batches` tells what ran; while `gate` is not set, a pass waits inside, having set `entered`.
    """

    def __init__(self, fault: Callable[[list[int]], None] | None = None) -> None:
        self.batches: list[list[int]] = []
        self.fault = fault
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.freed = self.widened = 0
        self.not_finite: set[int] = set()
        self.half = False

    def prepare(self, inputs: Sequence[int]) -> list[Prepared]:
        return items(*inputs)

    def run(self, batch: Sequence[Prepared]) -> list[int]:
        values = [int(item.row["input_ids"][0]) for item in batch]
        self.batches.append(values)
        self.entered.set()
        assert self.gate.wait(LIMIT_S)
        if self.fault is not None:
            self.fault(values)
        return values

    def finish(self, output: list[int]) -> np.ndarray:
        return np.array([[np.nan if v in self.not_finite else v] * 2 for v in output], dtype=np.float32)

    packs = False
    deferred = False

    def widen(self) -> bool:
        if not self.half:
            return False
        self.half, self.not_finite = False, set()
        self.widened += 1
        return True

    def free(self) -> None:
        self.freed += 1


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """A running scheduler of batches of 8."""
    found = Scheduler()
    found.start(Limits(batch_size=8))
    yield found
    found.close()


def held(scheduler: Scheduler, model: ScriptedModel) -> None:
    """Have the model thread stand inside a pass over item 0, so that what comes next has to queue."""
    model.gate.clear()
    scheduler.submit(model, items(0), Lane.INDEX)
    assert model.entered.wait(LIMIT_S)


def numbers(rows: np.ndarray) -> list[int]:
    """The item each row belongs to."""
    return [int(row[0]) for row in rows]


def test_rows_come_back_in_order(scheduler):
    """Each future gets its own rows, in the order of its items, over several batches."""
    model = ScriptedModel()
    futures = [scheduler.submit(model, items(*range(n, n + 20)), Lane.INDEX) for n in (0, 100, 200)]
    assert [numbers(future.result(LIMIT_S)) for future in futures] == [list(range(n, n + 20)) for n in (0, 100, 200)]
    assert max(map(len, model.batches)) == 8


def test_batches_mix_requests_but_never_models(scheduler):
    """Small requests for the same model share a pass; those for another model wait for theirs."""
    one, other = ScriptedModel(), ScriptedModel()
    held(scheduler, one)
    futures = [scheduler.submit(model, items(v), Lane.INDEX) for model, v in ((one, 1), (other, 2), (one, 3))]
    one.gate.set()
    assert [numbers(future.result(LIMIT_S)) for future in futures] == [[1], [2], [3]]
    assert (one.batches[1:], other.batches) == ([[1, 3]], [[2]])


def test_a_query_overtakes_queued_index_work(scheduler):
    """A query that arrives behind index work runs at the next batch boundary."""
    model = ScriptedModel()
    held(scheduler, model)
    index = scheduler.submit(model, items(*range(1, 25)), Lane.INDEX)
    query = scheduler.submit(model, items(99), Lane.QUERY)
    model.gate.set()
    assert numbers(query.result(LIMIT_S)) == [99]
    index.result(LIMIT_S)
    assert model.batches[1] == [99]


def test_cancelled_work_never_runs(scheduler):
    """What a cancelled future still had in the queue is dropped."""
    model = ScriptedModel()
    held(scheduler, model)
    dropped = scheduler.submit(model, items(1, 2, 3), Lane.INDEX)
    kept = scheduler.submit(model, items(4), Lane.INDEX)
    assert dropped.cancel()
    model.gate.set()
    assert numbers(kept.result(LIMIT_S)) == [4]
    assert model.batches == [[0], [4]]


def test_one_bad_item_fails_alone(scheduler):
    """When one item breaks a pass, only its own request fails; the others of the batch get their rows."""

    def fault(values: list[int]) -> None:
        if 13 in values:
            raise ValueError("unlucky")

    model = ScriptedModel(fault)
    held(scheduler, model)
    good = [scheduler.submit(model, items(n, n + 1), Lane.INDEX) for n in (1, 3)]
    bad = scheduler.submit(model, items(13), Lane.INDEX)
    model.gate.set()
    assert [numbers(future.result(LIMIT_S)) for future in good] == [[1, 2], [3, 4]]
    error = bad.exception(LIMIT_S)
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (500, "model_failed")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")])
def test_out_of_memory_frees_halves_and_retries(scheduler, error):
    """A batch that does not fit is run in smaller ones, after the cached memory was given back."""

    def fault(values: list[int]) -> None:
        if len(values) > 2:
            raise error

    model = ScriptedModel(fault)
    rows = scheduler.submit(model, items(*range(8)), Lane.INDEX).result(LIMIT_S)
    assert numbers(rows) == list(range(8))
    assert [len(batch) for batch in model.batches] == [8, 4, 2, 2, 4, 2, 2]
    assert model.freed == 3


def test_an_item_that_never_fits_is_a_503(scheduler):
    """An item too large on its own fails with the cause named, and the next request works."""

    def fault(values: list[int]) -> None:
        if 7 in values:
            raise MemoryError

    model = ScriptedModel(fault)
    error = scheduler.submit(model, items(7), Lane.INDEX).exception(LIMIT_S)
    assert isinstance(error, Unavailable)
    assert error.code == "out_of_memory"
    assert numbers(scheduler.submit(model, items(8), Lane.INDEX).result(LIMIT_S)) == [8]


def test_a_result_that_is_not_finite_is_an_error(scheduler):
    """NaN is never answered: its request fails, and those beside it do not."""
    model = ScriptedModel()
    model.not_finite = {2}
    held(scheduler, model)
    good, bad = (scheduler.submit(model, items(v), Lane.INDEX) for v in (1, 2))
    model.gate.set()
    assert numbers(good.result(LIMIT_S)) == [1]
    error = bad.exception(LIMIT_S)
    assert isinstance(error, ApiError)
    assert error.code == "not_finite"


def test_half_precision_that_overflows_is_widened(scheduler):
    """When half precision overflows, the model goes on in float32 and the request gets its rows."""
    model = ScriptedModel()
    model.half, model.not_finite = True, {2}
    assert numbers(scheduler.submit(model, items(1, 2), Lane.INDEX).result(LIMIT_S)) == [1, 2]
    assert model.widened == 1


def test_closing_resolves_everything(scheduler):
    """Closing ends the running and the queued work with 503, and refuses what comes later."""
    model = ScriptedModel()
    model.gate.clear()
    running = scheduler.submit(model, items(1), Lane.INDEX)
    assert model.entered.wait(LIMIT_S)
    queued = scheduler.submit(model, items(2), Lane.QUERY)
    scheduler.close(timeout=0)
    late = scheduler.submit(model, items(3), Lane.QUERY)
    codes = [getattr(future.exception(LIMIT_S), "code", None) for future in (running, queued, late)]
    model.gate.set()
    assert codes == ["shutting_down"] * 3
    assert model.batches == [[1]]


class AcceleratorError(RuntimeError):
    """Named like torch's error after which a CUDA context is of no use."""


@pytest.mark.parametrize("error", [AcceleratorError("CUDA error: device-side assert triggered"), SystemExit(3)])
def test_a_lost_device_ends_all_work_and_is_reported(error):
    """When the model thread cannot go on, all requests end with 503 and the owner is told once."""

    def fault(_: list[int]) -> None:
        raise error

    lost: list[BaseException] = []
    scheduler = Scheduler(on_lost=lost.append)
    model = ScriptedModel(fault)
    model.gate.clear()
    scheduler.start(Limits(8))
    running = scheduler.submit(model, items(1), Lane.INDEX)
    assert model.entered.wait(LIMIT_S)
    queued = scheduler.submit(model, items(2), Lane.INDEX)
    model.gate.set()
    codes = [getattr(future.exception(LIMIT_S), "code", None) for future in (running, queued)]
    assert codes == ["failed", "failed"]
    tiny.until(lambda: bool(lost))
    assert len(lost) == 1
    assert scheduler.submit(model, items(3), Lane.INDEX).exception(LIMIT_S) is not None
    scheduler.close()


def test_a_full_room_refuses_after_the_wait():
    """Without room in time a request gets 503 "overloaded" with a Retry-After."""

    async def story() -> ApiError:
        room = Admission(capacity=4, wait_s=0.05)
        async with room.hold(3):
            try:
                async with room.hold(2):
                    raise AssertionError("there was no room")
            except Unavailable as error:
                return error

    error = asyncio.run(story())
    assert (error.code, error.retry_after) == ("overloaded", 1)


def test_a_request_larger_than_the_room_enters_an_empty_one():
    """A request that could never fit is admitted when nothing else is inside."""

    async def story() -> None:
        room = Admission(capacity=4, wait_s=LIMIT_S)
        async with room.hold(100):
            pass
        async with room.hold(4):
            later = asyncio.create_task(_enter(room, 100, []))
            await asyncio.sleep(0)
            assert not later.done()
        await asyncio.wait_for(later, LIMIT_S)

    asyncio.run(story())


async def _enter(room: Admission, texts: int, order: list[int]) -> None:
    async with room.hold(texts):
        order.append(texts)
        await asyncio.sleep(0)


def test_room_is_given_in_order_of_arrival():
    """A small request does not slip past a larger one that came before it, so that none starves."""

    async def story() -> list[int]:
        room, order = Admission(capacity=4, wait_s=LIMIT_S), []
        async with room.hold(3):
            waiting = [asyncio.create_task(_enter(room, texts, order)) for texts in (4, 1, 2)]
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*waiting), LIMIT_S)
        return order

    assert asyncio.run(story()) == [4, 1, 2]


def test_cancelled_waiters_leave_no_trace():
    """A caller who gives up while waiting takes no room, and those behind it move up."""

    async def story() -> None:
        room = Admission(capacity=4, wait_s=LIMIT_S)
        async with room.hold(3):
            gone = asyncio.create_task(_enter(room, 4, []))
            await asyncio.sleep(0)
            behind = asyncio.create_task(_enter(room, 1, []))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait_for(behind, LIMIT_S)
            assert gone.cancelled()
        async with room.hold(4):
            assert behind.done()

    asyncio.run(story())


def test_giving_up_in_the_moment_of_admission_gives_the_room_back():
    """A caller cancelled after it was admitted, but before it could run, holds no room."""

    async def story() -> None:
        room = Admission(capacity=4, wait_s=LIMIT_S)
        async with room.hold(3):
            gone = asyncio.create_task(_enter(room, 4, []))
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert gone.cancelled()
        await asyncio.wait_for(_enter(room, 4, []), LIMIT_S / 2)

    asyncio.run(story())
