"""What `bench` does between parsing and showing: look at the services, run the phases, judge."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qmd_remote import __version__, commands, views_bench
from qmd_remote.client import bench_work
from qmd_remote.client.bench import PHASES, PROBE_EVERY_S, QUERY_CLIENTS, Bench, look
from qmd_remote.client.bench_load import Figures
from qmd_remote.client.causes import shown
from qmd_remote.client.checks import Target
from qmd_remote.errors import Interrupted, NotRunning, QmdRemoteError, ServiceFailed, UsageError
from qmd_remote.output import Output

BUSY = 0.7  # cores: the interpreter has one at most


def find(
    *, url: str | None, embed_url: str | None, generation_url: str | None, api_key: str | None, config_file: Path
) -> Target:
    """What to measure: what `test` would test. Raises as `commands.find_target`."""
    try:
        return commands.find_target(
            url=url, embed_url=embed_url, generation_url=generation_url, api_key=api_key, config_file=config_file
        )
    except NotRunning as error:
        raise NotRunning(
            "there is nothing to measure: QMD's config names no server, and none runs here",
            hint="qmd-remote up, or: qmd-remote bench --url http://HOST:8001",
        ) from error


def phases(only: str | None) -> list[str]:
    """The phases meant by `--only`, in their order. Raises UsageError for what is none."""
    if only is None:
        return list(PHASES)
    named = [name.strip() for name in only.split(",")]
    for name in named:
        if name not in PHASES:
            near = get_close_matches(name, PHASES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PHASES)}"
            raise UsageError(f"there is no phase {name!r}", hint=hint, code="bench.phase")
    return [name for name in PHASES if name in named]


def bench(out: Output, target: Target, *, only: str | None, seconds: float, seed: int | None) -> int:
    """Run the phases against a target and show a row for each load. Failed requests make it a failure."""
    chosen = phases(only)
    urls = [url and shown(url) for url in (target.embed_url, target.generation_url)]
    out.note(f"embed server {urls[0] or 'none'} · generation {urls[1] or 'none'}")
    interrupted: QmdRemoteError | None = None
    with out.progress("looking at the services"):
        run = Bench(target, look(target), seconds, secrets.randbelow(2**32) if seed is None else seed, asked=bool(only))
        try:
            for place, name in enumerate(chosen, 1):
                line = f"{place} of {len(chosen)}, {name}: {PHASES[name].about}"
                out.phase(line)
                run.run(name, lambda done, line=line: out.phase(line, detail=done))  # type: ignore[misc]
        except KeyboardInterrupt:
            interrupted = Interrupted("interrupted: the figures are those up to then")
    data = _data(run)
    out.show(views_bench.bench_view(run.figures, data["server"], data["client"]))
    _warn_of_a_busy_client(out, run.figures)
    error = interrupted or _verdict(run.figures)
    return out.fail(error, data) if error else out.finish(data)


def _data(run: Bench) -> dict[str, Any]:
    """What the envelope holds: with the same `work` (but for the seed) two reports can be compared."""
    target, server = run.target, run.server
    return {
        "target": {
            "embed_url": target.embed_url and shown(target.embed_url),
            "generation_url": target.generation_url and shown(target.generation_url),
            "with_key": bool(target.key),
        },
        "server": {"asked_for": asdict(server.names), **server.facts},
        "work": {
            "version": bench_work.VERSION,
            "seed": run.seed,
            "seconds": run.seconds,
            "chunks": bench_work.CHUNKS,
            "chunk_characters": bench_work.CHUNK_CHARACTERS,
            "chunks_at_cap": bench_work.CHUNKS_AT_CAP,
            "query_words": bench_work.QUERY_WORDS,
            "query_clients": QUERY_CLIENTS,
            "documents": bench_work.DOCUMENTS,
            "document_characters": bench_work.DOCUMENT_CHARACTERS,
            "mixed_query_every_s": PROBE_EVERY_S,
        },
        "client": {
            "version": __version__,
            "python": platform.python_version(),
            "round_trip_ms": server.round_trip_ms,
        },
        "results": [asdict(row) for row in run.figures],
    }


def _verdict(figures: Sequence[Figures]) -> QmdRemoteError | None:
    """Why the figures are no result; None when they are one."""
    errors = sum(row.errors for row in figures)
    if errors:
        first = next(row for row in figures if row.errors)
        cause = first.failures[0]
        asked = errors + sum(row.requests for row in figures)
        message = f"{errors:,} of {asked:,} requests failed, which is no result; {first.name}: {cause.message}"
        return ServiceFailed(message, hint=cause.fix, code=cause.code)
    if not any(row.requests for row in figures):
        reason = next((row.reason for row in figures if row.reason), "no request was answered")
        return ServiceFailed(f"nothing was measured: {reason}", hint="qmd-remote test", code="bench.nothing")
    return None


def _warn_of_a_busy_client(out: Output, figures: Sequence[Figures]) -> None:
    busy = list(dict.fromkeys(row.name for row in figures if row.client_cpu and row.client_cpu > BUSY))
    if busy:
        text = (
            f"this client computed nearly all the time in {', '.join(busy)}: the server may be faster than is seen here"
        )
        out.warn(text, "run it on a faster machine")
