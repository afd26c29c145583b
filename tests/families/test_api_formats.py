"""The client with a base URL and a format for each task (QMD's pull request 720): the URL is taken as it is.

The server speaks both of its formats, OpenAI's and Cohere's.
"""

from __future__ import annotations

import math

import pytest

from tests.families import sayings as say
from tests.families.replay import Step, expands, first_is, nearest, ok, ranking, refused, replay, vectors

RANKED = {"model": "rerank-v3.5", "query": say.QUERY, "documents": say.few(), "top_n": 3}


@pytest.mark.parametrize("base", ["", "/v1"])
def test_openai_format(mini_box, base):
    """A base URL with or without /v1, to which it adds the endpoint alone."""
    replay(
        f"{mini_box}{base}",
        Step("/embeddings", {"model": "embed", "input": list(say.NOTES), "input_type": "search_document"}, [vectors]),
        Step("/embeddings", {"model": "embed", "input": say.QUERY, "input_type": "search_query"}, [vectors]),
        Step("/chat/completions", say.chat("expand", f"/no_think {say.QUERY}"), [expands(say.QUERY)]),
        Step("/rerank", RANKED, [ranking, first_is(say.ANSWER)]),
    )


def test_cohere_format_for_rankings(mini_box):
    """`/v2/rerank` answers as `/v1/rerank` does."""
    replay(mini_box, Step("/v2/rerank", RANKED, [ranking, first_is(say.ANSWER)]))


def cohere_vectors(answer):
    """One vector of length 1 for each text, in order, beside the texts."""
    ok(answer)
    rows = answer.json["embeddings"]["float"]
    assert answer.sent["texts"] == answer.json["texts"]
    assert len(rows) == len(answer.sent["texts"])
    assert all(math.isclose(1, math.hypot(*row), rel_tol=1e-3) for row in rows)
    assert 0 < answer.json["meta"]["billed_units"]["input_tokens"]


def test_cohere_format_for_vectors(mini_box):
    """`/v2/embed` embeds notes and a query, each told apart by its input_type, and the right note is the nearest."""
    body = {"model": "embed-v4.0", "texts": list(say.NOTES), "input_type": "search_document"}
    asked = {**body, "texts": [say.QUERY], "input_type": "search_query", "embedding_types": ["float"]}
    answers = replay(mini_box, Step("/v2/embed", body, [cohere_vectors]), Step("/v2/embed", asked, [cohere_vectors]))
    stored, query = ([{"embedding": row} for row in answer.json["embeddings"]["float"]] for answer in answers)
    assert say.ANSWER == nearest(query[0], stored)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"embedding_types": ["float", "int8"]}, "embedding_types[1]"),
        ({"input_type": "image"}, "input_type"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", None]}, "texts[1]"),
        ({"texts": None}, "texts"),
        ({"output_dimension": 10_000}, "output_dimension"),
        ({"truncate": "START"}, "truncate"),
        ({"truncate": "NONE", "texts": ["word " * 9000]}, "truncate"),
    ],
)
def test_cohere_format_errors(box, wrong, field):
    """What it cannot have is refused by name, in OpenAI's shape."""
    body = {"model": "embed-v4.0", "texts": ["a"], "input_type": "search_document", **wrong}
    (answer,) = replay(box, Step("/v2/embed", body, [refused(400)]))
    assert field == answer.json["error"]["param"]


def test_an_unknown_input_type(box):
    """What is neither a query nor a document is refused by name."""
    body = {"model": "embed", "input": "a", "input_type": "clustering"}
    (answer,) = replay(box, Step("/embeddings", body, [refused(400)]))
    assert "input_type" == answer.json["error"]["param"]


def test_a_wrong_key(box):
    """401 in both formats."""
    for path in ("/rerank", "/v2/rerank", "/v2/embed"):
        replay(box, Step(path, RANKED, [refused(401, "invalid_api_key")]), key="another")
