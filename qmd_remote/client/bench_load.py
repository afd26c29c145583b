"""One kind of request from some clients for some time, and the figures of it. `bench` is made of such loads."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from qmd_remote.client.bench_work import CHAT, RERANK, Make, Request
from qmd_remote.client.causes import Cause
from qmd_remote.client.service import CheckFailed, Service, wrong

MOST_REQUESTS = 10_000  # of a load, each client's first left out
MOST_FAILURES = 10  # after which a load is broken off
WATCH_EVERY_S = 0.2

# to read numbers that nobody looks at would take longer than a GPU takes to make them
_VECTOR = re.compile(rb'("embedding"\s*:\s*)\[[^][]*\]')

State = Literal["ok", "failed", "partial", "skipped"]
Connect = Callable[[], Service]
Watch = Callable[[], None]


@dataclass(frozen=True)
class Sample:
    """A request that was answered well: its time in seconds, what it counts for, its tokens where they were told."""

    seconds: float
    texts: int
    tokens: int | None


@dataclass(frozen=True)
class Failure:
    """A cause of failures by its stable code, in words, with the next step; and how many requests met it."""

    code: str
    message: str
    fix: str
    count: int


@dataclass(frozen=True)
class Figures:
    """What a load came to. A rate is None where nothing was answered and where the client sets the pace; tokens are
    None where an answer does not tell them.

    `state` is partial after an interruption; `reason` says why a load was skipped. `requests` were answered well,
    `errors` were not. `client_cpu` is how many cores this process used meanwhile.
    """

    name: str
    state: State
    reason: str = ""
    clients: int = 0
    requests: int = 0
    errors: int = 0
    texts: int = 0
    tokens: int | None = None
    seconds: float = 0.0
    requests_per_s: float | None = None
    texts_per_s: float | None = None
    tokens_per_s: float | None = None
    median_ms: float | None = None
    p95_ms: float | None = None
    client_cpu: float | None = None
    failures: tuple[Failure, ...] = ()


class Load:
    """Clients that send one request after the other, each on a connection of its own.

    The n-th request is `make(n)`. `every_s` has each client begin at most one in so many seconds.
    """

    def __init__(self, name: str, connect: Connect, make: Make, *, clients: int = 1, every_s: float = 0.0) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self.failures: dict[str, Failure] = {}
        self.hopeless: Cause | None = None
        self._services = [connect() for _ in range(clients)]
        self._make = make
        self._every_s = every_s
        self._turn = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._began = self._ended = time.monotonic()
        self._cpu_began = self._cpu_ended = time.process_time()

    @property
    def errors(self) -> int:
        """How many requests have failed."""
        return sum(failure.count for failure in self.failures.values())

    @property
    def seconds(self) -> float:
        """The time from the start to the last answer."""
        return self._ended - self._began

    def end(self) -> None:
        """Begin no request any more."""
        self._over.set()

    def start(self) -> list[threading.Thread]:
        """Each client sends one request that is not measured: it opens the connection, and warms what is cold."""
        return _started([partial(self._send, service, measured=False) for service in self._services])

    def work(self, seconds: float) -> list[threading.Thread]:
        """Each client sends one request after the other for so many seconds, and ends what it has begun."""
        self._began = self._ended = time.monotonic()
        self._cpu_began = self._cpu_ended = time.process_time()
        return _started([partial(self._client, service, self._began + seconds) for service in self._services])

    def close(self) -> None:
        """Hang up. Only for when all threads have ended."""
        for service in self._services:
            service.close()

    def figures(self, state: State | None = None) -> Figures:
        """The figures up to now."""
        with self._lock:
            samples, failures = list(self.samples), tuple(self.failures.values())
            seconds, cpu_s = self.seconds, self._cpu_ended - self._cpu_began
        state = state or ("failed" if failures else "ok")
        clients = len(self._services)
        found = summary(self.name, state, samples, failures, clients=clients, seconds=seconds, cpu_s=cpu_s)
        if not self._every_s:
            return found
        return replace(found, requests_per_s=None, texts_per_s=None, tokens_per_s=None)  # the pace is the client's

    def _client(self, service: Service, deadline: float) -> None:
        first = True  # whatever happens, there is one
        while not self._over.is_set() and (first or time.monotonic() < deadline):
            began, first = time.monotonic(), False
            if not self._send(service):
                return
            self._over.wait(max(0.0, began + self._every_s - time.monotonic()))

    def _send(self, service: Service, *, measured: bool = True) -> bool:
        """Send the next request; False when there are to be no more."""
        with self._lock:
            if self._turn >= MOST_REQUESTS + len(self._services):
                return False
            turn, self._turn = self._turn, self._turn + 1
        request = self._make(turn)
        try:
            answer = service.ask(request.path, request.body)
            slim = replace(answer, content=_VECTOR.sub(rb"\1[]", answer.content))
            tokens = read_tokens(request, service.json(slim))
        except CheckFailed as failure:
            self._fail(failure.cause)
            return True
        if measured:
            with self._lock:
                self.samples.append(Sample(answer.seconds, request.texts, tokens))
                self._ended, self._cpu_ended = time.monotonic(), time.process_time()
        return True

    def _fail(self, cause: Cause) -> None:
        with self._lock:
            known = self.failures.get(cause.code)
            count = known.count + 1 if known else 1
            first = known or Failure(cause.code, cause.message, cause.fix, 0)
            self.failures[cause.code] = Failure(first.code, first.message, first.fix, count)
            if cause.hopeless:
                self.hopeless = self.hopeless or cause
            if cause.hopeless or self.errors >= MOST_FAILURES:
                self._over.set()


def measure(loads: Sequence[Load], seconds: float, watch: Watch) -> None:
    """Run loads side by side for so many seconds; all end with the first of them.

    `watch` is called a few times a second. After KeyboardInterrupt no request is begun; those under way are left to
    end by themselves.
    """
    try:
        _await([thread for load in loads for thread in load.start()], watch)
        if not any(load.failures for load in loads):
            leader, *others = [load.work(math.inf if place else seconds) for place, load in enumerate(loads)]
            _await(leader, watch)
            for load in loads:
                load.end()
            for threads in others:
                _await(threads, watch)
    finally:
        for load in loads:
            load.end()
    for load in loads:
        load.close()


def _started(tasks: Sequence[Callable[[], object]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    return threads


def _await(threads: Sequence[threading.Thread], watch: Watch) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(WATCH_EVERY_S)
            watch()


def read_tokens(request: Request, said: Any) -> int | None:
    """The tokens of an answer, where it tells them: those read, of a chat those written.

    Raises CheckFailed when the answer is not whole, so that nobody is fast by leaving something out.
    """
    name = {CHAT: "choices", RERANK: "results"}.get(request.path, "data")
    rows = said.get(name) if isinstance(said, dict) else None
    wanted = 1 if request.path == CHAT else request.texts
    if not isinstance(rows, list) or len(rows) != wanted:
        found = f"{len(rows)} entries" if isinstance(rows, list) else "none"
        raise wrong(f"the answer of {request.path} has {found} in `{name}` where {wanted} belong")
    usage = said.get("usage")
    if not isinstance(usage, dict):
        return None
    names = ("completion_tokens",) if request.path == CHAT else ("prompt_tokens", "total_tokens")
    return next((usage[name] for name in names if type(usage.get(name)) is int), None)


def summary(
    name: str,
    state: State,
    samples: Sequence[Sample],
    failures: tuple[Failure, ...],
    *,
    clients: int,
    seconds: float,
    cpu_s: float,
) -> Figures:
    """Rates over `seconds`, and the distribution of the samples' times."""
    known = [sample.tokens for sample in samples if sample.tokens is not None]
    told = len(known) == len(samples) > 0
    texts, tokens = sum(sample.texts for sample in samples), sum(known) if told else None
    times = [sample.seconds for sample in samples]
    return Figures(
        name,
        state,
        clients=clients,
        requests=len(samples),
        errors=sum(failure.count for failure in failures),
        texts=texts,
        tokens=tokens,
        seconds=round(seconds, 3),
        requests_per_s=_rate(len(samples), seconds),
        texts_per_s=_rate(texts, seconds),
        tokens_per_s=_rate(tokens, seconds),
        median_ms=_milliseconds(times, 0.5),
        p95_ms=_milliseconds(times, 0.95),
        client_cpu=_rate(cpu_s, seconds),
        failures=failures,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of all lies: linear between the two nearest ranks. There must be a value."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _rate(amount: float | None, seconds: float) -> float | None:
    return None if amount is None or seconds <= 0 else round(amount / seconds, 3)


def _milliseconds(times: Sequence[float], share: float) -> float | None:
    return round(quantile(times, share) * 1000, 2) if times else None
