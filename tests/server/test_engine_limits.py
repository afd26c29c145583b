"""What one request may cost the others: time, memory, and a device that does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qmd_remote.errors import ApiError, BodyTooLarge, Unavailable
from qmd_remote.server import schemas, text_model
from qmd_remote.server.batching import Lane, Limits
from qmd_remote.server.device import Machine, choose
from qmd_remote.server.engine import Engine
from qmd_remote.server.fast_tokens import FastPairs
from qmd_remote.server.model import Prepared
from qmd_remote.server.scheduler import Scheduler
from tests.server import tiny_models as tiny
from tests.server.scripted_model import LIMIT_S, ScriptedModel, items, numbers
from tests.server.tiny_models import blocked, embed


@pytest.fixture
def own(tmp_path) -> Iterator[Engine]:
    """A tiny embedder that a test may break."""
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    with tiny.loaded(folder, folder, max_batch_size=4, queue_wait_s=5) as engine:
        yield engine


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """A running scheduler of batches of 2."""
    found = Scheduler()
    found.start(Limits(batch_size=2))
    yield found
    found.close()


def test_a_query_is_not_tokenised_behind_index_jobs(own, monkeypatch):
    """While the slices of index jobs are being tokenised, a query goes through."""
    embedder = own._models.embedder
    prepare, gate = embedder.prepare, threading.Event()

    def slow(texts: Sequence[Any]) -> list[Prepared]:
        assert len(texts) == 1 or gate.wait(LIMIT_S)
        return prepare(texts)

    monkeypatch.setattr(embedder, "prepare", slow)

    async def story() -> int:
        jobs = [asyncio.create_task(own.embed(["a", "b", "c", "d"] * 4)) for _ in range(8)]
        await asyncio.sleep(0)
        query = await asyncio.wait_for(own.embed(["e"]), LIMIT_S)
        gate.set()
        await asyncio.gather(*jobs)
        return len(query.vectors)

    assert 1 == asyncio.run(story())


def test_a_model_that_hangs_fails_the_server_for_good(own, monkeypatch):
    """After stall_limit_s inside one batch the engine has failed, so that the supervisor can replace its process."""
    _, gate = blocked(own, monkeypatch)
    monkeypatch.setattr(own._intake, "_settings", replace(own._settings, stall_limit_s=0.2))
    with pytest.raises(Unavailable) as first:
        embed(own, ["a"])
    with pytest.raises(Unavailable) as second:
        embed(own, ["b"])
    gate.set()
    assert ("stalled", "failed") == (first.value.code, second.value.code)
    assert own.failure is not None


def test_memory_that_is_short_while_tokenising_is_no_answer(own, monkeypatch):
    """It says nothing of the text, and must not become the vector of another one."""

    def fail(items: Sequence[Any]) -> list[Prepared]:
        raise MemoryError

    monkeypatch.setattr(own._models.embedder, "_encode", fail)
    with pytest.raises(Unavailable) as caught:
        embed(own, ["a"])
    assert "out_of_memory" == caught.value.code


def test_memory_that_was_short_for_a_lone_item_is_tried_again(scheduler):
    """A query is a batch of one, and what was freed may be all that it lacked."""
    failures = [RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")]

    def fault(_: list[int]) -> None:
        if failures:
            raise failures.pop()

    model = ScriptedModel(fault)
    assert [7] == numbers(scheduler.submit(model, items(7), Lane.QUERY).result(LIMIT_S))
    assert [[7], [7]] == model.batches


def test_float32_that_does_not_fit_fails_its_own_item_only(scheduler, monkeypatch):
    """The thread that runs the model lives on."""
    model = ScriptedModel()
    model.half, model.not_finite = True, {1}

    def too_large() -> bool:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(model, "widen", too_large)
    with pytest.raises(ApiError) as caught:
        scheduler.submit(model, items(1), Lane.QUERY).result(LIMIT_S)
    assert "not_finite" == caught.value.code
    assert [2] == numbers(scheduler.submit(model, items(2), Lane.QUERY).result(LIMIT_S))


def test_an_answer_has_a_largest_size():
    """More vectors than fit into memory are refused before they are computed, and the message says how many go."""
    schemas.require_size(schemas.MAX_NUMBERS // 1024, 1024)
    with pytest.raises(BodyTooLarge, match="at most 65536 texts"):
        schemas.require_size(schemas.MAX_NUMBERS // 1024 + 1, 1024)


def test_the_query_of_a_rerank_is_not_tokenised_for_each_slice(tmp_path, monkeypatch):
    """However many slices its documents come in; the first two of them may begin at the same moment."""
    encoder = tiny.save_encoder(tmp_path / "bert", "bert")
    folder = tiny.save_cross_encoder(tmp_path / "cross", "bert")
    seen: list[str] = []
    with tiny.loaded(encoder, folder, max_batch_size=2) as engine:
        pairs = engine._models.reranker.model._tokens
        assert isinstance(pairs, FastPairs)
        backend = pairs._backend

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(backend, name)

            def encode_batch_fast(self, texts: Sequence[str], **more: Any) -> Any:
                seen.extend(texts)
                return backend.encode_batch_fast(texts, **more)

        monkeypatch.setattr(pairs, "_backend", Counting())
        asyncio.run(engine.rerank("the one query", [f"document {at}" for at in range(9)]))
    assert sum("the one query" in text for text in seen) in {1, 2}


@pytest.mark.parametrize(("kind", "limit"), [("dynamic", 64), ("default", 512)])
def test_rotary_positions_that_follow_the_batch_are_not_reached(kind: str, limit: int):
    """Else a vector would depend on how long the texts of other callers are."""
    rotary = SimpleNamespace(rope_type=kind, original_max_seq_len=64)
    network = SimpleNamespace(max_seq_length=512, modules=lambda: [rotary])
    text_model._bound_length(network)
    assert limit == network.max_seq_length


def test_bfloat16_without_its_instructions_is_for_torch():
    """OpenVINO would compute in float32 and not say so."""
    plain = Machine(openvino=True)
    assert "torch" == choose("cpu", plain, dtype="bfloat16").backend
    with pytest.raises(Exception, match="does not emulate bfloat16"):
        choose("cpu", plain, dtype="bfloat16", backend="openvino")
