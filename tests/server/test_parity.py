"""The same numbers as sentence-transformers, on the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from qmd_remote.server.engine import Engine
from qmd_remote.server.reranker import sigmoid
from tests.server import tiny_models as tiny

OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "local_files_only": True,
    "model_kwargs": {"dtype": torch.float32},
}
LEAST_COSINE = 0.99999


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def case(request, tmp_path_factory) -> Iterator[tuple[str, Path, Path, Engine]]:
    """(architecture, embedding model, cross-encoder, engine with both), with batches so small that requests split."""
    folder = tmp_path_factory.mktemp(request.param)
    encoder = tiny.save_encoder(folder / "encoder", request.param)
    cross = tiny.save_cross_encoder(folder / "cross", request.param)
    with tiny.loaded(encoder, cross, max_batch_size=4) as engine:
        yield request.param, encoder, cross, engine


@pytest.fixture(scope="module")
def mini() -> Iterator[Engine]:
    """MiniLM for both jobs."""
    with tiny.loaded(tiny.mini_folder(), tiny.mini_folder(), max_batch_size=8) as engine:
        yield engine


def reference(folder: Path, architecture: str = "") -> SentenceTransformer:
    """The library's own model in the same folder."""
    network = SentenceTransformer(str(folder), **OPTIONS)
    if architecture == "xlm-roberta":
        network.max_seq_length = tiny.XLMR_LENGTH  # without it the library overruns the position table
    return network


def embed(engine: Engine, texts: list[Any]) -> np.ndarray:
    """The engine's vectors, float64."""
    return asyncio.run(engine.embed(texts)).vectors.astype(np.float64)


def rerank(engine: Engine, query: str, documents: list[str]) -> np.ndarray:
    """The engine's scores."""
    return asyncio.run(engine.rerank(query, documents)).scores


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Row by row, without dividing by the length of `found`: that has to be 1."""
    expected = expected.astype(np.float64)
    return (found * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)


def logits(folder: Path, pairs: list[tuple[str, str]], architecture: str = "") -> np.ndarray:
    """What the library's own cross-encoder gives before any activation."""
    network = CrossEncoder(str(folder), **OPTIONS)
    if architecture == "xlm-roberta":
        network.max_seq_length = tiny.XLMR_LENGTH
    return network.predict(pairs, activation_fn=torch.nn.Identity()).astype(np.float64)


def test_vectors_equal_those_of_encode(case):
    """Every architecture gives the vectors of SentenceTransformer.encode, truncated and padded texts included."""
    architecture, encoder, _, engine = case
    texts = [text for text in tiny.TEXTS if text or architecture != "qwen3"]  # encode fails where "" has no token
    expected = reference(encoder, architecture).encode(texts, normalize_embeddings=True)
    assert cosines(embed(engine, texts), expected).min() >= LEAST_COSINE


def test_minilm_vectors_equal_those_of_encode(mini):
    """The real MiniLM gives the vectors of SentenceTransformer.encode."""
    texts = [*tiny.TEXTS, *tiny.CORPUS]
    expected = reference(tiny.mini_folder()).encode(texts, normalize_embeddings=True)
    assert cosines(embed(mini, texts), expected).min() >= LEAST_COSINE


def test_scores_are_one_sigmoid_over_the_logits_of_predict(case):
    """Every architecture gives the sigmoid of CrossEncoder.predict's raw logits, in the same order."""
    architecture, _, cross, engine = case
    expected = logits(cross, [(tiny.QUERY, text) for text in tiny.TEXTS], architecture)
    scores = rerank(engine, tiny.QUERY, tiny.TEXTS)
    np.testing.assert_allclose(np.log(scores) - np.log1p(-scores), expected, atol=2e-4)
    distinct = np.unique(np.round(expected, 4), return_index=True)[1]
    assert np.argsort(scores[distinct]).tolist() == np.argsort(expected[distinct]).tolist()


@pytest.mark.parametrize(
    "configured",
    [
        {},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
        {"sentence_transformers": {"activation_fn": "someones_package.Softplus"}},
    ],
    ids=["none", "identity", "sigmoid", "old sigmoid", "tanh", "unknown"],
)
def test_configured_activation_changes_nothing(configured, tmp_path):
    """Whatever activation the checkpoint names, the score is the sigmoid of the raw logit, once."""
    folder = tiny.save_cross_encoder(tmp_path / "cross", "bert", **configured)
    expected = sigmoid(logits(folder, [(tiny.QUERY, text) for text in tiny.CORPUS]))
    with tiny.loaded(tiny.mini_folder(), folder) as engine:
        np.testing.assert_allclose(rerank(engine, tiny.QUERY, tiny.CORPUS), expected, atol=1e-6)


def test_saved_by_sentence_transformers_scores_the_same(tmp_path):
    """A cross-encoder in sentence-transformers' own form, with modules.json, scores like the plain checkpoint."""
    plain = tiny.save_cross_encoder(tmp_path / "plain", "bert")
    CrossEncoder(str(plain), activation_fn=torch.nn.Sigmoid(), **OPTIONS).save_pretrained(str(tmp_path / "saved"))
    expected = sigmoid(logits(plain, [(tiny.QUERY, text) for text in tiny.CORPUS]))
    with tiny.loaded(tiny.mini_folder(), tmp_path / "saved") as engine:
        np.testing.assert_allclose(rerank(engine, tiny.QUERY, tiny.CORPUS), expected, atol=1e-6)


