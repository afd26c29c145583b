"""Two batches at a time on a device that computes while the host goes on, and what becomes of both when one fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from qmd_remote.errors import Unavailable
from qmd_remote.server.batching import Lane, Limits
from qmd_remote.server.budget import STRIKES, Budget
from qmd_remote.server.scheduler import Scheduler
from tests.server import tiny_models as tiny
from tests.server.scripted_model import LIMIT_S, Fault, ScriptedModel, items, numbers

OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """A running scheduler of batches of 2."""
    found = Scheduler()
    found.start(Limits(batch_size=2))
    yield found
    found.close()


def queued_behind(scheduler: Scheduler, model: ScriptedModel, *groups: tuple[int, ...]) -> list[Future]:
    """Queue a batch for each group while the model thread waits for one over item 0; then let it go on."""
    model.late_gate.clear()
    first = scheduler.submit(model, items(0), Lane.INDEX)
    assert model.waiting.wait(LIMIT_S)
    futures = [scheduler.submit(model, items(*group), Lane.INDEX) for group in groups]
    model.late_gate.set()
    assert numbers(first.result(LIMIT_S)) == [0]
    return futures


def answers(futures: list[Future]) -> list[list[int] | str]:
    """The items of each future's rows, or the code of its error."""
    errors = [future.exception(LIMIT_S) for future in futures]
    return [
        numbers(future.result()) if error is None else getattr(error, "code", "")
        for future, error in zip(futures, errors, strict=True)
    ]


def once(error: Exception, values: list[int]) -> Fault:
    """A fault that meets a batch of just these values, the first time."""
    left = [values]

    def fault(found: list[int]) -> None:
        if found in left:
            left.clear()
            raise error

    return fault


def test_the_next_batch_is_launched_before_the_last_is_waited_for(scheduler):
    """While batches wait, run(N + 1) comes before finish(N), and never are more than two on the device."""
    model = ScriptedModel(deferred=True)
    futures = queued_behind(scheduler, model, (1, 2), (3, 4), (5, 6))
    assert answers(futures) == [[1, 2], [3, 4], [5, 6]]
    order = [("run", [0]), ("finish", [0]), ("run", [1, 2]), ("run", [3, 4]), ("finish", [1, 2])]
    assert model.log == [*order, ("run", [5, 6]), ("finish", [3, 4]), ("finish", [5, 6])]
    assert model.most == 2


def test_a_lone_batch_waits_for_no_other(scheduler):
    """When nothing else waits, a batch is finished at once."""
    assert answers([scheduler.submit(ScriptedModel(deferred=True), items(7), Lane.QUERY)]) == [[7]]


def test_a_model_that_computes_in_run_is_answered_batch_by_batch(scheduler):
    """Without a device that goes on by itself, no answer waits for the next batch."""
    model = ScriptedModel()
    answers(queued_behind(scheduler, model, (1, 2), (3, 4)))
    assert [what for what, _ in model.log] == ["run", "finish"] * 3


def test_a_batch_in_flight_does_not_wait_for_a_model_that_computes_in_run(scheduler):
    """Before a pass that blocks, the batch on the device is answered."""
    one, other = ScriptedModel(deferred=True), ScriptedModel()
    one.late_gate.clear()
    scheduler.submit(one, items(0), Lane.INDEX)
    assert one.waiting.wait(LIMIT_S)
    first = scheduler.submit(one, items(1), Lane.INDEX)
    other.gate.clear()
    second = scheduler.submit(other, items(2), Lane.INDEX)
    one.late_gate.set()
    assert other.entered.wait(LIMIT_S)
    assert first.done()
    other.gate.set()
    assert answers([first, second]) == [[1], [2]]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_memory_that_is_short_at_launch_is_sought_after_the_batch_in_flight(scheduler, error):
    """Out of memory in run(N + 1): N is finished, memory is freed, and the halves are tried."""
    model = ScriptedModel(once(error, [3, 4]), deferred=True)
    futures = queued_behind(scheduler, model, (1, 2), (3, 4), (5,))
    assert answers(futures) == [[1, 2], [3, 4], [5]]
    after = model.log[model.log.index(("run", [3, 4])) :]
    assert after[:4] == [("run", [3, 4]), ("finish", [1, 2]), ("free", []), ("run", [3])]


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY, ValueError("an error of the device that came late")])
@pytest.mark.parametrize("values", [[1, 2], [3, 4], [5, 6]])
def test_an_error_that_comes_out_in_finish_is_retried(scheduler, error, values):
    """A batch whose failure shows only when it is waited for is run again in halves, wherever it stands."""
    model = ScriptedModel(late_fault=once(error, values), deferred=True)
    futures = queued_behind(scheduler, model, (1, 2), (3, 4), (5, 6))
    assert answers(futures) == [[1, 2], [3, 4], [5, 6]]
    assert {(values[0],), (values[1],)} <= {tuple(batch) for batch in model.batches}


def test_a_retry_has_the_device_for_itself(scheduler):
    """When batch N fails in finish, batch N + 1 is ended before N is tried again; what is good of it is kept."""
    model = ScriptedModel(late_fault=once(MemoryError(), [1, 2]), deferred=True)
    assert answers(queued_behind(scheduler, model, (1, 2), (3, 4))) == [[1, 2], [3, 4]]
    after = model.log[model.log.index(("finish", [1, 2])) :]
    assert after[:3] == [("finish", [1, 2]), ("finish", [3, 4]), ("free", [])]
    assert model.batches.count([3, 4]) == 1


