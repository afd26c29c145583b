"""Which of our services run on this machine: one small record per service, believed only while its process lives.

A record is a lock's label, not state: process id plus creation time identify the process, so a recycled pid is never
taken for ours, and everything else about a service is asked over HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import psutil

from qmd_remote import atomic, keys, paths
from qmd_remote.errors import ConfigError, ServiceFailed, UsageError
from qmd_remote.reach import is_loopback
from qmd_remote.setting_values import did_you_mean
from qmd_remote.settings import Settings, declared
from qmd_remote.supervision import outlive_parent

EMBED = "embed"
GENERATION = "generation"
TITLES = {EMBED: "embed server", GENERATION: "generation engine"}
SERVICES = (GENERATION, EMBED)  # in the order of starting: the larger tenant of a GPU first

# how they are found and how long waits may take changes nothing about a running service
NOT_IN_SPEC = frozenset({"preset", "api_key", "api_key_file", "stall_limit_s", "start_limit_s", "hang_limit_s"})
SHARED = frozenset({"shutdown_limit_s", "gpus"})  # by both services

POLL_S = 0.1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
AFTER_GENERATION = "QMD_REMOTE_AFTER_GENERATION"  # "1": vLLM is starting, and must find its memory free
STAYS_WITH_PARENT = "QMD_REMOTE_STAYS_WITH_PARENT"  # "1": the service belongs to an `up --foreground`

# create_time comes from a clock that may be stepped; pids are not reused within seconds
CREATE_TIME_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class Record:
    """A running service: its supervisor's pid and creation time, where it answers, what runs there and with what.

    `beside` tells where generation is ("engine", "url"): for one that is none of our processes nobody else knows.
    `identity` tells the process from others with its pid, where the system has something better than `created`.
    `key_file` and `tls_cert` are what this machine's own commands need to reach the service; the key itself is nowhere.
    `ended` is why a service that failed is no more: its record stays until the next `up` or `down`, for what to type.
    """

    service: str
    pid: int
    created: float
    url: str
    model: str = ""
    program: str = ""
    preset: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    key_file: str = ""
    tls_cert: str = ""
    identity: str = ""
    ended: str = ""

    def key(self) -> str:
        """The key that the service was started with, if it lies in a file that can be read; else empty."""
        try:
            return keys.read_file(self.key_file) if self.key_file else ""
        except ConfigError:
            return ""


def require_name(service: str) -> str:
    """The name of a service. Raises UsageError, with the nearest name, when there is none like it."""
    if service not in SERVICES:
        raise UsageError(
            f"there is no service '{service}'{did_you_mean(service, SERVICES)}",
            hint=f"the services are: {', '.join(SERVICES)}",
        )
    return service


def record_file(service: str) -> Path:
    """Where the record of a service lies."""
    return paths.run_dir() / f"{service}.json"


def spec_of(service: str, settings: Settings) -> dict[str, Any]:
    """The settings that a running service would have to be restarted for, by field name.

    The key stands there as a digest: enough to see that it changed.
    """
    ours = service == GENERATION
    values = {
        f.name: list(value) if isinstance(value := getattr(settings, f.name), tuple) else value
        for f in declared()
        if (f.name.startswith("generation_") == ours or f.name in SHARED) and f.name not in NOT_IN_SPEC
    }
    if ours and settings.generation_engine == "docker" and not is_loopback(settings.generation_host):
        values["api_key"] = _digest(settings.key.encode())
    if not ours:
        values["generation_at"] = settings.generation_at
        values["api_key"] = _digest(settings.key.encode())
        # a certificate is renewed in its place
        values["certificate"] = _digest(_content(settings.tls_cert))
    return values


def _content(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes() if path else b""
    except (OSError, RuntimeError):  # that is told by who needs it
        return b""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12] if content else ""


def beside_of(settings: Settings) -> dict[str, str]:
    """Where these settings say that generation is."""
    return {"engine": settings.generation_engine, "url": settings.generation_url}


def key_file_of(settings: Settings) -> str:
    """Where the key of these settings can be read again; empty when it came from a variable, or there is none."""
    return "" if settings.api_key else settings.api_key_file


def refreshed(record: Record, settings: Settings) -> Record:
    """The record of a service that goes on as it is, with what may have moved around it."""
    moved: dict[str, Any] = {"beside": beside_of(settings)}
    if record.service == EMBED:
        moved["key_file"] = key_file_of(settings)
    return replace(record, **moved)


def write(record: Record) -> None:
    """Put a record in its place, whole."""
    paths.make_private(paths.run_dir())
    path = record_file(record.service)
    atomic.put(path, json.dumps(asdict(record)), mode=0o600)


@dataclass
class Place:
    """A supervisor's place among the services. Who sets `ended` leaves its record behind, with that as the reason."""

    ended: str = ""


