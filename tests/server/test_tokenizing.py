"""Rows of tokens: the library's, whichever way they are made, and from any number of threads at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer

from qmd_remote.server.embedder import Embedder
from qmd_remote.server.fast_tokens import FastPairs, FastTexts, bare_ids, heads
from qmd_remote.server.forward import PaddedForward
from qmd_remote.server.model import Prepared
from qmd_remote.server.reranker import CrossEncoderModel
from qmd_remote.server.text import scrub
from qmd_remote.server.text_model import TextModel
from qmd_remote.server.tokenizing import LibraryTokens
from tests.server import tiny_models as tiny

ODD = [
    " . ",
    "\ufeff\u200b\u202e x \u0301\u0308",
    "ﬁ ﬃ ① Å Ångström İstanbul ǅ ß ẞ ſ",
    "[SEP] </s><s> <|im_end|> [UNK]",
    "a\x01b\x7fc\x85d",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "1,234.56e-7 $12 50% C++ foo_bar camelCase",
    "ไม่มีเว้นวรรค हिन्दी עִבְרִית العربية",
    "x" * 300,
]
TEXTS = [*tiny.TEXTS, *ODD]


def embedder(folder: Path) -> Embedder:
    """An embedding model."""
    return Embedder(SentenceTransformer(str(folder), device="cpu"), PaddedForward)


def cross_encoder(folder: Path) -> CrossEncoderModel:
    """A cross-encoder."""
    return CrossEncoderModel(CrossEncoder(str(folder), device="cpu"), PaddedForward)


@pytest.fixture(scope="module", params=[*tiny.ARCHITECTURES, "mini"])
def one(request, tmp_path_factory) -> Embedder:
    """An embedding model of each kind; MiniLM is the real one."""
    if request.param == "mini":
        return embedder(tiny.mini_folder())
    return embedder(tiny.save_encoder(tmp_path_factory.mktemp(request.param) / "model", request.param))


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def pairs(request, tmp_path_factory) -> CrossEncoderModel:
    """A cross-encoder of each kind."""
    return cross_encoder(tiny.save_cross_encoder(tmp_path_factory.mktemp(request.param) / "model", request.param))


def library(model: TextModel[Any], items: Sequence[Any], **options: Any) -> list[dict[str, list[int]]]:
    """The rows of `preprocess`, without their padding; that of a full stop where it gives no token at all."""
    more = {"processing_kwargs": {"text": options}} if options else {}
    features = model._network.preprocess(list(items), prompt=model._prompt, **more)
    masks = features["attention_mask"].bool()
    found = [
        {name: features[name][i][mask].tolist() for name in model.forward._network.names}
        for i, mask in enumerate(masks)
    ]
    return [row if row["input_ids"] else rows([model._blank])[0] for row in found]


def rows(found: Sequence[Prepared]) -> list[dict[str, list[int]]]:
    """The rows as lists, checked to be what the model's contract says."""
    for item in found:
        assert {item.length} == {len(values) for values in item.row.values()}
        assert {np.dtype(np.int64)} == {values.dtype for values in item.row.values()}
    return [{name: values.tolist() for name, values in item.row.items()} for item in found]


def test_texts_are_tokenised_as_the_library_does(one):
    """Odd and ordinary texts, whole and cut, give the rows of `preprocess`, special tokens and types included."""
    assert isinstance(one._tokens, FastTexts)
    found = one.prepare(TEXTS)
    assert any(item.truncated for item in found)
    assert library(one, TEXTS) == rows(found)


@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_tokenised_as_the_library_does(one, texts):
    """Whatever characters a text has."""
    texts = [scrub(text) for text in texts]
    assert library(one, texts) == rows(one.prepare(texts))


