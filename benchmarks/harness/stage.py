"""A stage: some models, all servers with them, and rounds in which each server does the same work in turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import measure, torch_side
from harness.client import Client, Failed, logits, vectors
from harness.models import SHAPES, Shape
from harness.servers import Neighbour, Running, Server, start
from harness.work import DOCUMENTS, Lengths, Texts

IDLE_S = 2.0
WARM_CHUNKS = 8
ALONE = 6
SETTLE_S = 2.0  # that a neighbour works before a server is measured beside it
QMD = 2 / 3  # of the chunks are as long as they may be


@dataclass(frozen=True)
class Plan:
    """What a stage does. Numbers are per round and server; 0 leaves a kind of work out."""

    name: str
    embed: str
    rerank: str = ""
    chunks: Lengths = field(default_factory=lambda: Lengths(32, 510, QMD))
    documents: Lengths = field(default_factory=lambda: Lengths(150, 500))
    index_requests: int = 1
    queries: int = 64
    rerank_documents: int = DOCUMENTS
    busy_requests: int = 1  # index requests during which single queries are sent
    neighbour_rounds: int = 3
    compared: bool = True  # whether answers are compared with float32, and with each other

    def only(self, kinds: Sequence[str]) -> Plan:
        """The plan with these kinds of work alone, of WORK."""
        left_out = {name: 0 for kind, name in WORK.items() if kind not in kinds}
        return replace(self, **left_out)


WORK = {
    "index": "index_requests",
    "query": "queries",
    "rerank": "rerank_documents",
    "busy": "busy_requests",
    "neighbour": "neighbour_rounds",
    "answers": "compared",
}
PLANS = {
    plan.name: plan
    for plan in (
        Plan("minilm", "minilm", chunks=Lengths(8, 350), index_requests=2, queries=256, busy_requests=4),
        Plan("bert-base", "bert-base", "cross-encoder", neighbour_rounds=2),
        Plan("nomic", "nomic", chunks=Lengths(64, 898, QMD), busy_requests=0, neighbour_rounds=0),
        Plan(
            "xlmr-large",
            "tiny",
            "xlmr-large",
            documents=Lengths(150, 500),
            index_requests=0,
            queries=0,
            rerank_documents=16,
            busy_requests=0,
            neighbour_rounds=0,
        ),
        Plan(
            "tiny",
            "tiny",
            "tiny-cross-encoder",
            chunks=Lengths(4, 40),
            documents=Lengths(4, 40),
            queries=16,
            rerank_documents=6,
            neighbour_rounds=1,
        ),
    )
}


def say(text: str) -> None:
    """Progress, for people."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


