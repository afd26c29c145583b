"""The whole life of generation in a container: the real command line, keeper and engine, and a stand-in for vLLM."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qmd_remote import logbook, paths, services
from qmd_remote.services import EMBED, GENERATION
from tests.docker.box import Box, answers, completes


def test_up_status_logs_and_down(box: Box):
    """A container comes up, is ready, is told of, and is gone after `down`."""
    done = box.up()
    assert ("started", f"http://127.0.0.1:{box.line.generation_port}") == (done["action"], done["url"])
    told = box.container()
    assert told["State"]["Running"] is True
    # the keeper sees a moment after `up` that it is ready
    box.until(lambda: box.container()["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped")
    assert "ready" == box.state()
    assert "Capturing CUDA graphs" in box.log()
    assert "ready after" in box.log()
    assert 0 == box.run("down")[0]
    assert box.container() is None
    assert services.find(GENERATION) is None


def test_an_identical_up_keeps_the_container_and_another_one_replaces_it(box: Box):
    """Drift is told, and the new container has the new settings."""
    box.up()
    first = box.container()["Id"]
    assert "already running" == box.up()["action"]
    assert first == box.container()["Id"]
    changed = box.up("--generation-context", "4096")
    assert ("restarted", ["generation_context: 8192 → 4096"]) == (changed["action"], changed["changed"])
    assert "4096" in box.container()["Config"]["Cmd"]
    assert first != box.container()["Id"]


@pytest.mark.parametrize("mode", ["dies-again", "ends"])
def test_a_container_that_ends_is_restarted_and_its_last_words_are_kept(
    box: Box, image_of: Callable[[str], str], mode: str
):
    """By its engine, with whatever exit code it ended."""
    box.up("--generation-image", image_of(mode))
    crash = logbook.crash_file(paths.log_file(GENERATION))
    box.until(crash.exists)
    box.until(lambda: "its engine restarted it" in box.log())
    assert "EngineDeadError" in crash.read_text(encoding="utf-8")
    box.until(lambda: answers(box))
    assert box.container()["RestartCount"] >= 1


def test_a_container_that_hangs_is_restarted(box: Box, image_of: Callable[[str], str]):
    """200 on /health and no completion within the limit; the second start is well."""
    box.up("--generation-image", image_of("hangs"), QMD_REMOTE_HANG_LIMIT_S="1.5")
    box.until(lambda: "completed nothing for" in box.log())
    box.until(lambda: completes(box))


def test_a_failed_start_tells_its_cause_and_leaves_no_container(box: Box, image_of: Callable[[str], str]):
    """The cause stands in the container's log, above lines that only say that something went wrong."""
    code, said = box.run("up", "--generation-image", image_of("dies"))
    assert (5, "memory.oom") == (code, said["error"]["code"])
    assert box.container() is None
    assert services.find(GENERATION) is None


def test_a_start_that_stands_still_ends_at_its_limit(box: Box, image_of: Callable[[str], str]):
    """With what it was doing, and nothing left."""
    code, said = box.run("up", "--generation-image", image_of("stalls"), QMD_REMOTE_STALL_LIMIT_S="2")
    assert (6, "wait.stalled") == (code, said["error"]["code"])
    assert "sizing the KV cache" in said["error"]["message"]
    box.until(lambda: box.container() is None)


def test_options_that_vllm_does_not_know_are_told(box: Box):
    """Exit code 2 of the program."""
    code, said = box.run("up", "--generation-args", "--no-such-option 1")
    assert code != 0
    assert "no-such-option" in json.dumps(said["error"])
    assert box.container() is None


def test_ctrl_c_leaves_it_to_start_in_the_background(box: Box, image_of: Callable[[str], str]):
    """A second `up` waits for the same container."""
    slow = image_of("slow")
    process = box.line.start("up", "--generation-image", slow)
    box.until(box.container)
    box.until(lambda: (box.container() or {"State": {"Running": False}})["State"]["Running"])
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert 130 == process.returncode
    assert "qmd-remote status --watch" in stderr
    first = box.container()["Id"]
    assert "already running" == box.up("--generation-image", slow)["action"]
    assert first == box.container()["Id"]


