"""Which texts count as truncated: those that lose tokens, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.server.embedder import Embedder
from qmd_remote.server.forward import PaddedForward
from qmd_remote.server.reranker import CrossEncoderModel
from qmd_remote.server.tokenizing import LibraryTokens
from tests.server import tiny_models as tiny

# around the limit, in steps of a character: with and without a tail that is no token
TEXTS = [" ".join(tiny.CORPUS * 4)[:size] + tail for size in (*range(100, 1000, 23), 1500) for tail in ("", "   \n ")]


def embedder(folder: Path, architecture: str) -> Embedder:
    """A tiny embedding model."""
    from sentence_transformers import SentenceTransformer

    return Embedder(SentenceTransformer(str(tiny.save_encoder(folder, architecture)), device="cpu"), PaddedForward)


def whole(tokenizer: Any, *texts: str) -> int:
    """How many tokens these texts have, uncut."""
    return len(tokenizer(*texts, truncation=False)["input_ids"])


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_a_text_counts_when_the_uncut_one_has_more_tokens(architecture: str, tmp_path: Path):
    """For every tokenizer, and texts on both sides of the limit."""
    model = embedder(tmp_path / "model", architecture)
    limit = model.max_length
    expected = [whole(model._tokenizer, text) > limit for text in TEXTS]
    assert {True, False} == set(expected)
    assert expected == [item.truncated for item in model.prepare(TEXTS)]


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_a_pair_counts_when_either_side_is_cut(architecture: str, tmp_path: Path):
    """Query and document share the room."""
    from sentence_transformers import CrossEncoder

    folder = tiny.save_cross_encoder(tmp_path / "model", architecture)
    model = CrossEncoderModel(CrossEncoder(str(folder), device="cpu"), PaddedForward)
    pairs = [(tiny.QUERY, text) for text in TEXTS] + [(text, "fox") for text in TEXTS]
    expected = [whole(model._tokenizer, *pair) > model.max_length for pair in pairs]
    assert {True, False} == set(expected)
    assert expected == [item.truncated for item in model.prepare(pairs)]


@pytest.mark.parametrize("knows_how", [True, False])
def test_a_tokenizer_that_keeps_nothing_of_what_it_cuts_is_asked_again(knows_how: bool, tmp_path: Path, monkeypatch):
    """Without the fast tokenizers' record the uncut text is counted; where that fails, texts count as whole."""
    model = embedder(tmp_path / "model", "bert")
    expected = [whole(model._tokenizer, text) > model.max_length for text in TEXTS]
    preprocess = model._network.preprocess

    def slow(texts: list[str], **options: Any) -> Mapping[str, Any]:
        if "processing_kwargs" in options and not knows_how:
            raise TypeError("unexpected keyword argument 'processing_kwargs'")
        return dict(preprocess(texts, **options))

    monkeypatch.setattr(model._network, "preprocess", slow)
    found = LibraryTokens(model._network, None, ".")(TEXTS)
    assert (expected if knows_how else [False] * len(TEXTS)) == [item.truncated for item in found]


def test_a_token_array_counts_with_its_prompt(tmp_path: Path):
    """The prompt and the special tokens take their room from an array, too."""
    model = embedder(tmp_path / "model", "bert")
    model._prompt_ids = [7] * 10
    room = model.max_length - 2 - 10
    cut = [item.truncated for item in model.prepare([[9] * (room - 1), [9] * room, [9] * (room + 1), []])]
    assert [False, False, True, False] == cut
