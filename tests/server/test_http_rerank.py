"""/v1/rerank: the form with a stand-in engine, the ranking with MiniLM."""

from __future__ import annotations

import json

import pytest

from qmd_remote.presets import MINI_EMBED

QUERY = "how do cats sleep"
DOCUMENTS = ["Interest rates rose again.", "A cat naps for most of the day, curled up.", "Dogs bark at night.", ""]


@pytest.fixture(scope="module")
def server(serve):
    """A server whose scores are the numbers in the documents."""
    return serve()


def ranked(client, **fields):
    """The results of a rerank as (index, score) pairs."""
    answer = client.post("/v1/rerank", json={"query": "q", **fields})
    assert answer.status_code == 200, answer.text
    return [(result["index"], result["relevance_score"]) for result in answer.json()["results"]]


def test_results_are_sorted_by_score(server):
    """Best first, each with its place in the request."""
    assert ranked(server.http, documents=["0.2", "0.9", "0.5"]) == [(1, 0.9), (2, 0.5), (0, 0.2)]


def test_equal_scores_keep_the_order_of_the_request(server):
    """The order does not depend on luck."""
    documents = ["0.5"] * 50 + ["0.7"] + ["0.5"] * 50
    assert [index for index, _ in ranked(server.http, documents=documents)] == [50, *range(50), *range(51, 101)]


@pytest.mark.parametrize(
    ("top_n", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (99, [1, 2, 0]), (None, [1, 2, 0])]
)
def test_top_n_keeps_the_best(server, top_n, expected):
    """More than there are means all of them."""
    found = ranked(server.http, documents=["0.2", "0.9", "0.5"], top_n=top_n)
    assert [index for index, _ in found] == expected


def test_documents_come_back_when_asked_for(server):
    """With return_documents each result holds its own text; without, none does."""
    fields = {"query": "q", "documents": ["0.2", {"text": "0.9", "id": 7}]}
    results = server.http.post("/v1/rerank", json={**fields, "return_documents": True}).json()["results"]
    assert [result["document"] for result in results] == [{"text": "0.9"}, {"text": "0.2"}]
    results = server.http.post("/v1/rerank", json={**fields, "return_documents": False}).json()["results"]
    assert not any("document" in result for result in results)


def test_a_file_comes_back_with_its_document(server):
    """Each result has the file of its own document, as it came, and none that had no name for one."""
    documents = ["0.1", {"text": "0.9", "file": "b/é.md"}, {"text": "0.5", "file": 7}, {"text": "0.7", "file": ""}]
    answer = server.http.post("/v1/rerank", json={"query": "q", "documents": documents, "top_n": 4})
    results = answer.json()["results"]
    assert [(1, "b/é.md"), (3, ""), (2, None), (0, None)] == [(one["index"], one.get("file")) for one in results]
    assert ["file" in one for one in results] == [True, True, False, False]


def test_real_scores_rank_by_meaning(mini):
    """Every document once, scores in [0, 1], the one about the query first, the real model named."""
    answer = mini.post("/v1/rerank", json={"model": "any", "query": QUERY, "documents": DOCUMENTS})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert sorted(result["index"] for result in body["results"]) == [0, 1, 2, 3]
    assert all(0 <= result["relevance_score"] <= 1 for result in body["results"])
    assert body["results"][0]["index"] == 1
    assert body["model"] == MINI_EMBED
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 20
    assert 0 == body["usage"]["truncated"]


def test_usage_counts_the_documents_that_were_cut(mini):
    """A document longer than the model takes is counted in usage."""
    answer = mini.post("/v1/rerank", json={"query": QUERY, "documents": [*DOCUMENTS, "word " * 5000]})
    assert 1 == answer.json()["usage"]["truncated"]


def test_objects_score_like_strings(mini):
    """The form of a document does not change its score."""
    assert ranked(mini, documents=DOCUMENTS) == ranked(mini, documents=[{"text": text} for text in DOCUMENTS])


def test_broken_documents_do_not_fail_the_others(mini):
    """A lone surrogate or a NUL, in the query or a document, is scored as the replacement character."""
    broken = {"query": "cats\ud83d", "documents": ["a cat \udc00", "b\x00", "c"], "return_documents": True}
    answer = mini.post("/v1/rerank", content=json.dumps(broken))
    assert answer.status_code == 200
    texts = {result["index"]: result["document"]["text"] for result in answer.json()["results"]}
    assert texts == {0: "a cat \ufffd", 1: "b\ufffd", 2: "c"}
