"""Waiting for a service: HTTP readiness, named phases, an end as soon as it fails, and a limit on standing still."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from qmd_remote import logbook
from qmd_remote.errors import ServiceFailed, WaitEnded
from qmd_remote.launch import diagnose, phases
from qmd_remote.launch.phases import Phase
from qmd_remote.launch.relay import STATUS_PATH
from qmd_remote.reach import trusting

POLL_S = 0.15
READY = "ready after"  # in the line that a keeper logs when its service is
# an engine's lines about what we ask are no progress
_OUR_QUESTIONS = re.compile(rf"GET (?:/health|/v1/models|{STATUS_PATH})\b")
UNKNOWN = -1000  # the exit code of a process that is not our child; no signal has this number


class Process(Protocol):
    """The part of a process that a wait needs: its exit code, or None while it runs."""

    def poll(self) -> int | None:
        """The exit code, or None."""


@dataclass(frozen=True)
class Limits:
    """`stall_s` without progress ends a wait, and so does `total_s` in all."""

    stall_s: float
    total_s: float


@dataclass(frozen=True)
class Waited:
    """How a health check went: ready or not, and what the service says it is doing."""

    ready: bool
    phase: Phase | None


def until_ready(
    service: str,
    url: str,
    process: Process,
    *,
    log_file: Path,
    limits: Limits,
    on_phase: Callable[[Phase], None],
    key: str = "",
    certificate: str = "",
    served: str = "",
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until `url`/health answers 200, and /v1/models has `served` if that is given; returns the seconds it took.

    Raises ServiceFailed as soon as the process ends, with the cause from its log, and WaitEnded at a limit. Progress
    is a new phase, a new percentage or a longer log.
    """
    started = clock()
    pace = Pace(service, log_file, limits, clock=clock)
    # without its key a server tells that it loads, but not what
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(trust_env=False, timeout=2, headers=headers, verify=trusting(certificate)) as client:
        while True:
            code = process.poll()
            if code is not None:
                how = "ended" if code == UNKNOWN else f"ended with exit code {code}"
                raise diagnose.to_error(service, read_tail(log_file), how, _see(log_file))
            waited = ask(client, url, served)
            if waited.ready:
                return clock() - started
            phase = waited.phase or phases.latest(read_tail(log_file)) or Phase("starting")
            if pace.moves_on(phase):
                on_phase(phase)
            pause(POLL_S)


class Pace:
    """Watches that a wait gets on: a new phase, a new percentage or a longer log is progress."""

    def __init__(
        self, what: str, log_file: Path, limits: Limits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._log_file = log_file
        self._limits = limits
        self._clock = clock
        self._started = self._last_change = clock()
        self._seen: Phase | None = None
        self._news = News(log_file)

    def moves_on(self, phase: Phase) -> bool:
        """Whether the phase is a new one. Raises WaitEnded when nothing moves for too long, or all takes too long."""
        now, new = self._clock(), phase != self._seen
        if self._news.came() or new:
            self._last_change = now
        self._seen = phase
        total, still = now - self._started, now - self._last_change
        if still > self._limits.stall_s:
            raise WaitEnded(
                f"{self._what} made no progress for {still:.0f} s while {phase.name}",
                hint=f"{_see(self._log_file)}; a slower machine may need "
                f"QMD_REMOTE_STALL_LIMIT_S={round(self._limits.stall_s) * 3}",
                code="wait.stalled",
            )
        if total > self._limits.total_s:
            raise WaitEnded(
                f"{self._what} was not ready after {total:.0f} s; it was still {phase.name}",
                hint=f"{_see(self._log_file)}; to wait longer: "
                f"QMD_REMOTE_START_LIMIT_S={round(self._limits.total_s) * 3}",
                code="wait.limit",
            )
        return new


def ask(client: httpx.Client, url: str, served: str = "") -> Waited:
    """One health check. Our own server tells its phase while it answers 503. Raises ServiceFailed as `serves` does."""
    try:
        response = client.get(f"{url}/health")
        if response.status_code == httpx.codes.OK:
            return Waited(not served or serves(client.get(f"{url}/v1/models"), served), None)
    except httpx.HTTPError:
        return Waited(False, None)
    try:
        body = response.json()
        name, progress = body["phase"], body.get("progress")
        percent = None if progress is None else round(100 * float(progress))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return Waited(False, None)
    return Waited(False, Phase(name, percent) if isinstance(name, str) else None)


def serves(models: httpx.Response, name: str) -> bool:
    """Whether an answer of /v1/models has a model of this name.

    Raises ServiceFailed when that will not change: our key is refused, or there are models of other names only.
    """
    if models.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise ServiceFailed(
            "the generation engine refuses our key: it was started with another one",
            hint="qmd-remote down, then: qmd-remote up",
            code="key.refused",
        )
    try:
        names = [str(model["id"]) for model in models.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return False
    if names and name not in names:
        raise ServiceFailed(
            f"the generation engine serves {', '.join(names)}, and not {name}, which clients will ask for",
            hint="leave --served-model-name to us, or take another image: qmd-remote up --generation-image IMAGE",
            code="model.other_name",
        )
    return bool(names)


def read_tail(log_file: Path, size: int = 65536) -> str:
    """The end of a log file, without the times before its lines; empty when there is none."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return logbook.unstamped(file.read().decode("utf-8", "replace"))
    except OSError:
        return ""


class News:
    """What a log file gains, apart from the answers to our own health checks."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._inode = -1
        self._offset = 0

    def came(self) -> bool:
        """Whether something was added since the last call."""
        try:
            with self._log_file.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                # a full file is put aside, and a new one begins
                file.seek(self._offset if inode == self._inode else 0)
                added = file.read()
                self._inode, self._offset = inode, file.tell()
        except OSError:
            return False
        lines = logbook.unstamped(added.decode("utf-8", "replace")).splitlines()
        return any(line.strip() and not _OUR_QUESTIONS.search(line) for line in lines)


def _see(log_file: Path) -> str:
    return f"the full log is {log_file}"
