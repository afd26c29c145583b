"""Results → what a person reads. Values in, rich renderables out; nothing is printed here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import timedelta

from rich.markup import escape
from rich.table import Table

from qmd_remote.client.checks import Report
from qmd_remote.launch.plan import Plan
from qmd_remote.launch.status import ServiceStatus
from qmd_remote.launch.up import TITLES, Started
from qmd_remote.presets import PRESETS
from qmd_remote.reach import is_loopback
from qmd_remote.settings import Settings

STATE_STYLE = {"ready": "green", "loading": "yellow", "ok": "green", "warn": "yellow", "skip": "dim"}
BAD_STYLE = "bold red"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        # on a narrow terminal only the long texts are folded; endpoints and states stay whole
        table.add_column(heading, overflow="fold", no_wrap=heading not in {"model", "sent", "came back"})
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
        f"preset {plan.preset}" + (f", since {why}" if why else "") + f": {PRESETS[plan.preset].summary}",
        f"  embed       {settings.embed_model}",
        f"  rerank      {settings.rerank_model}",
        f"  device      {settings.device}",
        f"  listen on   {_bracketed(settings.host)}:{settings.port}" + ("" if settings.key else ", without a key"),
        f"  generation  {how}",
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def started_lines(started: Sequence[Started]) -> list[str]:
    """What `up` did about each service that it looks after."""
    words = {
        "already running": "already running",
        "started": "started in {seconds} s",
        "restarted": "restarted in {seconds} s, since {changed}",
    }
    return [
        escape(
            f"{TITLES[one.service]}: " + words[one.action].format(seconds=one.seconds, changed=", ".join(one.changed))
        )
        for one in started
        if one.action in words
    ]


def started_table(started: Sequence[Started], statuses: Sequence[ServiceStatus]) -> Table:
    """What `up` did, with what runs now."""
    now = {status.service: status for status in statuses}
    table = _table("service", "state", "model", "endpoint", "device")
    for one in started:
        status = now[one.service]
        state = styled(status.state if one.pid else one.action)
        model = status.model or one.model or "–"
        table.add_row(one.service, state, escape(model), status.url or one.url or "–", status.device or "–")
    return table


def status_table(statuses: Sequence[ServiceStatus]) -> Table:
    """`status`: problems first."""
    table = _table("service", "state", "model", "endpoint", "device", "memory", "up for", "pid")
    for status in sorted(statuses, key=lambda status: status.state == "ready"):
        state = styled(status.state) + (f" ({escape(status.detail)})" if status.detail else "")
        table.add_row(
            status.service,
            state,
            escape(status.model) or "–",
            escape(status.url) or "–",
            status.device or "–",
            f"{status.memory_bytes / 1e6:,.0f} MB" if status.memory_bytes else "–",
            str(timedelta(seconds=round(status.uptime_s))) if status.uptime_s is not None else "–",
            str(status.pid or "–"),
        )
    return table


def report_table(report: Report) -> Table:
    """`test`: a row per check."""
    table = _table("check", "sent", "came back", "ms", "")
    for row in report.rows:
        received = escape(row.received) + (f"\n[bold]→ {escape(row.fix)}[/]" if row.fix and row.status != "ok" else "")
        latency = f"{row.latency_ms:,.0f}" if row.latency_ms is not None else "–"
        table.add_row(row.name, escape(row.sent), received, latency, styled(row.status))
    table.caption = f"{len(report.rows)} checks in {report.total_s:.1f} s"
    table.caption_justify = "left"
    return table


def next_steps(settings: Settings, plan: Plan) -> list[str]:
    """The exact commands to type after `up`."""
    # a key in a file is known to this command only; a key in the environment is found there again
    only_here = settings.api_key_file and not settings.api_key
    key = f" --api-key-file {shlex.quote(settings.api_key_file)}" if only_here else ""
    steps = [
        (f"qmd-remote test{key}", "send both services exactly what QMD sends"),
        ("qmd-remote config write", "tell QMD on this machine about them"),
    ]
    if not is_loopback(settings.host):
        url = f"http://THIS-HOST:{settings.port}"
        with_key = " --api-key-env QMD_REMOTE_API_KEY" if settings.key else ""
        steps.append((f"qmd-remote test --embed-url {url}{with_key}", "from another machine"))
    steps += [("qmd-remote status", "what runs"), ("qmd-remote down", "stop it")]
    width = max(len(command) for command, _ in steps)
    lines = ["", "next:"] + [f"  {command:<{width}}  {meaning}" for command, meaning in steps]
    if plan.generation.engine == "off":
        lines.append(f"generation: {plan.generation.hint}")
    return lines
