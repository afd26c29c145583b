"""The access log: a line of JSON for each request, without anything that a user wrote."""

from __future__ import annotations

import json
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server.access_log import line
from qmd_remote.server.app import create_app
from qmd_remote.server.exchange import Exchange
from qmd_remote.settings import Settings
from tests.server import tiny_models as tiny

LIMIT_S = 30
FIELDS = [
    "event",
    "method",
    "path",
    "status",
    "ms",
    "client",
    "bytes_in",
    "bytes_out",
    "texts",
    "tokens",
    "truncated",
    "error",
]


class Lines(logging.Handler):
    """The lines that have been written."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        assert logging.INFO == record.levelno
        self.raw.append(record.getMessage())

    def wait(self, count: int) -> list[dict[str, Any]]:
        """The entries, when there are so many: a line is written after its answer."""
        tiny.until(lambda: len(self.raw) >= count, LIMIT_S)
        assert count == len(self.raw)
        return [json.loads(raw) for raw in self.raw]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged while a test runs."""
    handler, logger = Lines(), logging.getLogger("qmd_remote.access")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_each_request_is_one_line(serve, lines):
    """Method, path, status, time, client, sizes, texts and tokens; an embed and a rerank request."""
    server = serve()
    embedded = server.http.post("/v1/embeddings", json={"input": ["ab", "cde"]})
    ranked = server.http.post("/v1/rerank", json={"query": "q", "documents": ["a", "b", "c"]})
    first, second = lines.wait(2)
    assert FIELDS == list(first)
    assert 0 < first.pop("ms") < LIMIT_S * 1000
    assert first == {
        "event": "request",
        "method": "POST",
        "path": "/v1/embeddings",
        "status": 200,
        "client": "127.0.0.1",
        "bytes_in": len(embedded.request.content),
        "bytes_out": len(embedded.content),
        "texts": 2,
        "tokens": 5,
        "truncated": 0,
        "error": None,
    }
    assert ("/v1/rerank", 3, 3) == (second["path"], second["texts"], second["tokens"])
    assert len(ranked.content) == second["bytes_out"]


def test_truncated_texts_are_told(serve_app, lines, tmp_path):
    """A text that the model does not read to its end shows in its line."""
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    settings = Settings(
        embed_model=str(folder), rerank_model=str(folder), device="cpu", generation_engine="off", ready_wait_s=120
    )
    http = serve_app(create_app(settings)).http
    assert http.post("/v1/embeddings", json={"input": ["fox", "fox " * 500]}).status_code == 200
    assert http.post("/v1/rerank", json={"query": "q", "documents": ["fox " * 500] * 2}).status_code == 200
    embedded, ranked = lines.wait(2)
    assert (2, 1) == (embedded["texts"], embedded["truncated"])
    assert tiny.POSITIONS < embedded["tokens"] < 2 * tiny.POSITIONS
    assert (2, 1) == (ranked["texts"], ranked["truncated"])  # equal documents are read once


@pytest.mark.parametrize(
    ("ask", "status", "error", "texts"),
    [
        (lambda http: http.post("/v1/embeddings", content=b"{"), 400, "invalid_json", 0),
        (lambda http: http.post("/v1/embeddings", json={"input": "a", "dimensions": 99}), 400, "invalid_value", 1),
        (lambda http: http.get("/v1/rerank"), 405, "method_not_allowed", 0),
        (lambda http: http.get("/nowhere"), 404, "not_found", 0),
    ],
)
def test_errors_have_their_code(serve, lines, ask: Callable[..., Any], status, error, texts):
    """The line says what the answer says."""
    assert status == ask(serve().http).status_code
    [entry] = lines.wait(1)
    assert (status, error, texts) == (entry["status"], entry["error"], entry["texts"])


