"""Thousands of requests, made from the server's own description and at random: no 500, no hang, no unshaped error."""

from __future__ import annotations

import json

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from qmd_remote.server import schemas
from tests.families.replay import KEY
from tests.server.test_http_fuzz import anything, as_bytes, documents, inputs, mostly, scalar, text

HANG_S = 30
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
EMBEDDINGS = ("/v1/embeddings", "/embeddings", "/v1/v1/embeddings")
RERANK = ("/v1/rerank", "/rerank", "/v1/v1/rerank", "/v2/rerank", "/v1/reranks")
GENERATE = ("/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions", "/v1/completions")
COHERE, OLLAMA, OLLAMA_GENERATE = ("/v2/embed", "/v2/embed/"), ("/api/embed",), ("/api/generate",)
DESCRIBED = {
    **{"/v1/embeddings": 220, "/v1/rerank": 220, "/v1/chat/completions": 50, "/v1/completions": 50},
    **{"/v2/embed": 60, "/api/embed": 60, "/api/generate": 60},
}
MADE_UP = {EMBEDDINGS: 1700, RERANK: 1900, GENERATE: 300, COHERE: 200, OLLAMA: 150, OLLAMA_GENERATE: 250}
ANYWHERE = 300
NAMES = ("query", "document", "passage", "search_query", "search_document")

