"""/metrics: each number moves by exactly what happened, for its own server alone, and tells no secrets."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from qmd_remote import __version__
from qmd_remote.errors import Unavailable
from qmd_remote.server.app import create_app
from qmd_remote.settings import Settings
from tests.server import tiny_models as tiny
from tests.server.scrape import PREFIX, Scrape, scrape

LIMIT_S = 30
STAGES = ("read", "tokenize", "queue", "forward", "serialise")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def real(serve_app, tmp_path_factory) -> SimpleNamespace:
    """A server with a tiny embedder and a tiny cross-encoder, ready."""
    folder = tmp_path_factory.mktemp("models")
    embedder = tiny.save_encoder(folder / "embedder", "bert")
    reranker = tiny.save_cross_encoder(folder / "reranker", "bert")
    settings = Settings(
        embed_model=str(embedder), rerank_model=str(reranker), device="cpu", ready_wait_s=120, generation_engine="off"
    )
    server = serve_app(create_app(settings))
    assert server.http.post("/v1/embeddings", json={"input": "warm"}).status_code == 200
    server.engine = server.app.state.engine
    return server


class Moves:
    """How far the numbers of a server move inside a `with` block."""

    def __init__(self, http: Any) -> None:
        self._http = http

    def __enter__(self) -> Moves:
        self._before = scrape(self._http)
        return self

    def __exit__(self, *_: object) -> None:
        self._after = scrape(self._http)

    def __call__(self, name: str, **labels: str) -> float:
        return self._after(name, **labels) - self._before(name, **labels)


def test_an_embed_request_is_counted_exactly(real):
    """Requests, texts, tokens, batches and each stage move by what one request of five texts is."""
    texts = ["fox", "the quick brown fox", "", "dog", "cat"]
    with Moves(real.http) as moved:
        usage = real.http.post("/v1/embeddings", json={"input": texts}).json()["usage"]
    assert 1 == moved("requests_total", endpoint="/v1/embeddings", status="200")
    assert 1 == moved("request_seconds_count", endpoint="/v1/embeddings")
    assert 0 < moved("request_seconds_sum", endpoint="/v1/embeddings") < LIMIT_S
    assert 5 == moved("texts_total", role="embed")
    assert usage["total_tokens"] == moved("tokens_total", role="embed")
    assert 0 == moved("truncated_texts_total", role="embed")
    assert 0 == moved("texts_total", role="rerank")
    batches = moved("batches_total", role="embed")
    assert batches >= 1
    assert batches == moved("batch_texts_count") == moved("batch_tokens_count")
    assert 5 == moved("batch_texts_sum")
    assert moved("batch_tokens_sum") >= usage["total_tokens"]
    assert 1 == moved("queue_wait_seconds_count", lane="index")
    assert 0 == moved("queue_wait_seconds_count", lane="query")
    for stage in STAGES:
        assert (batches if stage == "forward" else 1) == moved("stage_seconds_count", stage=stage), stage
        assert moved("stage_seconds_sum", stage=stage) > 0


def test_a_rerank_request_counts_each_pair_once(real):
    """Equal documents are one pair; a short request waits in the lane of queries."""
    body = {"query": "fox", "documents": ["dog", "cat", "dog"]}
    with Moves(real.http) as moved:
        usage = real.http.post("/v1/rerank", json=body).json()["usage"]
    assert 2 == moved("texts_total", role="rerank")
    assert usage["total_tokens"] == moved("tokens_total", role="rerank")
    assert 1 == moved("batches_total", role="rerank")
    assert 1 == moved("queue_wait_seconds_count", lane="query")
    assert 0 == moved("texts_total", role="embed")


def test_only_texts_that_lose_tokens_count_as_truncated(real):
    """A text, a token array or a pair of exactly the model's length is whole; one token more is cut."""
    tokenizer = tiny.network(real.engine).tokenizer
    word = next(word for word in ("fox", "the", "a") if len(tokenizer.encode(word, add_special_tokens=False)) == 1)
    token = tokenizer.encode(word, add_special_tokens=False)[0]
    room = tiny.POSITIONS - 2  # [CLS] and [SEP]
    for extra in (0, 1, 500):
        with Moves(real.http) as moved:
            texts: list[Any] = [" ".join([word] * (room + extra)), "short"]
            usage = real.http.post("/v1/embeddings", json={"input": texts[:1]}).json()["usage"]
            arrays = [[token] * (room + extra)]
            assert usage == real.http.post("/v1/embeddings", json={"input": arrays}).json()["usage"]
            documents = [" ".join([word] * (room - 2 + extra)), "short"]  # the query's token, and a second [SEP]
            assert real.http.post("/v1/rerank", json={"query": word, "documents": documents}).status_code == 200
        assert tiny.POSITIONS == usage["total_tokens"]
        assert (2 if extra else 0) == moved("truncated_texts_total", role="embed")
        assert (1 if extra else 0) == moved("truncated_texts_total", role="rerank")


