"""Results → what a person reads. Values in, rich renderables out; nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from qmd_remote.client.checks import Report
from qmd_remote.launch.status import ServiceStatus

STATE_STYLE = {
    "ready": "green",
    "loading": "yellow",
    "stopping": "yellow",
    "ok": "green",
    "warn": "yellow",
    "skip": "dim",
    "off": "dim",
}
BAD_STYLE = "bold red"


def table(*headings: str) -> Table:
    """An empty table in our style."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        # on a narrow terminal only the long texts are folded; endpoints and states stay whole
        rows.add_column(heading, overflow="fold", no_wrap=heading not in {"model", "sent", "came back"})
    return rows


def styled(state: str) -> str:
    """A state in its colour."""
    return f"[{STATE_STYLE.get(state, BAD_STYLE)}]{escape(state)}[/]"


def status_table(statuses: Sequence[ServiceStatus]) -> Group:
    """`status`: problems first. In parts, since all columns beside each other are wider than a terminal."""
    now = table("service", "state", "memory", "up for", "requests", "queue", "pid")
    where = table("service", "model", "device", "endpoint")
    details = []
    for status in sorted(statuses, key=lambda status: status.state == "ready"):
        now.add_row(
            status.service,
            styled(status.state),
            f"{status.memory_bytes / 1e6:,.0f} MB" if status.memory_bytes else "–",
            str(timedelta(seconds=round(status.uptime_s))) if status.uptime_s is not None else "–",
            _requests(status),
            "–" if status.queued is None else f"{status.queued:,}",
            str(status.pid or "–"),
        )
        if status.detail:
            details.append(f"{status.service}: {escape(status.detail)}")
        if status.model or status.url:
            where.add_row(status.service, escape(status.model) or "–", status.device or "–", escape(status.url) or "–")
    parts: list[RenderableType] = [now, *details]
    return Group(*parts, "", where) if where.rows else Group(*parts)


def _requests(status: ServiceStatus) -> str:
    """How many there were since the start; with those under way and those that failed, where there are any."""
    if status.requests is None:
        return "–"
    more = [f"{count} {word}" for count, word in ((status.running, "running"), (status.errors, "failed")) if count]
    return f"{status.requests:,}" + (f" ({', '.join(more)})" if more else "")


def report_table(report: Report) -> Table:
    """`test`: a row per check."""
    rows = table("check", "sent", "came back", "ms", "")
    for row in report.rows:
        received = escape(row.received) + (f"\n[bold]→ {escape(row.fix)}[/]" if row.fix and row.status != "ok" else "")
        latency = f"{row.latency_ms:,.0f}" if row.latency_ms is not None else "–"
        rows.add_row(row.name, escape(row.sent), received, latency, styled(row.status))
    rows.caption = f"{len(report.rows)} checks in {report.total_s:.1f} s"
    rows.caption_justify = "left"
    return rows
