"""The client with a base URL and a format for each task (QMD's pull request 720): the URL is taken as it is.

Of its formats the server speaks OpenAI's, and Cohere's for rankings; `/v2/embed` is told apart, not half answered.
"""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import Step, expands, first_is, ranking, refused, replay, vectors

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


def test_cohere_format_for_vectors_is_not_served(box):
    """404 in OpenAI's shape, with the paths there are: its user sees what to set the format to."""
    body = {"model": "embed-v4", "texts": ["a"], "input_type": "search_document", "embedding_types": ["float"]}
    (answer,) = replay(box, Step("/v2/embed", body, [refused(404, "not_found")]))
    assert "/v1/embeddings" in answer.json["error"]["message"]


def test_an_unknown_input_type(box):
    """What is neither a query nor a document is refused by name."""
    body = {"model": "embed", "input": "a", "input_type": "clustering"}
    (answer,) = replay(box, Step("/embeddings", body, [refused(400)]))
    assert "input_type" == answer.json["error"]["param"]


def test_a_wrong_key(box):
    """401 in both formats."""
    for path in ("/rerank", "/v2/rerank"):
        replay(box, Step(path, RANKED, [refused(401, "invalid_api_key")]), key="another")