def test_memory_that_runs_out_is_counted(real, monkeypatch):
    """Each batch that does not fit counts once; halving six texts down to single ones is five failures."""
    run = tiny.forward(real.engine).run

    def small_only(rows: Sequence[Any]) -> Any:
        if len(rows) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return run(rows)

    monkeypatch.setattr(tiny.forward(real.engine), "run", small_only)
    with Moves(real.http) as moved:
        assert real.http.post("/v1/embeddings", json={"input": ["fox"] * 6}).status_code == 200
    assert 5 == moved("out_of_memory_total")
    assert 1 == moved("batches_total", role="embed")
    assert 0 == moved("precision_widenings_total")


def test_leaving_half_precision_is_counted(real, monkeypatch):
    """A model that goes on in float32 says so once."""
    model = real.engine._models.embedder
    finish, narrow = model.finish, [True]

    def overflow(output: Any) -> Any:
        rows = finish(output)
        return rows * float("nan") if narrow[0] else rows

    def widen() -> bool:
        narrow[0] = False
        return True

    monkeypatch.setattr(model, "finish", overflow)
    monkeypatch.setattr(model, "widen", widen)
    with Moves(real.http) as moved:
        assert real.http.post("/v1/embeddings", json={"input": "fox"}).status_code == 200
    assert 1 == moved("precision_widenings_total")


def test_the_state_of_the_models_is_shown(real, serve, fake_engine):
    """ready is 1 only for a server that is; loading took time; the memory is that of a process with a model."""
    found = scrape(real.http)
    assert 1 == found("ready")
    assert found("model_load_seconds", role="embed") > 0
    assert found("model_load_seconds", role="rerank") > 0
    assert 10**7 < found("resident_memory_bytes") <= found("device_memory_bytes", kind="total")
    assert 10**7 < found("device_memory_bytes", kind="used") <= found("device_memory_bytes", kind="total")
    build = found.labels("build_info")
    assert [__version__] == [labels["version"] for labels in build]
    assert {"version", "python", "torch"} == set(build[0])
    assert 0 == scrape(serve(fake_engine("loading")).http)("ready")


