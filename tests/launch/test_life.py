"""`up --foreground`, `up --no-wait`, `restart` and `status` through the command line, with stand-ins as services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qmd_remote import keys, paths, services
from qmd_remote.launch.keeper import free_port
from qmd_remote.services import EMBED, GENERATION

FOLDER = Path(__file__).parent
PYTHON = sys.executable


class Box:
    """The command line on a machine of its own, whose services are stand-ins."""

    def __init__(self, folder: Path) -> None:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {PYTHON} {FOLDER / "standin.py"} "$@"\n')
        python.chmod(0o700)
        self.port, self.generation_port = free_port(), free_port()
        self.env = {
            **os.environ,
            "STAND_IN_PYTHON": str(python),
            "QMD_REMOTE_PRESET": "cpu",
            "EMBED_MODEL": "acme/fine",
            "RERANK_MODEL": "acme/fine",
            "QMD_REMOTE_GENERATION_MODEL": "acme/fine",
            "QMD_REMOTE_PORT": str(self.port),
            "QMD_REMOTE_GENERATION_PORT": str(self.generation_port),
        }
        self.begun: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command."""
        process = subprocess.Popen(
            [PYTHON, FOLDER / "on_stand_ins.py", *words],
            env={**self.env, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.begun.append(process)
        return process

    def run(self, *words: str, **variables: str) -> tuple[int, dict[str, Any]]:
        """The exit code and the envelope of a command with --json."""
        process = self.start(*words, "--json", **variables)
        stdout, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr
        return process.returncode, json.loads(stdout)

    def answers(self) -> list[bool]:
        """Whether generation and the embed server answer."""
        found = []
        for port in (self.generation_port, self.port):
            try:
                found.append(httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200)
            except httpx.HTTPError:
                found.append(False)
        return found


@pytest.fixture
def box(home: Path, tmp_path: Path) -> Iterator[Box]:
    """A machine of the test's own; its commands have ended when the test has."""
    box = Box(tmp_path)
    yield box
    for process in box.begun:
        process.kill()
        process.communicate()


@pytest.fixture
def foreground(box: Box, eventually: Callable[..., None]) -> subprocess.Popen[str]:
    """An `up --foreground` whose services answer and whose next steps have been told."""
    process = box.start("up", "--foreground")
    eventually(lambda: box.answers() == [True, True], within_s=40)
    assert process.stderr is not None
    for line in process.stderr:  # ends when the process does
        if line.startswith("next:"):
            break
    return process


def pids() -> list[int | None]:
    """The processes of both services, as their records tell."""
    return [record.pid if (record := services.find(name)) else None for name in (GENERATION, EMBED)]


# up --foreground


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_foreground_and_both_services(
    number: signal.Signals, box: Box, foreground: subprocess.Popen[str], still_running: Callable[[], list[str]]
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


def test_a_down_elsewhere_ends_the_foreground_well(box: Box, foreground: subprocess.Popen[str]):
    """When `down` is typed in another terminal, the foreground ends with 0 and says so."""
    assert 0 == box.run("down")[0]
    _, stderr = foreground.communicate(timeout=30)
    assert 0 == foreground.returncode
    assert "was stopped by another command" in stderr


def test_a_service_that_dies_takes_the_other_one_with_it(
    box: Box, foreground: subprocess.Popen[str], still_running: Callable[[], list[str]]
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


def test_the_foreground_takes_over_what_ran_in_the_background(box: Box, eventually: Callable[..., None]):
    """Services that run in the background are replaced by the foreground's own."""
    box.run("up")
    before = pids()
    process = box.start("up", "--foreground")
    eventually(lambda: all(pids()) and not set(pids()) & set(before), within_s=40)
    for pid in pids():
        assert pid is not None
        assert process.pid == psutil.Process(pid).ppid()
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.parametrize("words", [("restart",), ("up", "--max-batch-size", "8")])
def test_nobody_replaces_a_service_behind_the_back_of_its_foreground(
    words: tuple[str, ...], box: Box, foreground: subprocess.Popen[str]
):
    """`restart`, and `up` with other settings, leave the services of an `up --foreground` alone and name it."""
    before = pids()
    code, envelope = box.run(*words)
    assert (1, "foreground") == (code, envelope["error"]["code"])
    assert str(foreground.pid) in envelope["error"]["message"]
    assert before == pids()


@pytest.mark.parametrize("words", [("--foreground", "--json"), ("--foreground", "--no-wait", "--json")])
def test_contradicting_ways_of_starting_are_refused(words: tuple[str, ...], box: Box):
    """--foreground goes neither with --json nor with --no-wait."""
    process = box.start("up", *words)
    stdout, _ = process.communicate(timeout=30)
    assert (2, "usage") == (process.returncode, json.loads(stdout)["error"]["code"])


# up --no-wait


def test_no_wait_returns_while_the_services_start(box: Box, eventually: Callable[..., None]):
    """`up --no-wait` starts both and returns; they come up without it, and the next `up` finds them."""
    code, envelope = box.run("up", "--no-wait")
    assert (0, ["starting", "starting"]) == (code, [one["action"] for one in envelope["data"]["services"]])
    eventually(lambda: box.answers() == [True, True], within_s=40)
    assert [one["pid"] for one in envelope["data"]["services"]] == pids()


@pytest.mark.parametrize("words", [("up",), ("up", "--no-wait")])
def test_status_tells_why_a_start_failed(words: tuple[str, ...], box: Box):
    """A service that could not start is failed with its cause, until `down` or the next start."""
    assert 4 == box.run(*words, EMBED_MODEL="acme/broken")[0]

    def told() -> dict[str, Any]:
        found = box.run("status")[1]["data"]["services"]
        return next(one for one in found if one["service"] == EMBED)

    assert "failed" == told()["state"]
    assert "there is no model acme/broken" in told()["detail"]
    box.run("down")
    assert "not running" == told()["state"]


# restart


def test_restart_keeps_the_settings(box: Box):
    """`restart` gives new processes with the settings that the old ones had, whatever the environment says now."""
    box.run("up", "--max-batch-size", "7")
    before = pids()
    code, envelope = box.run("restart", EMBED_MODEL="acme/broken", MAX_BATCH_SIZE="9")
    assert (0, ["restarted", "restarted"]) == (code, [one["action"] for one in envelope["data"]["services"]])
    assert not set(before) & set(pids())
    record = services.find(EMBED)
    assert record is not None
    assert (7, "acme/fine") == (record.spec["max_batch_size"], record.spec["embed_model"])


def test_restart_of_one_service_leaves_the_other_one_alone(box: Box):
    """`restart embed` replaces the embed server only."""
    box.run("up")
    before = pids()
    assert 0 == box.run("restart", "embed")[0]
    assert before[0] == pids()[0]
    assert before[1] != pids()[1]


def test_restart_takes_a_rotated_key(box: Box):
    """A key that has changed in its file is the server's key after a restart."""
    file, _ = keys.ensure()
    box.run("up", "--api-key-file", str(file))
    old = services.find(EMBED)
    code, envelope = box.run("key", "rotate", "--restart")
    assert 0 == code, envelope
    new = services.find(EMBED)
    assert old is not None
    assert new is not None
    assert (str(file), str(file)) == (old.key_file, new.key_file)
    assert old.spec["api_key"] != new.spec["api_key"]


def test_restart_needs_the_key_that_came_from_a_variable(box: Box):
    """A key that is in no file cannot be guessed: `restart` says which variable it wants, and leaves all as it is."""
    box.run("up", QMD_REMOTE_API_KEY="once")
    before = pids()
    code, envelope = box.run("restart")
    assert (4, "key.missing") == (code, envelope["error"]["code"])
    assert before == pids()
    assert 0 == box.run("restart", QMD_REMOTE_API_KEY="once")[0]


@pytest.mark.parametrize(("words", "code", "name"), [((), 3, "not_running"), (("embde",), 2, "usage")])
def test_restart_of_nothing_is_an_error(words: tuple[str, ...], code: int, name: str, box: Box):
    """Where nothing runs there is nothing to restart, and an unknown service gets the nearest name."""
    found, envelope = box.run("restart", *words)
    assert (code, name) == (found, envelope["error"]["code"])
    assert not words or "did you mean embed" in envelope["error"]["message"]


# reach


def test_an_open_address_gets_a_key(box: Box):
    """`up --host` makes a key of mode 0600 once, keeps it the next time, and starts the server with it."""
    box.run("up", "--host", "0.0.0.0")
    path = paths.key_file()
    assert 0o600 == path.stat().st_mode & 0o777
    key = path.read_text()
    record = services.find(EMBED)
    assert record is not None
    assert str(path) == record.key_file
    box.run("up", "--host", "0.0.0.0")
    assert key == path.read_text()
    assert record.pid == pids()[1]


def test_up_says_what_to_type_on_the_workstation(box: Box):
    """After `up --host` the exact commands for the other machine are told, and the key itself is not."""
    process = box.start("up", "--host", "0.0.0.0")
    stdout, stderr = process.communicate(timeout=60)
    key = paths.key_file().read_text().strip()
    host = os.uname().nodename
    assert f'export QMD_REMOTE_API_KEY="$(ssh {host} cat {paths.key_file()})"' in stderr
    assert f"config write --url http://{host}:{box.port} --api-key-env QMD_REMOTE_API_KEY" in stderr
    assert key not in stdout + stderr


def test_an_open_address_without_a_key_is_possible_if_asked_for(box: Box):
    """--insecure-no-auth makes no key."""
    box.run("up", "--host", "0.0.0.0", "--insecure-no-auth")
    assert not paths.key_file().exists()
