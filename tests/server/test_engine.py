"""The engine as the HTTP layer uses it: real models, real threads."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmd_remote.errors import ApiError, BadRequest, ModelUnsupported, Unavailable
from qmd_remote.presets import MINI_EMBED
from qmd_remote.server.device import Device
from qmd_remote.server.engine import Engine
from qmd_remote.settings import Settings
from tests.server import tiny_models as tiny

LIMIT_S = 60
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def mini() -> Iterator[Engine]:
    """MiniLM for both jobs, by its hub id."""
    with tiny.loaded(MINI_EMBED, MINI_EMBED, max_batch_size=8) as engine:
        yield engine


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def each(request, tmp_path_factory) -> Iterator[Engine]:
    """A tiny embedder of each architecture, for both jobs."""
    folder = tiny.save_encoder(tmp_path_factory.mktemp(request.param) / request.param, request.param)
    with tiny.loaded(folder, folder, max_batch_size=4) as engine:
        yield engine


@pytest.fixture
def own(tmp_path) -> Iterator[Engine]:
    """A tiny embedder that a test may break."""
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    with tiny.loaded(folder, folder, max_batch_size=4, max_queue=8, queue_wait_s=0.1) as engine:
        yield engine


def embed(engine: Engine, inputs: list[Any]) -> np.ndarray:
    """The vectors of one request."""
    return asyncio.run(engine.embed(inputs)).vectors


def network(engine: Engine) -> Any:
    """The sentence-transformers model inside, where faults are planted."""
    assert engine._models is not None
    return engine._models.embedder._network


def blocked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold every pass of the model: (set when one is inside, set it to let all through)."""
    inside, gate = threading.Event(), threading.Event()
    forward = network(engine).forward

    def wait(*args: Any, **kwargs: Any) -> Any:
        inside.set()
        assert gate.wait(LIMIT_S)
        return forward(*args, **kwargs)

    monkeypatch.setattr(network(engine), "forward", wait)
    return inside, gate


def test_vectors_are_finite_unit_and_in_order(each):
    """Any mix of texts, split over several batches, comes back complete, finite, of unit length and in order."""
    texts = tiny.TEXTS * 3
    vectors = embed(each, texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), each.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embed(each, [text]) for text in tiny.TEXTS])
    np.testing.assert_allclose(vectors, np.concatenate([alone] * 3), atol=1e-5)


def test_texts_that_tokenizers_choke_on_are_scrubbed(each):
    """NUL goes, lone surrogates become U+FFFD and pairs their character, in texts, queries and documents."""
    odd = ["a\x00b", "cut \ud83d", "\udc00\x00", "\ud83d\ude00"]
    clean = ["ab", "cut \ufffd", "\ufffd", "\U0001f600"]
    np.testing.assert_allclose(embed(each, odd), embed(each, clean), atol=1e-6)
    scores = asyncio.run(each.rerank("\x00\ud800", odd)).scores
    assert np.isfinite(scores).all()


def test_token_arrays_equal_their_text(each):
    """Token ids, with or without the model's special tokens, give the vector of the text they stand for."""
    tokenizer = network(each).tokenizer
    for text in (tiny.CORPUS[0], " ".join(tiny.CORPUS) * 4):
        limit = each.facts()["max_length"]
        bare = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.encode(text, add_special_tokens=True, truncation=True, max_length=limit)
        found = embed(each, [text, bare, whole, "beside"])
        np.testing.assert_allclose(found[1], found[0], atol=1e-5)
        np.testing.assert_allclose(found[2], found[0], atol=1e-5)


def test_token_arrays_get_the_prompt_that_texts_get(tmp_path):
    """A model's default prompt, kept out of the mean, counts for token arrays as for texts."""
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    tiny.edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    prompts = {"prompts": {"document": "notes: "}, "default_prompt_name": "document"}
    tiny.edit_json(folder / "config_sentence_transformers.json", **prompts)
    with tiny.loaded(folder, folder) as engine:
        bare = network(engine).tokenizer.encode(tiny.CORPUS[0], add_special_tokens=False)
        text, ids = embed(engine, [tiny.CORPUS[0], bare])
    np.testing.assert_allclose(ids, text, atol=1e-5)


