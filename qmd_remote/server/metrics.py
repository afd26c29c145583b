"""What happens in the server, as numbers for Prometheus. docs/metrics.md describes each."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from qmd_remote import __version__
from qmd_remote.expansion_repair import OUTCOMES, Outcome
from qmd_remote.server import memory
from qmd_remote.server.batching import Lane
from qmd_remote.server.exchange import Exchange
from qmd_remote.server.memory import Memory
from qmd_remote.server.observer import Batch, Role

if TYPE_CHECKING:
    from qmd_remote.server.engine import Engine

PREFIX = "qmd_remote_"
ROLES: tuple[Role, ...] = ("embed", "rerank")
BATCH_ROLES = (*ROLES, "both")

Stage = Literal["read", "tokenize", "queue", "forward", "serialise"]
STAGES: tuple[Stage, ...] = ("read", "tokenize", "queue", "forward", "serialise")

REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
TOKEN_BUCKETS = tuple(float(2**n) for n in range(4, 18))
TEXT_BUCKETS = tuple(float(2**n) for n in range(11))


class Metrics:
    """The numbers of one server, in a registry of its own; Observer of its engine and Watcher of its exchanges.

    `total`, `running` and `errors` count requests for work (not the polled paths), for /health; the event loop's.
    """

    def __init__(self) -> None:
        self.total = self.running = self.errors = 0
        self._registry = CollectorRegistry()
        self._state: _EngineState | None = None
        self._requests = self._counter("requests", "Requests that have ended.", "endpoint", "status")
        self._errors = self._counter("errors", "Requests that ended in an error.", "endpoint", "code")
        self._seconds = self._histogram(
            "request_seconds", "From a request's arrival to its answer's end.", REQUEST_BUCKETS, "endpoint"
        )
        self._stages = self._histogram("stage_seconds", "Time in each stage of the work.", STAGE_BUCKETS, "stage")
        self._waits = self._histogram(
            "queue_wait_seconds", "From asking for room to the first batch.", REQUEST_BUCKETS, "lane"
        )
        self._batch_tokens = self._histogram("batch_tokens", "Tokens of a batch, with its padding.", TOKEN_BUCKETS)
        self._batch_texts = self._histogram("batch_texts", "Texts of a batch.", TEXT_BUCKETS)
        self._batches = self._counter("batches", "Batches that have run.", "role")
        self._texts = self._counter("texts", "Texts, or pairs of texts, that were answered.", "role")
        self._tokens = self._counter("tokens", "Tokens that were answered, without padding.", "role")
        self._truncated = self._counter("truncated_texts", "Texts cut to the model's length.", "role")
        self._out_of_memory = self._counter("out_of_memory", "Batches that did not fit into the memory.")
        self._widened = self._counter("precision_widenings", "Times a model left half precision.")
        self._expansions = self._counter("expansions", "Query expansions that were answered.", "outcome")
        self._load_seconds = Gauge(
            PREFIX + "model_load_seconds", "Time to load a model.", ["role"], registry=self._registry
        )
        running = Gauge(PREFIX + "requests_running", "Requests in progress, polls left out.", registry=self._registry)
        running.set_function(lambda: self.running)
        Info(PREFIX + "build", "What runs.", registry=self._registry).info(_build())
        self._start_at_zero()

    def follow(self, engine: Engine) -> None:
        """Ask `engine` at each scrape how it is."""
        self._state = _EngineState(engine)
        self._registry.register(self._state)

    def render(self, accept: str = "", used: Memory | None = None) -> tuple[bytes, str]:
        """The text of all metrics, in the form that an Accept header prefers, and its content type. May take a moment.

        `used` is the memory of the device. Raises nothing a scrape could cause.
        """
        encode, content_type = choose_encoder(accept)
        if self._state is not None:
            self._state.used = used
        return encode(_Lean(self._registry)), content_type

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Measure a stage that the caller goes through; one that ends in an error does not count."""
        began = time.perf_counter()
        yield
        self._stages.labels(stage).observe(time.perf_counter() - began)

    def began(self, exchange: Exchange) -> None:
        """A request has come."""
        self.running += not exchange.polled

    def ended(self, exchange: Exchange) -> None:
        """A request is over."""
        failed = exchange.status >= 400
        if not exchange.polled:
            self.running -= 1
            self.total += 1
            self.errors += failed
        self._requests.labels(exchange.endpoint, str(exchange.status)).inc()
        self._seconds.labels(exchange.endpoint).observe(exchange.seconds)
        # a server that loads says so to every poll, and nothing is wrong
        if failed and not (exchange.polled and exchange.status == HTTPStatus.SERVICE_UNAVAILABLE):
            self._errors.labels(exchange.endpoint, exchange.error).inc()

    def loaded(self, role: Role, seconds: float) -> None:
        """A model has been read into memory."""
        self._load_seconds.labels(role).set(seconds)

    def tokenized(self, seconds: float) -> None:
        """A slice of a request has been tokenised."""
        self._stages.labels("tokenize").observe(seconds)

    def waited(self, lane: Lane, seconds: float) -> None:
        """A slice of a request has left the queue."""
        self._waits.labels(lane.value).observe(seconds)
        self._stages.labels("queue").observe(seconds)

    def ran(self, batch: Batch) -> None:
        """A batch has run."""
        self._batches.labels(batch.role).inc()
        self._batch_texts.observe(batch.texts)
        self._batch_tokens.observe(batch.tokens)
        self._stages.labels("forward").observe(batch.seconds)

    def out_of_memory(self) -> None:
        """A batch did not fit into the memory."""
        self._out_of_memory.inc()

    def widened(self) -> None:
        """A model goes on in float32."""
        self._widened.inc()

    def answered(self, role: Role, texts: int, tokens: int, truncated: int) -> None:
        """A request has its result."""
        self._texts.labels(role).inc(texts)
        self._tokens.labels(role).inc(tokens)
        self._truncated.labels(role).inc(truncated)

    def expanded(self, outcome: Outcome) -> None:
        """A query expansion has its answer."""
        self._expansions.labels(outcome).inc()

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, what, labels, registry=self._registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, what, labels, registry=self._registry, buckets=buckets)

    def _start_at_zero(self) -> None:
        """Have each series from the start: a rate needs a value before the first event."""
        for role in ROLES:
            for counter in (self._texts, self._tokens, self._truncated):
                counter.labels(role)
        for outcome in OUTCOMES:
            self._expansions.labels(outcome)
        for kind in BATCH_ROLES:
            self._batches.labels(kind)
        for lane in Lane:
            self._waits.labels(lane.value)
        for stage in STAGES:
            self._stages.labels(stage)


class _EngineState(Collector):
    """What is asked at each scrape instead of being counted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.used: Memory | None = None

    def collect(self) -> Iterator[Metric]:
        facts = self._engine.facts()
        ready = self._engine.state == "ready"
        yield GaugeMetricFamily(PREFIX + "ready", "Whether the models are ready.", value=ready)
        queued = facts.get("queued")
        yield GaugeMetricFamily(
            PREFIX + "queue_texts", "Texts that wait for a batch.", value=queued if isinstance(queued, int) else 0
        )
        yield GaugeMetricFamily(
            PREFIX + "resident_memory_bytes", "Memory of this process in RAM.", value=memory.resident()
        )
        family = GaugeMetricFamily(
            PREFIX + "device_memory_bytes",
            "Memory of the device that computes (CUDA), else of this process and of the machine.",
            labels=["kind"],
        )
        for kind, amount in self.used.as_dict().items() if self.used else ():
            family.add_metric([kind], amount)
        yield family


class _Lean(Collector):
    """A registry without the time of creation that the library adds to every series: it doubles a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _build() -> dict[str, str]:
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = ""
    return {"version": __version__, "python": platform.python_version(), "torch": torch}
