"""Bringing services up and down, with small real processes in the place of the services."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from qmd_remote import paths, services
from qmd_remote.errors import Exit, PrerequisiteError, QmdRemoteError, ServiceFailed, WaitEnded
from qmd_remote.launch import down, memory_plan, plan, up
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.keeper import free_port
from qmd_remote.launch.phases import Phase
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings

PYTHON = sys.executable
STANDIN = Path(__file__).parent / "standin.py"
SECRET = "k3y-that-nobody-may-read"


class Box:
    """A machine whose Python runs stand-ins, and what `up` tells on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[str, Phase]] = []
        self.interrupt_at = 0
        self.hardware = Hardware(
            nvidia=False, apple_gpu=False, vllm=False, transformers_serve=True, server=True, bundled={}
        )
        self.settings = Settings(
            embed_model="acme/fine", generation_model="acme/fine", port=free_port(), generation_port=free_port()
        )

    def on_phase(self, service: str, phase: Phase) -> None:
        """Note a phase; be interrupted at the one that the test names."""
        self.told.append((service, phase))
        if len(self.told) == self.interrupt_at:
            raise KeyboardInterrupt

    def up(self, **changes: object) -> tuple[up.Started, ...]:
        """Bring up what the settings, changed so, mean."""
        settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        return up.Launch(settings, plan.make(settings, self.hardware, paths.cache_dir()), self.on_phase).run()

    def answers(self) -> list[bool]:
        """Whether generation and the embed server answer on their ports."""
        found = []
        for port in (self.settings.generation_port, self.settings.port):
            try:
                found.append(httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200)
            except httpx.ConnectError:
                found.append(False)
        return found