@pytest.mark.parametrize("token", [-1, 30522, 2**70])
def test_unknown_token_ids_are_named(mini, token):
    """A token id outside the vocabulary is refused, with its place, the id and the size of the vocabulary."""
    with pytest.raises(BadRequest) as caught:
        embed(mini, ["fine", [101, token]])
    assert caught.value.param == "input"
    for words in ("input[1]", str(token), "30522 tokens"):
        assert words in caught.value.message


def test_tokens_are_counted_as_processed(mini):
    """Usage counts special tokens and stops at the model's length."""
    assert asyncio.run(mini.embed(["hello world", ""])).tokens == 4 + 2
    assert asyncio.run(mini.embed(["word " * 5000])).tokens == 256
    assert asyncio.run(mini.rerank("hello", ["hello world"])).tokens == 3 + 4


def test_nothing_in_nothing_out(mini):
    """No inputs give no rows, and no error."""
    assert embed(mini, []).shape == (0, 384)
    assert asyncio.run(mini.rerank(QUESTION, [])).scores.shape == (0,)


def test_an_empty_token_array_is_an_empty_text(each):
    """[] embeds like ""."""
    text, ids = embed(each, ["", []])
    np.testing.assert_allclose(ids, text, atol=1e-6)


def test_concurrent_requests_get_their_own_answers(mini):
    """Dozens of requests of every size at once each get what they would get alone."""
    words = [
        f"note number {n} about {word}" for n, word in enumerate(["fox", "river", "budget", "server", "garden"] * 12)
    ]
    alone = embed(mini, words)

    async def story() -> list[Any]:
        sizes = [1, 2, 5, 17, 40]
        requests = [words[start : start + sizes[start % len(sizes)]] for start in range(0, 60, 4)]
        answers = asyncio.gather(*(mini.embed(texts) for texts in requests))
        scores = asyncio.gather(*(mini.rerank(QUESTION, texts) for texts in requests))
        return [*zip(requests, await answers, await scores, strict=True)]

    for texts, vectors, scores in asyncio.run(story()):
        expected = np.stack([alone[words.index(text)] for text in texts])
        np.testing.assert_allclose(vectors.vectors, expected, atol=1e-5)
        np.testing.assert_allclose(scores.scores, asyncio.run(mini.rerank(QUESTION, texts)).scores, atol=1e-5)


def test_one_model_for_both_jobs_is_loaded_once(each):
    """An embedder that reranks too shares its weights."""
    assert each._models is not None
    assert each._models.reranker.model is each._models.embedder


def test_facts_describe_what_runs(mini):
    """/health has what it needs, and no path."""
    facts = mini.facts()
    expected = {"device": "cpu", "cuda_available": False, "dtype": "float32", "dimension": 384, "max_length": 256}
    assert {name: facts[name] for name in expected} == expected
    assert facts["reranker"] == "bi-encoder"
    assert facts["sources"] == {"embed": "package", "rerank": "package"}
    assert (mini.embed_id, mini.rerank_id, mini.state) == (MINI_EMBED, MINI_EMBED, "ready")
    assert str(tiny.mini_folder()) not in json.dumps(facts)


def test_a_text_the_tokenizer_refuses_does_not_fail_the_others(own, monkeypatch):
    """When the tokenizer raises on a text, it is embedded by what the tokenizer takes of it; the others as ever."""
    expected = embed(own, [*tiny.CORPUS, "tt"])
    preprocess = network(own).preprocess

    def choke(texts: list[str], **options: Any) -> Any:
        if any("ß" in text for text in texts):
            raise RuntimeError("tokenizer")
        return preprocess(texts, **options)

    monkeypatch.setattr(network(own), "preprocess", choke)
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
    forward, sizes = network(own).forward, []

    def small_only(features: dict[str, Any], **options: Any) -> Any:
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return forward(features, **options)

    monkeypatch.setattr(network(own), "forward", small_only)
    np.testing.assert_allclose(embed(own, tiny.CORPUS), expected, atol=1e-5)
    assert max(sizes) > 1


