"""Requests to the engine as the HTTP layer makes them: real models, real threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from qmd_remote.errors import BadRequest
from qmd_remote.presets import MINI_EMBED
from qmd_remote.server.engine import Engine
from tests.server import tiny_models as tiny
from tests.server.tiny_models import embed, network

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
    """NUL and lone surrogates become U+FFFD and pairs their character, in texts, queries and documents."""
    odd = ["a\x00b", "cut \ud83d", "\udc00\x00", "\ud83d\ude00"]
    clean = ["a\ufffdb", "cut \ufffd", "\ufffd\ufffd", "\U0001f600"]
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
    reasons = {"dtype_reason": "dtype=float32", "backend": "torch", "backend_reason": "backend=torch"}
    assert {name: facts[name] for name in reasons} == reasons
    assert facts["forward"]["embed"] == facts["forward"]["rerank"]
    assert facts["forward"]["embed"].startswith("torch")
    assert facts["reranker"] == "bi-encoder"
    assert facts["sources"] == {"embed": "package", "rerank": "package"}
    assert (mini.embed_id, mini.rerank_id, mini.state) == (MINI_EMBED, MINI_EMBED, "ready")
    assert str(tiny.mini_folder()) not in json.dumps(facts)


def test_threads_and_tokens_are_what_is_set(tmp_path):
    """Both settings reach the engine; /health tells them."""
    before = torch.get_num_threads()
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    try:
        with tiny.loaded(folder, folder, threads=1, max_batch_tokens=99) as engine:
            facts = engine.facts()
    finally:
        torch.set_num_threads(before)
    assert (facts["threads"], facts["threads_reason"], facts["max_batch_tokens"]) == (1, "threads=1", 99)
