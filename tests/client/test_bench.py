"""What `bench` sends, how it counts, and what becomes of failures; against a stand-in on real sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd_remote import expansion
from qmd_remote.client import bench_load, bench_work
from qmd_remote.client.bench import PHASES, Bench, look
from qmd_remote.client.bench_load import Failure, Sample, quantile, read_tokens, summary
from qmd_remote.client.bench_work import Request, Work
from qmd_remote.client.checks import ModelNames, Target
from qmd_remote.client.service import CheckFailed

Run = Callable[..., Any]
NAMES = ModelNames(embed="my/embed", generate="my/generate", rerank="my/rerank")
KINDS = ("index", "query", "rerank", "expand")


@pytest.fixture(autouse=True)
def room_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins take as many connections at once as there are clients."""
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 64)


@pytest.fixture
def bench() -> Run:
    """A run against one URL for both services, of phases so short that each client sends one request or a few."""

    def make(url: str, *phases: str, seconds: float = 0.1, **changes: Any) -> Bench:
        target = Target(**{"embed_url": url, "generation_url": url, "models": NAMES, **changes})
        run = Bench(target, look(target), seconds, 7)
        for name in phases:
            run.run(name)
        return run

    return make


def texts_of(request: Request) -> list[str]:
    """All texts of a request that differ from one request to the other."""
    body = request.body
    if "messages" in body:
        return [body["messages"][-1]["content"]]
    return [*body.get("input", []), *body.get("documents", []), *([body["query"]] if "query" in body else [])]


# the work


def test_requests_have_the_shapes_that_qmd_sends():
    """32 chunks with QMD's prefix, one short query in a list, 40 documents, the chat request; names as given."""
    work = Work(1, 0, NAMES)
    index, query, rerank, chat = (getattr(work, kind)(3) for kind in KINDS)
    assert ("/v1/embeddings", 32, {"model", "input"}) == (index.path, index.texts, set(index.body))
    assert all(text.startswith("title: none | text: ") for text in index.body["input"])
    assert 21 <= sum(len(text) == len("title: none | text: ") + 2700 for text in index.body["input"]) <= 32
    assert ("/v1/embeddings", 1, 1) == (query.path, query.texts, len(query.body["input"]))
    assert query.body["input"][0].startswith("task: search result | query: ")
    assert ("/v1/rerank", 40, 40) == (rerank.path, rerank.texts, len(rerank.body["documents"]))
    assert all(900 <= len(text) <= 3600 for text in rerank.body["documents"])
    user = chat.body["messages"][-1]["content"].removeprefix(expansion.NO_THINK)
    assert ("/v1/chat/completions", expansion.chat_body("my/generate", user)) == (chat.path, chat.body)
    assert ["my/embed", "my/embed", "my/rerank"] == [one.body["model"] for one in (index, query, rerank)]


def test_no_text_is_sent_twice():
    """Over all loads and many requests of each, every text is another, and none begins as another does."""
    loads = [getattr(Work(1, series, NAMES), kind) for series, kind in enumerate([*KINDS, "index", "query"])]
    requests = [load(turn) for load in loads for turn in [*range(60), 9_999]]
    texts = [text.removeprefix(expansion.NO_THINK).split(": ")[-1] for one in requests for text in texts_of(one)]
    assert len({" ".join(text.lower().replace(".", "").split()[:4]) for text in texts}) == len(texts) > 6_000


@settings(deadline=None, max_examples=30)  # a busy machine fails no test
@given(seed=st.integers(0, 2**32), turn=st.integers(0, 10_000), kind=st.sampled_from(KINDS))
def test_texts_follow_from_the_seed_and_lengths_do_not(seed: int, turn: int, kind: str):
    """The same seed gives the same request; another one gives other texts, chunks and documents of the same lengths."""
    one, again, other = (getattr(Work(number, 0, NAMES), kind)(turn) for number in (seed, seed, seed + 1))
    assert one == again
    assert not set(texts_of(one)) & set(texts_of(other))
    if kind in {"index", "rerank"}:
        lists = [request.body.get("input") or request.body["documents"] for request in (one, other)]
        assert len({tuple(map(len, texts)) for texts in lists}) == 1


def test_a_word_spells_a_byte():
    """Numbers are spelled apart only by 256 different words."""
    assert 256 == len(set(bench_work.WORDS)) == len(bench_work.WORDS)


# the figures


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_between_its_ranks(values: list[float], share: float):
    """It is within the values, grows with the share, and is the least and the largest at the ends."""
    found = quantile(values, share)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert (quantile(values, 0), quantile(values, 1)) == (min(values), max(values))
    assert found <= quantile(values, min(1.0, share + 0.1)) + 1e-9


