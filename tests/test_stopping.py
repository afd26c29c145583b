"""How a supervisor stops: one signal, a second one, what may finish first, and what comes after its event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from qmd_remote.supervision import RestartPolicy, Supervisor
from tests import test_supervision
from tests.test_supervision import LIMIT_S, Box, alive, soon

driver, box, listener = test_supervision.driver, test_supervision.box, test_supervision.listener


def test_a_second_sigterm_changes_nothing(driver):
    """Told twice to end, the supervisor leaves its child the same grace, and returns 0."""
    process, child = driver("stubborn", 1)
    process.terminate()
    process.terminate()
    _, said = process.communicate(timeout=LIMIT_S)
    assert 0 == process.returncode
    assert "did not end within" in said
    assert not alive(child)


def test_who_is_in_a_hurry_waits_for_no_grace(box: Box):
    """After a second Ctrl-C a child that will not end is killed at once; the exit code is that of every stop."""

    async def scene() -> None:
        supervisor = Supervisor(box.child("stubborn"))
        running = asyncio.ensure_future(supervisor.run())
        await soon(box.was_ready)
        child = box.pid
        supervisor.stopping.set()
        supervisor.wish.hurry.set()
        async with asyncio.timeout(LIMIT_S):  # its grace is longer
            assert 0 == await running
        assert not alive(child)

    asyncio.run(scene())


def test_what_runs_may_finish_before_the_child_is_stopped(box: Box):
    """`before_stop` runs once, while the child still serves; only when it is done is the child told to end."""
    told: list[int] = []

    async def scene() -> None:
        async def hook() -> None:
            told.append(await box.ask())

        supervisor = Supervisor(box.child(), before_stop=hook)
        running = asyncio.ensure_future(supervisor.run())
        await soon(box.was_ready)
        child = box.pid
        supervisor.stopping.set()
        assert 0 == await running
        assert [child] == told
        assert not alive(child)

    asyncio.run(scene())


def test_callers_are_seen_off_even_when_no_child_runs(box: Box):
    """A stop during a back-off, when there is no child to stop, runs the hook too."""
    told: list[str] = []

    async def scene() -> None:
        async def hook() -> None:
            told.append("bye")

        supervisor = Supervisor(box.child(), policy=RestartPolicy(crashes=9), before_stop=hook)
        running = asyncio.ensure_future(supervisor.run())
        await soon(box.was_ready)
        os.kill(box.pid, signal.SIGKILL)
        await soon(lambda: supervisor.policy.crashes == 10)
        supervisor.stopping.set()
        assert 0 == await running

    asyncio.run(scene())
    assert ["bye"] == told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_process_tidies_up_breaks_nothing(number: signal.Signals):
    """Inside `heeded`, before, during and after the event loop, a signal is a wish and never the end."""
    program = f"""
import asyncio, os
from qmd_remote.stop_wish import StopWish
wish = StopWish()
async def main():
    with wish.heeded_in_loop():
        assert wish.asked.is_set()
        os.kill(os.getpid(), {int(number)})
        await asyncio.sleep(0.05)
with wish.heeded():
    os.kill(os.getpid(), {int(number)})
    asyncio.run(main())
    os.kill(os.getpid(), {int(number)})
print("tidy", wish.hurry.is_set())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S)
    assert (0, f"tidy {number == signal.SIGINT}\n") == (done.returncode, done.stdout), done.stderr
