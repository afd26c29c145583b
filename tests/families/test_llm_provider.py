"""The client of the `llm:` block with `provider: openai-compatible` (QMD's pull request 619): a URL of either kind."""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import Step, expands, first_is, ranking, refused, replay, vectors

TOP = 10
RANKED = {"model": "rerank", "query": say.QUERY, "documents": say.candidates(), "top_n": TOP}
# its base URLs, and the paths that it adds to them
PLACES = [("", "/v1"), ("/v1", ""), ("/v1", "/v1"), ("", "")]


@pytest.mark.parametrize(("base", "version"), PLACES)
def test_index_and_query(box, base, version):
    """With and without /v1 in its URL: vectors, an expansion, and the best ten only."""
    expansion = say.chat("generate", f"/no_think Expand this search query: {say.QUERY}", temperature=0.7)
    replay(
        f"{box}{base}",
        Step(f"{version}/embeddings", {"model": "embed", "input": list(say.NOTES)}, [vectors]),
        Step(f"{version}/embeddings", {"model": "embed", "input": say.QUERY}, [vectors]),
        Step(f"{version}/chat/completions", expansion, [expands(say.QUERY)]),
    )


def test_top_n(box, mini_box):
    """Ten of forty, each once; and of few, the one that answers the query."""
    (answer,) = replay(f"{box}/v1", Step("/rerank", RANKED, [ranking]))
    assert TOP == len(answer.json["results"])
    one = {**RANKED, "documents": say.few(), "top_n": 1}
    replay(f"{mini_box}/v1", Step("/rerank", one, [ranking, first_is(say.ANSWER)]))


def test_a_chat_without_instructions(box):
    """Its one sentence is enough for an expansion: no line of the engine's own reaches it unrepaired."""
    body = {"model": "g", "messages": [{"role": "user", "content": f"/no_think Expand this search query: {say.QUERY}"}]}
    replay(box, Step("/v1/chat/completions", body, [expands(say.QUERY)]))


def test_wrong_fields(box):
    """A top_n that is none is an error with the field's name."""
    (answer,) = replay(f"{box}/v1", Step("/rerank", {**RANKED, "top_n": "ten"}, [refused(400)]))
    assert "top_n" == answer.json["error"]["param"]


def test_a_wrong_key(box):
    """It has one key for everything."""
    replay(f"{box}/v1", Step("/rerank", RANKED, [refused(401, "invalid_api_key")]), key="another")
