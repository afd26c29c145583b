"""Keeping one child process alive: start it, notice its end, restart it by one policy, take it along when we go.

The embed server and the generation engine are supervised by the same code. The parent also holds the listening
socket, so a caller that comes while the child is down waits in the kernel's queue instead of being refused.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx

from qmd_remote.errors import ApiError, ConfigError, PrerequisiteError, Unavailable

log = logging.getLogger("qmd_remote.supervision")

CALLER_PATIENCE_S = 60.0
BACKLOG = 2048
CANNOT_START = 127  # as a shell says it
PR_SET_PDEATHSIG = 1


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
    """What to run. `ready` asks whether it serves; `argv` must not hold secrets, `env` may."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[], Awaitable[bool]]
    pass_fds: Sequence[int] = ()
    cwd: Path | None = None
    grace_s: float = 30.0


class Supervisor:
    """Runs one child until told to stop.

    A child that ends by itself before it was ever ready is a failed start: it is not restarted, and its exit code
    is the result. One that is killed by a signal while starting gets `STARTS` tries. After the first readiness every
    end is a crash and is followed by a restart, for ever.
    """

    STARTS = 3
    POLL_S = 0.2

    def __init__(self, child: Child, *, policy: RestartPolicy | None = None) -> None:
        self.child = child
        self.policy = policy or RestartPolicy()
        self.stopping = asyncio.Event()
        self._ready_at: float | None = None
        self._was_ready = False

    async def run(self, while_down: Callable[[float], Awaitable[None]] | None = None) -> int:
        """Supervise until SIGTERM or SIGINT; returns the exit code for the whole process.

        `while_down(delay)` runs during each back-off, to answer callers that waited long enough.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        while True:
            code = await self._run_once()
            if self.stopping.is_set():
                return 0
            if not self._was_ready and (code >= 0 or self.policy.crashes + 1 >= self.STARTS):
                return code if code > 0 else 1
            delay = self.policy.next_delay(self._healthy_for())
            log.warning("%s %s; restarting %s", self.child.name, _how_it_ended(code), _when(delay))
            await self._pause(delay, while_down)
            if self.stopping.is_set():
                return 0

    async def _run_once(self) -> int:
        """Start the child and wait for its end, or stop it when we are told to. Returns its exit code."""
        self._ready_at = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self.child.argv,
                env=dict(self.child.env),
                cwd=self.child.cwd,
                pass_fds=self.child.pass_fds,
                stdin=asyncio.subprocess.DEVNULL,
                preexec_fn=functools.partial(end_with_parent, os.getpid()),
                process_group=0,
            )
        except OSError as error:  # no such program, no memory: what the system refuses now it may grant later
            log.error("%s cannot be started: %s", self.child.name, error)
            return CANNOT_START
        log.info("%s started (pid %d)", self.child.name, process.pid)
        ended = asyncio.ensure_future(process.wait())
        stop = asyncio.ensure_future(self.stopping.wait())
        watch = asyncio.ensure_future(self._watch_readiness())
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._stop(process, ended)
            return ended.result()
        finally:
            # what the child started holds ports and GPU memory that its successor needs
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            for task in (stop, watch):
                task.cancel()
            await asyncio.gather(stop, watch, return_exceptions=True)

    async def _stop(self, process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(ended), self.child.grace_s)
        except TimeoutError:
            log.warning("%s did not end within %.0f s and is killed", self.child.name, self.child.grace_s)
            with suppress(ProcessLookupError):
                process.kill()
            await ended

    async def _watch_readiness(self) -> None:
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


async def answers_ok(url: str) -> bool:
    """Whether a service's health check answers 200."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
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
        raise ConfigError(f"'{host}' is no address of this machine: {error}", code="bind.address") from None
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
        raise ConfigError(f"'{host}' is no address of this machine: {error.strerror}", code="bind.address") from None
    server.setblocking(False)
    return server


async def turn_away(server: socket.socket, delay: float, what: str) -> None:
    """During a back-off of `delay` seconds: let callers wait for 60 s, then answer 503 until the back-off ends."""
    if delay <= CALLER_PATIENCE_S:
        return  # they wait for the next child
    await asyncio.sleep(CALLER_PATIENCE_S)
    loop = asyncio.get_running_loop()
    until = loop.time() + delay - CALLER_PATIENCE_S
    answering: set[asyncio.Task[None]] = set()

    def accept() -> None:
        # taken and handed to its task in one step: asyncio's own server loses callers that it accepts while it closes,
        # and shortens the queue of the socket that it is given
        with suppress(OSError):
            connection, _ = server.accept()
            task = loop.create_task(_turn_one_away(connection, max(1, round(until - loop.time())), what))
            answering.add(task)
            task.add_done_callback(answering.discard)

    loop.add_reader(server, accept)
    try:
        await asyncio.sleep(delay - CALLER_PATIENCE_S)
    finally:
        loop.remove_reader(server)


async def _turn_one_away(connection: socket.socket, left: int, what: str) -> None:
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    message = f"{what} crashed and is restarted in {left} s"
    await refuse(reader, writer, Unavailable(message, code="restarting", retry_after=left))
    writer.close()


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: ApiError) -> None:
    """Answer one connection with an error in OpenAI's shape; the caller of this closes it."""
    body = json.dumps(error.body()).encode()
    head = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *([f"retry-after: {error.retry_after}"] if error.retry_after else []),
    ]
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(5):
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            await writer.drain()
            writer.write_eof()
            # unread bytes at close would turn into a reset that can overtake the answer
            while await reader.read(65536):
                pass


def end_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when process `parent` dies, however it dies (Linux; elsewhere a no-op)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew of our wish
            os._exit(1)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _when(delay: float) -> str:
    return "at once" if delay == 0 else f"in {delay:.0f} s"
