"""`qmd-remote bench`: work of QMD's shape for two services, phase by phase, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qmd_remote.client.bench_load import Figures, Load, measure
from qmd_remote.client.bench_work import Make, Work
from qmd_remote.client.causes import Cause, shown
from qmd_remote.client.discovery import fetch_models
from qmd_remote.client.http import REQUEST_S
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.client.report import Target
from qmd_remote.client.service import CheckFailed, Service
from qmd_remote.presets import DESIGN_EMBED, DESIGN_GENERATION, DESIGN_RERANK

QUERY_CLIENTS = 16
PROBE_EVERY_S = 0.15  # seldom enough to be no load of their own
PINGS = 5
FACTS_S = 10.0

# what tells boxes apart, of all that /health says
FACTS = (
    "version",
    "models",
    "device",
    "dtype",
    "backend",
    "forward",
    "threads",
    "dimension",
    "max_length",
    "generation",
)


@dataclass(frozen=True)
class Part:
    """One load of a phase. `make` chooses the kind of its requests."""

    name: str
    make: Callable[[Work], Make]
    clients: int = 1
    every_s: float = 0.0


@dataclass(frozen=True)
class Phase:
    """Loads that run side by side, as long as the first of them."""

    about: str
    parts: tuple[Part, ...]
    generates: bool = False


PHASES: dict[str, Phase] = {
    "index": Phase("requests of 32 chunks, one after the other", (Part("index", lambda work: work.index),)),
    "query": Phase(
        f"one short text each, {QUERY_CLIENTS} clients", (Part("query", lambda work: work.query, QUERY_CLIENTS),)
    ),
    "rerank": Phase("one query against 40 documents", (Part("rerank", lambda work: work.rerank),)),
    "mixed": Phase(
        "single queries during an index job",
        (
            Part("mixed-index", lambda work: work.index),
            Part("mixed-query", lambda work: work.query, every_s=PROBE_EVERY_S),
        ),
    ),
    "expand": Phase("other words for a query", (Part("expand", lambda work: work.expand),), generates=True),
}
_SERIES = {part.name: number for number, part in enumerate(part for phase in PHASES.values() for part in phase.parts)}


@dataclass(frozen=True)
class Server:
    """What the embed server says of itself, as far as it tells this key's owner; the models' names that are sent.

    `generates` is whether a model for it was found; `round_trip_ms` is the fastest of a few requests for nothing.
    """

    names: ModelNames
    generates: bool
    facts: dict[str, Any] = field(default_factory=dict)
    round_trip_ms: float | None = None


def look(target: Target) -> Server:
    """Ask what the services are. Raises ConfigError for a key that no header can hold."""
    found = fetch_models(target.embed_url, target.generation_url, target.key).models
    known = target.models
    generate = known.generate or found.generate
    names = ModelNames(
        known.embed or found.embed or DESIGN_EMBED,
        generate or DESIGN_GENERATION,
        known.rerank or found.rerank or DESIGN_RERANK,
    )
    if target.embed_url is None:
        return Server(names, bool(generate))
    service = _service(target, target.embed_url)
    try:
        return Server(names, bool(generate), _facts(service), _round_trip(service))
    except CheckFailed:  # the phases will say why
        return Server(names, bool(generate))
    finally:
        service.close()


def _facts(service: Service) -> dict[str, Any]:
    answer = service.ask("/health", limit_s=FACTS_S)
    try:
        said = answer.json()
    except ValueError:
        return {}
    return {name: said[name] for name in FACTS if name in said} if isinstance(said, dict) else {}


def _round_trip(service: Service) -> float:
    """Milliseconds; any status is an answer."""
    times = [service.ask("/livez", limit_s=FACTS_S).seconds for _ in range(PINGS)]
    return round(min(times) * 1000, 2)


@dataclass
class Bench:
    """A run: `figures` grows, a row for each load, and holds what was measured when the run is interrupted.

    `asked` says whether the user named the phases: then a service that cannot generate is an error, no reason to skip.
    """

    target: Target
    server: Server
    seconds: float
    seed: int
    asked: bool = False
    figures: list[Figures] = field(default_factory=list)
    _lost: dict[str, Cause] = field(default_factory=dict)

    def run(self, name: str, tell: Callable[[str], None] = lambda _: None) -> None:
        """Run one phase; `tell` gets what has been answered so far, a few times a second."""
        phase = PHASES[name]
        url = self.target.generation_url if phase.generates else self.target.embed_url
        why_not = self._why_not(phase, url)
        if url is None or why_not:
            self.figures += [Figures(part.name, "skipped", why_not) for part in phase.parts]
            return
        self._measure(phase, url, tell)

    def _why_not(self, phase: Phase, url: str | None) -> str:
        """Why there is nothing to measure; empty when there is."""
        if url is None:
            return self.target.generation_reason if phase.generates else self.target.embed_reason
        if url in self._lost:
            return f"not sent, since {self._lost[url].message}"
        if phase.generates and not self.asked and not self.server.generates:
            return f"{shown(url)} lists no model that generates"
        return ""

    def _measure(self, phase: Phase, url: str, tell: Callable[[str], None]) -> None:
        loads = [self._load(part, url) for part in phase.parts]
        try:
            measure(loads, self.seconds, lambda: tell(_so_far(loads)))
        except KeyboardInterrupt:
            self.figures += [load.figures("partial") for load in loads]
            raise
        rows = [load.figures() for load in loads]
        if phase.generates and not self.asked and self._is_another_service(rows[0], url):
            rows = [Figures(rows[0].name, "skipped", rows[0].failures[0].message)]
        self.figures += rows
        for load in loads:
            if load.hopeless:
                self._lost[url] = load.hopeless

    def _is_another_service(self, row: Figures, url: str) -> bool:
        """Whether one URL stands for everything, and what answers there has no chat: lists name no roles."""
        return url == self.target.embed_url and [failure.code for failure in row.failures] == ["wrong_service"]

    def _load(self, part: Part, url: str) -> Load:
        make = part.make(Work(self.seed, _SERIES[part.name], self.server.names))
        connect = lambda: _service(self.target, url)  # noqa: E731 - each client has its own
        return Load(part.name, connect, make, clients=part.clients, every_s=part.every_s)


def _service(target: Target, url: str) -> Service:
    return Service(url, "", target.key, REQUEST_S, lambda _: None, names=target.names)


def _so_far(loads: Sequence[Load]) -> str:
    done, errors = sum(len(load.samples) for load in loads), sum(load.errors for load in loads)
    return f"({done:,} answered{f', {errors:,} failed' if errors else ''})"