def test_bugs_and_refusals_are_logged(serve, fake_engine, lines):
    """A 500, which the framework answers outside of all handlers, and a 401 have lines like others."""
    engine = fake_engine()
    engine.bug = ZeroDivisionError("marker-cause")
    server = serve(engine, api_key="k")
    assert server.http.post("/v1/embeddings", json={"input": "a"}).status_code == 401
    key = {"Authorization": "Bearer k"}
    answer = server.http.post("/v1/embeddings", json={"input": "a"}, headers=key)
    assert answer.status_code == 500
    refused, failed = lines.wait(2)
    assert (401, "invalid_api_key", 0) == (refused["status"], refused["error"], refused["bytes_in"])
    assert (500, "internal_error") == (failed["status"], failed["error"])
    assert len(answer.content) == failed["bytes_out"]
    assert not [raw for raw in lines.raw if "marker" in raw]


@pytest.mark.parametrize("missing", [0, 100], ids=["while it waits", "in its body"])
def test_a_client_that_hangs_up_is_a_499(missing: int, serve, lines):
    """Leaving while the request is worked on, or in the middle of its body, is told as such; nothing was answered."""
    server = serve()
    server.engine.gate.clear()
    body = b'{"input": "a"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(body) + missing)
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(head + body)
    if missing:
        tiny.until(lambda: server.http.get("/health").json()["requests"]["running"] == 1, LIMIT_S)
    else:
        assert server.engine.entered.wait(LIMIT_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    [entry] = lines.wait(1)
    server.engine.gate.set()
    assert (499, "client_closed_request", 0) == (entry["status"], entry["error"], entry["bytes_out"])
    assert (not missing) == server.engine.cancelled.is_set()


def test_polls_are_logged_only_when_they_find_something_wrong(serve, fake_engine, lines):
    """A 200 of /health, /livez or /metrics is no line; each 401 is, and the first 503 of a row."""
    engine = fake_engine("loading")
    server = serve(engine, api_key="k")
    for state in ("loading", "ready", "failed"):
        engine.state = state
        for path in ("/health", "/livez", "/metrics") * 2:
            server.http.get(path)
            server.http.get(path, headers={"Authorization": "Bearer k"})
    found = [(entry["path"], entry["status"]) for entry in lines.wait(8)]
    assert 2 == found.count(("/health", 503))
    assert 6 == found.count(("/metrics", 401))


def test_nothing_that_a_user_wrote_is_logged(serve, lines):
    """Texts, keys, headers and query strings, right or wrong, are in no line."""
    server = serve(api_key="marker-key")
    body = {"query": "marker-query", "documents": ["marker-document"], "model": "marker-model", "marker-field": 1}
    for key in ("marker-key", "marker-wrong"):
        headers = {"Authorization": f"Bearer {key}", "User-Agent": "marker-agent", "X-Marker": "marker-header"}
        for path in ("/v1/rerank", "/v1/embeddings", "/v1/models", "/nowhere"):
            server.http.post(path + "?key=marker-string", json=body, headers=headers)
        server.http.post("/v1/embeddings", json={"input": ["marker-text", 1]}, headers=headers)
        server.http.post("/v1/embeddings", content=b'{"input": "marker-broken', headers=headers)
    lines.wait(12)
    assert not [raw for raw in lines.raw if "marker" in raw.lower()]


def test_a_path_cannot_break_a_line(serve, lines):
    """Line ends, terminal codes and other scripts in a path are escaped, and a long one is cut."""
    server = serve()
    server.http.get("/a%0d%0a%1b%5b31m%7f%c2%9b%e2%80%a8%ff" + "x" * 5000)
    [entry] = lines.wait(1)
    assert "/a\r\n\x1b[31m\x7f\x9b\u2028\ufffd" + "x" * 187 == entry["path"]
    assert 200 == len(entry["path"])
    assert lines.raw[0].isascii()
    assert lines.raw[0].isprintable()


@given(st.text(), st.text())
def test_any_path_and_method_make_one_printable_line(path: str, method: str):
    """Whatever they hold, the line is printable ASCII and gives them back as far as they are kept."""
    raw = line(Exchange(method, path))
    assert raw.isascii()
    assert raw.isprintable()
    assert (path[:200], method[:20]) == (json.loads(raw)["path"], json.loads(raw)["method"])


def test_it_can_be_turned_off(serve, lines):
    """With access_log off, nothing is written."""
    server = serve(access_log=False)
    assert server.http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert server.http.get("/nowhere").status_code == 404
    assert [] == lines.raw