def test_rates_and_times_of_a_load():
    """Work divided by the time from the start to the last answer; the median and the 95th percentile in ms."""
    samples = [Sample(second / 10, 32, 1000) for second in (1, 2, 3)]
    found = summary("index", "ok", samples, (), clients=1, seconds=2.0, cpu_s=0.5)
    assert (3, 96, 3000, 0) == (found.requests, found.texts, found.tokens, found.errors)
    assert (1.5, 48.0, 1500.0, 0.25) == (
        found.requests_per_s,
        found.texts_per_s,
        found.tokens_per_s,
        found.client_cpu,
    )
    assert (200.0, 290.0) == (found.median_ms, found.p95_ms)


def test_tokens_that_are_not_always_told_are_not_known():
    """A sum over some answers would be too small; without answers there is no figure at all."""
    found = summary("index", "ok", [Sample(1, 1, 5), Sample(1, 1, None)], (), clients=1, seconds=1.0, cpu_s=0)
    assert (None, None, 2.0) == (found.tokens, found.tokens_per_s, found.texts_per_s)
    none = summary("index", "failed", [], (Failure("x", "m", "f", 2),), clients=1, seconds=0.0, cpu_s=0)
    assert (None, None, None, 2) == (none.texts_per_s, none.median_ms, none.tokens, none.errors)


@pytest.mark.parametrize(
    ("path", "said", "tokens"),
    [
        ("/v1/embeddings", {"data": [1, 2], "usage": {"prompt_tokens": 9, "total_tokens": 9}}, 9),
        ("/v1/rerank", {"results": [1, 2], "usage": {"total_tokens": 7}}, 7),
        ("/v1/embeddings", {"data": [1, 2], "usage": {"prompt_tokens": "9"}}, None),
        ("/v1/rerank", {"results": [1, 2]}, None),
        ("/v1/chat/completions", {"choices": [1], "usage": {"prompt_tokens": 90, "completion_tokens": 4}}, 4),
    ],
)
def test_tokens_are_those_the_answer_tells(path: str, said: Any, tokens: int | None):
    """Tokens read, of a chat those written, whichever field tells them."""
    assert tokens == read_tokens(Request(path, {}, 2), said)


@pytest.mark.parametrize("said", [None, [], {}, {"data": {}}, {"data": [1]}, {"data": [1, 2, 3]}])
def test_an_answer_that_is_not_whole_is_a_failure(said: Any):
    """A server that leaves texts out, or answers something else, is not fast."""
    with pytest.raises(CheckFailed, match="2 belong"):
        read_tokens(Request("/v1/embeddings", {}, 2), said)


# against a server


def test_every_phase_gives_its_rows(serve: Run, bench: Run):
    """A good server: a row for each load, without errors, and with the clients that QMD's shape has."""
    run = bench(serve().url, *PHASES)
    assert ["index", "query", "rerank", "mixed-index", "mixed-query", "expand"] == [row.name for row in run.figures]
    assert [1, 16, 1, 1, 1, 1] == [row.clients for row in run.figures]
    assert {("ok", 0)} == {(row.state, row.errors) for row in run.figures}
    assert all(row.requests and row.median_ms and row.p95_ms >= row.median_ms for row in run.figures)
    assert [None] == [row.texts_per_s for row in run.figures if row.name == "mixed-query"]


def test_what_arrives_is_counted_and_the_first_requests_are_not(serve: Run, bench: Run):
    """Each client sends one request more than is counted: that one opens its connection."""
    server = serve()
    run = bench(server.url, "index", "query")
    bodies = server.bodies("/v1/embeddings")
    index, query = (sum(len(body["input"]) == size for body in bodies) for size in (32, 1))
    assert (index - 1, query - 16) == (run.figures[0].requests, run.figures[1].requests)
    assert len({text for body in bodies for text in body["input"]}) == index * 32 + query


def test_queries_end_with_the_index_job_they_run_beside(serve: Run, bench: Run):
    """An index request that outlasts the phase's time has single queries beside it until it ends."""
    indexed, queried, enough = [], [], threading.Event()

    def embeddings(body: Any, _: Any) -> Any:
        if len(body["input"]) > 1:
            indexed.append(body)
            if len(indexed) == 2:  # the first is not measured
                enough.wait(30)
        elif len(indexed) == 2:
            queried.append(body)
            if len(queried) == 3:
                enough.set()
        return {"data": [{"index": place, "embedding": [1.0]} for place in range(len(body["input"]))]}

    index, query = bench(serve(v1_embeddings=embeddings).url, "mixed").figures
    assert enough.is_set()
    assert (1, "ok", "ok") == (index.requests, index.state, query.state)
    assert query.requests >= 3


def test_a_failure_is_counted_with_its_cause_and_ends_the_load_in_time(
    serve: Run, bench: Run, monkeypatch: pytest.MonkeyPatch
):
    """After a good start every request fails: ten are counted, under one cause, and the next phase is tried."""
    monkeypatch.setattr(bench_load, "MOST_REQUESTS", 50)
    good = count()

    def rerank(body: Any, _: Any) -> Any:
        if next(good) == 0:
            return {"results": [{"index": place, "relevance_score": 0.5} for place in range(len(body["documents"]))]}
        return 500, {"error": {"message": "out of order"}}

    run = bench(serve(v1_rerank=rerank).url, "rerank", "query", seconds=30)
    row = run.figures[0]
    assert ("failed", 0, 10) == (row.state, row.requests, row.errors)
    assert [("server_error", 10)] == [(failure.code, failure.count) for failure in row.failures]
    assert "out of order" in row.failures[0].message
    assert "ok" == run.figures[1].state


