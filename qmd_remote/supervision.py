"""Keeping one child process alive: start it, notice its end, restart it by one policy, take it along when we go.

The embed server and the generation engine are supervised by the same code. The parent also holds the listening
socket, so a caller that comes while the child is down waits in the kernel's queue instead of being refused.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from qmd_remote import leash
from qmd_remote.errors import ConfigError, PrerequisiteError
from qmd_remote.logbook import STAMPED, Intake, Logbook
from qmd_remote.stop_wish import StopWish

log = logging.getLogger("qmd_remote.supervision")

BACKLOG = 2048
AN_ADDRESS = "its addresses are listed by: ip address; all of them are --host 0.0.0.0"
# CUDA's own order is the fastest first; ours, and the one in which people count, is that of nvidia-smi
GPU_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
CANNOT_START = 127  # as a shell says it
PR_SET_PDEATHSIG = 1
# loaded here: between fork and exec nothing may wait for a lock that another thread held at the fork
LIBC = ctypes.CDLL(None)


@dataclass
class RestartPolicy:
    """How long to wait before a restart: the first is immediate, then 2, 4, 8 … seconds, at most `longest_s`.

    `healthy_s` of readiness wipe the slate clean.
    """

    longest_s: float = 300.0
    healthy_s: float = 600.0
    crashes: int = 0

    def next_delay(self, ready_for_s: float) -> float:
        """The wait (seconds) after a crash of a child that had been ready for `ready_for_s` seconds."""
        self.crashes = 1 if ready_for_s >= self.healthy_s else self.crashes + 1
        # the exponent is bounded so that a child that crashes for years cannot overflow
        return 0.0 if self.crashes == 1 else min(2.0 ** min(self.crashes - 1, 30), self.longest_s)


@dataclass(frozen=True)
class Child:
    """What to run. `ready` asks whether it serves; `argv` must not hold secrets, `env` may.

    `prefix` stands before each of its lines in a logbook. For a child that is `finite`, an end with 0 is no crash.
    `until_hung` begins when it is ready, and returns when it says so and works on nothing: that counts as a crash.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[], Awaitable[bool]]
    pass_fds: Sequence[int] = ()
    cwd: Path | None = None
    grace_s: float = 30.0
    prefix: bytes = b""
    finite: bool = False
    until_hung: Callable[[], Awaitable[None]] | None = None


