"""Bringing the services up and down. Whatever a failed or interrupted `up` started is stopped again."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from qmd_remote import paths, services
from qmd_remote.launch import convert_gguf, diagnose, phases, wait
from qmd_remote.launch.phases import Phase
from qmd_remote.launch.plan import Conversion, Plan
from qmd_remote.services import EMBED, GENERATION, Record
from qmd_remote.settings import Settings
from qmd_remote.supervision import listen, python_module

STOP_GRACE_S = 60.0
TITLES = {EMBED: "embed server", GENERATION: "generation engine"}

OnPhase = Callable[[str, Phase], None]


@dataclass(frozen=True)
class Started:
    """What `up` did about one service: `action` is started, restarted, already running, external or off."""

    service: str
    action: str
    url: str = ""
    model: str = ""
    pid: int | None = None
    seconds: float = 0.0
    changed: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Adopted:
    """A service that runs already, as something to wait for."""

    record: Record

    def poll(self) -> int | None:
        """None while the process lives; its exit code cannot be known by others than its parent."""
        return None if services.process_of(self.record) else -1


def absolute(settings: Settings) -> Settings:
    """The settings with local folders and files as absolute paths, since services run in a folder of their own."""
    names = ("embed_model", "rerank_model", "generation_model", "api_key_file")
    changes: dict[str, Any] = {name: _absolute(getattr(settings, name)) for name in names}
    changes["trust_remote_code"] = tuple(_absolute(name) for name in settings.trust_remote_code)
    return dataclasses.replace(settings, **changes)


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().exists() else name


def bring_up(settings: Settings, plan: Plan, on_phase: OnPhase) -> tuple[Started, ...]:
    """Bring every planned service up and wait until all are ready, generation first.

    Raises ServiceFailed, WaitEnded or PrerequisiteError; nothing that this call started is left running then.
    """
    begun: list[psutil.Popen] = []
    with services.exclusive():
        # before anything takes its time: a conversion, an engine's start
        for service in (GENERATION, EMBED) if plan.generation.engine == "process" else (EMBED,):
            if services.find(service) is None:
                _require_free_port(service, settings)
        try:
            return _generation(settings, plan, on_phase, begun), _ensure(EMBED, settings, on_phase, begun)
        except BaseException:
            _undo(begun)
            raise


def _undo(begun: Sequence[psutil.Popen]) -> None:
    """Stop what a failed start began; a second Ctrl-C does not leave half of it, the grace bounds how long it takes."""
    with _deaf():
        for process in begun:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in begun:
            services.end_tree(process, grace_s=STOP_GRACE_S)
        for service in services.SERVICES:
            # one that was stopped before it listened to signals could not remove its record
            if services.find(service) is None:
                services.record_file(service).unlink(missing_ok=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore the signals that interrupt, in the main thread; elsewhere they do not arrive anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bring_down(names: Sequence[str] = (EMBED, GENERATION)) -> tuple[Record, ...]:
    """Stop the running services of these names; returns the records of those that ran."""
    with services.exclusive():
        return tuple(record for name in names if (record := _stop(name)) is not None)


def _stop(service: str) -> Record | None:
    record = services.find(service)
    if record is not None:
        services.stop(record, grace_s=STOP_GRACE_S)
    # also the record of a supervisor that was killed, and so could not remove it
    services.record_file(service).unlink(missing_ok=True)
    return record


def _generation(settings: Settings, plan: Plan, on_phase: OnPhase, begun: list[psutil.Popen]) -> Started:
    generation = plan.generation
    if generation.engine != "process":
        _stop(GENERATION)
        return Started(GENERATION, generation.engine, generation.url, generation.model, reason=generation.reason)
    if generation.conversion is not None:
        _convert(generation.conversion, settings, on_phase)
    return _ensure(GENERATION, settings, on_phase, begun)


def _ensure(service: str, settings: Settings, on_phase: OnPhase, begun: list[psutil.Popen]) -> Started:
    """A service that runs with the same settings is kept; one with other settings is replaced."""
    record, action = services.find(service), "started"
    changed: tuple[str, ...] = ()
    if record is not None:
        changed = _differences(record, settings)
        if not changed:
            # it goes on as it is, and generation may have moved
            services.write(dataclasses.replace(record, beside=services.beside_of(settings)))
            _wait(record.url, Adopted(record), service, settings, on_phase)
            return _started(record, "already running", 0.0, ())
        action = "restarted"
        on_phase(service, Phase("stopping, since its settings changed"))
        _stop(service)
    _require_free_port(service, settings)
    process = _spawn(service, settings, begun)
    seconds = _wait(_url(service, settings), process, service, settings, on_phase)
    record = services.find(service)
    if record is None:
        raise diagnose.to_error(
            TITLES[service], wait.read_tail(paths.log_file(service)), "ended", f"qmd-remote logs {service}"
        )
    return _started(record, action, seconds, changed)


def _started(record: Record, action: str, seconds: float, changed: tuple[str, ...]) -> Started:
    return Started(record.service, action, record.url, record.model, record.pid, round(seconds, 1), changed)


def _differences(record: Record, settings: Settings) -> tuple[str, ...]:
    """The settings that differ between a running service and what is wanted, as "name: old → new"; keys unseen."""
    wanted = services.spec_of(record.service, settings)
    return tuple(
        name if name == "api_key" else f"{name}: {record.spec.get(name)} → {value}"
        for name, value in wanted.items()
        if record.spec.get(name) != value
    )


def _address(service: str, settings: Settings) -> tuple[str, int]:
    return ("127.0.0.1", settings.generation_port) if service == GENERATION else (settings.host, settings.port)


def _url(service: str, settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.generation_port}" if service == GENERATION else settings.url


def _require_free_port(service: str, settings: Settings) -> None:
    """Raise PrerequisiteError when somebody else listens where the service should: its answers are not ours."""
    host, port = _address(service, settings)
    flag = "--generation-port" if service == GENERATION else "--port"
    listen(host, port, holder=services.port_holder, flag=flag).close()


def _spawn(service: str, settings: Settings, begun: list[psutil.Popen]) -> psutil.Popen:
    """Start a service's supervisor detached from this terminal; its output goes to a fresh log file."""
    log_file = paths.log_file(service)
    paths.make_private(log_file.parent)
    if log_file.exists():
        log_file.replace(log_file.with_suffix(".log.1"))
    module = ["qmd_remote.launch.keeper"] if service == GENERATION else ["qmd_remote", "serve", "--managed", "--json"]
    with os.fdopen(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log:
        process = psutil.Popen(
            python_module(*module),
            env={**os.environ, **settings.to_env(), **paths.home_env(), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=paths.make_private(paths.run_dir()),
        )
    begun.append(process)
    return process


def _wait(url: str, process: wait.Process, service: str, settings: Settings, on_phase: OnPhase) -> float:
    return wait.until_ready(
        TITLES[service],
        url,
        process,
        log_file=paths.log_file(service),
        limits=wait.Limits(settings.stall_limit_s, settings.start_limit_s),
        on_phase=lambda phase: on_phase(service, phase),
        key=settings.key if service == EMBED else "",
    )


def _convert(conversion: Conversion, settings: Settings, on_phase: OnPhase) -> None:
    """Convert the GGUF file unless that was done before. Raises ServiceFailed, or WaitEnded at a limit."""
    if convert_gguf.is_converted(conversion.cache, conversion.model, conversion.source):
        return
    on_phase(GENERATION, Phase("converting its weights, once"))
    log_file = paths.make_private(paths.log_dir()) / "convert.log"
    argv = python_module(
        "qmd_remote.launch.convert_gguf", str(conversion.source), str(conversion.cache), conversion.model
    )
    with log_file.open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    pace = wait.Pace("the conversion", log_file, wait.Limits(settings.stall_limit_s, settings.start_limit_s))
    try:
        while process.poll() is None:
            phase = phases.latest(wait.read_tail(log_file)) or Phase("starting")
            if pace.moves_on(phase):
                on_phase(GENERATION, Phase(f"converting its weights: {phase.name}", phase.percent))
            time.sleep(wait.POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
            convert_gguf.clear_partial(conversion.cache, conversion.model)
    if process.returncode != 0:
        how = f"ended with exit code {process.returncode}"
        raise diagnose.to_error(
            "the conversion of the generation model", wait.read_tail(log_file), how, f"the full log is {log_file}"
        )
