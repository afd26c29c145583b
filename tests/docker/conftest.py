"""A real container engine, images made on the spot, and an installation of our own for each test."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from qmd_remote.launch import docker_engine
from qmd_remote.launch.docker_engine import DockerEngine
from tests.docker import images, need
from tests.docker.box import Box
from tests.launch.command_line import CommandLine


@pytest.fixture(scope="session")
def engine_client() -> docker.DockerClient:
    """The engine of DOCKER_HOST or of this machine, by its SDK; without one these tests are skipped, and say so."""
    try:
        client = docker.from_env()
        client.ping()
    except Exception as error:  # whatever the SDK raises, there is no engine
        need.missing(f"no container engine answers here: {str(error)[:100]}")
    return client


@pytest.fixture(scope="session")
def base_image(engine_client: docker.DockerClient) -> Iterator[str]:
    """An image with this machine's Python."""
    name = images.build_base(engine_client, f"qmd-test-base-{uuid.uuid4().hex[:8]}")
    yield name
    engine_client.images.remove(name, force=True)


@pytest.fixture(scope="session")
def vllm_image(engine_client: docker.DockerClient, base_image: str) -> Iterator[str]:
    """The stand-in for vLLM, as NVIDIA's images are: what it is given runs."""
    name = images.build_standin(engine_client, base_image, f"qmd-test-vllm-{uuid.uuid4().hex[:8]}:1")
    yield name
    engine_client.images.remove(name, force=True)


@pytest.fixture
def prefix(engine_client: docker.DockerClient) -> Iterator[str]:
    """What the names of a test's containers, images and volumes begin with; what is left of them is removed."""
    name = f"qmd-test-{uuid.uuid4().hex[:8]}"
    yield name
    for container in engine_client.containers.list(all=True, filters={"name": name}):
        container.remove(force=True, v=True)
    # after the containers: an image that is in use would only lose its name
    for image in engine_client.images.list(f"{name}*"):
        engine_client.images.remove(image.id, force=True)
    for volume in engine_client.volumes.list(filters={"name": name}):
        volume.remove(force=True)


@pytest.fixture
def engine(engine_client: docker.DockerClient) -> DockerEngine:
    """Ours, on the same engine."""
    return docker_engine.connect()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of the test's own."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A port on loopback that nobody listens on now."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


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
