"""Cohere's embeddings over a socket: the vectors of /v1/embeddings in another form."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from tests.server.conftest import FakeEngine
from tests.server.scrape import scrape

PATH = "/v2/embed"


class Listening(FakeEngine):
    """An engine that keeps the names of the prompts it is asked for, and says that it cut so many texts."""

    def __init__(self, truncated: int = 0) -> None:
        super().__init__()
        self.prompts: list[str | None] = []
        self.truncated = truncated

    async def embed(self, inputs, prompt_name=None):
        self.prompts.append(prompt_name)
        return replace(await super().embed(inputs, prompt_name), truncated=self.truncated)


@pytest.mark.parametrize("count", [1, 7000])
@pytest.mark.parametrize("kinds", [["float"], ["base64"], ["base64", "float", "base64"]])
def test_vectors_are_those_of_the_other_form(serve, count, kinds):
    """In each form that was asked for, once; whether the answer is made on the event loop or in a thread."""
    http = serve().http
    texts = [f"text {number}" for number in range(count)]
    body = {"model": "m", "texts": texts, "input_type": "search_document", "output_dimension": 5}
    answer = http.post(PATH, json={**body, "embedding_types": kinds})
    found = answer.json()
    wanted = http.post("/v1/embeddings", json={"input": texts, "dimensions": 5}).json()
    rows = [item["embedding"] for item in wanted["data"]]
    assert set(kinds) == set(found["embeddings"])
    if "float" in kinds:
        assert rows == found["embeddings"]["float"]
    for text, row in zip(found["embeddings"].get("base64", ()), rows, strict="base64" in kinds):
        assert np.array_equal(np.frombuffer(base64.b64decode(text), dtype="<f4"), np.array(row, dtype=np.float32))
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": wanted["usage"]["prompt_tokens"]}}
    assert (texts, meta, "embeddings_by_type") == (found["texts"], found["meta"], found["response_type"])
    assert found["id"]
    assert "fake/embedder" == answer.headers["x-qmd-remote-model"]


def test_an_input_type_chooses_the_prompt(serve):
    """Cohere's two for a search are ours; for its others there is no prompt, and the default role's is taken."""
    server = serve(Listening())
    types = ("search_query", "search_document", "classification", "clustering", None)
    for input_type in types:
        assert 200 == server.http.post(PATH, json={"texts": ["a"], "input_type": input_type}).status_code
    assert ["search_query", "search_document", None, None, None] == server.engine.prompts


@pytest.mark.parametrize(
    ("path", "body"),
    [(PATH, {"texts": ["a", "b"], "truncate": "NONE"}), ("/api/embed", {"input": ["a", "b"], "truncate": False})],
)
def test_who_wants_nothing_cut_is_told(serve, path, body):
    """A text that had to be cut is a 400 for who asks for that, and for nobody else."""
    http = serve(Listening(truncated=1)).http
    answer = http.post(path, json=body)
    assert (400, "truncate") == (answer.status_code, answer.json()["error"]["param"])
    assert 200 == http.post(path, json={**body, "truncate": None}).status_code
    assert 200 == serve(Listening()).http.post(path, json=body).status_code


def test_it_counts_under_its_own_path(serve):
    """With and without a slash at its end, which some clients leave."""
    http = serve().http
    for path in (PATH, f"{PATH}/"):
        assert 200 == http.post(path, json={"texts": ["a"]}).status_code
    assert 2 == scrape(http)("requests_total", endpoint=PATH, status="200")


def test_too_many_vectors_are_refused(serve, monkeypatch):
    """As they are in the other form."""
    monkeypatch.setattr("qmd_remote.server.schemas.MAX_NUMBERS", 16)
    http = serve().http
    assert 200 == http.post(PATH, json={"texts": ["a"] * 2}).status_code
    assert 413 == http.post(PATH, json={"texts": ["a"] * 3}).status_code