def test_a_load_that_begins_with_a_failure_is_not_measured(serve: Run, bench: Run):
    """When a client's first request fails nothing else is sent."""
    server = serve(v1_rerank=lambda *_: (503, {"error": {"message": "loading"}}))
    row = bench(server.url, "rerank").figures[0]
    assert ("failed", 0, 1, "unavailable") == (row.state, row.requests, row.errors, row.failures[0].code)
    assert 1 == len(server.bodies("/v1/rerank"))


def test_a_load_has_a_bounded_number_of_requests(serve: Run, bench: Run, monkeypatch: pytest.MonkeyPatch):
    """However fast the server is, a load ends after so many."""
    monkeypatch.setattr(bench_load, "MOST_REQUESTS", 3)
    target = Target(embed_url=serve().url, models=NAMES)
    run = Bench(target, look(target), 60, 7)
    run.run("rerank")
    assert 3 == run.figures[0].requests


def test_a_service_that_is_lost_is_not_asked_again(bench: Run, closed_port: int):
    """Nobody listens: the first phase says so, the others are skipped for that reason."""
    first, *others = bench(f"http://127.0.0.1:{closed_port}", "index", "query", "mixed").figures
    assert ("failed", "refused") == (first.state, first.failures[0].code)
    assert {"skipped"} == {row.state for row in others}
    assert all("connection refused" in row.reason for row in others)


def test_a_wrong_key_is_a_cause(serve: Run, bench: Run):
    """401 ends the load, and the key is in no message."""
    row = bench(serve(key="right").url, "query", key="wr0ng").figures[0]
    assert ("failed", "unauthorized") == (row.state, row.failures[0].code)
    assert "wr0ng" not in repr(row)


@pytest.mark.parametrize(
    ("changes", "names", "reason"),
    [
        ({"v1_models": lambda *_: {"data": [{"id": "a", "qmd_remote_role": "embed"}]}}, ModelNames(), "no model"),
        ({"v1_chat_completions": None}, NAMES, "has no /v1/chat/completions"),
    ],
)
def test_expansion_is_skipped_where_one_server_does_not_generate(
    serve: Run, bench: Run, changes: Any, names: ModelNames, reason: str
):
    """Unless it was asked for: a server without generation is a good embed server."""
    server = serve(**{name.replace("chat_completions", "chat/completions"): one for name, one in changes.items()})
    run = bench(server.url, "expand", models=names)
    assert "skipped" == run.figures[0].state
    assert reason in run.figures[0].reason
    asked = Bench(run.target, run.server, 0.1, 7, asked=True)
    asked.run("expand")
    assert ("ok" if "v1_models" in changes else "failed") == asked.figures[0].state


def test_a_service_without_a_url_is_skipped_with_the_reason(serve: Run, bench: Run):
    """Only generation is known: the embed server's loads are skipped."""
    run = bench(serve().url, "rerank", "expand", embed_url=None, embed_reason="no --embed-url was given")
    assert [("skipped", "no --embed-url was given"), ("ok", "")] == [(row.state, row.reason) for row in run.figures]


def test_the_server_is_described_and_its_own_names_are_sent(serve: Run):
    """Models, device and precision of /health; names that no config gives are those that the server tells."""
    health = {
        "status": "ok",
        "models": {"embed": "real/embed", "rerank": "real/rerank"},
        "device": "cuda",
        "dtype": "float16",
        "backend": "torch",
        "uptime_s": 3,
    }
    server = look(Target(embed_url=serve(health=lambda *_: health).url))
    assert {name: health[name] for name in ("models", "device", "dtype", "backend")} == server.facts
    assert ("real/embed", "real/rerank") == (server.names.embed, server.names.rerank)
    assert server.round_trip_ms > 0


def test_a_server_of_another_kind_has_no_facts(serve: Run, closed_port: int):
    """Neither a page nor silence at /health is an error: the phases are what counts."""
    assert {} == look(Target(embed_url=serve(health=lambda *_: b"<html>").url)).facts
    nobody = look(Target(embed_url=f"http://127.0.0.1:{closed_port}"))
    assert ({}, None) == (nobody.facts, nobody.round_trip_ms)


def test_an_interruption_keeps_what_was_measured(serve: Run, bench: Run, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in the middle of a phase: its row is partial, and the interruption goes on to the caller."""
    target = Target(embed_url=serve().url, models=NAMES)
    run = Bench(target, look(target), 60, 7)

    def tell(done: str) -> None:
        if not done.startswith("(0 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run("query", tell)
    (row,) = run.figures
    assert ("query", "partial", True) == (row.name, row.state, row.requests > 0)
