"""Clients with protocols of their own, as far as the server's paths go.

QMD's pull requests 511, 663 and 927 rank documents that are objects. What else they ask for is not served, and they are
told so; so are clients of Ollama's API that ask for more of it than QMD's does.
"""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import Step, first_is, ok, ranking_by_score, refused, replay


def test_documents_with_files(mini_box):
    """`/rerank` takes objects with a text, and tells each one's place, score and file."""
    documents = [{"file": f"notes/{number}.md", "text": text} for number, text in enumerate(say.few())]
    body = {"query": say.QUERY, "documents": documents}
    (answer,) = replay(mini_box, Step("/rerank", body, [ranking_by_score, first_is(say.ANSWER)]))
    assert all(documents[result["index"]]["file"] == result["file"] for result in answer.json["results"])


def test_health_names_the_models(box):
    """`GET /health` names the models, with the key."""
    (answer,) = replay(box, Step("/health", None, [ok], method="GET"))
    assert {"embed", "rerank"} <= set(answer.json["models"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"text": "a", "options": {}}),
        ("/embed-batch", {"texts": ["a"], "options": {}}),
        ("/expand", {"query": say.QUERY, "options": {}}),
        ("/tokenize", {"text": "a"}),
        ("/api/embeddings", {"model": "m", "prompt": "a"}),
        ("/api/chat", {"model": "m", "messages": []}),
    ],
)
def test_what_is_not_served_is_said_to_be(box, path, body):
    """404 in OpenAI's shape, with the paths there are; without a key not even that."""
    (answer,) = replay(box, Step(path, body, [refused(404, "not_found")]))
    assert "/v1/embeddings" in answer.json["error"]["message"]
    replay(box, Step(path, body, [refused(401, "invalid_api_key")]), key="")
