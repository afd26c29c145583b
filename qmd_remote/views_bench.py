"""What `bench` shows: the server in a line or two, a row for each load, and why requests failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape

from qmd_remote.client.bench_load import Figures
from qmd_remote.views import table

TITLES = {"mixed-index": "index, with queries", "mixed-query": "query, during index", "expand": "expansion"}


def bench_view(figures: Sequence[Figures], server: Mapping[str, Any], client: Mapping[str, Any]) -> Group:
    """`bench`: what was measured, and on what."""
    rows = table("work", "texts/s", "tokens/s", "median ms", "p95 ms", "requests", "errors")
    for column in rows.columns[1:]:
        column.justify = "right"
    for one in figures:
        rows.add_row(
            TITLES.get(one.name, one.name),
            _number(one.texts_per_s),
            _number(one.tokens_per_s),
            _number(one.median_ms),
            _number(one.p95_ms),
            f"{one.requests:,}",
            f"[bold red]{one.errors:,}[/]" if one.errors else "0",
        )
    parts: list[RenderableType] = [*map(escape, _about(server, client)), rows]
    for one in figures:
        title = TITLES.get(one.name, one.name)
        if one.state == "skipped":
            parts.append(escape(f"{title}: skipped, {one.reason}"))
        parts += [escape(f"{title}: {failure.count:,} × {failure.message}") for failure in one.failures]
    return Group(*parts)


def _about(server: Mapping[str, Any], client: Mapping[str, Any]) -> list[str]:
    models = server.get("models")
    named = [f"{role} {name}" for role, name in models.items()] if isinstance(models, dict) else []
    facts = [str(server[name]) for name in ("device", "dtype", "backend") if isinstance(server.get(name), str)]
    version = [f"qmd-remote {server['version']}"] if isinstance(server.get("version"), str) else []
    away = client.get("round_trip_ms")
    where = [f"{away:,.1f} ms away"] if away is not None else []
    lines = [" · ".join(named), " · ".join([*version, *facts, *where])]
    return [line for line in lines if line]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
