"""Keeping a child alive, with real processes and sockets: restarts, failed starts, stops, and callers that wait."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote import logbook
from qmd_remote.logbook import Logbook
from qmd_remote.reception import turn_away
from qmd_remote.supervision import Child, RestartPolicy, Supervisor, listen

LIMIT_S = 10

# serves its pid on the inherited socket; MARKER tells that it is up; "stubborn" ignores SIGTERM, "family" has a child
CHILD = """
import os, pathlib, signal, socket, subprocess, sys
listener, marker, kind = socket.socket(fileno=int(sys.argv[1])), pathlib.Path(sys.argv[2]), sys.argv[3]
listener.setblocking(True)
if kind == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if kind == "family":
    family = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    marker.with_suffix(".family").write_text(str(family.pid))
draft = marker.with_suffix(".draft")
draft.write_text(str(os.getpid()))
draft.replace(marker)
while True:
    connection = listener.accept()[0]
    connection.recv(65536)
    connection.sendall(b"%d" % os.getpid())
    connection.close()
"""
# a supervisor in a process of its own, as `qmd-remote serve` is one
DRIVER = """
import asyncio, os, pathlib, sys
from qmd_remote import supervision
port, marker, argv, grace = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[4:], float(sys.argv[3])
async def ready():
    return marker.exists()
with supervision.listen("127.0.0.1", port) as listener:
    argv[argv.index("FD")] = str(listener.fileno())
    child = supervision.Child("child", argv, os.environ, ready, [listener.fileno()], grace_s=grace)
    sys.exit(asyncio.run(supervision.Supervisor(child).run()))
"""


def alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], object]) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


async def soon(condition: Callable[[], object]) -> None:
    """Poll until a condition holds, while the event loop works."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.01)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket as the supervisor holds it."""
    with listen("127.0.0.1", 0) as server:
        yield server


