"""The whole life of generation in a container: the real command line, keeper and engine, and a stand-in for vLLM."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import httpx
import pytest

from qmd_remote import logbook, paths, services
from qmd_remote.services import GENERATION
from tests.docker import images
from tests.launch.command_line import CommandLine

MODEL = "acme/fine"


class Box:
    """A machine with an engine: its command line, and its containers as the engine knows them."""

    def __init__(self, line: CommandLine, client: docker.DockerClient, name: str) -> None:
        self.line, self.client, self.name = line, client, name

    def run(self, *words: str, **variables: str):
        """The exit code and the envelope of a command."""
        return self.line.run(*words, **variables)

    def up(self, *words: str, **variables: str):
        """`up`, which must succeed; returns what it did about generation."""
        _, said = self.run("up", *words, **variables)
        # the embed server here is a stand-in, which the last checks of `up` find wanting
        assert "services" in said["data"], json.dumps(said) + self.log()[-2000:]
        return next(one for one in said["data"]["services"] if one["service"] == GENERATION)

    def container(self):
        """What the engine tells of the container, or None."""
        try:
            return self.client.api.inspect_container(self.name)
        except docker.errors.NotFound:
            return None

    def log(self) -> str:
        file = paths.log_file(GENERATION)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def until(self, true: Callable[[], object], within_s: float = 30) -> None:
        """Wait for something to come true."""
        end = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < end, f"it did not come true in time; the log:\n{self.log()[-3000:]}"
            time.sleep(0.05)


@pytest.fixture
def image_of(engine_client: docker.DockerClient, base_image: str, prefix: str) -> Callable[[str], str]:
    """The stand-in in one of its modes, as an image."""
    return lambda mode: images.build_standin(engine_client, base_image, f"{prefix}-{mode}:1", mode=mode)


@pytest.fixture
def box(
    home: Path, engine_client: docker.DockerClient, vllm_image: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Box]:
    """A machine whose generation is a container; what it leaves is stopped."""
    snapshot = home / "hf" / "hub" / "models--acme--fine" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    for name, value in {
        "HF_HOME": str(home / "hf"),
        "QMD_REMOTE_GENERATION": "docker",
        "QMD_REMOTE_GENERATION_IMAGE": vllm_image,
        "QMD_REMOTE_GENERATION_CONTAINER": f"{prefix}-vllm",
        "QMD_REMOTE_GPUS": "none",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_CACHE", "QMD_REMOTE_API_KEY", "QMD_REMOTE_PRESET"):
        monkeypatch.delenv(name, raising=False)
    line = CommandLine(home)
    one = Box(line, engine_client, f"{prefix}-vllm")
    yield one
    one.run("down")
    for process in line.begun:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def test_up_status_logs_and_down(box: Box):
    """A container comes up, is ready, is told of, and is gone after `down`."""
    done = box.up()
    assert ("started", f"http://127.0.0.1:{box.line.generation_port}") == (done["action"], done["url"])
    told = box.container()
    assert told["State"]["Running"] is True
    # the keeper sees a moment after `up` that it is ready
    box.until(lambda: box.container()["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped")
    _, said = box.run("status")
    state = {one["service"]: one["state"] for one in said["data"]["services"]}
    assert "ready" == state[GENERATION]
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
    _, said = box.run("status")
    state = {one["service"]: one["state"] for one in said["data"]["services"]}
    assert "unattended" == state[GENERATION]
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


def answers(box: Box) -> bool:
    """Whether the published port answers its health check."""
    try:
        return httpx.get(f"http://127.0.0.1:{box.line.generation_port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def completes(box: Box) -> bool:
    """Whether the published port completes a prompt."""
    try:
        url = f"http://127.0.0.1:{box.line.generation_port}/v1/completions"
        return httpx.post(url, json={"model": MODEL, "prompt": "a"}, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
