"""kill -9 of `up`, wherever it is: the next `up` or `down` clears what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qmd_remote import paths, services
from qmd_remote.launch import down, plan, up
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.keeper import free_port
from qmd_remote.settings import Settings
from qmd_remote.supervision import listen

PYTHON = sys.executable
FOLDER = Path(__file__).parent
HARDWARE = Hardware(nvidia=False, apple_gpu=False, vllm=False, transformers_serve=True, server=True, bundled={})


class Victim:
    """An `up` in a process of its own, on a machine whose Python runs stand-ins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {PYTHON} {FOLDER / "standin.py"} "$@"\n')
        python.chmod(0o700)
        self.monkeypatch, self.python = monkeypatch, str(python)
        self.settings = Settings(
            embed_model="acme/fine", generation_model="acme/fine", port=free_port(), generation_port=free_port()
        )

    def run(self, *fatal: str) -> subprocess.CompletedProcess[str]:
        """Run it, to its end or to its death at a function's entry."""
        env = {**os.environ, **self.settings.to_env(), "STAND_IN_PYTHON": self.python}
        argv = [PYTHON, FOLDER / "killed_up.py", *fatal]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)

    def up(self) -> list[str]:
        """The next `up`, in this process: what it did about generation and the embed server."""
        planned = plan.make(self.settings, HARDWARE, paths.cache_dir())
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "executable", self.python)
            return [one.action for one in up.Launch(self.settings, planned, lambda *_: None).run()]


@pytest.fixture
def victim(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Victim:
    """An `up` to be killed, with a home of its own."""
    return Victim(tmp_path, monkeypatch)


UP = "qmd_remote.launch.up."
WAIT = "qmd_remote.launch.wait."
SERVICES = "qmd_remote.services."
LOGBOOK = "qmd_remote.logbook."

# where an `up` is killed: on entering these functions; #2 is the time for the embed server, after generation
BEFORE = (f"{UP}Launch.run", f"{SERVICES}exclusive", f"{SERVICES}find", f"{UP}Launch._require_free_port")
BETWEEN = (f"{UP}Launch._generation", f"{UP}Launch._ensure", f"{UP}Launch._start", f"{UP}Launch._ensure#2")
STARTING = (
    f"{UP}Launch._spawn",
    f"{LOGBOOK}begin",
    f"{LOGBOOK}_open",
    f"{UP}Launch._wait",
    f"{WAIT}until_ready",
    f"{WAIT}ask",
    f"{WAIT}Pace.moves_on",
    f"{SERVICES}process_of",
    f"{UP}_started",
    f"{UP}Launch._spawn#2",
    f"{LOGBOOK}begin#2",
    f"{UP}Launch._wait#2",
    f"{WAIT}until_ready#2",
    f"{UP}_started#2",
)
REPLACING = (f"{UP}Launch._replace", f"{SERVICES}stop", f"{SERVICES}end_tree", f"{UP}Launch._spawn")


def nothing_is_left(victim: Victim, still_running: Callable[[], list[str]], eventually: Callable[..., None]) -> None:
    """No process, no record, no open port. The kernel has killed what died with `up`, and may take a moment over it."""
    eventually(lambda: still_running() == [], within_s=5)
    assert not any(services.record_file(name).exists() for name in services.SERVICES)
    for port in (victim.settings.port, victim.settings.generation_port):
        listen("127.0.0.1", port).close()


@pytest.mark.parametrize("point", BEFORE + BETWEEN + STARTING)
def test_down_clears_what_a_killed_up_leaves(
    point: str, victim: Victim, still_running: Callable[[], list[str]], eventually: Callable[..., None]
):
    """After a kill -9 of `up` at this point, a `down` right behind it leaves nothing."""
    assert -signal.SIGKILL == victim.run(point).returncode
    down.bring_down()
    nothing_is_left(victim, still_running, eventually)


@pytest.mark.parametrize("point", STARTING)
def test_the_next_up_goes_on_from_what_a_killed_up_leaves(
    point: str, victim: Victim, still_running: Callable[[], list[str]], eventually: Callable[..., None]
):
    """After a kill -9 of `up` at this point, the next `up` brings both services up, and `down` leaves nothing."""
    assert -signal.SIGKILL == victim.run(point).returncode
    assert {"started", "already running"} >= set(victim.up())
    assert all(services.find(name) for name in services.SERVICES)
    down.bring_down()
    nothing_is_left(victim, still_running, eventually)


@pytest.mark.parametrize("point", REPLACING)
def test_an_up_killed_while_it_replaces_a_service_is_made_good(
    point: str, victim: Victim, still_running: Callable[[], list[str]], eventually: Callable[..., None]
):
    """After a kill -9 while the embed server is replaced for other settings, the next `up` has them running."""
    victim.up()
    victim.settings = replace(victim.settings, max_batch_size=8)
    assert -signal.SIGKILL == victim.run(point).returncode
    victim.up()
    found = services.find(services.EMBED)
    assert found is not None
    assert 8 == found.spec["max_batch_size"]
    down.bring_down()
    nothing_is_left(victim, still_running, eventually)
