"""Failures as the clients' rules sort them: 5xx is tried again, 4xx is final, and nothing is answered as a zero."""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import Step, refused, replay
from tests.server.conftest import FakeEngine, serve

__all__ = ["serve"]

EMBED = {"model": say.GGUF, "input": "a"}
RANKED = {"model": say.RERANKER, "query": "q", "documents": ["a", "b"]}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "tea?"}]}
EMBEDDINGS = ("/embeddings", "/v1/embeddings", "/v1/v1/embeddings")
RERANK = ("/rerank", "/v1/rerank", "/v1/v1/rerank", "/v2/rerank", "/v1/reranks")
CHATS = ("/chat/completions", "/v1/chat/completions", "/v1/v1/chat/completions")
PATHS = [*((path, EMBED) for path in EMBEDDINGS), *((path, RANKED) for path in RERANK)]


@pytest.fixture(scope="module")
def loading(serve):
    """A server whose models do not come."""
    host, port = serve(FakeEngine("loading"), ready_wait_s=0.1).address
    return f"http://{host}:{port}"


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_loading_is_a_503(loading, path, body):
    """On every path: clients try again, so that nothing gets into their caches."""
    (answer,) = replay(loading, Step(path, body, [refused(503, "loading")]))
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", CHATS)
def test_generation_that_is_off_is_a_503(loading, path):
    """With what to do about it."""
    (answer,) = replay(loading, Step(path, CHAT, [refused(503, "generation_off")]))
    assert "--generation" in answer.json["error"]["message"]


@pytest.mark.parametrize("path", CHATS)
def test_generation_that_is_away_is_a_502(serve, nobody, path):
    """The door stays, what is behind it does not."""
    host, port = serve(generation_engine="external", generation_url=nobody).address
    replay(f"http://{host}:{port}", Step(path, CHAT, [refused(502, "generation_unreachable")]))


BAD = [
    *((path, {"input": wrong}, "input") for path in EMBEDDINGS for wrong in (None, 7, [], {}, True)),
    *((path, {"input": ["a", 7]}, "input[1]") for path in EMBEDDINGS),
    *((path, {}, "input") for path in EMBEDDINGS),
    *((path, {**RANKED, "documents": wrong}, "documents") for path in RERANK for wrong in (None, "a", [], {})),
    *((path, {**RANKED, "documents": [{"file": "a"}]}, "documents[0].text") for path in RERANK),
    *((path, {"documents": ["a"]}, "query") for path in RERANK),
]


def test_bad_fields_are_named(box):
    """400 with the field, in OpenAI's shape, on every path."""
    answers = replay(box, *(Step(path, body, [refused(400)]) for path, body, _ in BAD))
    assert [param for _, _, param in BAD] == [answer.json["error"]["param"] for answer in answers]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b"[" * 5000, b'{"input": NaN}'])
def test_bad_bodies_are_400(box, raw):
    """No body that is no JSON object gets further, on any path."""
    replay(box, *(Step(path, raw, [refused(400, "invalid_json")]) for path in (*EMBEDDINGS, *RERANK)))


def test_wrong_methods_are_405(box):
    """And say which is right, on every path."""
    answers = replay(box, *(Step(path, None, [refused(405)], method="GET") for path, _ in PATHS))
    assert {"POST"} == {answer.headers["allow"] for answer in answers}
