"""Clients with one URL, model and key for each task (QMD's pull requests 517, 629, 705 and 771): URLs end in /v1.

They send raw text. Three failures in a row switch remote models off for ten minutes, so there must be none.
"""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import (
    Step,
    expands,
    first_is,
    nearest,
    objects,
    ranking,
    refused,
    replay,
    vectors,
    whole_usage,
)

MODEL = "text-embedding-3-small"
CHUNKS = [say.chunk(number) for number in range(say.BATCH)]


def test_index_and_query(box):
    """Batches of raw text, then a query, an expansion and a ranking, each at its own URL; no failure to be counted."""
    ranked = {"model": "rerank-v3.5", "query": say.QUERY, "documents": say.candidates()}
    answers = replay(
        f"{box}/v1",
        Step("/embeddings", {"model": MODEL, "input": CHUNKS}, [vectors, objects, whole_usage]),
        Step("/embeddings", {"model": MODEL, "input": say.QUERY}, [vectors]),
        Step("/chat/completions", say.chat("gpt-4o-mini", f"Query: {say.QUERY}"), [expands(say.QUERY)]),
        Step("/rerank", ranked, [ranking]),
    )
    assert len(answers) == 4


def test_a_query_finds(mini_box):
    """A raw query is nearest to the raw note that answers it, and that note is ranked first."""
    stored, asked, _ = replay(
        f"{mini_box}/v1",
        Step("/embeddings", {"model": MODEL, "input": list(say.NOTES)}, [vectors]),
        Step("/embeddings", {"model": MODEL, "input": say.QUERY}, [vectors]),
        Step("/rerank", {"query": say.QUERY, "documents": say.few()}, [ranking, first_is(say.ANSWER)]),
    )
    assert say.ANSWER == nearest(asked.json["data"][0], stored.json["data"])


def test_a_batch_that_is_too_large_is_bisected(small_door):
    """413 is the sign by which one of them halves a batch; the halves pass, and no text is lost."""
    url = small_door(max_body_mb=0.02)
    answered = bisected(f"{url}/v1", CHUNKS)
    assert [1] * len(CHUNKS) == [len(item) for item in answered]


def bisected(url, texts):
    """What that client does: the data of each text, from requests small enough."""
    (answer,) = replay(url, Step("/embeddings", {"model": MODEL, "input": texts}))
    if answer.status == 413:
        refused(413, "body_too_large")(answer)
        middle = len(texts) // 2
        assert middle, "one text alone is refused"
        return bisected(url, texts[:middle]) + bisected(url, texts[middle:])
    vectors(answer)
    return [[item] for item in answer.json["data"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"model": MODEL, "input": "a"}),
        ("/rerank", {"model": MODEL, "query": "q", "documents": ["a"]}),
        ("/chat/completions", say.chat("gpt-4o-mini", say.QUERY)),
    ],
)
def test_each_of_its_keys_is_checked(box, path, body):
    """A wrong key at one of the URLs is 401 there."""
    replay(f"{box}/v1", Step(path, body, [refused(401, "invalid_api_key")]), key="another")