def test_a_stalled_model_ends_in_503(own, monkeypatch):
    """When no batch ends for stall_limit_s, those who wait are told so."""
    _, gate = blocked(own, monkeypatch)
    monkeypatch.setattr(own, "_settings", replace(own._settings, stall_limit_s=0.1))
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
    inside, gate = blocked(own, monkeypatch)

    async def story() -> None:
        gone = asyncio.create_task(own.embed(["a"] * 8))
        await asyncio.to_thread(inside.wait, LIMIT_S)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.set()
        assert len((await own.embed(["b"] * 8)).vectors) == 8

    asyncio.run(story())


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


def settled(engine: Engine) -> bool:
    """Wait until loading has ended; False when it took too long."""
    done = threading.Event()
    engine.on_settled(done.set)
    return done.wait(LIMIT_S)


def test_while_loading_requests_wait_and_then_hear_the_phase(monkeypatch):
    """Until the models are there, `ready` ends with the phase and its progress, and a request waits for them."""
    started, gate = threading.Event(), threading.Event()

    def slow(settings: Settings, report: Callable[[str, float | None], None]) -> Any:
        report("download someone/model", 0.43)
        started.set()
        assert gate.wait(LIMIT_S)
        raise ModelUnsupported("secret cause at /a/secret/path")

    monkeypatch.setattr("qmd_remote.server.engine.load_models", slow)
    engine = Engine(Settings())
    assert (engine.state, engine.dimension, engine.facts()) == ("loading", None, {})
    engine.start()

    async def story() -> tuple[ApiError, ApiError]:
        await asyncio.to_thread(started.wait, LIMIT_S)
        try:
            await engine.ready(0.05)
        except Unavailable as error:
            early = error
        waiting = asyncio.create_task(engine.embed(["a"]))
        await asyncio.sleep(0)
        gate.set()
        try:
            await waiting
        except Unavailable as error:
            return early, error
        raise AssertionError("the request got through")

    early, late = asyncio.run(story())
    assert early.code == "loading"
    assert "download someone/model, 43%" in early.message
    assert late.code == "failed"
    assert "model.unsupported" in late.message
    assert "secret" not in late.message
    assert isinstance(engine.failure, ModelUnsupported)
    assert engine.state == "failed"
    engine.close()


def test_settling_is_told_once_also_to_those_who_ask_late(mini):
    """A callback registered after loading ended is called at once."""
    calls: list[int] = []
    mini.on_settled(lambda: calls.append(1))
    assert calls == [1]


def failing(**settings: Any) -> Any:
    """The failure of an engine with these settings."""
    engine = Engine(Settings(**{"embed_model": MINI_EMBED, "rerank_model": MINI_EMBED, "device": "cpu", **settings}))
    engine.start()
    assert settled(engine)
    engine.close()
    return engine.failure


def test_models_for_the_wrong_job_are_refused(tmp_path):
    """A cross-encoder cannot embed, a classifier of three classes cannot rerank, SPLADE can do neither."""
    cross = tiny.save_cross_encoder(tmp_path / "cross", "bert")
    three = tiny.save_cross_encoder(tmp_path / "three", "bert", labels=3)
    sparse = tiny.save_encoder(tmp_path / "sparse", "bert")
    tiny.edit_json(sparse / "config_sentence_transformers.json", model_type="SparseEncoder")
    for settings, words in [
        ({"embed_model": str(cross)}, "cross is no embedding model"),
        ({"rerank_model": str(three)}, "3 classes"),
        ({"embed_model": str(sparse)}, "sparse is no embedding model"),
        ({"rerank_model": str(sparse)}, "sparse is no reranker"),
    ]:
        failure = failing(**settings)
        assert isinstance(failure, ModelUnsupported)
        assert words in failure.message


