"""Results → what a person reads. Values in, rich renderables out; nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.markup import escape
from rich.table import Table

from qmd_remote.launch.plan import Plan
from qmd_remote.launch.status import ServiceStatus
from qmd_remote.launch.up import TITLES, Started
from qmd_remote.settings import Settings

STATE_STYLE = {"ready": "green", "loading": "yellow", "ok": "green", "warn": "yellow", "skip": "dim"}
BAD_STYLE = "bold red"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def styled(state: str) -> str:
    """A state in its colour."""
    return f"[{STATE_STYLE.get(state, BAD_STYLE)}]{escape(state)}[/]"


def plan_lines(settings: Settings, plan: Plan, why: str) -> list[str]:
    """What `up` is about to do, a line each."""
    generation = plan.generation
    how = {
        "process": f"{generation.model} by `{generation.program} serve` on {generation.url}",
        "external": f"{generation.model} at {generation.url}",
        "off": f"off, since {generation.reason}",
    }[generation.engine]
    return [
        f"preset {plan.preset}" + (f" ({why})" if why else ""),
        f"  embed       {escape(settings.embed_model)}",
        f"  rerank      {escape(settings.rerank_model)}",
        f"  device      {settings.device}",
        f"  listen on   {settings.host}:{settings.port}" + ("" if settings.key else ", without a key"),
        f"  generation  {escape(how)}",
    ]


def started_table(started: Sequence[Started], statuses: Sequence[ServiceStatus]) -> Table:
    """What `up` did, with what runs now."""
    now = {status.service: status for status in statuses}
    table = _table("service", "state", "model", "endpoint", "device")
    for one in started:
        status = now[one.service]
        state = status.state if one.pid else one.action
        note = f" ({one.action})" if one.pid else ""
        model = status.model or one.model
        table.add_row(
            TITLES[one.service], styled(state) + note, escape(model), status.url or one.url, status.device or "–"
        )
    return table


def status_table(statuses: Sequence[ServiceStatus]) -> Table:
    """`status`: problems first."""
    table = _table("service", "state", "model", "endpoint", "device", "memory", "up for", "pid")
    for status in sorted(statuses, key=lambda status: status.state == "ready"):
        state = styled(status.state) + (f" ({escape(status.detail)})" if status.detail else "")
        table.add_row(
            TITLES[status.service],
            state,
            escape(status.model) or "–",
            status.url or "–",
            status.device or "–",
            f"{status.memory_bytes / 1e6:,.0f} MB" if status.memory_bytes else "–",
            str(timedelta(seconds=round(status.uptime_s))) if status.uptime_s is not None else "–",
            str(status.pid or "–"),
        )
    return table
