"""What runs, asked of the processes and of the services themselves. Nothing here is stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from qmd_remote import services
from qmd_remote.errors import Exit
from qmd_remote.services import Record

ASK_S = 3.0


@dataclass(frozen=True)
class ServiceStatus:
    """One service now; memory in bytes. `state` is ready, loading, failed, not answering, external or not running."""

    service: str
    state: str
    url: str = ""
    model: str = ""
    device: str = ""
    pid: int | None = None
    uptime_s: float | None = None
    memory_bytes: int | None = None
    preset: str = ""
    detail: str = ""


def look(key: str = "") -> tuple[ServiceStatus, ...]:
    """The status of every service. With its key the embed server tells more."""
    embed = services.find(services.EMBED)
    external = embed.beside.get("url") if embed and embed.beside.get("engine") == "external" else None
    return tuple(_service(name, services.find(name), key, external) for name in services.SERVICES)


def exit_code(statuses: tuple[ServiceStatus, ...]) -> Exit:
    """0 when all that runs is ready, 1 when something is not, 3 when nothing runs."""
    running = [status for status in statuses if status.state != "not running"]
    if not running:
        return Exit.NOT_RUNNING
    return Exit.OK if all(status.state in {"ready", "external"} for status in running) else Exit.FAILED


def _service(name: str, record: Record | None, key: str, external: str | None) -> ServiceStatus:
    process = services.process_of(record) if record else None
    if record is None or process is None:
        if name == services.GENERATION and external:
            return ServiceStatus(name, "external", url=external)
        if services.record_file(name).exists():
            return ServiceStatus(name, "failed", detail="its supervisor was killed")
        return ServiceStatus(name, "not running")
    state, detail, facts = _ask(record.url, key if name == services.EMBED else "")
    return ServiceStatus(
        service=name,
        state=state,
        url=record.url,
        model=_models(facts) or record.model,
        device=str(facts.get("device", "")),
        pid=record.pid,
        uptime_s=round(time.time() - record.created, 1),
        memory_bytes=memory_of(process),
        preset=record.preset,
        detail=detail,
    )


def memory_of(process: psutil.Process) -> int:
    """Resident bytes of a supervisor and everything below it."""
    total = 0
    for member in [process, *services.descendants(process)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _ask(url: str, key: str) -> tuple[str, str, dict[str, Any]]:
    """(state, detail, facts) from a service's health check."""
    try:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        response = httpx.get(f"{url}/health", timeout=ASK_S, trust_env=False, headers=headers)
    except httpx.HTTPError:
        return "not answering", "it may be starting", {}
    try:
        facts = response.json()
        facts = facts if isinstance(facts, dict) else {}
    except ValueError:
        facts = {}
    if response.status_code == httpx.codes.OK:
        return "ready", "", facts
    state = str(facts.get("status", "not answering"))
    return state, str(facts.get("phase") or ""), facts


def _models(facts: dict[str, Any]) -> str:
    models = facts.get("models")
    return ", ".join(dict.fromkeys(str(m) for m in models.values() if m)) if isinstance(models, dict) else ""
