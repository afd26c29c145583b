"""What `up` says when an image, a registry, a port, memory or the engine itself stands in its way; and a whole pull."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from qmd_remote import services
from qmd_remote.services import GENERATION
from tests.docker import images, need
from tests.docker import registry as registries
from tests.docker.box import Box

LAYER_BYTES = 40 << 20


@pytest.fixture
def registry(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[str]:
    """An empty registry, as "host:port"."""
    if registries.PROGRAM is None:
        need.missing("docker-registry is not installed")
    with registries.serving(tmp_path / "registry", free_port()) as host:
        yield host


def refused(box: Box, *words: str, **variables: str) -> tuple[int, str, str]:
    """The exit code, the error's code and all of its words, of an `up` that must leave nothing."""
    code, said = box.run("up", *words, **variables)
    assert box.container() is None
    assert services.find(GENERATION) is None
    return code, said["error"]["code"], f"{said['error']['message']} {said['error']['hint']}"


def test_an_image_is_pulled_with_progress_and_comes_up(
    box: Box, registry: str, engine_client: docker.DockerClient, vllm_image: str, prefix: str
):
    """From a registry, by name alone: layers and bytes are told, and the service is ready at the end."""
    image = f"{registry}/{prefix}/vllm:1"
    images.build_random(engine_client, vllm_image, image, sizes=[LAYER_BYTES])
    assert "error" not in engine_client.api.push(image)
    engine_client.images.remove(image, force=True)
    assert "started" == box.up("--generation-image", image)["action"]
    assert "ready" == box.state()
    told = re.findall(r"phase: pulling the image: \d+ %, \d+ of \d+ layers, [\d.]+ of (4\d\.\d) MB", box.log())
    assert told, box.log()[:2000]


def test_what_a_registry_refuses_is_told(box: Box, registry: str, free_port: Callable[[], int]):
    """An image that it does not have, and a registry that is not there."""
    assert (4, "image.missing") == refused(box, "--generation-image", f"{registry}/acme/none:1")[:2]
    nowhere = f"127.0.0.1:{free_port()}/acme/none:1"
    assert (5, "registry.unreachable") == refused(box, "--generation-image", nowhere)[:2]


def test_a_port_that_somebody_has_is_told_before_anything_starts(box: Box):
    """With the option that names another one."""
    with socket.create_server(("127.0.0.1", box.line.generation_port)):
        code, error, words = refused(box)
    assert (5, "port.taken") == (code, error)
    assert "--generation-port" in words


def test_a_container_killed_for_its_memory_is_told(box: Box, image_of: Callable[[str], str]):
    """The kernel ends it with 137 while it starts."""
    process = box.line.start("up", "--json", "--generation-image", image_of("eats"))
    box.until(lambda: (box.container() or {"State": {"Running": False}})["State"]["Running"])
    box.client.api.update_container(box.name, mem_limit="64m", memswap_limit="64m")
    stdout, _ = process.communicate(timeout=60)
    assert 5 == process.returncode, stdout + box.log()[-1500:]
    assert '"memory.system"' in stdout
    box.until(lambda: box.container() is None)


def test_an_engine_that_is_not_there_is_told(box: Box, tmp_path: Path):
    """Nothing is started, and both ways out are named."""
    code, error, words = refused(box, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert (5, "docker.down") == (code, error)
    assert "unset DOCKER_HOST" in words
    assert "--generation process" in words