class Supervisor:
    """Runs one child until told to stop.

    A child that ends by itself before it was ever ready is a failed start: it is not restarted, and its exit code
    is the result. One that is killed by a signal while starting gets `STARTS` tries. After the first readiness every
    end is a crash and is followed by a restart, for ever.

    `before_stop` runs once when it is told to stop, before the child is: what runs there may finish. With a `book` the
    child's output goes there line by line, and its last lines are kept when it ends unasked; without one the child
    inherits stdout and stderr. `wish` is shared by supervisors that follow each other. `after_crash` runs when a child
    has ended that will be restarted.
    """

    STARTS = 3
    POLL_S = 0.2

    def __init__(
        self,
        child: Child,
        *,
        policy: RestartPolicy | None = None,
        before_stop: Callable[[], Awaitable[None]] | None = None,
        book: Logbook | None = None,
        wish: StopWish | None = None,
        after_crash: Callable[[], None] | None = None,
    ) -> None:
        self.child = child
        self.policy = policy or RestartPolicy()
        self.before_stop = before_stop
        self.restarts = 0
        self.book = book
        self.after_crash = after_crash
        self.wish = wish or StopWish()
        self.stopping = self.wish.asked
        self._ready_at: float | None = None
        self._was_ready = False
        self._last_words: Path | None = None

    async def run(self, while_down: Callable[[float], Awaitable[None]] | None = None) -> int:
        """Supervise until SIGTERM or SIGINT; returns the exit code for the whole process.

        A second SIGTERM changes nothing. A second SIGINT (Ctrl-C) ends the child at once, whatever it still works on.
        `while_down(delay)` runs during each back-off, to answer callers that waited long enough.
        """
        with self.wish.heeded_in_loop():
            code = await self._run(while_down)
            await self._before_stop()
            return code

    async def _run(self, while_down: Callable[[float], Awaitable[None]] | None) -> int:
        while not self.stopping.is_set():
            code = await self.run_once()
            if self.stopping.is_set():
                break
            if not self._was_ready and (code >= 0 or self.policy.crashes + 1 >= self.STARTS):
                return code if code > 0 else 1
            delay = self.policy.next_delay(self._healthy_for())
            kept = f"; its last lines are in {self._last_words}" if self._last_words else ""
            log.warning("%s %s; restarting %s%s", self.child.name, how_it_ended(code), _when(delay), kept)
            if self.after_crash:
                self.after_crash()
            await self._pause(delay, while_down)
            self.restarts += 1
        return 0

    async def run_once(self) -> int:
        """Start the child and wait for its end, or stop it when we are told to. Returns its exit code."""
        self._ready_at = self._last_words = None
        intake: Intake | None = None
        try:
            intake = await self.book.intake(self.child.prefix) if self.book else None
            process = await asyncio.create_subprocess_exec(
                *self.child.argv,
                env={**self.child.env, **({STAMPED: "1"} if intake else {})},
                cwd=self.child.cwd,
                pass_fds=self.child.pass_fds,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=intake.fd if intake else None,
                stderr=intake.fd if intake else None,
                preexec_fn=functools.partial(end_with_parent, os.getpid()),
                process_group=0,
            )
        except OSError as error:  # no such program, no memory: what the system refuses now it may grant later
            if intake:
                await intake.finish()
            log.error("%s cannot be started: %s", self.child.name, error)
            return CANNOT_START
        log.info("%s started (pid %d)", self.child.name, process.pid)
        code = await self._until_its_end(process)
        if intake and self.book:
            await intake.finish()
            if not (self.stopping.is_set() or (self.child.finite and code == 0)):
                how = f"{self.child.name} (pid {process.pid}) {how_it_ended(code)}"
                self._last_words = self.book.keep_crash(how, intake.recent)
        return code

    async def _until_its_end(self, process: asyncio.subprocess.Process) -> int:
        tie = leashed(process.pid)
        ended = asyncio.ensure_future(process.wait())
        stop = asyncio.ensure_future(self.stopping.wait())
        watch = asyncio.ensure_future(self._watch(process))
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._stop(process, ended)
            return ended.result()
        finally:
            # What the child started holds ports and GPU memory that its successor needs. The child itself has been
            # waited for; the leash is what keeps its group's number from being given to others.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if tie:
                tie.release()
            for task in (stop, watch):
                task.cancel()
            await asyncio.gather(stop, watch, return_exceptions=True)

    async def _before_stop(self) -> None:
        """Run the hook if there is one, once, to its end or until there is a hurry."""
        hook, self.before_stop = self.before_stop, None
        if hook is not None:
            await self._unless_in_a_hurry(asyncio.ensure_future(hook()))

    async def _stop(self, process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
        await self._before_stop()
        with suppress(ProcessLookupError):
            process.terminate()
        await self._unless_in_a_hurry(asyncio.shield(ended), self.child.grace_s)
        if not ended.done():
            log.warning("%s did not end within %.0f s and is killed", self.child.name, self.child.grace_s)
            with suppress(ProcessLookupError):
                process.kill()
            await ended

    async def _unless_in_a_hurry(self, work: asyncio.Future[Any], limit_s: float | None = None) -> None:
        """Wait for `work`; it is given up after `limit_s` seconds, or when somebody is in a hurry."""
        hurry = asyncio.ensure_future(self.wish.hurry.wait())
        try:
            await asyncio.wait({work, hurry}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for one in (work, hurry):
                one.cancel()
            await asyncio.gather(work, hurry, return_exceptions=True)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        await self._until_ready()
        if self.child.until_hung is None:
            return
        await self.child.until_hung()
        log.warning("%s says that it is well, and completes nothing: it is ended", self.child.name)
        with suppress(ProcessLookupError):
            process.terminate()
            await asyncio.sleep(self.child.grace_s)  # cancelled as soon as it has ended
            process.kill()

    async def _until_ready(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not await self.child.ready():  # noqa: ASYNC110 - another process becomes ready, and that is no event here
            await asyncio.sleep(self.POLL_S)
        self._ready_at, self._was_ready = loop.time(), True
        log.info("%s ready after %.1f s", self.child.name, self._ready_at - started)

    def _healthy_for(self) -> float:
        return 0.0 if self._ready_at is None else asyncio.get_running_loop().time() - self._ready_at

    async def _pause(self, delay: float, while_down: Callable[[float], Awaitable[None]] | None) -> None:
        helper = asyncio.ensure_future(while_down(delay)) if while_down and delay > 0 else None
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), delay or 0.001)
        if helper:
            helper.cancel()
            await asyncio.gather(helper, return_exceptions=True)


def leashed(group: int) -> leash.Leash | None:
    """What ends the child's whole group if we are killed; None, with a warning, when the system refuses."""
    try:
        return leash.watch(group)
    except OSError as error:
        log.warning("nothing will end what the child starts if this process is killed: %s", error)
        return None


async def answers_ok(url: str, verify: ssl.SSLContext | bool = True) -> bool:
    """Whether a service's health check answers 200; `verify` is what its certificate must satisfy."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=5, verify=verify) as client:
            return (await client.get(f"{url}/health")).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python."""
    # -P: a file in the user's folder that is named like a library must not be imported for it
    return [sys.executable, "-P", "-m", module, *arguments]


def listen(host: str, port: int, *, holder: Callable[[int], str] = lambda _: "", flag: str = "--port") -> socket.socket:
    """A listening TCP socket. Raises PrerequisiteError when the port is taken, naming its holder, or ConfigError.

    `flag` is the option that the hint names.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        server = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"'{host}' is no address of this machine: {error}", hint=AN_ADDRESS, code="bind.address"
        ) from None
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(BACKLOG)
    except PermissionError:
        server.close()
        raise PrerequisiteError(
            f"port {port} needs root", hint=f"choose a port from 1024 up with {flag}", code="port.permission"
        ) from None
    except OSError as error:
        server.close()
        if error.errno == 98 or "in use" in str(error):
            who = holder(port)
            raise PrerequisiteError(
                f"port {port} is taken" + (f" by {who}" if who else ""),
                hint=f"stop that program, or choose another port with {flag}",
                code="port.taken",
            ) from None
        raise ConfigError(
            f"'{host}' is no address of this machine: {error.strerror}", hint=AN_ADDRESS, code="bind.address"
        ) from None
    server.setblocking(False)
    return server


def end_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when process `parent` dies, however it dies (Linux; elsewhere a no-op)."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew of our wish
            os._exit(1)


def outlive_parent() -> None:
    """Take back what `end_with_parent` asked for: this process can be found and ended without its parent now."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, 0)


def how_it_ended(code: int) -> str:
    """An exit code, negative for a signal, in words."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _when(delay: float) -> str:
    return "at once" if delay == 0 else f"in {delay:.0f} s"
