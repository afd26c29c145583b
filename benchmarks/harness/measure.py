"""What is measured of a server, and how answers are compared with the reference. Times in seconds."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from harness.client import Client, Failed

CLIENTS = 16
PROBE_EVERY_S = 0.15
SEEN = 0.02  # two logits that differ by less than this share of their range may change places

Connect = Callable[[], Client]


@dataclass(frozen=True)
class Load:
    """Many clients at once: the whole time, the time of each query, and the answers by the query's place."""

    seconds: float
    times: list[float]
    answers: list[bytes]


def many_clients(connect: Connect, queries: Sequence[str], clients: int = CLIENTS) -> Load:
    """Each client sends one query after the other until all are answered. Raises Failed."""
    left: SimpleQueue[tuple[int, str]] = SimpleQueue()
    for item in enumerate(queries):
        left.put(item)
    times, answers = [0.0] * len(queries), [b""] * len(queries)

    def work() -> None:
        with closing(connect()) as client:
            while True:
                try:
                    place, query = left.get_nowait()
                except Empty:
                    return
                times[place], answers[place] = client.embed([query])

    began = time.perf_counter()
    all_of([work] * min(clients, len(queries)))
    return Load(time.perf_counter() - began, times, answers)


def while_indexing(
    connect: Connect, requests: Sequence[list[str]], queries: Sequence[str], every_s: float = PROBE_EVERY_S
) -> list[float]:
    """Times of single queries, one at a time and at most one every `every_s`, while the index requests run.

    The first is sent a moment after the first index request, so that it meets work. Raises Failed.
    """
    times: list[float] = []
    over = threading.Event()

    def index() -> None:
        try:
            with closing(connect()) as client:
                for texts in requests:
                    client.embed(texts)
        finally:
            over.set()

    def probe() -> None:
        while not over.wait(every_s):
            with closing(connect()) as client:
                times.append(client.embed([queries[len(times) % len(queries)]])[0])

    all_of([index, probe])
    return times


def all_of(tasks: Sequence[Callable[[], None]]) -> None:
    """Run all at once; raises the first failure, when all have ended."""
    failures: list[Failed] = []

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except Failed as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks."""
    return float(np.quantile(values, share))


def rate(seconds: Sequence[float], amounts: Sequence[float]) -> dict[str, Any]:
    """Amount per second: the median over the rounds, and each of them."""
    rounds = [amount / took for amount, took in zip(amounts, seconds, strict=True)]
    return {"median": statistics.median(rounds), "rounds": rounds}


def latency(times: Sequence[float]) -> dict[str, Any]:
    """Milliseconds over all rounds; without a sample, only that there is none."""
    if not times:
        return {"samples": 0}
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "max_ms": 1.0}
    return {"samples": len(times)} | {name: percentile(times, share) * 1000 for name, share in shares.items()}


def least_cosine(found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> float:
    """The least cosine between rows of the same place."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    products = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(products.min())


def order(found: Sequence[float], wanted: Sequence[float], seen: float = SEEN) -> dict[str, Any]:
    """Of the pairs whose wanted logits differ by more than `seen` of their range: how many there are, and how many
    stand the other way round in `found`. `error` is the largest difference, as a share of that range."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    span = float(b.max() - b.min()) or 1.0
    before, after = b[:, None] - b[None, :], a[:, None] - a[None, :]
    matters = np.triu(np.abs(before) > seen * span, 1)
    return {
        "pairs": int(matters.sum()),
        "swapped": int((matters & (np.sign(before) != np.sign(after))).sum()),
        "error": float(np.abs((a - a.mean()) - (b - b.mean())).max() / span),
    }
