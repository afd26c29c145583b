"""What the engine does when the model, the queue or the caller fails it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.server.admission import Admission
from qmd_remote.server.batching import Lane
from qmd_remote.server.engine import Engine
from qmd_remote.server.intake import CPU_THREADS
from qmd_remote.server.model import Prepared
from tests.server import tiny_models as tiny
from tests.server.tiny_models import blocked, embed, forward, network

LIMIT_S = 60


@pytest.fixture
def own(tmp_path) -> Iterator[Engine]:
    """A tiny embedder that a test may break."""
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    with tiny.loaded(folder, folder, max_batch_size=4, max_queue=8, queue_wait_s=0.1) as engine:
        yield engine


def test_a_text_the_tokenizer_refuses_does_not_fail_the_others(own, monkeypatch):
    """When the tokenizer raises on a text, it is embedded by what the tokenizer takes of it; the others as ever."""
    expected = embed(own, [*tiny.CORPUS, "tt"])
    assert own._models is not None
    embedder = own._models.embedder
    tokens = embedder._tokens

    def choke(texts: list[str]) -> list[Prepared]:
        if any("ß" in text for text in texts):
            raise RuntimeError("tokenizer")
        return tokens(texts)

    monkeypatch.setattr(embedder, "_tokens", choke)
    found = embed(own, [*tiny.CORPUS, "tßt"])
    for n, text in enumerate(tiny.CORPUS):
        if "ß" not in text:
            np.testing.assert_allclose(found[n], expected[n], atol=1e-5)
    np.testing.assert_allclose(found[-1], expected[-1], atol=1e-5)


def test_a_vector_that_is_not_finite_is_never_answered(own):
    """A text whose vector is NaN fails its own request alone, even in the same batch."""
    import torch

    token = network(own).tokenizer.encode("fox", add_special_tokens=False)[0]
    with torch.no_grad():
        network(own)[0].model.get_input_embeddings().weight[token] = float("nan")

    async def story() -> list[Any]:
        return await asyncio.gather(*(own.embed([text]) for text in ("river", "fox", "cat")), return_exceptions=True)

    river, fox, cat = asyncio.run(story())
    assert isinstance(fox, ApiError)
    assert fox.code == "not_finite"
    assert np.isfinite([river.vectors, cat.vectors]).all()


def test_out_of_memory_is_survived(own, monkeypatch):
    """A batch that does not fit into memory is run in parts, and the answer is the same."""
    expected = embed(own, tiny.CORPUS)
    run, sizes = forward(own).run, []

    def small_only(rows: Sequence[Any]) -> Any:
        sizes.append(len(rows))
        if sizes[-1] > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return run(rows)

    monkeypatch.setattr(forward(own), "run", small_only)
    np.testing.assert_allclose(embed(own, tiny.CORPUS), expected, atol=1e-5)
    assert max(sizes) > 1


def test_a_stalled_model_ends_in_503(own, monkeypatch):
    """When no batch ends for stall_limit_s, those who wait are told so."""
    _, gate = blocked(own, monkeypatch)
    monkeypatch.setattr(own._intake, "_settings", replace(own._settings, stall_limit_s=0.1))
    with pytest.raises(Unavailable) as caught:
        embed(own, ["a"])
    gate.set()
    assert caught.value.code == "stalled"


def test_a_full_queue_ends_in_503_and_lets_queries_in(own, monkeypatch):
    """Index work beyond max_queue waits queue_wait_s, then gets 503; a query still has room."""
    inside, gate = blocked(own, monkeypatch)

    async def story() -> tuple[Any, Any, Any]:
        first = asyncio.create_task(own.embed(["a"] * 8))
        await asyncio.to_thread(inside.wait, LIMIT_S)
        try:
            await own.embed(["b"] * 8)
        except Unavailable as error:
            refused = error
        query = asyncio.create_task(own.embed(["c"]))
        await asyncio.sleep(0)
        gate.set()
        return refused, await query, await first

    refused, query, first = asyncio.run(story())
    assert (refused.code, refused.retry_after) == ("overloaded", 1)
    assert (len(query.vectors), len(first.vectors)) == (1, 8)


def test_a_request_larger_than_the_queue_is_served(own):
    """More texts than max_queue in one request are split inside."""
    assert len(embed(own, tiny.TEXTS * 4)) == 4 * len(tiny.TEXTS)


def test_a_cancelled_request_leaves_the_queue(own, monkeypatch):
    """Work of a caller who went away is not run, and gives its room back."""
    sizes: list[int] = []
    inside, gate = blocked(own, monkeypatch, sizes)

    async def story() -> None:
        gone = asyncio.create_task(own.embed(["a"] * 8))
        await asyncio.to_thread(inside.wait, LIMIT_S)
        await asyncio.to_thread(tiny.until, lambda: own._scheduler.queued(Lane.INDEX) == 4)  # the second half
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.set()
        assert len((await own.embed(["b"] * 6)).vectors) == 6

    asyncio.run(story())
    assert sizes == [4, 4, 2]


def test_a_cancelled_request_is_not_tokenised_on(own, monkeypatch):
    """Of a long request whose caller went away, slices that are not tokenised never are: neither those that were yet
    to come, nor one that already waits for a thread."""
    prepare, sizes = own._models.embedder.prepare, []
    inside, gate = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> Any:
        sizes.append(len(texts))
        inside.set()
        assert gate.wait(LIMIT_S)
        return prepare(texts)

    monkeypatch.setattr(own._models.embedder, "prepare", slow)

    async def story() -> None:
        gone = [asyncio.create_task(own.embed(["a"] * 8)) for _ in range(2)]
        await asyncio.to_thread(inside.wait, LIMIT_S)
        await asyncio.to_thread(tiny.until, lambda: len(sizes) == CPU_THREADS)
        for task in gone:
            task.cancel()
        assert [type(end) for end in await asyncio.gather(*gone, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        gate.set()
        assert len((await own.embed(["b"] * 3)).vectors) == 3

    asyncio.run(story())
    assert sizes == [4] * CPU_THREADS + [3]


def test_a_small_request_takes_turns_with_a_large_one(own, monkeypatch):
    """Index work of a few texts waits for the slices of a long request that were there before it, not for its end."""
    inside, gate = blocked(own, monkeypatch)

    async def story() -> bool:
        large = asyncio.create_task(own.embed(["a long text " * 9] * 400))
        await asyncio.to_thread(inside.wait, LIMIT_S)
        small = asyncio.create_task(own.embed(["b"] * 5))
        await asyncio.to_thread(tiny.until, lambda: own._scheduler.queued(Lane.INDEX) > 4)
        gate.set()
        await small
        first = not large.done()
        await large
        return first

    monkeypatch.setattr(own._intake, "_room", {lane: Admission(500, LIMIT_S) for lane in Lane})
    assert asyncio.run(story())


def test_the_event_loop_stays_free(own, monkeypatch):
    """While a model is busy, the loop goes on: a pass that waits for the loop itself gets through."""
    _, gate = blocked(own, monkeypatch)

    async def story() -> int:
        asyncio.get_running_loop().call_later(0.01, gate.set)
        return len((await own.embed(["a"])).vectors)

    assert asyncio.run(story()) == 1


def test_closing_ends_what_waits(tmp_path, monkeypatch):
    """close() ends running and waiting requests with 503, and later ones too."""
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    with tiny.loaded(folder, folder, max_batch_size=4) as engine:
        inside, gate = blocked(engine, monkeypatch)

        async def story() -> list[Any]:
            waiting = [asyncio.create_task(engine.embed(["a"] * n)) for n in (8, 1)]
            await asyncio.to_thread(inside.wait, LIMIT_S)
            asyncio.get_running_loop().call_later(0.05, gate.set)
            await asyncio.to_thread(engine.close)
            return await asyncio.gather(*waiting, engine.embed(["late"]), return_exceptions=True)

        assert [getattr(error, "code", None) for error in asyncio.run(story())] == ["shutting_down"] * 3


class AcceleratorError(RuntimeError):
    """Named like torch's error after which a CUDA context is of no use."""


def test_a_lost_device_fails_the_engine_and_is_told(own, monkeypatch):
    """After a CUDA error that poisons the process, all requests get 503 and the owner hears of it, to restart."""
    states: list[str] = []
    own.on_settled(lambda: states.append(own.state))

    def broken(*_: Any, **__: Any) -> Any:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(forward(own), "run", broken)
    with pytest.raises(Unavailable) as caught:
        embed(own, ["a"])
    assert caught.value.code == "failed"
    tiny.until(lambda: len(states) == 2)
    assert states == ["ready", "failed"]
    assert own.failure is not None
    assert own.failure.code == "device.lost"
    with pytest.raises(Unavailable, match=r"device\.lost"):
        embed(own, ["a"])
