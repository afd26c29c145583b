"""Clients with one URL for each task and one key (QMD's pull requests 575 and 446): URLs without /v1."""

from __future__ import annotations

from qmd_remote.presets import MINI_EMBED
from tests.families import sayings as say
from tests.families.replay import (
    Step,
    expands,
    first_is,
    lists,
    ranking,
    refused,
    replay,
    vectors,
    without_texts,
)

RANKED = {"model": say.RERANKER, "query": say.QUERY, "documents": say.candidates(), "return_documents": False}
LOOK = Step("/v1/models", None, [lists("own/llm")], method="GET")


def test_look_index_and_query(box):
    """It looks at the models first; rankings come back without the documents' texts."""
    chunks = [say.titled(say.chunk(number), "Log") for number in range(say.BATCH)]
    replay(
        box,
        LOOK,
        Step("/v1/embeddings", {"model": say.GEMMA, "input": chunks}, [vectors]),
        Step("/v1/chat/completions", say.chat("qwen3", f"/no_think {say.QUERY}"), [expands(say.QUERY)]),
        Step("/v1/embeddings", {"model": say.GEMMA, "input": [say.asked(say.QUERY)]}, [vectors]),
        Step("/v1/rerank", RANKED, [ranking, without_texts]),
    )


def test_a_query_finds(mini_box):
    """The real models have their real names, and the note that answers the query is ranked first."""
    ranked = {**RANKED, "documents": say.few()}
    look = Step("/v1/models", None, [lists(MINI_EMBED, "own/llm")], method="GET")
    replay(mini_box, look, Step("/v1/rerank", ranked, [ranking, first_is(say.ANSWER), without_texts]))


def test_a_wrong_key(box):
    """Its look at the models tells at once."""
    replay(box, Step("/v1/models", None, [refused(401, "invalid_api_key")], method="GET"), key="another")
    replay(box, Step("/v1/rerank", RANKED, [refused(401, "invalid_api_key")]), key="")