@pytest.fixture
def box(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    """A machine of the test's own."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {PYTHON} {STANDIN} "$@"\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    return Box(tmp_path)


def nothing_left(box: Box, running: list[str]) -> None:
    """No process, no record, no open port, and the turn given back."""
    assert [] == running
    assert [None, None] == [services.find(name) for name in services.SERVICES]
    assert [False, False] == box.answers()
    assert not any(services.record_file(name).exists() for name in services.SERVICES)
    with services.exclusive():
        pass


# up


def test_up_starts_both_services_generation_first(box: Box):
    """After `up` both services answer, with their records and private logs, in sessions of their own."""
    started = box.up(api_key=SECRET)
    assert [(GENERATION, "started"), (EMBED, "started")] == [(one.service, one.action) for one in started]
    assert [True, True] == box.answers()
    assert list(dict.fromkeys(name for name, _ in box.told)) == [GENERATION, EMBED]
    for one in started:
        assert one.pid is not None
        record = services.find(one.service)
        assert record is not None
        assert (one.pid, one.url, one.model) == (record.pid, record.url, record.model)
        assert one.pid == os.getsid(one.pid)
        assert SECRET not in " ".join(psutil.Process(one.pid).cmdline())
        assert 0o600 == stat.S_IMODE(paths.log_file(one.service).stat().st_mode)


@pytest.mark.parametrize(("waits", "shared", "asked"), [(False, 3, "1"), (True, 3, ""), (False, 0, "")])
def test_vllm_has_its_turn_first_where_nobody_waits(waits: bool, shared: int, asked: str, box: Box):
    """With --no-wait the embed server is told to leave the GPU to vLLM at first; a plain `up` waits itself.

    Where it computes elsewhere there is nothing to wait for.
    """
    made = plan.make(box.settings, box.hardware, paths.cache_dir())
    memory = memory_plan.make(
        memory_plan.Memory(24 << 30, 23 << 30), memory_plan.Demand(6 << 30, 1 << 30, shared << 30)
    )
    both = replace(made, generation=replace(made.generation, memory=memory))
    started = up.Launch(box.settings, both, box.on_phase, waits=waits).run()
    pids = {one.service: one.pid for one in started}
    assert asked == psutil.Process(pids[EMBED]).environ()[services.AFTER_GENERATION]
    assert "" == psutil.Process(pids[GENERATION]).environ()[services.AFTER_GENERATION]


def test_up_twice_is_already_running(box: Box):
    """A second `up` with the same settings changes nothing: the same processes, and it says so."""
    first = box.up()
    second = box.up()
    assert ["already running"] * 2 == [one.action for one in second]
    assert [one.pid for one in first] == [one.pid for one in second]


def test_up_with_other_settings_replaces_only_what_they_concern(box: Box):
    """A changed setting restarts its service, names the difference, and leaves the other one alone."""
    first = box.up()
    second = box.up(max_batch_size=8)
    assert ["already running", "restarted"] == [one.action for one in second]
    assert ("max_batch_size: 64 → 8",) == second[1].changed
    assert first[0].pid == second[0].pid
    assert first[1].pid != second[1].pid
    assert [True, True] == box.answers()


def test_a_changed_key_is_named_and_not_shown(box: Box):
    """A new key restarts the embed server; what is told of the difference is its name."""
    box.up(api_key="old-" + SECRET)
    second = box.up(api_key=SECRET)
    assert ("api_key",) == second[1].changed
    assert SECRET not in str(second) + str(box.told)


@pytest.mark.parametrize(
    ("changes", "expected", "says"),
    [
        ({"embed_model": "acme/broken"}, ("model.missing", Exit.CONFIGURATION), "embed server could not start: there"),
        ({"embed_model": "acme/dies"}, ("service.failed", Exit.FAILED), "embed server ended with exit code 1: Value"),
        ({"generation_model": "acme/broken"}, ("model.missing", Exit.CONFIGURATION), "generation engine could not"),
    ],
)
def test_a_failed_start_tells_its_cause_and_leaves_nothing(
    changes: dict[str, str], expected: tuple[str, Exit], says: str, box: Box, still_running
):
    """When one service fails, the other one that this `up` started is stopped too, and the cause has its exit code."""
    with pytest.raises(QmdRemoteError) as caught:
        box.up(**changes)
    assert expected == (caught.value.code, caught.value.exit_code)
    assert caught.value.message.startswith(says)
    nothing_left(box, still_running())


def test_a_failed_start_keeps_what_ran_before(box: Box):
    """A service that an earlier `up` started survives the failure of this one."""
    first = box.up()
    with pytest.raises(ServiceFailed):
        box.up(embed_model="acme/broken")
    assert [True, False] == box.answers()
    record = services.find(GENERATION)
    assert record is not None
    assert first[0].pid == record.pid


def test_a_start_that_stands_still_ends_and_leaves_nothing(box: Box, still_running):
    """A service that never becomes ready ends the wait at the stall limit, with exit code 6."""
    with pytest.raises(WaitEnded) as caught:
        box.up(embed_model="acme/hangs", stall_limit_s=1.0)
    assert Exit.WAIT_ENDED == caught.value.exit_code
    nothing_left(box, still_running())


@pytest.mark.parametrize("moment", [1, 2])
def test_an_interrupted_up_leaves_nothing(moment: int, box: Box, still_running):
    """Ctrl-C at any moment, also right after a process was started, leaves no process behind."""
    box.interrupt_at = moment
    with pytest.raises(KeyboardInterrupt):
        box.up()
    nothing_left(box, still_running())


@pytest.mark.parametrize(
    ("service", "flag"), [(EMBED, "--port"), (GENERATION, "--generation-port")], ids=["embed", "generation"]
)
def test_a_port_that_somebody_else_holds_is_named(service: str, flag: str, box: Box, still_running):
    """A stranger's answers are never taken for ours: its name and pid are told, and the flag for another port."""
    with socket.socket() as other:
        port = box.settings.port if service == EMBED else box.settings.generation_port
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(PrerequisiteError) as caught:
            box.up()
    assert f"port {port} is taken by" in caught.value.message
    assert f"(pid {os.getpid()})" in caught.value.message
    assert f" {flag}" in caught.value.hint
    nothing_left(box, still_running())


def test_one_up_at_a_time(box: Box):
    """While another process works on the services, `up` and `down` refuse at once."""
    code = "import sys; from qmd_remote import services\nwith services.exclusive(): print(flush=True); sys.stdin.read()"
    with subprocess.Popen([PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for work in (box.up, down.bring_down):
            with pytest.raises(ServiceFailed) as caught:
                work()
            assert "busy" == caught.value.code
        other.kill()


def test_a_relative_home_is_the_same_home_for_the_services(box: Box, monkeypatch: pytest.MonkeyPatch, still_running):
    """QMD_REMOTE_HOME=folder, relative to where the user stands, works although services work elsewhere."""
    monkeypatch.chdir(box.folder)
    monkeypatch.setenv("QMD_REMOTE_HOME", "home")
    assert ["started"] * 2 == [one.action for one in box.up()]
    assert 2 == len(down.bring_down()[0])
    nothing_left(box, still_running())


# generation that is no process


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({"generation_engine": "off"}, "off", "switched off"),
        ({"generation_engine": "external", "generation_url": "http://box:8000"}, "external", ""),
    ],
)
def test_without_a_process_the_running_engine_is_stopped(changes: dict[str, str], action: str, reason: str, box: Box):
    """Who turns generation off, or elsewhere, gets rid of the engine that an earlier `up` started."""
    box.up()
    started = box.up(**changes)
    assert [action, "restarted"] == [one.action for one in started]  # the embed server passes requests on to it
    assert reason in started[0].reason
    assert [False, True] == box.answers()


# down


def test_down_twice(box: Box, still_running):
    """The first `down` stops both services and returns what they were; the second finds nothing and is content."""
    started = box.up()
    assert {one.pid for one in started} == {record.pid for record in down.bring_down()[0]}
    nothing_left(box, still_running())
    assert ((), ()) == down.bring_down()


def test_down_takes_one_service_alone(box: Box):
    """A service that is named is stopped, the other one goes on."""
    box.up()
    assert [EMBED] == [record.service for record in down.bring_down([EMBED])[0]]
    assert [True, False] == box.answers()


def test_down_clears_the_record_of_a_killed_service(box: Box):
    """A supervisor that was killed left its record; `down` removes it and reports nothing as stopped."""
    for one in box.up():
        assert one.pid is not None
        process = psutil.Process(one.pid)
        process.kill()
        process.wait()
    assert ((), ()) == down.bring_down()
    assert not any(services.record_file(name).exists() for name in services.SERVICES)


# folders


def test_local_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Services run in a folder of their own: what exists here is told to them by its whole path, hub ids stay names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "own").mkdir(parents=True)
    (tmp_path / "key").write_text("k")
    settings = Settings(
        embed_model="models/own", rerank_model="BAAI/bge-reranker-v2-m3", generation_model="./none", api_key_file="key"
    )
    found = up.absolute(settings)
    assert (str(tmp_path / "models" / "own"), str(tmp_path / "key")) == (found.embed_model, found.api_key_file)
    assert ("BAAI/bge-reranker-v2-m3", "./none") == (found.rerank_model, found.generation_model)


def test_a_folder_that_may_run_code_may_do_so_under_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name in --trust-remote-code follows the model's: it must still be the same folder for the service."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    found = up.absolute(Settings(embed_model="own", trust_remote_code=("own", "acme/other")))
    assert (found.embed_model, "acme/other") == found.trust_remote_code
