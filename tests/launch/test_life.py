"""`up --foreground` and `up --no-wait` through the command line, with stand-ins as services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qmd_remote import services
from qmd_remote.services import EMBED
from tests.launch.command_line import CommandLine, pids


@pytest.fixture
def box(home: Path, tmp_path: Path) -> Iterator[CommandLine]:
    """A machine of the test's own; its commands have ended when the test has."""
    box = CommandLine(tmp_path)
    yield box
    box.close()


@pytest.fixture
def foreground(box: CommandLine, eventually: Callable[..., None]) -> subprocess.Popen[str]:
    """An `up --foreground` whose services answer and whose next steps have been told."""
    process = box.start("up", "--foreground")
    eventually(lambda: box.answers() == [True, True], within_s=40)
    assert process.stderr is not None
    for line in process.stderr:  # ends when the process does
        if line.startswith("next:"):
            break
    return process


# up --foreground


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_foreground_and_both_services(
    number: signal.Signals, box: CommandLine, foreground: subprocess.Popen[str], still_running: Callable[[], list[str]]
):
    """Ctrl-C, SIGTERM and a closed terminal stop both services, exit with 0 and leave nothing."""
    foreground.send_signal(number)
    stdout, _ = foreground.communicate(timeout=30)
    assert 0 == foreground.returncode
    assert [] == still_running()
    assert [None, None] == pids()
    shown = {line.partition(" ")[0] for line in stdout.splitlines() if "acme/fine is here" in line}
    assert {"generation", "embed"} == shown


def test_services_do_not_outlive_a_killed_foreground(
    foreground: subprocess.Popen[str], still_running: Callable[[], list[str]], eventually: Callable[..., None]
):
    """kill -9 of `up --foreground` takes both services along."""
    foreground.kill()
    foreground.communicate(timeout=30)
    eventually(lambda: still_running() == [])
    assert [] == still_running()


def test_a_down_elsewhere_ends_the_foreground_well(box: CommandLine, foreground: subprocess.Popen[str]):
    """When `down` is typed in another terminal, the foreground ends with 0 and says so."""
    assert 0 == box.run("down")[0]
    _, stderr = foreground.communicate(timeout=30)
    assert 0 == foreground.returncode
    assert "was stopped by another command" in stderr


def test_a_service_that_dies_takes_the_other_one_with_it(
    box: CommandLine, foreground: subprocess.Popen[str], still_running: Callable[[], list[str]]
):
    """When one service's supervisor dies, the foreground stops the other one and exits with 1, for who restarts it."""
    victim = pids()[1]
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    _, stderr = foreground.communicate(timeout=30)
    assert 1 == foreground.returncode
    assert "embed server ended" in stderr
    assert "qmd-remote logs embed" in stderr
    assert [] == still_running()


def test_the_foreground_takes_over_what_ran_in_the_background(box: CommandLine, eventually: Callable[..., None]):
    """Services that run in the background are replaced by the foreground's own."""
    box.run("up")
    before = pids()
    process = box.start("up", "--foreground")

    def taken_over() -> bool:
        now = pids()  # read once: between two readings the old ones may go
        return all(now) and not set(now) & set(before)

    eventually(taken_over, within_s=40)
    for pid in pids():
        assert pid is not None
        assert process.pid == psutil.Process(pid).ppid()
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.parametrize("words", [("restart",), ("up", "--max-batch-size", "8")])
def test_nobody_replaces_a_service_behind_the_back_of_its_foreground(
    words: tuple[str, ...], box: CommandLine, foreground: subprocess.Popen[str]
):
    """`restart`, and `up` with other settings, leave the services of an `up --foreground` alone and name it."""
    before = pids()
    code, envelope = box.run(*words)
    assert (1, "foreground") == (code, envelope["error"]["code"])
    assert str(foreground.pid) in envelope["error"]["message"]
    assert before == pids()


@pytest.mark.parametrize("words", [("--foreground", "--json"), ("--foreground", "--no-wait", "--json")])
def test_contradicting_ways_of_starting_are_refused(words: tuple[str, ...], box: CommandLine):
    """--foreground goes neither with --json nor with --no-wait."""
    process = box.start("up", *words)
    stdout, _ = process.communicate(timeout=30)
    assert (2, "usage") == (process.returncode, json.loads(stdout)["error"]["code"])


# up --no-wait


def test_no_wait_returns_while_the_services_start(box: CommandLine, eventually: Callable[..., None]):
    """`up --no-wait` starts both and returns; they come up without it, and the next `up` finds them."""
    code, envelope = box.run("up", "--no-wait")
    assert (0, ["starting", "starting"]) == (code, [one["action"] for one in envelope["data"]["services"]])
    eventually(lambda: box.answers() == [True, True], within_s=40)
    assert [one["pid"] for one in envelope["data"]["services"]] == pids()


@pytest.mark.parametrize("words", [("up",), ("up", "--no-wait")])
def test_status_tells_why_a_start_failed(words: tuple[str, ...], box: CommandLine):
    """A service that could not start is failed with its cause, until `down` or the next start."""
    assert 4 == box.run(*words, EMBED_MODEL="acme/broken")[0]

    def told() -> dict[str, Any]:
        found = box.run("status")[1]["data"]["services"]
        return next(one for one in found if one["service"] == EMBED)

    assert "failed" == told()["state"]
    assert "there is no model acme/broken" in told()["detail"]
    box.run("down")
    assert "not running" == told()["state"]


# the end of a terminal


def test_a_foreground_whose_reader_is_gone_still_stops_well(
    box: CommandLine, foreground: subprocess.Popen[str], still_running: Callable[[], list[str]]
):
    """`up --foreground 2>&1 | tee`, and Ctrl-C ends tee too: the services are stopped in order all the same."""
    assert foreground.stdout is not None
    assert foreground.stderr is not None
    foreground.stdout.close()
    foreground.stderr.close()
    foreground.send_signal(signal.SIGINT)
    foreground.wait(30)
    assert [] == still_running()
    assert not any(services.record_file(name).exists() for name in services.SERVICES)


def test_nohup_keeps_the_foreground_alive(box: CommandLine, eventually: Callable[..., None]):
    """Under nohup a closed terminal is no reason to stop."""
    process = box.start("up", "--foreground", hangup=signal.SIG_IGN)
    eventually(lambda: box.answers() == [True, True], within_s=40)
    process.send_signal(signal.SIGHUP)
    code, envelope = box.run("status")
    assert (0, None) == (code, process.poll()), envelope
    process.terminate()
    process.communicate(timeout=30)