def test_activation_inside_a_dense_head_is_not_a_second_one(tmp_path):
    """A Dense head that ends in a sigmoid of its own still scores with one sigmoid over its linear layer."""
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    encoder = tiny.save_encoder(tmp_path / "encoder", "bert")
    torch.manual_seed(1)
    head = Dense(tiny.HIDDEN, 1, activation_function=torch.nn.Sigmoid(), module_output_name="scores")
    network = CrossEncoder(modules=[Transformer(str(encoder)), Pooling(tiny.HIDDEN, "mean"), head], device="cpu")
    network.save_pretrained(str(tmp_path / "saved"))
    head.activation_function = torch.nn.Identity()
    pairs = [(tiny.QUERY, text) for text in tiny.CORPUS]
    expected = sigmoid(network.predict(pairs, activation_fn=torch.nn.Identity()).astype(np.float64))
    with tiny.loaded(tiny.mini_folder(), tmp_path / "saved") as engine:
        np.testing.assert_allclose(rerank(engine, tiny.QUERY, tiny.CORPUS), expected, atol=1e-6)


def test_two_labels_give_the_probability_of_yes(tmp_path):
    """A classifier of two labels scores with the softmax's share of the second."""
    folder = tiny.save_cross_encoder(tmp_path / "cross", "bert", labels=2)
    network = CrossEncoder(str(folder), **OPTIONS)
    pairs = [(tiny.QUERY, text) for text in tiny.CORPUS]
    expected = network.predict(pairs, activation_fn=torch.nn.Identity(), apply_softmax=True)[:, 1]
    with tiny.loaded(tiny.mini_folder(), folder) as engine:
        np.testing.assert_allclose(rerank(engine, tiny.QUERY, tiny.CORPUS), expected, atol=1e-6)


def test_yes_no_language_model_scores_like_predict(tmp_path):
    """A causal model with a LogitScore head and a chat template scores with the sigmoid of its log-odds of yes."""
    folder = tiny.save_yes_no(tmp_path / "judge")
    expected = sigmoid(logits(folder, [(tiny.QUERY, text) for text in tiny.CORPUS]))
    with tiny.loaded(tiny.mini_folder(), folder) as engine:
        assert engine.facts()["reranker"] == "cross-encoder"
        np.testing.assert_allclose(rerank(engine, tiny.QUERY, tiny.CORPUS), expected, atol=1e-5)


def test_bi_encoder_scores_with_the_mapped_cosine(mini):
    """An embedding model as reranker scores (1 + cosine) / 2, and ranks a real answer first."""
    documents = ["Bananas are yellow.", "Paris is the capital of France.", "Berlin lies on the Spree.", ""]
    query = "What is the capital of France?"
    vectors = reference(tiny.mini_folder()).encode([query, *documents], normalize_embeddings=True)
    scores = rerank(mini, query, documents)
    np.testing.assert_allclose(scores, (1 + vectors[1:] @ vectors[0]) / 2, atol=1e-5)
    assert np.argmax(scores) == 1


def test_dense_and_default_prompt_are_honoured(tmp_path):
    """A projection after pooling and the model's default prompt, left out of the mean, count as in encode."""
    folder = tiny.save_encoder(tmp_path / "encoder", "bert")
    tiny.add_dense(folder, width=8)
    tiny.edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    tiny.edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"query": "search query: ", "document": "search document: "},
        default_prompt_name="document",
    )
    network = reference(folder)
    expected = network.encode(tiny.CORPUS, normalize_embeddings=True)
    unprompted = network.encode(tiny.CORPUS, normalize_embeddings=True, prompt="")
    with tiny.loaded(folder, folder) as engine:
        assert engine.dimension == 8
        found = embed(engine, tiny.CORPUS)
        assert cosines(found, expected).min() >= LEAST_COSINE
        assert cosines(found, unprompted).min() < LEAST_COSINE


def test_lower_casing_of_the_model_is_honoured(tmp_path):
    """`do_lower_case` of sentence_bert_config.json applies as in encode."""
    folder = tiny.save_encoder(tmp_path / "encoder", "xlm-roberta")
    tiny.edit_json(folder / "sentence_bert_config.json", do_lower_case=True, max_seq_length=24)
    texts = [text.upper() for text in tiny.CORPUS]
    expected = reference(folder).encode(texts, normalize_embeddings=True)
    with tiny.loaded(folder, folder) as engine:
        assert engine.facts()["max_length"] == 24
        assert cosines(embed(engine, texts), expected).min() >= LEAST_COSINE


def test_nomic_checkpoint_that_names_code_of_its_own_loads_without_it(tmp_path):
    """nomic-embed-text's config.json points to remote code; the native model serves it, and nothing is fetched."""
    folder = tiny.save_encoder(tmp_path / "nomic", "nomic_bert")
    network = reference(folder)
    expected = network.encode(tiny.CORPUS, normalize_embeddings=True)
    tiny.edit_json(
        folder / "config.json",
        auto_map={
            "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
        },
    )
    with tiny.loaded(folder, folder) as engine:
        assert cosines(embed(engine, tiny.CORPUS), expected).min() >= LEAST_COSINE
