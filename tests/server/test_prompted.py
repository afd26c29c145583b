"""Prompts on their way through engine and HTTP: what a model really reads."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest

from tests.server import tiny_models as tiny
from tests.server.tiny_models import embed

OWN = {"prompts": {"query": "find: ", "document": "note: ", "clustering": "group: "}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny embedder with prompts of its own, one of them its default."""
    folder = tiny.save_encoder(tmp_path_factory.mktemp("prompts") / "bert", "bert")
    shutil.copytree(folder, folder.parent / "plain")
    tiny.edit_json(folder / "config_sentence_transformers.json", **OWN, default_prompt_name="clustering")
    return folder


@pytest.fixture(scope="module")
def raw(folder):
    """That model with prompts switched off, and no default of its own."""
    plain = folder.parent / "plain"
    with tiny.loaded(plain, plain, prompts=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompted(folder):
    """That model as users run it, for both jobs."""
    with tiny.loaded(folder, folder, prompts=True) as engine:
        yield engine


def close(one, other):
    """Whether two vectors are the same one."""
    return bool(np.allclose(one, other, atol=1e-5))


def test_each_text_gets_the_prompt_of_its_own_prefix(prompted, raw):
    """In one request a query, a document with a title and a plain text are each read with their own prompt."""
    texts = ["task: search result | query: fox", "title: Fox | text: It runs.", "fox"]
    expected = embed(raw, ["find: fox", "note: Fox\nIt runs.", "note: fox"])
    assert close(embed(prompted, texts), expected)


@pytest.mark.parametrize(
    ("name", "read"), [("query", "find: fox"), ("passage", "note: fox"), ("clustering", "group: fox")]
)
def test_the_request_names_the_prompt_of_plain_texts(prompted, raw, name, read):
    """`input_type` or `prompt_name` decides for texts without a prefix, and for those alone."""
    found = asyncio.run(prompted.embed(["fox", "search_document: fox"], name)).vectors
    assert close(found, embed(raw, [read, "note: fox"]))


def test_the_default_can_be_the_query(folder, raw):
    """`default_role` decides for texts of which nothing else tells."""
    with tiny.loaded(folder, folder, prompts=True, default_role="query") as engine:
        assert close(embed(engine, ["fox"]), embed(raw, ["find: fox"]))
        assert engine.facts()["prompts"]["default"] == "query"


def test_token_arrays_stay_as_they_are(prompted, raw):
    """Tokens are the caller's own: nothing is put before them."""
    ids = tiny.network(raw).tokenizer.encode("fox")
    assert close(embed(prompted, [ids]), embed(raw, ["fox"]))


def test_switched_off_the_library_decides(folder, raw):
    """Off, texts keep their prefixes and get the default that the model's files name, as in sentence-transformers."""
    with tiny.loaded(folder, folder, prompts=False) as engine:
        assert close(embed(engine, ["search_query: fox"]), embed(raw, ["group: search_query: fox"]))
        assert engine.facts()["prompts"]["source"] == "off"


def test_a_bi_encoder_reranks_with_its_prompts(prompted):
    """As a reranker, too, the model reads the query as a query and documents as documents."""
    query, document = embed(prompted, ["search_query: fox", "search_document: a fox runs"])
    expected = (1 + float(query @ document)) / 2
    scores = asyncio.run(prompted.rerank("fox", ["a fox runs"])).scores
    np.testing.assert_allclose(scores, [expected], atol=1e-5)


def test_many_texts_are_prompted_too(prompted, raw):
    """A request so large that it is read in a thread gets the same prompts."""
    count = 4100
    vectors = embed(prompted, ["search_query: fox"] * count)
    assert len(vectors) == count
    assert close(vectors[-1], embed(raw, ["find: fox"])[0])


def test_wrong_names_are_refused(mini):
    """An unknown `input_type` or `prompt_name` is a 400 that names the field and what it takes."""
    for field in ("input_type", "prompt_name"):
        answer = mini.post("/v1/embeddings", json={"input": "x", field: "poetry"})
        error = answer.json()["error"]
        assert [answer.status_code, error["param"]] == [400, field]
        assert "query" in error["message"]


def test_health_tells_the_rule(mini):
    """/health says which prompts are in force: none are known for MiniLM."""
    prompts = mini.get("/health").json()["prompts"]
    assert [prompts["source"], prompts["query"], prompts["default"]] == ["none", "", "document"]


def test_prefixes_make_no_difference_to_a_model_without_prompts(mini):
    """EmbeddingGemma's prefixes are gone before MiniLM reads a text."""
    texts = ["task: search result | query: bread", "title: none | text: bread", "bread"]
    rows = [item["embedding"] for item in mini.post("/v1/embeddings", json={"input": texts}).json()["data"]]
    assert close(rows[0], rows[2])
    assert close(rows[1], rows[2])


def test_the_name_in_the_answer(serve):
    """`model` is the real one, or the requested name where that is set; a header tells the real one in any case."""
    for echo, expected in ((False, "fake/embedder"), (True, "text-embedding-3-small")):
        answer = serve(echo_model=echo).http.post(
            "/v1/embeddings", json={"input": "x", "model": "text-embedding-3-small"}
        )
        assert [answer.json()["model"], answer.headers["x-qmd-remote-model"]] == [expected, "fake/embedder"]
    http = serve(echo_model=True).http
    answer = http.post("/v1/rerank", json={"query": "q", "documents": ["0.5"]})
    assert [answer.json()["model"], answer.headers["x-qmd-remote-model"]] == ["fake/reranker"] * 2


def test_both_names_of_a_score(serve):
    """Clients read `relevance_score` or `score`: both are there, and equal."""
    body = serve().http.post("/v1/rerank", json={"query": "q", "documents": ["0.25", "0.75"]}).json()
    assert body["object"] == "list"
    assert [(item["relevance_score"], item["score"]) for item in body["results"]] == [(0.75, 0.75), (0.25, 0.25)]