@contextmanager
def registered(service: str, settings: Settings, *, url: str, model: str, program: str) -> Iterator[Place]:
    """Announce the calling process as the supervisor of `service` for as long as the block runs."""
    me = psutil.Process()
    spec = spec_of(service, settings)
    reached = {} if service == GENERATION else {"key_file": key_file_of(settings), "tls_cert": settings.tls_cert}
    preset, beside = settings.preset, beside_of(settings)
    identity = identity_of(me.pid)
    write(
        Record(
            service, me.pid, me.create_time(), url, model, program, preset, spec, beside, identity=identity, **reached
        )
    )
    if os.environ.get(STAYS_WITH_PARENT) != "1":
        outlive_parent()  # from here on `down` finds this process, even if the `up` that started it is killed
    place = Place()
    try:
        yield place
    finally:
        current = find(service)
        if current is not None and current.pid == me.pid:
            if place.ended:
                write(replace(current, ended=place.ended))
            else:
                record_file(service).unlink(missing_ok=True)


def find(service: str) -> Record | None:
    """The record of a service whose process is alive, else None."""
    record = read(service)
    if record is None or record.ended:
        return None
    try:
        return record if process_of(record) is not None else None
    except (ValueError, TypeError, OverflowError):  # no number of a process
        return None


def read(service: str) -> Record | None:
    """The record of a service that runs, or that was killed since; None when there is none that can be read."""
    try:
        values = json.loads(record_file(service).read_text(encoding="utf-8"))
        # another version of this program may have written more, or less: it is a running service all the same
        return Record(**{f.name: values[f.name] for f in fields(Record) if f.name in values})
    except (OSError, ValueError, TypeError):  # damaged, or by somebody else
        return None


def process_of(record: Record) -> psutil.Process | None:
    """The live process of a record, or None when it is gone or its pid belongs to another process now."""
    try:
        process = psutil.Process(record.pid)
        if record.identity:
            same = record.identity == identity_of(record.pid)
        else:
            same = abs(process.create_time() - record.created) < CREATE_TIME_TOLERANCE_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def foreground_owner(record: Record) -> int | None:
    """The pid of the `up --foreground` that a service belongs to, or None when it runs in the background."""
    process = process_of(record)
    try:
        parent = process.parent() if process else None
        return parent.pid if parent and "--foreground" in parent.cmdline() else None
    except psutil.Error:
        return None


def identity_of(pid: int) -> str:
    """What no other process ever has: this boot, and the tick of it in which the process began. Linux; else empty.

    A time of day would not do: clocks are set, on a board without a battery minutes after `up` at boot.
    """
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
        # the name in parentheses may hold anything; 22nd field of proc_pid_stat(5)
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}/{ticks}"


def stop(record: Record, *, grace_s: float = 60.0) -> bool:
    """End a service: SIGTERM, a grace for running requests, then SIGKILL for what is left of its process tree.

    Returns whether it ended within its grace.
    """
    process = process_of(record)
    if process is None:
        return True
    return end_tree(process, grace_s=grace_s)


def end_tree(process: psutil.Process, *, grace_s: float) -> bool:
    """SIGTERM to a process, a grace, then SIGKILL to what is left of it and its descendants; as `stop` returns."""
    tree = [process, *descendants(process)]
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    alive = _still_alive(tree, grace_s)
    for survivor in alive:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    _still_alive(alive, 5)
    return not alive


def _still_alive(processes: Sequence[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Which of them live after at most so many seconds. A zombie has ended: its parent may never ask for it."""
    until = time.monotonic() + limit_s
    alive = list(processes)
    while True:
        alive = [process for process in alive if _lives(process)]
        if not alive or time.monotonic() > until:
            return alive
        psutil.wait_procs(alive, timeout=POLL_S)  # reaps our own children


def _lives(process: psutil.Process) -> bool:
    try:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return True
        process.wait(0)  # reaps one that ended since it was last waited for, if it is our child
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass
    return False


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Every process below this one; none when it has just ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def exclusive() -> AbstractContextManager[None]:
    """Let one `up` or `down` work at a time; the other learns so at once."""
    busy = ServiceFailed(
        "another `qmd-remote up` or `down` is at work on this machine",
        hint="wait for it to end, then look at: qmd-remote status",
        code="busy",
    )
    return paths.locked("up", wait_s=0, busy=busy)


def port_holder(port: int) -> str:
    """Who listens on a TCP port, as "name (pid N)"; empty when that cannot be seen."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):  # macOS shows other users' sockets to root alone
        return ""
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid
        ):
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                return ""
    return ""
