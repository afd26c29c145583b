"""The model thread and its recovery, with a model whose every pass the test controls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.server.batching import Lane, Limits
from qmd_remote.server.scheduler import Scheduler
from tests.server import tiny_models as tiny
from tests.server.scripted_model import LIMIT_S, ScriptedModel, held, items, numbers


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """A running scheduler of batches of 8."""
    found = Scheduler()
    found.start(Limits(batch_size=8))
    yield found
    found.close()


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
    assert isinstance(error, Unavailable)
    assert (503, "model_failed") == (error.status, error.code)


def test_an_item_alone_is_tried_once_more(scheduler):
    """A failure that passes costs nothing, after the cached memory was given back; one that stays ends after two."""
    faults = [ValueError("a hiccup")]

    def fault(_: list[int]) -> None:
        if faults:
            raise faults.pop()

    model = ScriptedModel(fault)
    assert [7] == numbers(scheduler.submit(model, items(7), Lane.INDEX).result(LIMIT_S))
    assert [("run", [7]), ("free", []), ("run", [7]), ("finish", [7])] == model.log
    faults += [ValueError("a fault")] * 9
    assert isinstance(scheduler.submit(model, items(8), Lane.INDEX).exception(LIMIT_S), Unavailable)
    assert [[7], [7], [8], [8]] == model.batches


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
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
    assert (500, "not_finite") == (error.status, error.code)


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