def test_a_foreign_container_of_this_name_is_not_touched(box: Box, vllm_image: str):
    """Exit code 5, and how to take another name."""
    foreign = box.client.containers.create(vllm_image, ["vllm"], name=box.name)
    code, said = box.run("up")
    assert (5, "name.taken") == (code, said["error"]["code"])
    assert "--generation-container" in said["error"]["hint"]
    assert foreign.id == box.container()["Id"]
    box.run("down")
    assert foreign.id == box.container()["Id"]
    foreign.remove(force=True)


def test_a_killed_keeper_is_replaced_without_a_restart_of_the_container(box: Box):
    """The container goes on, `status` says that nothing looks after it, `up` adopts it."""
    box.up()
    first = box.container()
    record = services.find(GENERATION)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    box.until(lambda: services.find(GENERATION) is None)
    assert "unattended" == box.state()
    box.up()
    assert (first["Id"], first["State"]["StartedAt"]) == (box.container()["Id"], box.container()["State"]["StartedAt"])


def test_down_takes_a_container_without_its_keeper_along(box: Box):
    """Whatever happened to the keeper, `down` leaves nothing of ours."""
    box.up()
    record = services.find(GENERATION)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    box.until(lambda: services.find(GENERATION) is None)
    assert 0 == box.run("down")[0]
    assert box.container() is None


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU")
def test_a_gpu_preset_without_a_gpu_ends_at_once(box: Box):
    """Exit code 5, the cause and the fix, and no container."""
    code, said = box.run("up", "--preset", "gpu", "--gpus", "all")
    assert (5, "gpu.missing") == (code, said["error"]["code"])
    assert "qmd-remote up --preset cpu" in said["error"]["hint"]
    assert box.container() is None


def test_an_unattended_container_of_other_settings_does_not_stand_in(box: Box):
    """`up` is not content with what its keeper left: the one that was asked for is ready when it returns."""
    box.up()
    first = box.container()["Id"]
    record = services.find(GENERATION)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    box.until(lambda: services.find(GENERATION) is None)
    assert "started" == box.up("--generation-context", "4096")["action"]
    now = box.container()
    assert first != now["Id"]
    assert now["State"]["Running"]
    assert "4096" in now["Config"]["Cmd"]


def test_ctrl_c_while_the_embed_server_loads_leaves_both(box: Box):
    """vLLM, which took minutes, is not thrown away for it; the embed server goes on loading."""
    process = box.line.start("up", "--embed-model", "acme/hangs")
    box.until(lambda: "ready after" in box.log() and services.find(EMBED) is not None)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert 130 == process.returncode
    assert "goes on starting in the background" in stderr
    assert "ready" == box.state()
    assert services.find(EMBED) is not None


def test_a_container_that_somebody_removed_has_failed(box: Box):
    """`status` says so, and what to type to have the same again; `restart` of all does not pass over it."""
    box.up("--generation-context", "4096")
    box.client.containers.get(box.name).remove(force=True)
    box.until(lambda: services.find(GENERATION) is None)
    assert "failed" == box.state()
    _, said = box.run("status")
    assert "--generation-context 4096" in json.dumps(said["warnings"])
    _, said = box.run("restart")
    assert "has failed, and is not restarted" in json.dumps(said["warnings"])


def test_a_container_that_cannot_be_removed_is_told(box: Box, tmp_path: Path):
    """`down` does not claim to have stopped what its engine, which is away, may bring back."""
    box.up()
    record = services.find(GENERATION)
    assert record is not None
    # the keeper is at its engine's socket; a `down` that finds another one, or none, cannot look
    code, said = box.run("down", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert (1, "docker.down") == (code, said["error"]["code"])
    assert "qmd-remote down" in said["error"]["hint"]
