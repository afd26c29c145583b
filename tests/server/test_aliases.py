"""Other paths to the same endpoints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server.aliases import canonical

REACHED = {
    "/embeddings": "/v1/embeddings",
    "/v1/embeddings/": "/v1/embeddings",
    "/v1/v1/embeddings": "/v1/embeddings",
    "/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    "/v1/reranks": "/v1/rerank",
    "/v1/v1/rerank": "/v1/rerank",
    "/models": "/v1/models",
    "/v1/v1/models": "/v1/models",
    "/chat/completions": "/v1/chat/completions",
    "/v1/v1/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/v2/embed/": "/v2/embed",
    "/api/embed/": "/api/embed",
    "/api/generate/": "/api/generate",
}
NOT_REACHED = (
    "/",
    "/health",
    "/v1/embed",
    "/embed",
    "/v1/api/embed",
    "/api/embeddings",
    "/v2/embeddings",
    "/v3/rerank",
    "/v1/v1/v1/rerank",
    "/x/embeddings",
    "//rerank",
)


@pytest.mark.parametrize(("path", "endpoint"), REACHED.items(), ids=str)
def test_what_leads_to_an_endpoint(path, endpoint):
    """Without a version, with it twice, or by another name."""
    assert endpoint == canonical(path)


@pytest.mark.parametrize("path", NOT_REACHED)
def test_what_does_not(path):
    """All else stays what it is, and is answered as such."""
    assert path == canonical(path)


@given(st.lists(st.sampled_from(["v1", "v2", "api", "rerank", "embeddings", "embed", "x", ""]), max_size=5))
def test_an_endpoint_is_its_own_alias(parts):
    """Where a path is led to, it is not led away from."""
    path = canonical("/" + "/".join(parts))
    assert path == canonical(path)


@pytest.fixture(scope="module")
def server(serve):
    """The app with a key."""
    return serve(api_key="secret")


@pytest.mark.parametrize("path", [path for path, endpoint in REACHED.items() if endpoint == "/v1/embeddings"])
def test_embeddings_over_http(server, path):
    """An alias answers as the endpoint does, and asks for the key as it does."""
    assert server.http.post(path, json={"input": "x"}).status_code == 401
    answer = server.http.post(path, json={"input": "x"}, headers={"Authorization": "Bearer secret"})
    assert [answer.status_code, answer.json()["data"][0]["index"]] == [200, 0]


def test_an_alias_counts_as_its_endpoint(serve):
    """Metrics know few endpoints, however many paths lead to them."""
    http = serve().http
    assert http.post("/rerank", json={"query": "q", "documents": ["0.5"]}).status_code == 200
    requests = [line for line in http.get("/metrics").text.splitlines() if "requests_total{" in line]
    assert [line for line in requests if 'endpoint="/v1/rerank"' in line]
    assert not [line for line in requests if 'endpoint="other"' in line]


def test_the_wrong_method_is_told_of(server):
    """An alias takes what its endpoint takes."""
    answer = server.http.get("/v2/rerank", headers={"Authorization": "Bearer secret"})
    assert [answer.status_code, answer.json()["error"]["code"]] == [405, "method_not_allowed"]
