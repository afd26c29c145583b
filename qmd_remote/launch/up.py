"""Bringing the services up. Whatever a failed or interrupted `up` started is stopped again."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from qmd_remote import logbook, paths, services, supervision
from qmd_remote.errors import Interrupted
from qmd_remote.launch import containers, diagnose, down, wait
from qmd_remote.launch.engine import STOP_GRACE_S
from qmd_remote.launch.phases import Phase
from qmd_remote.launch.plan import Plan
from qmd_remote.reach import is_loopback
from qmd_remote.services import EMBED, GENERATION, TITLES, Record
from qmd_remote.settings import Settings
from qmd_remote.supervision import end_with_parent, listen, python_module

REGISTERED_S = 60.0  # a supervisor needs less than a second where nothing else is going on
OURS = frozenset({"process", containers.DOCKER})  # the generation engines that we start ourselves
DIGESTS = frozenset({"api_key", "certificate"})  # what a record keeps of them tells a person nothing

OnPhase = Callable[[str, Phase], None]


@dataclass(frozen=True)
class Started:
    """What `up` did about one service: `action` is started, restarted, starting, already running, external or off."""

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
        """None while the process lives; its exit code cannot be known by others than its parent: UNKNOWN then."""
        return None if services.process_of(self.record) else wait.UNKNOWN


def absolute(settings: Settings) -> Settings:
    """The settings with local folders and files as absolute paths, since services run in a folder of their own."""
    names = ("embed_model", "rerank_model", "generation_model", "api_key_file")
    changes: dict[str, Any] = {name: paths.in_full(getattr(settings, name), follow=True) for name in names}
    # a renewed certificate is put behind the same link
    changes |= {name: paths.in_full(getattr(settings, name)) for name in ("tls_cert", "tls_key")}
    changes["trust_remote_code"] = tuple(paths.in_full(name, follow=True) for name in settings.trust_remote_code)
    return dataclasses.replace(settings, **changes)


class Launch:
    """One `up`: brings every planned service up, generation first.

    `waits` until each is ready; without it both are started and left to it. With `foreground` the services are ours
    alone: what runs already is replaced, and the kernel ends them when this process ends, however it ends.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        on_phase: OnPhase,
        *,
        on_warning: Callable[[str], None] = lambda _: None,
        waits: bool = True,
        foreground: bool = False,
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.on_phase = on_phase
        self.on_warning = on_warning
        self.waits = waits
        self.foreground = foreground
        self.begun: dict[str, psutil.Popen] = {}
        self.leashes = ExitStack()

    def run(self) -> tuple[Started, ...]:
        """Do it.

        Raises ServiceFailed, WaitEnded or PrerequisiteError; nothing that this call started is left running then.
        """
        with services.exclusive():
            # before anything takes its time: a conversion, an engine's start
            for warning in containers.preflight(self.plan):
                self.on_warning(warning)
            # one that is left over, after a reboot say, would hold the port of what is wanted now, and answer for it
            for found in containers.sweep(but=containers.planned(self.plan)):
                self.on_phase(found.service, Phase(f"stopped its container {found.name}, which is not wanted now"))
            for service in (GENERATION, EMBED) if self.plan.generation.engine in OURS else (EMBED,):
                if services.find(service) is None:
                    self._require_free_port(service)
            try:
                return self._generation(), self._ensure(EMBED)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and self._goes_on():
                    raise Interrupted(
                        "what has begun goes on starting in the background",
                        hint="to wait for it again: qmd-remote up; to see how far it is: qmd-remote status --watch; "
                        "to stop it: qmd-remote down",
                        code="detached",
                    ) from None
                self.undo()
                raise

    def restart(self, names: Sequence[str]) -> tuple[Started, ...]:
        """Stop these services and start them again with the same settings. Raises as `run`."""
        with services.exclusive():
            try:
                return tuple(self._replace(name, ()) for name in names)
            except BaseException:
                self.undo()
                raise

    def undo(self) -> None:
        """Stop what was begun; a second Ctrl-C does not leave half of it, the grace bounds how long it takes."""
        with _deaf():
            for process in self.begun.values():
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            grace = max(self.settings.shutdown_limit_s, STOP_GRACE_S if containers.planned(self.plan) else 0)
            for process in self.begun.values():
                services.end_tree(process, grace_s=grace + down.STOP_MARGIN_S)
            self.leashes.close()
            for service in services.SERVICES:
                # one that was stopped before it listened to signals could not remove its record
                if services.find(service) is None:
                    services.record_file(service).unlink(missing_ok=True)

    def _goes_on(self) -> bool:
        """Whether what was begun may be left alone: a container of vLLM can be found, and is too dear to begin anew.

        An embed server that cannot be found yet ends with us.
        """
        record = services.find(GENERATION)
        begun = self.begun.get(GENERATION)
        if record is None or record.program != containers.DOCKER or self.foreground:
            return False
        return begun is None or begun.pid == record.pid

    def _generation(self) -> Started:
        generation = self.plan.generation
        if generation.engine not in OURS:
            running = services.find(GENERATION)
            if running is not None:
                down.require_background(running)
                self.on_phase(GENERATION, Phase(f"stopping, since generation is {generation.engine} now"))
            down.stop(GENERATION)
            return Started(GENERATION, generation.engine, generation.url, generation.model, reason=generation.reason)
        return self._ensure(GENERATION)

    def _ensure(self, service: str) -> Started:
        """A service that runs with the same settings is kept; one with other settings is replaced."""
        record = services.find(service)
        if record is None:
            self._require_free_port(service)
            return self._start(service, "started", ())
        changed = differences(record, self.settings)
        container = containers.planned(self.plan).get(service)
        if not changed and container is not None and containers.has_other_image(container):
            changed = (f"image: {container.image} is another one now",)
        if changed or self.foreground:
            return self._replace(service, changed)
        # it goes on as it is, and generation may have moved
        services.write(services.refreshed(record, self.settings))
        if self.waits:
            self._wait(record.url, Adopted(record), service)
        return _started(record, "already running", 0.0, ())

    def _replace(self, service: str, changed: tuple[str, ...]) -> Started:
        record = services.find(service)
        if record is not None:
            down.require_background(record)
            why = f", since its settings changed ({'; '.join(changed)})" if changed else ""
            if not record.url.endswith(f":{self._place(service)[1]}"):
                self._require_free_port(service)  # before the one that runs is stopped
            self.on_phase(service, Phase(f"stopping{why}"))
        down.stop(service)
        self._require_free_port(service)
        return self._start(service, "restarted", changed)

    def _start(self, service: str, action: str, changed: tuple[str, ...]) -> Started:
        process = self._spawn(service)
        url = self.settings.generation_at if service == GENERATION else self.settings.url
        if not self.waits or service in containers.planned(self.plan):
            # a container that is adopted answers before its keeper is there
            self._wait_registered(service, process)
        if not self.waits:
            model = self.settings.generation_model if service == GENERATION else self.settings.embed_model
            return Started(service, "starting", url, model, process.pid, changed=changed)
        seconds = self._wait(url, process, service)
        record = services.find(service)
        if record is None:
            raise diagnose.to_error(
                TITLES[service], wait.read_tail(paths.log_file(service)), "ended", f"qmd-remote logs {service}"
            )
        return _started(record, action, seconds, changed)

    def _wait_registered(self, service: str, process: psutil.Popen) -> None:
        """Wait until the supervisor lives on without us, and can be found. Raises ServiceFailed when it ends before."""
        until = time.monotonic() + REGISTERED_S
        while (record := services.find(service)) is None or record.pid != process.pid:
            code = process.poll()
            if code is not None or time.monotonic() > until:
                how = f"did not come up within {REGISTERED_S:.0f} s" if code is None else f"ended with exit code {code}"
                log = wait.read_tail(paths.log_file(service))
                raise diagnose.to_error(TITLES[service], log, how, f"qmd-remote logs {service}")
            time.sleep(wait.POLL_S)

    def _require_free_port(self, service: str) -> None:
        """Raise PrerequisiteError when somebody else listens where the service should: its answers are not ours.

        A container's port may be held by the same container, which will be adopted; the engine's preflight looks.
        """
        container = containers.planned(self.plan).get(service)
        # one with the host's own network listens by itself, and no preflight of the engine knows of its port
        if container is not None and (container.publish is not None or containers.without_keeper([service])):
            return
        host, port, flag = self._place(service)
        listen(host, port, holder=services.port_holder, flag=flag).close()

    def _place(self, service: str) -> tuple[str, int, str]:
        """The address and port of a service, and the option that names the port."""
        if service == GENERATION:
            return "127.0.0.1", self.settings.generation_port, "--generation-port"
        return self.settings.host, self.settings.port, "--port"

    def _spawn(self, service: str) -> psutil.Popen:
        """Start a service's supervisor, out of reach of the terminal's Ctrl-C; its output goes to a fresh log file.

        Until it is registered it ends with us, so that none is left that nobody can find; in the foreground always.
        """
        kept = service == GENERATION or service in containers.planned(self.plan)
        memory = self.plan.generation.memory  # what they share, if they do
        second = service == EMBED and not self.waits and memory is not None and memory.demand.embed > 0
        module = ["qmd_remote.launch.keeper", service] if kept else ["qmd_remote", "serve", "--managed", "--json"]
        with logbook.begin(paths.log_file(service)) as log:
            process = psutil.Popen(
                python_module(*module),
                env={
                    **os.environ,
                    **self.settings.to_env(),
                    **paths.home_env(),
                    "PYTHONUNBUFFERED": "1",
                    services.STAYS_WITH_PARENT: "1" if self.foreground else "",
                    services.AFTER_GENERATION: "1" if second else "",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # in the foreground a group of its own in our session, which a leash can join
                start_new_session=not self.foreground,
                process_group=0 if self.foreground else None,
                preexec_fn=functools.partial(end_with_parent, os.getpid()),
                cwd=paths.make_private(paths.run_dir()),
            )
        self.begun[service] = process
        if self.foreground:
            hold = supervision.leashed(process.pid)
            if hold is not None:
                self.leashes.callback(hold.release)
        return process

    def _wait(self, url: str, process: wait.Process, service: str) -> float:
        generation = service == GENERATION
        published = self.plan.generation.container is not None and not is_loopback(self.settings.generation_host)
        return wait.until_ready(
            TITLES[service],
            url,
            process,
            log_file=paths.log_file(service),
            limits=wait.Limits(self.settings.stall_limit_s, self.settings.start_limit_s),
            on_phase=lambda phase: self.on_phase(service, phase),
            key=self.settings.key if not generation or published else "",
            certificate="" if generation else self.settings.tls_cert,
            served=self.settings.generation_model if generation and self.plan.generation.container else "",
        )


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


def _started(record: Record, action: str, seconds: float, changed: tuple[str, ...]) -> Started:
    return Started(record.service, action, record.url, record.model, record.pid, round(seconds, 1), changed)


def differences(record: Record, settings: Settings) -> tuple[str, ...]:
    """The settings that differ between a running service and what is wanted, as "name: old → new"; keys unseen."""
    wanted = services.spec_of(record.service, settings)
    return tuple(
        name if name in DIGESTS else f"{name}: {_shown(record.spec.get(name))} → {_shown(value)}"
        for name, value in wanted.items()
        if record.spec.get(name) != value
    )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)
