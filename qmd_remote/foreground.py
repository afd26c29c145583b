"""`up --foreground`: the services' logs as they come, and one end for all of them; and logs beside a wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from qmd_remote import paths, services
from qmd_remote.errors import Exit, ServiceFailed
from qmd_remote.launch import logs
from qmd_remote.launch.up import Launch, Started
from qmd_remote.output import Output
from qmd_remote.services import TITLES

POLL_S = 0.25


def run(out: Output, launch: Launch, on_ready: Callable[[tuple[Started, ...]], int]) -> int:
    """Start, show the logs, and stay until a signal, a `down` elsewhere, or the end of a service.

    SIGINT, SIGTERM and SIGHUP stop both services, let running requests finish, and end with 0. A service that ends by
    itself takes the other one with it and ends with 1, so that a service manager starts both again.
    """
    stop = threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()

    with logs_shown(out, only_if=True):
        with out.progress("starting"):
            started = launch.run()
        try:
            # from now on an interruption is no failure; a start that is interrupted has been undone by `run`
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if (
                    number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
                ):  # under nohup it stays ignored
                    signal.signal(number, asked)
            on_ready(started)
            ended = _watch(launch, stop)
        finally:
            # the terminal may be gone (rich ends the program then), and the services are not
            with suppress(OSError, SystemExit):
                out.note("stopping both services; running requests are finished first")
            launch.undo()
    if ended is None:
        return out.finish({})
    service, code = ended
    if code == Exit.OK:
        out.note(f"{TITLES[service]} was stopped by another command")
        return out.finish({})
    raise ServiceFailed(
        f"the {TITLES[service]} ended with exit code {code}, and the other one was stopped",
        hint=f"qmd-remote logs {service}",
    )


def _watch(launch: Launch, stop: threading.Event) -> tuple[str, int] | None:
    """The first service that ends, with its exit code; None when we are told to stop."""
    while not stop.wait(POLL_S):
        for service, process in launch.begun.items():
            code = process.poll()
            if code is not None:
                return service, code
    return None


@contextmanager
def logs_shown(out: Output, *, only_if: bool) -> Iterator[None]:
    """Show what is added to the services' logs while the block runs."""
    if not only_if or out.quiet or out.as_json:
        yield
        return
    done = threading.Event()
    files = {name: paths.log_file(name) for name in services.SERVICES}

    lines = logs.follow(files, stop=done)  # here, not in the thread: what comes from now on is shown

    def show() -> None:
        for name, line in lines:
            out.log_line(name, line)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)