def test_two_batches_that_fail_together_are_both_retried(scheduler):
    """Out of memory in both batches in flight: both are answered in the end."""

    def fault(values: list[int]) -> None:
        if len(values) > 1:
            raise MemoryError

    model = ScriptedModel(late_fault=fault, deferred=True)
    assert answers(queued_behind(scheduler, model, (1, 2), (3, 4))) == [[1, 2], [3, 4]]


def test_an_item_that_never_fits_fails_alone_and_the_server_lives_on(scheduler):
    """Where even one item finds no memory, its request gets a 503 with the cause, and nobody else's does."""

    def fault(values: list[int]) -> None:
        if 3 in values:
            raise MemoryError

    model = ScriptedModel(late_fault=fault, deferred=True)
    assert answers(queued_behind(scheduler, model, (1, 2), (3,), (4,))) == [[1, 2], "out_of_memory", [4]]
    assert answers([scheduler.submit(model, items(5), Lane.INDEX)]) == [[5]]


def test_both_batches_in_flight_are_widened(scheduler):
    """Half precision overflows in N while N + 1, launched in it too, is on its way: both get their rows in float32."""
    model = ScriptedModel(deferred=True)
    model.half, model.not_finite = True, {1, 3}
    assert answers(queued_behind(scheduler, model, (1, 2), (3, 4))) == [[1, 2], [3, 4]]
    assert model.widened == 1


def test_a_batch_that_is_not_finite_fails_its_own_item_only(scheduler):
    """NaN in both batches in flight, and no wider precision: the bad items fail, the others are answered."""
    model = ScriptedModel(deferred=True)
    model.not_finite = {1, 3}
    assert answers(queued_behind(scheduler, model, (1,), (2,), (3,), (4,))) == ["not_finite", [2], "not_finite", [4]]


class AcceleratorError(RuntimeError):
    """Named like torch's error after which a CUDA context is of no use."""


@pytest.mark.parametrize("where", ["fault", "late_fault"])
def test_a_lost_device_ends_both_batches_in_flight(where):
    """When the device is lost, in launching or in waiting, everything in flight and in the queue ends with 503."""
    lost: list[BaseException] = []
    scheduler = Scheduler(on_lost=lost.append)
    scheduler.start(Limits(2))
    model = ScriptedModel(deferred=True)
    setattr(model, where, once(AcceleratorError("CUDA error: unspecified launch failure"), [3, 4]))
    found = answers(queued_behind(scheduler, model, (1, 2), (3, 4), (5, 6), (7, 8)))
    assert found[-3:] == ["failed"] * 3
    tiny.until(lambda: bool(lost))
    assert len(lost) == 1
    scheduler.close()


def test_closing_ends_both_batches_in_flight(scheduler):
    """Closing while one batch is waited for and another has been launched ends both at once."""
    model = ScriptedModel(deferred=True)
    first, second = both_in_flight(scheduler, model)
    queued = scheduler.submit(model, items(9), Lane.INDEX)
    scheduler.close(timeout=0)
    codes = answers([first, second, queued])
    model.late_gate.set()
    assert codes == ["shutting_down"] * 3


def both_in_flight(scheduler: Scheduler, model: ScriptedModel) -> tuple[Future, Future]:
    """Have two batches in flight, the model thread waiting for the first of them."""
    model.late_gate.clear()
    scheduler.submit(model, items(0), Lane.INDEX)
    assert model.waiting.wait(LIMIT_S)
    futures = [scheduler.submit(model, items(*group), Lane.INDEX) for group in ((1, 2), (3, 4))]
    finish, reached = model.finish, model.waiting

    def hold(output):
        if 2 in numbers(output):
            model.late_gate.clear()
            reached.set()
        return finish(output)

    model.finish = hold
    reached.clear()
    model.late_gate.set()
    assert reached.wait(LIMIT_S)
    tiny.until(lambda: [3, 4] in model.batches)
    return futures[0], futures[1]


def test_memory_that_is_short_again_and_again_is_learned():
    """Batches that never fit stop to be tried: the limit falls until they do, and no request fails."""
    sizes: list[int] = []

    def fault(values: list[int]) -> None:
        sizes.append(len(values))
        if len(values) > 3:
            raise MemoryError

    scheduler, model = Scheduler(), ScriptedModel(fault)
    scheduler.start(Limits(batch_size=16))
    for _ in range(STRIKES * 3):
        assert answers([scheduler.submit(model, items(*range(16)), Lane.INDEX)]) == [list(range(16))]
    assert scheduler.learned_tokens == 2
    sizes.clear()
    assert answers([scheduler.submit(model, items(*range(16)), Lane.INDEX)]) == [list(range(16))]
    assert max(sizes) <= 2
    scheduler.close()


def test_memory_that_was_short_for_a_moment_is_forgotten():
    """A batch of the same size that runs in between takes the blame away; one that is smaller does not."""
    for size, learned in ((100, None), (99, 50)):
        budget = Budget(Limits(8, tokens=4096))
        budget.exceeded(100)
        budget.sufficed(size)
        budget.exceeded(100)
        assert budget.learned == learned


def test_what_is_learned_never_grows():
    """The limit only falls, and never below one token."""
    budget = Budget(Limits(8, tokens=8))
    seen: list[int] = []
    for tokens in (900, 900, 6, 6, 900, 900, 2, 2, 2, 2):
        budget.exceeded(tokens)
        seen.append(budget.limits.tokens)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == budget.learned == 1


def test_the_error_of_memory_names_the_cause(scheduler):
    """503, with the code out_of_memory and the size of the input that found none."""

    def fault(_: list[int]) -> None:
        raise MemoryError

    error = scheduler.submit(ScriptedModel(fault, deferred=True), items(1), Lane.QUERY).exception(LIMIT_S)
    assert isinstance(error, Unavailable)
    assert (error.status, error.code) == (503, "out_of_memory")
    assert "1 tokens" in error.message