class Stage:
    """One run of a plan. `result()` is what the report is made of."""

    def __init__(
        self, plan: Plan, folders: dict[str, Path], words: Sequence[str], logs: Path, *, rounds: int, limit_s: float
    ) -> None:
        self.plan, self.rounds, self._limit_s, self._logs = plan, rounds, limit_s, logs
        self._embed, self._rerank = folders[plan.embed], folders[plan.rerank] if plan.rerank else None
        self._texts = Texts(words, plan.name)
        self._running: list[Running] = []
        self._servers: dict[str, dict[str, Any]] = {}
        self._raw: dict[str, dict[str, list[Any]]] = {}
        self._kept: dict[str, dict[str, bytes]] = {}  # the answers of round 0, to be compared

    def run(self, servers: Sequence[Server], cores: int) -> None:
        """Start, warm up, measure, compare, end. A server that fails is left out from there on, with the reason."""
        with ExitStack() as stack:
            for server in servers:
                self._servers[server.name] = {"ours": server.ours}
                self._raw[server.name] = {}
                self._kept[server.name] = {}
                running = start(server, self._embed, self._rerank, self._logs)
                stack.callback(running.stop)
                if self._try(running, "start", lambda running=running: self._prepare(running)):
                    self._running.append(running)
            self._idle()
            for turn in range(self.rounds):
                for running in self._running:
                    self._round(running, turn)
            for running in self._running if self.plan.compared else ():
                self._try(running, "answers", lambda running=running: self._alone_and_together(running))
            if self.plan.neighbour_rounds:
                self._beside_a_neighbour(cores - 1)
        if self.plan.compared:
            self._compare()

    def result(self) -> dict[str, Any]:
        """The figures of each server, and what the work was."""
        plan = self.plan
        for name, found in self._servers.items():
            found["work"] = self._figures(self._raw[name])
        return {
            "name": plan.name,
            "models": {"embed": plan.embed, "rerank": plan.rerank},
            "rounds": self.rounds,
            "work": {
                "chunks": vars(plan.chunks),
                "documents": vars(plan.documents) | {"count": plan.rerank_documents if plan.rerank else 0},
                "index_requests": plan.index_requests,
                "queries": plan.queries,
                "busy_requests": plan.busy_requests,
            },
            "servers": self._servers,
        }

    # --- one server, one round -----------------------------------------------------------------------------------

    def _prepare(self, running: Running) -> None:
        running.wait()
        found = self._servers[running.server.name]
        found["seconds_to_ready"], found["facts"] = running.seconds_to_ready, running.facts()
        with closing(self._connect(running)()) as client:
            client.embed(self._texts.chunks(-1, self.plan.chunks, WARM_CHUNKS))
            for query in self._texts.queries(-1, 4):
                client.embed([query])
            if self._rerank:
                client.rerank(self._texts.query(-1, 9), self._texts.chunks(-2, self.plan.documents, 4))
        measure.many_clients(self._connect(running), self._texts.queries(-2, measure.CLIENTS))
        say(f"{self.plan.name}: {running.server.name} ready after {running.seconds_to_ready:.1f} s, and warm")

    def _round(self, running: Running, turn: int) -> None:
        plan, name = self.plan, running.server.name
        before = {kind: len(values) for kind, values in self._raw[name].items()}
        for kind, size, work in (
            ("index", plan.index_requests, self._index),
            ("query", plan.queries, self._query),
            ("rerank", plan.rerank_documents if self._rerank else 0, self._rerank_once),
            ("while_indexing", plan.busy_requests, self._busy),
        ):
            if size and f"{kind}_failed" not in self._servers[name]:
                self._try(running, kind, lambda work=work: work(running, turn))
        news = [self._line(kind, values[before.get(kind, 0) :]) for kind, values in self._raw[name].items()]
        say(f"{plan.name}: round {turn + 1} of {self.rounds}, {name}: {', '.join(filter(None, news))}")

    def _index(self, running: Running, turn: int, kind: str = "index") -> None:
        for number in range(self.plan.index_requests):
            texts = self._chunks(turn, number)
            with closing(self._connect(running)()) as client:
                seconds, raw = client.embed(texts)
            self._note(running, kind, {"seconds": seconds, "texts": texts})
            if (turn, number, kind) == (0, 0, "index"):
                self._kept[running.server.name]["index"] = raw

    def _query(self, running: Running, turn: int) -> None:
        found = measure.many_clients(self._connect(running), self._texts.queries(turn, self.plan.queries))
        self._note(running, "query", {"seconds": found.seconds, "times": found.times})

    def _rerank_once(self, running: Running, turn: int) -> None:
        query, documents = self._question(turn)
        with closing(self._connect(running)()) as client:
            seconds, raw = client.rerank(query, documents)
        self._note(running, "rerank", {"seconds": seconds, "texts": [(query, text) for text in documents]})
        if turn == 0:
            self._kept[running.server.name]["rerank"] = raw

    def _busy(self, running: Running, turn: int) -> None:
        requests = [self._chunks(turn, 100 + number) for number in range(self.plan.busy_requests)]
        queries = self._texts.queries(500 + turn, 64)
        times = measure.while_indexing(self._connect(running), requests, queries)
        self._note(running, "while_indexing", {"times": times})

    def _beside_a_neighbour(self, core: int) -> None:
        for running in self._running:
            if running.server.ours:
                with Neighbour(core):
                    time.sleep(SETTLE_S)
                    for turn in range(self.plan.neighbour_rounds):
                        self._try(running, "neighbour", lambda r=running, t=turn: self._index(r, t, "neighbour"))
                say(f"{self.plan.name}: {running.server.name} beside a busy process is measured")

    # --- answers -------------------------------------------------------------------------------------------------

    def _alone_and_together(self, running: Running) -> None:
        """The vectors of texts of the first request, each sent alone, and under load from many clients at once."""
        kept, texts = self._kept[running.server.name], self._chunks(0, 0)
        if "index" not in kept:
            return
        batch = vectors(kept["index"])
        with closing(self._connect(running)()) as client:
            alone = [vectors(client.embed([text])[1])[0] for text in texts[:ALONE]]
        count = min(len(texts), measure.CLIENTS)
        loaded = measure.many_clients(self._connect(running), texts[:count])
        together = [vectors(raw)[0] for raw in loaded.answers]
        self._servers[running.server.name]["answers"] = {
            "alone_and_in_batch": measure.least_cosine(alone, batch[:ALONE]),
            "under_load_and_in_batch": measure.least_cosine(together, batch[:count]),
        }

    def _compare(self) -> None:
        """Against float32, computed when all servers have ended."""
        kept = {name: raw for name, raw in self._kept.items() if raw}
        if any("index" in raw for raw in kept.values()):
            wanted = torch_side.apart(torch_side.vectors, self._embed, self._chunks(0, 0))
            for name, raw in kept.items():
                if "index" in raw:
                    answers = self._servers[name].setdefault("answers", {})
                    answers["to_float32"] = measure.least_cosine(vectors(raw["index"]), wanted)
        if any("rerank" in raw for raw in kept.values()):
            wanted = torch_side.apart(torch_side.logits, self._rerank, *self._question(0))
            for name, raw in kept.items():
                if "rerank" in raw:
                    self._servers[name].setdefault("answers", {})["order"] = measure.order(
                        logits(raw["rerank"]), wanted
                    )

    # --- figures -------------------------------------------------------------------------------------------------

    def _figures(self, raw: dict[str, list[Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind in ("index", "neighbour", "rerank"):
            if notes := raw.get(kind):
                folder, name = (self._rerank, self.plan.rerank) if kind == "rerank" else (self._embed, self.plan.embed)
                assert folder is not None
                found[kind] = _throughput(notes, folder, SHAPES[name])
        if notes := raw.get("query"):
            times = [one for note in notes for one in note["times"]]
            found["query"] = {
                "per_s": measure.rate([note["seconds"] for note in notes], [len(note["times"]) for note in notes]),
                **measure.latency(times),
            }
        if notes := raw.get("while_indexing"):
            found["while_indexing"] = measure.latency([one for note in notes for one in note["times"]])
        return found

    def _idle(self) -> None:
        before = [running.cpu_seconds() for running in self._running]
        time.sleep(IDLE_S)
        for running, spent in zip(self._running, before, strict=True):
            share = (running.cpu_seconds() - spent) / IDLE_S
            self._servers[running.server.name]["idle_cpu"] = round(max(0.0, share), 4)

    def _chunks(self, turn: int, number: int) -> list[str]:
        return self._texts.chunks(1000 * turn + number, self.plan.chunks)

    def _question(self, turn: int) -> tuple[str, list[str]]:
        documents = self._texts.chunks(1_000_000 + turn, self.plan.documents, self.plan.rerank_documents)
        return self._texts.query(1_000_000 + turn, 0), documents

    def _connect(self, running: Running) -> Callable[[], Client]:
        return lambda: running.client(self._limit_s)

    def _note(self, running: Running, kind: str, note: Any) -> None:
        self._raw[running.server.name].setdefault(kind, []).append(note)

    def _try(self, running: Running, kind: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Failed as error:
            self._servers[running.server.name][f"{kind}_failed"] = str(error)
            say(f"{self.plan.name}: {running.server.name}: {kind}: {error}")
            return False
        return True

    @staticmethod
    def _line(kind: str, notes: list[Any]) -> str:
        if not notes:
            return ""
        if kind == "while_indexing":
            times = [one for note in notes for one in note["times"]] or [0.0]
            return f"{kind} p50 {measure.percentile(times, 0.5):.3f} s of {len(times)}"
        return f"{kind} {sum(note['seconds'] for note in notes):.2f} s"


def _throughput(notes: Sequence[dict[str, Any]], folder: Path, shape: Shape) -> dict[str, Any]:
    """Tokens and floating-point operations a second, and how long a request took."""
    seconds = [note["seconds"] for note in notes]
    lengths = [torch_side.lengths(folder, shape.length, note["texts"]) for note in notes]
    flops = [sum(map(shape.flops, found)) for found in lengths]
    return {
        "tokens_per_s": measure.rate(seconds, [sum(found) for found in lengths]),
        "flops_per_s": measure.rate(seconds, flops)["median"],
        "seconds": measure.percentile(seconds, 0.5),
        "p95_s": measure.percentile(seconds, 0.95),
        "tokens": [sum(found) for found in lengths],
    }