def test_broken_weights_fail_with_the_model_named(tmp_path):
    """Weights that cannot be read end in one line that names the model, not its path."""
    folder = tiny.save_encoder(tmp_path / "broken", "bert")
    (folder / "model.safetensors").write_bytes(b"not weights")
    failure = failing(embed_model=str(folder))
    assert isinstance(failure, ModelUnsupported)
    assert "broken cannot be loaded as an embedding model" in failure.message
    assert str(tmp_path) not in failure.message
    assert "\n" not in failure.message


def test_a_model_that_only_gives_nan_never_becomes_ready(tmp_path):
    """The warm-up finds out that a model does not work, before anyone gets an answer from it."""
    import torch

    folder = tiny.save_encoder(tmp_path / "nan", "bert")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: torch.full_like(value, float("nan")) for name, value in weights.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    failure = failing(embed_model=str(folder))
    assert isinstance(failure, ModelUnsupported)
    assert "no finite result" in failure.message


def test_absent_device_fails_the_start():
    """DEVICE=cuda:99 is an error of its own kind, never a silent fall-back."""
    assert failing(device="cuda:99").code == "device.unavailable"


OWN_CODE = """
from transformers import BertConfig, BertModel
class OwnConfig(BertConfig):
    model_type = "own_bert"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


def save_own_code(folder: Path) -> Path:
    """A model whose architecture exists only in a Python file beside it."""
    tiny.save_encoder(folder, "bert")
    (folder / "modeling_own.py").write_text(OWN_CODE)
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    tiny.edit_json(folder / "config.json", model_type="own_bert", architectures=["OwnModel"], auto_map=auto_map)
    return folder


def test_code_of_a_model_runs_only_if_asked_for_by_name(tmp_path, monkeypatch):
    """Without the model's name in trust_remote_code the cause and the flag are named; with it, the code runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_own_code(tmp_path / "own_model")
    failure = failing(embed_model=str(folder))
    assert isinstance(failure, ModelUnsupported)
    assert "own_model runs code of its own" in failure.message
    assert "--trust-remote-code own_model" in failure.hint
    with tiny.loaded(folder, folder, trust_remote_code=("own_model",)) as engine:
        assert embed(engine, ["fox"]).shape == (1, tiny.HIDDEN)
        assert type(network(engine)[0].model).__name__ == "OwnModel"


@pytest.fixture
def half(monkeypatch):
    """Have the CPU compute in half precision, as CUDA does."""
    chosen = Device("cpu", "float16", "a test", cuda_available=False)
    monkeypatch.setattr("qmd_remote.server.device.choose", lambda *_: chosen)


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_half_precision_keeps_pooling_and_logits_in_float32(half, tmp_path, architecture):
    """With a transformer in float16, vectors are unit to float32's digits, and logits are finer than float16's."""
    encoder = tiny.save_encoder(tmp_path / "encoder", architecture)
    cross = tiny.save_cross_encoder(tmp_path / "cross", architecture)
    with tiny.loaded(encoder, cross) as engine:
        assert engine.facts()["dtype"] == "float16"
        vectors = embed(engine, tiny.TEXTS).astype(np.float64)
        scores = asyncio.run(engine.rerank(QUESTION, tiny.CORPUS)).scores
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    logits = np.log(scores) - np.log1p(-scores)
    assert (np.abs(logits - logits.astype(np.float16)) > 1e-5).any()


def test_half_precision_that_overflows_continues_in_float32(half, tmp_path):
    """A model whose activations leave float16's range is widened, and its vectors are those of float32."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("intermediate.dense.weight"):
            weights[name] = weights[name] * 50_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with tiny.loaded(folder, folder) as engine:
        assert engine.facts()["dtype"] == "float32"
        found = embed(engine, tiny.CORPUS)
        expected = network(engine).to(torch.float32).encode(tiny.CORPUS, normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)