def test_what_waits_is_shown(real, monkeypatch):
    """While a batch runs, the texts behind it are the queue, and their request is running."""
    inside, gate = tiny.blocked(real.engine, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(real.http.post, "/v1/embeddings", json={"input": "fox"})
        assert inside.wait(LIMIT_S)
        second = pool.submit(real.http.post, "/v1/embeddings", json={"input": ["dog", "cat"]})
        tiny.until(lambda: scrape(real.http)("queue_texts") == 2, LIMIT_S)
        assert 2 == scrape(real.http)("requests_running")
        assert {"total", "running", "errors"} == set(real.http.get("/health").json()["requests"])
        assert 2 == real.http.get("/health").json()["requests"]["running"]
        gate.set()
        assert [200, 200] == [first.result(LIMIT_S).status_code, second.result(LIMIT_S).status_code]
    assert 0 == scrape(real.http)("queue_texts")
    assert 0 == scrape(real.http)("requests_running")


@pytest.mark.parametrize(
    ("request_", "endpoint", "status", "code"),
    [
        (("POST", "/v1/embeddings", b"{"), "/v1/embeddings", 400, "invalid_json"),
        (("POST", "/v1/embeddings", b'{"input": []}'), "/v1/embeddings", 400, "invalid_value"),
        (("POST", "/v1/rerank", b" " * 20_000), "/v1/rerank", 413, "body_too_large"),
        (("GET", "/v1/rerank", b""), "/v1/rerank", 405, "method_not_allowed"),
        (("GET", "/nowhere", b""), "other", 404, "not_found"),
    ],
)
def test_errors_are_counted_by_their_codes(serve, request_, endpoint, status, code):
    """Whatever refuses a request, its endpoint, status and code are counted."""
    server = serve(max_body_mb=0.01)
    method, path, body = request_
    assert status == server.http.request(method, path, content=body).status_code
    found = scrape(server.http)
    assert 1 == found("requests_total", endpoint=endpoint, status=str(status))
    assert [{"endpoint": endpoint, "code": code}] == found.labels("errors_total")
    assert 1 == found("errors_total", endpoint=endpoint, code=code)
    assert {"total": 1, "running": 0, "errors": 1} == server.http.get("/health").json()["requests"]


@pytest.mark.parametrize(
    ("bug", "status", "code"),
    [(ZeroDivisionError("x"), 500, "internal_error"), (Unavailable("full", code="overloaded"), 503, "overloaded")],
)
def test_failures_of_the_engine_are_counted(serve, fake_engine, bug, status, code):
    """Errors of the engine and bugs, which the framework answers outside of all handlers, count as well."""
    engine = fake_engine()
    engine.bug = bug
    server = serve(engine)
    close = {"Connection": "close"}  # as the server does after a bug
    assert status == server.http.post("/v1/embeddings", json={"input": "a"}, headers=close).status_code
    found = scrape(server.http)
    assert 1 == found("errors_total", endpoint="/v1/embeddings", code=code)
    assert 1 == found("requests_total", endpoint="/v1/embeddings", status=str(status))
    assert 0 == found("stage_seconds_count", stage="serialise")


def test_a_client_that_hangs_up_counts_as_499(serve):
    """A request whose client has left ends as 499, and runs no more."""
    server = serve()
    server.engine.gate.clear()
    connection = socket.create_connection(server.address, timeout=30)
    body = b'{"input": "a"}'
    connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert server.engine.entered.wait(LIMIT_S)
    assert 1 == scrape(server.http)("requests_running")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert server.engine.cancelled.wait(LIMIT_S)
    server.engine.gate.set()
    tiny.until(lambda: scrape(server.http)("requests_running") == 0, LIMIT_S)
    found = scrape(server.http)
    assert 1 == found("requests_total", endpoint="/v1/embeddings", status="499")
    assert 1 == found("errors_total", endpoint="/v1/embeddings", code="client_closed_request")


def test_two_servers_in_one_process_do_not_mix(serve):
    """What one app counts, the other does not."""
    one, other = serve(), serve()
    assert one.http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert 1 == scrape(one.http)("requests_total", endpoint="/v1/embeddings", status="200")
    assert [] == [
        labels for labels in scrape(other.http).labels("requests_total") if labels["endpoint"] == "/v1/embeddings"
    ]


def test_polls_are_counted_apart(serve):
    """/health, /livez and /metrics have their own series and are not among the requests that /health shows."""
    server = serve()
    for path in ("/health", "/livez", "/metrics", "/livez"):
        assert server.http.get(path).status_code == 200
    found = scrape(server.http)
    assert 2 == found("requests_total", endpoint="/livez", status="200")
    assert 1 == found("requests_total", endpoint="/metrics", status="200")
    assert {"total": 0, "running": 0, "errors": 0} == server.http.get("/health").json()["requests"]


def test_the_key_guards_the_metrics(serve):
    """With a key set, a scrape without it is a 401 like any other, and is counted under its endpoint."""
    server = serve(api_key="marker-key")
    answer = server.http.get("/metrics")
    assert (401, "invalid_api_key") == (answer.status_code, answer.json()["error"]["code"])
    found = scrape(server.http, Authorization="Bearer marker-key")
    assert 1 == found("errors_total", endpoint="/metrics", code="invalid_api_key")
    assert {"status": "ok"} == server.http.get("/health").json()


def test_unknown_paths_and_methods_make_no_labels(serve):
    """Hundreds of different paths, with and without the key, are one endpoint."""
    server = serve(api_key="k")
    for headers in ({}, {"Authorization": "Bearer k"}):
        for number in range(100):
            server.http.request("DELETE" if number % 2 else "GET", f"/path/{number}?q={number}", headers=headers)
    found = scrape(server.http, Authorization="Bearer k")
    assert {"other"} == {labels["endpoint"] for labels in found.labels("requests_total")}
    assert 100 == found("requests_total", endpoint="other", status="401")
    assert 100 == found("requests_total", endpoint="other", status="404")


def test_no_text_key_or_model_path_is_in_the_metrics(serve_app, tmp_path):
    """A marker in a text, a key, a path, a query string, a header or a model's folder is nowhere in the answer."""
    folder = tiny.save_encoder(tmp_path / "marker-folder", "bert")
    settings = Settings(
        embed_model=str(folder), rerank_model=str(folder), device="cpu", api_key="marker-key", generation_engine="off"
    )
    server = serve_app(create_app(settings))
    key = {"Authorization": "Bearer marker-key"}
    body = {"query": "marker-query", "documents": ["marker-document"], "model": "marker-model"}
    for headers in (key, {"Authorization": "Bearer marker-wrong"}, {**key, "User-Agent": "marker-agent"}):
        for path in ("/v1/rerank?q=marker-string", "/marker-path"):
            server.http.post(path, json=body, headers=headers)
    server.http.post("/v1/embeddings", content=b'{"input": "marker-broken', headers=key)
    answer = server.http.get("/metrics", headers=key)
    assert 2 == Scrape(answer.text)("requests_total", endpoint="/v1/rerank", status="200")
    assert "marker" not in answer.text
    assert str(tmp_path) not in answer.text


def test_both_forms_of_the_text_are_offered(serve):
    """Plain text by default, OpenMetrics for those who ask for it; no series has a time of creation."""
    http = serve().http
    plain = http.get("/metrics", headers={"Accept": "*/*"})
    assert "text/plain; version=0.0.4; charset=utf-8" == plain.headers["content-type"]
    modern = http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0, text/plain"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert any(family.name == PREFIX + "requests" for family in openmetrics(modern.text))
    assert "_created" not in plain.text + modern.text


def documented() -> Iterator[tuple[str, set[str]]]:
    """(name, labels) of each row of the page's table."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| `(qmd_remote_\w+)` \| (\w+) \| ([^|]*) \|", line):
            yield found[1], set(re.findall(r"`(\w+)`", found[3]))


def test_the_page_describes_each_metric(real):
    """docs/metrics.md has each metric with its labels, and no other."""
    real.http.get("/nowhere")
    found = {}
    for family in scrape(real.http).families.values():
        name = {"counter": f"{family.name}_total"}.get(family.type, family.name)
        found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert family.documentation
    assert dict(documented()) == found
