"""Clients of a remote mode (QMD's pull requests 289 and 306): they try `/v1/rerank`, then `/rerank`."""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import Step, expands, first_is, ranking, refused, replay, vectors

RANKED = {"model": say.RERANKER, "query": say.QUERY, "documents": say.few()}


def test_either_path_ranks(mini_box):
    """The second path, which it takes for good where the first failed once, gives the same scores."""
    needs = [ranking, first_is(say.ANSWER)]
    first, second = replay(mini_box, Step("/v1/rerank", RANKED, needs), Step("/rerank", RANKED, needs))
    assert scores(first) == pytest.approx(scores(second), abs=1e-5)


def scores(answer):
    """The score of each document, in the order of the request."""
    return [one["relevance_score"] for one in sorted(answer.json["results"], key=lambda result: result["index"])]


def test_forty_candidates(box):
    """All it may have, in full size, in one request."""
    replay(box, Step("/rerank", {**RANKED, "documents": say.candidates()}, [ranking]))


def test_index_and_query(box):
    """Vectors and an expansion, at URLs without /v1."""
    replay(
        box,
        Step("/v1/embeddings", {"model": say.GGUF, "input": [say.titled(note) for note in say.NOTES]}, [vectors]),
        Step("/v1/embeddings", {"model": say.GGUF, "input": say.asked(say.QUERY)}, [vectors]),
        Step("/v1/chat/completions", say.chat(say.EXPANDER, f"/no_think {say.QUERY}"), [expands(say.QUERY)]),
    )


def test_errors(box):
    """What it may not ask, and what it asks wrongly, is said in the same way at both paths."""
    for path in ("/v1/rerank", "/rerank"):
        replay(box, Step(path, RANKED, [refused(401, "invalid_api_key")]), key="another")
        replay(box, Step(path, {"query": say.QUERY}, [refused(400)]))
