"""Random bodies against the real app: an answer in the documented form or OpenAI's error object, never a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server import schemas
from qmd_remote.server.app import create_app
from qmd_remote.settings import Settings

text = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates and NUL included
scalar = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3), max_leaves=12
)
tokens = st.lists(st.integers(-1, 2**31), max_size=4)
inputs = st.one_of(text, st.lists(text, max_size=4), tokens, st.lists(tokens, max_size=3), anything)
documents = st.lists(st.one_of(text, st.fixed_dictionaries({}, optional={"text": text | scalar})), max_size=4)


def mostly(good):
    """A strategy that is usually `good`, and sometimes anything at all."""
    return st.one_of(good, good, good, scalar)


embeddings_body = st.fixed_dictionaries(
    {},
    optional={
        "input": inputs,
        "model": mostly(text),
        "encoding_format": mostly(st.sampled_from(["float", "base64"])),
        "dimensions": mostly(st.integers(0, 9)),
        "user": mostly(text),
        "extra": anything,
    },
)
rerank_body = st.fixed_dictionaries(
    {},
    optional={
        "query": mostly(text),
        "documents": mostly(documents),
        "model": mostly(text),
        "top_n": mostly(st.integers(0, 5)),
        "return_documents": mostly(st.booleans()),
    },
)


def as_bytes(body):
    """JSON as Python writes it: NaN and lone surrogates come through, as they do from careless clients."""
    return body.map(lambda value: json.dumps(value).encode())


@pytest.fixture(scope="module")
def post(fake_engine) -> Iterator:
    """`post(path, raw)` sends bytes to the app in this process."""
    app = create_app(Settings(), engine=fake_engine())
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        yield lambda path, raw: runner.run(client.post(path, content=raw))
        runner.run(client.aclose())


def check(answer, kind):
    """Assert that an answer is what the documentation promises."""
    if answer.status_code == 200:
        return kind.model_validate_json(answer.content)
    assert answer.status_code == 400
    error = schemas.ErrorResponse.model_validate_json(answer.content).error
    assert error.type == "invalid_request_error"
    return None


@given(raw=st.one_of(as_bytes(embeddings_body), as_bytes(embeddings_body), as_bytes(anything), st.binary()))
def test_any_embeddings_body_is_answered(post, raw):
    """Vectors of one length, indices in order; or a 400."""
    found = check(post("/v1/embeddings", raw), schemas.EmbeddingsResponse)
    if found is not None:
        assert [item.index for item in found.data] == list(range(len(found.data)))
        assert len({len(item.embedding) for item in found.data}) == 1


@given(raw=st.one_of(as_bytes(rerank_body), as_bytes(rerank_body), as_bytes(anything), st.binary()))
def test_any_rerank_body_is_answered(post, raw):
    """Each index at most once, best score first; or a 400."""
    found = check(post("/v1/rerank", raw), schemas.RerankResponse)
    if found is not None:
        indices = [result.index for result in found.results]
        assert len(set(indices)) == len(indices)
        scores = [result.relevance_score for result in found.results]
        assert sorted(scores, reverse=True) == scores
