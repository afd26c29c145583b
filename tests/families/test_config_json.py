"""Clients that read a JSON file (QMD's pull request 325, the forks of olyashok and cellect-ai).

They expand by `/v1/completions`, rank ten documents a request, and send a batch that was refused again, text by text.
"""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import Step, expands, first_is, ranking, refused, replay, vectors

TEN = 10
PROMPT = f"{say.INSTRUCTIONS}\n\nQuery: {say.QUERY}\n"


def test_index_and_query(box):
    """Batches of vectors, an expansion from a prompt without roles, and rankings in tens."""
    documents = say.candidates()
    tens = [documents[start : start + TEN] for start in range(0, len(documents), TEN)]
    replay(
        box,
        *(Step("/v1/rerank", {"model": "m", "query": say.QUERY, "documents": ten}, [ranking]) for ten in tens),
        Step("/v1/embeddings", {"model": "m", "input": [say.titled(note) for note in say.NOTES]}, [vectors]),
        Step("/v1/completions", {"model": "m", "prompt": PROMPT, "max_tokens": 300}, [expands(say.QUERY)]),
    )


def test_scores_of_different_requests_compare(mini_box):
    """The ten with the answer hold the best score of all: a score depends on no other document of its request."""
    documents = say.candidates(2 * TEN, 160)
    bodies = [{"model": "m", "query": say.QUERY, "documents": part} for part in (documents, documents[:TEN])]
    whole, part = replay(mini_box, *(Step("/v1/rerank", body, [ranking, first_is(say.ANSWER)]) for body in bodies))
    scores = [
        {result["index"]: result["relevance_score"] for result in answer.json["results"]} for answer in (whole, part)
    ]
    for index in range(TEN):
        assert scores[0][index] == pytest.approx(scores[1][index], abs=1e-4)


def test_a_refused_batch_passes_text_by_text(small_door):
    """A batch over the limit is refused as a whole; each of its texts alone is answered."""
    texts = [say.titled(say.chunk(number)) for number in range(8)]
    url = small_door(max_body_mb=0.01)
    replay(url, Step("/v1/embeddings", {"model": "m", "input": texts}, [refused(413, "body_too_large")]))
    replay(url, *(Step("/v1/embeddings", {"model": "m", "input": text}, [vectors]) for text in texts))


def test_a_wrong_key(box):
    """401, wherever it asks."""
    body = {"model": "m", "prompt": PROMPT}
    replay(box, Step("/v1/completions", body, [refused(401, "invalid_api_key")]), key="another")
