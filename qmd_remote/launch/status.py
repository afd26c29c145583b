"""What runs, asked of the processes and of the services themselves. Nothing here is stored."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from qmd_remote import paths, services
from qmd_remote.errors import Exit
from qmd_remote.launch import containers, diagnose, phases, wait
from qmd_remote.launch.relay import STATUS_PATH
from qmd_remote.reach import trusting
from qmd_remote.services import EMBED, GENERATION, TITLES, Record

ASK_S = 3.0


@dataclass(frozen=True)
class ServiceStatus:
    """One service now; memory in bytes. `state` is ready, loading, stopping, failed, not answering, external,
    unattended (a container without its keeper), off or not running.

    `requests`, `running` and `errors` count since the start; `queued` are the texts that wait for the model. None where
    the service does not tell.
    """

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
    queued: int | None = None
    running: int | None = None
    requests: int | None = None
    errors: int | None = None


def look(key: str = "") -> tuple[ServiceStatus, ...]:
    """The status of every service. `key` is this environment's; the one that a service's record knows is used first."""
    embed = services.find(EMBED)
    beside = embed.beside if embed else {}
    return tuple(_service(name, services.find(name), key, beside) for name in services.SERVICES)


def exit_code(statuses: tuple[ServiceStatus, ...]) -> Exit:
    """0 when all that runs is ready, 1 when something is not, 3 when nothing runs."""
    running = [status for status in statuses if status.state not in {"not running", "off"}]
    if not running:
        return Exit.NOT_RUNNING
    return Exit.OK if all(status.state in {"ready", "external"} for status in running) else Exit.FAILED


def _service(name: str, record: Record | None, key: str, beside: Mapping[str, str]) -> ServiceStatus:
    process = services.process_of(record) if record else None
    if record is None or process is None:
        return _absent(name, beside)
    in_container = record.program == containers.DOCKER
    with _client(record, key) as client:
        state, detail, facts = _ask(client)
        # vLLM in a container has no relay before it, and would log a question that it does not know
        counts = facts.get("requests") if name == EMBED or in_container else _json(client, STATUS_PATH)
    counts = counts if isinstance(counts, dict) else {}
    if state == "not answering" and in_container:
        state, detail = _without_answer(name)
    return ServiceStatus(
        service=name,
        state=state,
        url=record.url,
        model=_models(facts) or record.model,
        device=str(facts.get("device", "")),
        pid=record.pid,
        uptime_s=round(time.time() - record.created, 1),
        memory_bytes=None if in_container else memory_of(process),
        preset=record.preset,
        detail=detail,
        queued=_number(facts.get("queued")),
        running=_number(counts.get("running")),
        requests=_number(counts.get("total", counts.get("requests"))),
        errors=_number(counts.get("errors")),
    )


def _without_answer(name: str) -> tuple[str, str]:
    """The state of a container that does not answer, and what it is doing, as its log tells."""
    log = wait.read_tail(paths.log_file(name))
    if not containers.engine_answers():
        return "not answering", "the container engine does not answer; start it: sudo systemctl start docker"
    if f" {wait.READY} " in log:
        return "not answering", "its container ended, or hangs; it is restarted unless somebody stopped it"
    phase = phases.latest(log)
    return "loading", f"{phase.name} {phase.detail}".strip() if phase else ""


def _absent(name: str, beside: Mapping[str, str]) -> ServiceStatus:
    """A service without a process: meant to be so, or failed."""
    engine = beside.get("engine") if name == GENERATION else ""
    if engine == "external":
        return ServiceStatus(name, "external", url=beside.get("url", ""))
    if engine == "off":
        return ServiceStatus(name, "off")
    if left := containers.without_keeper([name]):
        found = left[0][1]
        if found.running:
            return ServiceStatus(name, "unattended", detail=f"its container {found.name} is up, and has no keeper")
        return ServiceStatus(name, "failed", detail=f"its container {found.name} is {found.state}, and has no keeper")
    why = ""
    if services.record_file(name).exists():
        left_behind = services.read(name)
        why = (left_behind.ended if left_behind else "") or "its supervisor was killed"
    elif cause := why_it_failed(name):
        why = cause if TITLES[name] in cause else f"it could not start: {cause}"
    elif engine in {"process", containers.DOCKER}:
        why = "it ended, and the embed server counts on it"
    elif name == EMBED and (beside_it := services.find(GENERATION)) and _began_since(name, beside_it.created):
        why = "it ended, and generation runs without it"
    return ServiceStatus(name, "failed" if why else "not running", detail=why)


def _began_since(name: str, moment: float) -> bool:
    """Whether a service has been started since then: it has written into its log."""
    try:
        return paths.log_file(name).stat().st_mtime >= moment
    except OSError:
        return False


def why_it_failed(service: str) -> str:
    """The cause with which the last start ended, if that is the last thing that the log tells; else empty."""
    last = wait.read_tail(paths.log_file(service)).strip().rpartition("\n")[2]
    found = diagnose.diagnose(last) if last.startswith("{") else None
    return found.cause if found else ""


def memory_of(process: psutil.Process) -> int:
    """Resident bytes of a supervisor and everything below it."""
    total = 0
    for member in [process, *services.descendants(process)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _client(record: Record, key: str) -> httpx.Client:
    key = (record.key() or key) if record.service == EMBED else ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(
        base_url=record.url, timeout=ASK_S, trust_env=False, headers=headers, verify=trusting(record.tls_cert)
    )


def _ask(client: httpx.Client) -> tuple[str, str, dict[str, Any]]:
    """(state, detail, facts) from a service's health check."""
    try:
        response = client.get("/health")
    except httpx.HTTPError:
        return "not answering", "it may be starting", {}
    facts = _object(response)
    if response.status_code == httpx.codes.OK:
        return "ready", "", facts
    state = str(facts.get("status", "not answering"))
    return state, str(facts.get("phase") or ""), facts


def _json(client: httpx.Client, path: str) -> dict[str, Any]:
    try:
        response = client.get(path)
    except httpx.HTTPError:
        return {}
    return _object(response) if response.status_code == httpx.codes.OK else {}


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        said = response.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _models(facts: dict[str, Any]) -> str:
    models = facts.get("models")
    return ", ".join(dict.fromkeys(str(m) for m in models.values() if m)) if isinstance(models, dict) else ""