class Box:
    """A child program in a folder, what it says of itself, and callers on its socket."""

    def __init__(self, listener: socket.socket, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.listener, self.folder, self.marker, self.log = listener, folder, folder / "up", caplog
        caplog.set_level("INFO")

    def was_ready(self) -> bool:
        """Whether the supervisor saw its child ready."""
        return any("child ready after" in message for message in self.log.messages)

    @property
    def pid(self) -> int:
        """The pid of the child that is up, else 0."""
        pid = int(self.marker.read_text() or 0) if self.marker.exists() else 0
        return pid if pid and alive(pid) else 0

    async def ready(self) -> bool:
        return self.pid != 0

    def child(self, kind: str = "plain", *, argv: list[str] | None = None) -> Child:
        """The serving child, or another command."""
        fd = self.listener.fileno()
        command = argv or [sys.executable, "-c", CHILD, str(fd), str(self.marker), kind]
        return Child("child", command, dict(os.environ), self.ready, pass_fds=[fd], grace_s=20)

    async def ask(self) -> int:
        """Connect now, and return the pid of whoever answers, sooner or later."""
        reader, writer = await asyncio.open_connection(*self.listener.getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(LIMIT_S):
            answer = await reader.read()
        writer.close()
        return int(answer)


@pytest.fixture
def box(listener: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Box:
    """Where a child lives."""
    return Box(listener, tmp_path, caplog)


@asynccontextmanager
async def supervised(
    child: Child, policy: RestartPolicy, while_down: Callable[[float], Awaitable[None]] | None = None
) -> AsyncIterator[Supervisor]:
    """A supervisor at work; at the end it is told to stop, and must do so without an error."""
    supervisor = Supervisor(child, policy=policy)
    running = asyncio.ensure_future(supervisor.run(while_down))
    try:
        yield supervisor
        assert not running.done()
    finally:
        supervisor.stopping.set()
        assert 0 == await running


# the policy


@given(st.lists(st.floats(0, 599), max_size=40))
def test_restarts_back_off_by_powers_of_two(ready_for: list[float]):
    """The first restart comes at once, the n-th after min(2ⁿ⁻¹, 300) seconds, as long as no child stays healthy."""
    policy = RestartPolicy()
    expected = [0.0 if n == 0 else min(2.0**n, 300.0) for n in range(len(ready_for))]
    assert expected == [policy.next_delay(seconds) for seconds in ready_for]


@given(st.integers(0, 5000), st.floats(600, 1e9))
def test_ten_healthy_minutes_wipe_the_slate_clean(crashes: int, ready_for: float):
    """After 600 healthy seconds the next crash is a first one again, however many there were."""
    policy = RestartPolicy(crashes=crashes)
    assert [0.0, 2.0, 4.0] == [policy.next_delay(ready_for), policy.next_delay(0), policy.next_delay(599.9)]


# a child's life


def test_a_crashed_child_is_restarted_at_once(box: Box):
    """A child killed while it serves is replaced without delay, and a caller that comes meanwhile is answered."""

    async def scene() -> None:
        async with supervised(box.child(), RestartPolicy()) as supervisor:
            first = await box.ask()
            await soon(box.was_ready)
            os.kill(first, signal.SIGKILL)
            await soon(lambda: not alive(first))  # a connection it had accepted would die with it
            second = await box.ask()
            assert first != second
            assert 1 == supervisor.policy.crashes
        assert not alive(second)

    asyncio.run(scene())
    assert "child was killed by SIGKILL; restarting at once" in box.log.messages


def test_a_child_that_hangs_is_ended_and_restarted(box: Box):
    """One that is said to hang counts as crashed, also when it does not hear SIGTERM; the next one is watched anew."""
    watches: list[int] = []

    async def hangs_once() -> None:
        watches.append(box.pid)
        if len(watches) > 1:
            await asyncio.Event().wait()

    async def scene() -> None:
        child = replace(box.child("stubborn"), until_hung=hangs_once, grace_s=0.2)
        async with supervised(child, RestartPolicy()) as supervisor:
            await soon(lambda: len(watches) > 1)
            first, second = watches
            assert first != second
            assert await box.ask() == second
            assert 1 == supervisor.policy.crashes

    asyncio.run(scene())
    assert "child says that it is well, and completes nothing: it is ended" in box.log.messages
    assert "child was killed by SIGKILL; restarting at once" in box.log.messages


def test_a_child_that_ends_by_itself_after_it_was_ready_is_restarted(box: Box):
    """Exit code 0 of a child that was asked nothing is a crash like any other."""
    code = "import pathlib, os, sys; p = pathlib.Path(sys.argv[1]); p.write_text(str(os.getpid())); sys.stdin.read()"
    code = code.replace("sys.stdin.read()", "\nwhile p.exists(): pass")

    async def scene() -> None:
        child = box.child(argv=[sys.executable, "-c", code, str(box.marker)])
        async with supervised(child, RestartPolicy()):
            await soon(box.was_ready)
            first = box.pid
            box.marker.unlink()
            await soon(lambda: box.pid not in {0, first})
        assert any("ended by itself with exit code 0; restarting" in line for line in box.log.messages)

    asyncio.run(scene())


def test_callers_wait_through_a_back_off(box: Box):
    """Who connects while a restart waits is neither refused nor turned away: the next child answers everyone."""

    async def scene() -> None:
        policy = RestartPolicy(longest_s=0.5, crashes=1)
        async with supervised(
            box.child(), policy, lambda delay: turn_away(box.listener, delay, "the server")
        ) as supervisor:
            first = await box.ask()
            await soon(box.was_ready)
            os.kill(first, signal.SIGKILL)
            await soon(lambda: supervisor.policy.crashes == 2)
            answers = await asyncio.gather(*(box.ask() for _ in range(5)), return_exceptions=True)
            assert [box.pid] * 5 == answers

    asyncio.run(scene())


def starter(folder: Path, end: str) -> list[str]:
    """A command that notes each of its starts and then ends."""
    note = f"open({str(folder / 'starts')!r}, 'a').write('x')"
    return [sys.executable, "-c", f"import os, sys; {note}; {end}"]


@pytest.mark.parametrize(
    ("end", "starts", "code"),
    [
        ("sys.exit(4)", 1, 4),
        ("sys.exit(0)", 1, 1),
        ("os.kill(os.getpid(), 9)", 3, 1),
        ("os.kill(os.getpid(), 11)", 3, 1),
    ],
)
def test_a_failed_start_is_not_repeated_for_ever(end: str, starts: int, code: int, box: Box):
    """A child that ends by itself before it was ready lends its exit code; a killed one has three tries."""
    supervisor = Supervisor(box.child(argv=starter(box.folder, end)), policy=RestartPolicy(longest_s=0.05))
    assert code == asyncio.run(supervisor.run())
    assert starts == len((box.folder / "starts").read_text())


def test_a_program_that_cannot_be_run_now_may_be_there_later(box: Box, tmp_path: Path):
    """After the first readiness even a restart that the system refuses (no program, no memory) is tried again."""
    program = tmp_path / "program"
    fd = str(box.listener.fileno())

    def install() -> None:
        program.write_text(f"#!{sys.executable}\n{CHILD}", encoding="utf-8")
        program.chmod(0o700)

    async def scene() -> None:
        child = box.child(argv=[str(program), fd, str(box.marker), "plain"])
        async with supervised(child, RestartPolicy(longest_s=0.05)) as supervisor:
            first = await box.ask()
            await soon(box.was_ready)
            program.unlink()
            os.kill(first, signal.SIGKILL)
            await soon(lambda: supervisor.policy.crashes >= 3)
            install()
            assert first != await box.ask()

    install()
    asyncio.run(scene())


@pytest.mark.skipif(sys.platform != "linux", reason="process groups are looked at through /proc")
def test_what_a_crashed_child_leaves_behind_ends_with_it(box: Box):
    """A killed engine's own children (they hold the GPU's memory) are gone when the next engine starts."""

    async def scene() -> None:
        async with supervised(box.child("family"), RestartPolicy()):
            first = await box.ask()
            await soon(box.was_ready)
            family = box.marker.with_suffix(".family")
            left = int(family.read_text())
            os.kill(first, signal.SIGKILL)
            await soon(lambda: not alive(first))
            assert first != await box.ask()
            try:
                assert not alive(left)
            finally:
                for pid in (left, int(family.read_text())):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    asyncio.run(scene())


# the end


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Start a supervisor in a process of its own; returns it and its child's pid once that is up."""
    started: list[subprocess.Popen[str]] = []

    def start(kind: str, grace_s: float) -> tuple[subprocess.Popen[str], int]:
        marker = tmp_path / "up"
        argv = [sys.executable, "-c", CHILD, "FD", str(marker), kind]
        command = [sys.executable, "-c", DRIVER, "0", str(marker), str(grace_s), *argv]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        eventually(lambda: marker.exists() or process.poll() is not None)
        return process, int(marker.read_text())

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_stop_the_child_and_then_the_parent(number: signal.Signals, driver):
    """Asked to end, the supervisor ends its child within its grace and returns 0."""
    process, child = driver("plain", 20)
    process.send_signal(number)
    assert 0 == process.wait(LIMIT_S)
    assert not alive(child)


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(driver):
    """A child that will not end is killed, the log says so, and the supervisor still returns 0."""
    process, child = driver("stubborn", 0.3)
    process.terminate()
    _, said = process.communicate(timeout=LIMIT_S)
    assert 0 == process.returncode
    assert "did not end within" in said
    assert not alive(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_killed_supervisor_takes_its_child_along(driver):
    """kill -9 of the parent leaves no orphan that holds the port and the GPU."""
    process, child = driver("stubborn", 20)
    process.kill()
    process.wait()
    eventually(lambda: not alive(child))
    assert not alive(child)


# with a logbook


def test_a_crash_is_kept_with_its_last_words(box: Box):
    """With a logbook a child's lines go there with their times, and those before a crash are kept beside it."""
    book = Logbook(box.folder / "child.log")
    crash = logbook.crash_file(book.path)

    async def scene() -> None:
        child = box.child(argv=[sys.executable, "-u", "-c", "print('hello')\n" + CHILD, *box.child().argv[3:]])
        supervisor = Supervisor(child, policy=RestartPolicy(), book=book)
        running = asyncio.ensure_future(supervisor.run())
        first = await box.ask()
        await soon(box.was_ready)
        os.kill(first, signal.SIGKILL)
        await soon(lambda: supervisor.policy.crashes == 1)
        assert first != await box.ask()
        kept = crash.read_text()
        assert f"child (pid {first}) was killed by SIGKILL" in kept
        assert ["hello"] == logbook.unstamped(kept).splitlines()[2:]
        supervisor.stopping.set()
        assert 0 == await running
        assert kept == crash.read_text()  # a stop is no crash

    asyncio.run(scene())
    assert f"child was killed by SIGKILL; restarting at once; its last lines are in {crash}" in box.log.messages
    assert ["hello", "hello"] == logbook.unstamped(book.path.read_text()).splitlines()
    assert all(logbook.STAMP.match(line) for line in book.path.read_text().splitlines())


@pytest.mark.parametrize("with_book", [True, False])
def test_a_child_knows_who_gives_its_lines_their_time(with_book: bool, box: Box):
    """A child in a logbook is told to leave its own time out; one that inherits the terminal is not."""
    note = box.folder / "note"
    code = f"import os; open({str(note)!r}, 'w').write(os.environ.get({logbook.STAMPED!r}, '-'))"
    book = Logbook(box.folder / "child.log") if with_book else None
    assert 1 == asyncio.run(Supervisor(box.child(argv=[sys.executable, "-c", code]), book=book).run())
    assert ("1" if with_book else "-") == note.read_text()


def test_a_failed_start_is_kept_too_and_a_program_that_is_missing_is_not(box: Box):
    """What a child said before it failed to start can be read later; nothing is kept of one that never ran."""
    book = Logbook(box.folder / "child.log")
    crash = logbook.crash_file(book.path)
    assert 127 == asyncio.run(Supervisor(box.child(argv=["/nowhere/program"]), book=book).run())
    assert not crash.exists()
    argv = [sys.executable, "-c", "import sys; sys.exit('ValueError: odd')"]
    assert 1 == asyncio.run(Supervisor(box.child(argv=argv), book=book).run())
    assert "ValueError: odd" == logbook.unstamped(crash.read_text()).splitlines()[-1]