def very_long() -> list[str]:
    """Texts that are far longer than any room: prose, no blank, nothing but blanks, few tokens at the beginning."""
    prose = " ".join(TEXTS)
    whole = 40_000
    return [
        (prose * (whole // len(prose) + 1))[:whole],
        "x" * whole,
        "fox " + " " * whole + "cat",
        "  " * whole + prose * 20,
        ("x" * 3000 + " ") * 20,
        "東京は日本の首都です。" * (whole // 11),
        "\n".join(tiny.CORPUS) * 200,
    ]


def test_a_very_long_text_is_cut_as_the_library_cuts_it(one):
    """Of a text that is far too long only the beginning is tokenised, which changes no row."""
    found = one.prepare(very_long())
    assert library(one, very_long()) == rows(found)
    assert found[0].truncated


def test_only_the_beginning_of_a_very_long_text_is_tokenised(one):
    """More ids than there is room for, and far fewer than the text has; of texts without blanks all."""
    backend = one._network.tokenizer.backend_tokenizer
    found, whole = heads(backend, very_long(), 16), bare_ids(backend, very_long())
    assert all(len(ids) >= min(16, len(other)) for ids, other in zip(found, whole, strict=True))
    assert 16 < len(found[0]) < len(whole[0]) / 10
    assert found[1] == whole[1]


def test_a_very_long_document_is_cut_as_the_library_cuts_it(pairs):
    """The same behind a query."""
    items = [(tiny.QUERY, text) for text in very_long()]
    assert library(pairs, items, truncation="only_second") == rows(pairs.prepare(items))


def test_prompt_and_lower_casing_count_in_the_fast_way_too(tmp_path):
    """The default prompt stands before each text, and capitals go where the model's configuration says so."""
    folder = tiny.save_encoder(tmp_path / "model", "xlm-roberta")
    tiny.edit_json(folder / "sentence_bert_config.json", do_lower_case=True, max_seq_length=24)
    prompts = {"prompts": {"document": "search document: "}, "default_prompt_name": "document"}
    tiny.edit_json(folder / "config_sentence_transformers.json", **prompts)
    model = embedder(folder)
    assert isinstance(model._tokens, FastTexts)
    texts = [text.upper() for text in TEXTS]
    assert library(model, texts) == rows(model.prepare(texts))
    assert 24 == max(item.length for item in model.prepare(texts))


def test_a_tokenizer_that_cuts_on_the_left_keeps_the_end(tmp_path):
    """What the checkpoint says about the side of truncation holds."""
    folder = tiny.save_encoder(tmp_path / "model", "bert")
    tiny.edit_json(folder / "tokenizer_config.json", truncation_side="left")
    model = embedder(folder)
    assert isinstance(model._tokens, FastTexts)
    assert library(model, TEXTS) == rows(model.prepare(TEXTS))


def test_pairs_that_fit_are_tokenised_as_the_library_does(pairs):
    """Query and document with the special tokens and types of `preprocess`; several queries in one call, too."""
    assert isinstance(pairs._tokens, FastPairs)
    items = [(query, text) for query in (tiny.QUERY, "", "fox [SEP] Größe") for text in TEXTS]
    found = pairs.prepare(items)
    whole = [item for item in found if not item.truncated]
    assert len(items) > len(whole) > len(items) // 2
    expected = library(pairs, [pair for pair, item in zip(items, found, strict=True) if not item.truncated])
    assert expected == rows(whole)


def test_a_long_document_loses_its_end_and_the_query_nothing(pairs):
    """As tokenizers do when told to cut the second text only, which is not what the library tells them."""
    items = [(tiny.QUERY, " ".join(tiny.CORPUS) * times) for times in (4, 9)]
    found = pairs.prepare(items)
    assert [True, True] == [item.truncated for item in found]
    assert library(pairs, items, truncation="only_second") == rows(found)


def test_threads_tokenise_at_once(one):
    """Eight threads get the rows that one gets, while another user of the tokenizer leaves its padding behind."""
    expected = rows(one.prepare(TEXTS))
    one._network.preprocess(TEXTS)
    first = one.prepare(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: one.prepare(TEXTS), range(40)))
    assert all(expected == rows(result) for result in [first, *found])


def test_a_tokenizer_in_python_is_left_to_the_library(tmp_path):
    """Without a Rust tokenizer rows are the library's, and texts that were cut are counted."""
    folder = tiny.save_encoder(tmp_path / "model", "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    transformers.ByT5Tokenizer(model_max_length=40).save_pretrained(folder)
    model = embedder(folder)
    assert isinstance(model._tokens, LibraryTokens)
    found = model.prepare(["fox", "x" * 39, "x" * 40])
    assert library(model, ["fox", "x" * 39, "x" * 40]) == rows(found)
    assert [False, False, True] == [item.truncated for item in found]


def test_a_tokenizer_with_unusual_special_tokens_is_left_to_the_library(tmp_path):
    """Where the fast way cannot tell where texts begin, or gives other rows, it is not taken."""
    folder = tiny.save_cross_encoder(tmp_path / "model", "bert")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    swapped = [{"Sequence": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": swapped[1:],
        "pair": swapped,
        "special_tokens": {},
    }
    path.write_text(json.dumps(tokenizer))
    model = cross_encoder(folder)
    assert isinstance(model._tokens, LibraryTokens)
    items = [(tiny.QUERY, text) for text in tiny.CORPUS]
    assert library(model, items) == rows(model.prepare(items))


@pytest.mark.parametrize("fails", [ValueError("no"), type("PanicException", (BaseException,), {})("no")])
def test_a_fast_way_that_fails_when_tried_is_not_taken(fails: BaseException, tmp_path, monkeypatch):
    """An error of the Rust tokenizer, or its panic, means the library's way."""

    def fail(*_: Any) -> Callable[..., Any]:
        raise fails

    monkeypatch.setattr(FastTexts, "__call__", fail)
    model = embedder(tiny.save_encoder(tmp_path / "model", "bert"))
    assert isinstance(model._tokens, LibraryTokens)
    assert library(model, TEXTS) == rows(model.prepare(TEXTS))
