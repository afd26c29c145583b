"""The leash on a process group, with real processes: nothing outlives its parent, and nothing else is harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qmd_remote import leash

LIMIT_S = 15

# a child with a child of its own; it writes both pids, whole, to the file it is given
FAMILY = """
import os, pathlib, subprocess, sys, time
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
marker = pathlib.Path(sys.argv[1])
marker.with_suffix(".draft").write_text(f"{os.getpid()} {below.pid}")
marker.with_suffix(".draft").replace(marker)
time.sleep(600)
"""
# starts that family in a group of its own, puts it on the leash, writes the pid of the leash, and waits
HOLDER = """
import pathlib, subprocess, sys, time
from qmd_remote import leash
marker, how = pathlib.Path(sys.argv[2]), sys.argv[3]
where = {"start_new_session": True} if how == "session" else {"process_group": 0}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(marker)], **where)
tie = leash.watch(child.pid)
while not marker.exists():
    time.sleep(0.01)
note = marker.with_name("leash")
note.with_suffix(".draft").write_text(str(tie._shell.pid))
note.with_suffix(".draft").replace(note)
time.sleep(600)
"""
SUPERVISOR = """
import asyncio, os, pathlib, sys
from qmd_remote import supervision
supervision.end_with_parent = lambda parent: None  # as on systems where the kernel does nothing of the kind
async def ready():
    return pathlib.Path(sys.argv[2]).exists()
child = supervision.Child("child", [sys.executable, "-c", *sys.argv[1:]], os.environ, ready)
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


def numbers(file: Path) -> list[int]:
    """The pids that a file tells, once it is there."""
    eventually(file.exists)
    return [int(word) for word in file.read_text().split()]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a program that keeps the family of `tmp_path / "family"`; whatever is left is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, FAMILY, str(tmp_path / "family"), *more]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for file in (tmp_path / "family", tmp_path / "leash"):
        for pid in numbers(file) if file.exists() else []:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["group", "session"])
def test_children_and_grandchildren_end_with_a_killed_parent(how: str, run, tmp_path: Path):
    """kill -9 of the parent ends its child, the child's child and the leash, in the parent's session or another."""
    parent = run(HOLDER, how)
    everybody = numbers(tmp_path / "family") + numbers(tmp_path / "leash")
    assert [True] * 3 == [alive(pid) for pid in everybody]
    parent.kill()
    parent.wait()
    eventually(lambda: not any(map(alive, everybody)))
    assert [False] * 3 == [alive(pid) for pid in everybody]


def test_signals_that_end_services_do_not_end_the_leash_first(run, tmp_path: Path):
    """SIGTERM to every process at once, as service managers send it, leaves the leash to do its work."""
    parent = run(HOLDER, "group")
    family, (shell,) = numbers(tmp_path / "family"), numbers(tmp_path / "leash")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(shell, number)
    assert alive(shell)
    parent.kill()
    parent.wait()
    eventually(lambda: not any(map(alive, family)))


def test_a_killed_supervisor_takes_its_child_s_children_along(run, tmp_path: Path):
    """kill -9 of a supervisor ends the engine and the engine's own processes, without any help by the kernel."""
    supervisor = run(SUPERVISOR)
    family = numbers(tmp_path / "family")
    supervisor.kill()
    supervisor.wait()
    eventually(lambda: not any(map(alive, family)))
    assert [False, False] == [alive(pid) for pid in family]


@pytest.mark.parametrize("leash_lives", [True, False])
def test_a_supervisor_that_ends_leaves_no_leash(leash_lives: bool, run, tmp_path: Path):
    """At an orderly end nothing of the group is left, the leash included, even if somebody killed that before."""
    supervisor = run(SUPERVISOR)
    family = numbers(tmp_path / "family")
    below = psutil.Process(supervisor.pid).children(recursive=True)
    shell = next(one for one in below if "qmd-remote-leash" in one.cmdline())
    if not leash_lives:
        shell.kill()
    supervisor.terminate()
    assert 0 == supervisor.wait(LIMIT_S)
    assert not any(map(alive, [*family, shell.pid]))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
    yield process
    process.kill()
    process.wait()


def test_a_released_group_lives_on(sleeper: subprocess.Popen[bytes]):
    """`release` ends the leash alone, at once, and a second one does nothing."""
    with leash.watch(sleeper.pid) as tie:
        shell = tie._shell
        assert alive(shell.pid)
    tie.release()
    assert shell.returncode is not None
    assert sleeper.poll() is None


def test_a_stopped_leash_can_be_released(sleeper: subprocess.Popen[bytes]):
    """A leash that does not run at the moment holds nobody up."""
    tie = leash.watch(sleeper.pid)
    os.kill(tie._shell.pid, signal.SIGSTOP)
    tie.release()
    assert sleeper.poll() is None


def test_a_group_that_is_gone_needs_no_leash(sleeper: subprocess.Popen[bytes]):
    """When the child has ended and was waited for, there is nothing to hold."""
    sleeper.kill()
    sleeper.wait()
    assert leash.watch(sleeper.pid) is None


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="its end cannot be awaited without its being waited for")
def test_the_number_of_a_leashed_group_stays_taken(sleeper: subprocess.Popen[bytes]):
    """After the child was waited for, and the leash killed, the group's number is still the group's: no stranger's."""
    tie = leash.watch(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    os.kill(tie._shell.pid, signal.SIGKILL)
    os.waitid(os.P_PID, tie._shell.pid, os.WEXITED | os.WNOWAIT)
    os.killpg(sleeper.pid, 0)  # the group exists
    tie.release()
    with pytest.raises(ProcessLookupError):
        os.killpg(sleeper.pid, 0)


def test_children_do_not_inherit_the_pipe(sleeper: subprocess.Popen[bytes]):
    """The end that is held is closed in every program started later: else the leash would wait for that program."""
    with leash.watch(sleeper.pid) as tie:
        held = tie._shell.stdin.fileno()
        assert not os.get_inheritable(held)
        probe = f"import os; os.fstat({held})"
        assert 0 != subprocess.run([sys.executable, "-c", probe], close_fds=False, capture_output=True).returncode