embeddings_body = st.fixed_dictionaries(
    {"input": inputs},
    optional={
        "model": mostly(text),
        "encoding_format": mostly(st.sampled_from(["float", "base64"])),
        "dimensions": mostly(st.integers(0, 40)),
        "input_type": mostly(st.sampled_from(NAMES)),
        "prompt_name": mostly(st.sampled_from(NAMES)),
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
said = st.sampled_from(["/no_think ", "Expand this search query: ", "lex: vec: hyde: expand the query ", "<think>", ""])
content = st.builds(str.__add__, said, text)
message = st.fixed_dictionaries({"role": mostly(st.sampled_from(["system", "user"])), "content": mostly(content)})
generate_body = st.fixed_dictionaries(
    {},
    optional={
        "model": mostly(text),
        "messages": mostly(st.lists(message | anything, max_size=3)),
        "prompt": mostly(content),
        "max_tokens": mostly(st.integers(0, 9)),
        "stream": mostly(st.booleans()),
        "n": mostly(st.integers(0, 3)),
    },
)
texts = st.lists(text, max_size=4)
cohere_body = st.fixed_dictionaries(
    {"texts": mostly(texts)},
    optional={
        "model": mostly(text),
        "input_type": mostly(st.sampled_from(["search_document", "search_query", "classification"])),
        "embedding_types": mostly(st.lists(st.sampled_from(["float", "base64"]) | scalar, max_size=3)),
        "output_dimension": mostly(st.integers(0, 40)),
        "truncate": mostly(st.sampled_from(["NONE", "END", "START"])),
    },
)
ollama_body = st.fixed_dictionaries(
    {"input": mostly(text | texts)},
    optional={
        "model": mostly(text),
        "truncate": mostly(st.booleans()),
        "dimensions": mostly(st.integers(0, 40)),
        "options": anything,
    },
)
options = st.fixed_dictionaries(
    {},
    optional={
        "temperature": mostly(st.floats(0, 2)),
        "top_k": mostly(st.integers()),
        "num_predict": mostly(st.integers(-2, 9)),
        "seed": mostly(st.integers()),
        "stop": mostly(text | texts),
    },
)
ollama_generate_body = st.fixed_dictionaries(
    {"prompt": mostly(content)},
    optional={
        "model": mostly(text),
        "system": mostly(content),
        "stream": mostly(st.booleans()),
        "raw": mostly(st.booleans()),
        "think": mostly(st.booleans() | st.just("high")),
        "format": mostly(st.just("json") | st.dictionaries(text, anything, max_size=2)),
        "options": mostly(options),
        "images": mostly(st.just([])),
        "keep_alive": anything,
    },
)
BODIES = {
    **{EMBEDDINGS: embeddings_body, RERANK: rerank_body, GENERATE: generate_body},
    **{COHERE: cohere_body, OLLAMA: ollama_body, OLLAMA_GENERATE: ollama_generate_body},
}
piece = st.sampled_from(
    [
        "v1",
        "v2",
        "api",
        "embed",
        "generate",
        "rerank",
        "reranks",
        "embeddings",
        "models",
        "health",
        "..",
        "%2e",
        "%00",
        "",
        "é",
        "a",
    ]
)


def cases(count):
    """So many examples; no time for each, no search for the shortest where none fails."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )


class Door:
    """A client that counts, and judges what every answer must be."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.url = url
        self.client = client
        self.sent = 0

    def send(self, method, path, **request):
        """The answer: below 500, or 503 for a while; an error in OpenAI's shape. A hang is an exception."""
        self.sent += 1
        answer = self.client.request(method, f"{self.url}{path}", **request)
        if answer.status_code >= 400:
            assert answer.status_code != 500, answer.text
            if method != "HEAD" and "health" not in path:
                schemas.ErrorResponse.model_validate_json(answer.content)
        return answer


@pytest.fixture
def door(box):
    """The way to the server with the tiny model."""
    with httpx.Client(headers=AUTHORIZED, timeout=HANG_S, trust_env=False) as client:
        yield Door(box, client)


@pytest.fixture(scope="module")
def description(box):
    """What the server says of itself."""
    return schemathesis.openapi.from_url(f"{box}/openapi.json", headers=AUTHORIZED)


def test_there_are_enough():
    """Five thousand cases at least."""
    assert 5000 <= sum(DESCRIBED.values()) * 2 + sum(MADE_UP.values()) + ANYWHERE


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", DESCRIBED)
def test_requests_from_the_description(door, description, path, mode):
    """Bodies that the description allows, and ones that it does not: answers are as it says."""
    operation = description[path]["POST"]

    @cases(DESCRIBED[path])
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        sent = case.as_transport_kwargs(base_url=door.url)
        raw = sent["data"] if "data" in sent else json.dumps(sent.get("json"))
        answer = door.send("POST", path, content=raw)
        operation.validate_response(answer)

    send()
    assert door.sent >= DESCRIBED[path]


@pytest.mark.parametrize("paths", MADE_UP, ids=lambda paths: paths[0])
def test_requests_at_random(door, paths):
    """Anything at all, on all paths of an endpoint: lone surrogates, NUL, NaN, wrong types, bytes that are no text."""

    @cases(MADE_UP[paths])
    @given(
        path=st.sampled_from(paths),
        raw=st.one_of(as_bytes(BODIES[paths]), as_bytes(BODIES[paths]), as_bytes(BODIES[paths]), st.binary()),
    )
    def send(path, raw):
        answer = door.send("POST", path, content=raw)
        assert answer.status_code in {200, 400}

    send()
    assert door.sent >= MADE_UP[paths]


def test_any_path_and_any_method(door):
    """Paths that are nearly right, with any method, any type of content and any key."""

    @cases(ANYWHERE)
    @given(
        method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
        path=st.lists(piece, max_size=4).map(lambda pieces: "/" + "/".join(pieces)),
        kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data", ""]),
        key=st.sampled_from([f"Bearer {KEY}", "Bearer", "Basic YTpi", "bearer x", ""]),
    )
    def send(method, path, kind, key):
        sent = {"content-type": kind, "authorization": key}
        answer = door.send(method, path, content=b'{"input": "a"}', headers=sent)
        open_to_all = answer.request.url.path.rstrip("/") in {"/health", "/livez"}
        assert answer.status_code == 401 or KEY in key or open_to_all

    send()
    assert door.sent >= ANYWHERE


def test_the_server_is_as_well_as_before(door):
    """After all that it answers."""
    assert "ok" == door.send("GET", "/health").json()["status"]
    assert 200 == door.send("POST", "/v1/embeddings", json={"input": ["a", "b"]}).status_code
