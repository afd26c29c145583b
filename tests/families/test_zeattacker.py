"""The fork of zeattacker: URLs without /v1, and rankings at `/v1/reranks`."""

from __future__ import annotations

from tests.families import sayings as say
from tests.families.replay import Step, first_is, ranking, refused, replay, vectors

RANKED = {"model": "reranker", "query": say.QUERY, "documents": say.candidates(), "top_n": 5}


def test_index_and_query(box):
    """Vectors at the usual path, a ranking at its own."""
    replay(
        box,
        Step("/v1/embeddings", {"model": "embed", "input": list(say.NOTES)}, [vectors]),
        Step("/v1/embeddings", {"model": "embed", "input": [say.QUERY]}, [vectors]),
        Step("/v1/reranks", RANKED, [ranking]),
    )


def test_a_query_finds(mini_box):
    """The note that answers the query is ranked first."""
    replay(mini_box, Step("/v1/reranks", {**RANKED, "documents": say.few()}, [ranking, first_is(say.ANSWER)]))


def test_errors(box):
    """A wrong key, a method that is none, and a document that is none."""
    replay(box, Step("/v1/reranks", RANKED, [refused(401, "invalid_api_key")]), key="another")
    replay(box, Step("/v1/reranks", None, [refused(405, "method_not_allowed")], method="GET"))
    (answer,) = replay(box, Step("/v1/reranks", {**RANKED, "documents": ["a", 1]}, [refused(400)]))
    assert "documents[1]" == answer.json["error"]["param"]
