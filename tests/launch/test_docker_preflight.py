"""The look before a container is made, with real folders and real ports."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import typer.main

from qmd_remote import services, settings
from qmd_remote.cli import app
from qmd_remote.errors import ConfigError, PrerequisiteError
from qmd_remote.launch import docker_preflight
from qmd_remote.launch.container import Container, Mount
from qmd_remote.launch.engine import EngineFacts, Found, ImageFacts, Published
from qmd_remote.services import Record

FACTS = EngineFacts("unix:///x", "28", "amd64")
WANTED = Container(
    name="qmd-vllm", service="generation", image="nvcr.io/nvidia/vllm:1", command=("x",), owner="us", version="1"
)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def own_home(home: Path) -> Path:
    """No service of the caller's counts."""
    return home


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who listens on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on(port: int, host: str = "127.0.0.1") -> Container:
    """What is wanted, published there."""
    return replace(WANTED, publish=(host, port, 8000))


def taken(container: Container, *published: Published, facts: EngineFacts = FACTS) -> PrerequisiteError:
    """The error of a port that somebody has."""
    with pytest.raises(PrerequisiteError) as told:
        docker_preflight.look_at_port(container, facts, published)
    assert "port.taken" == told.value.code
    return told.value


def test_a_foreign_container_of_our_name_is_left_alone_and_named():
    """The way on is another name; ours, and none, are fine."""
    with pytest.raises(PrerequisiteError) as told:
        docker_preflight.look_at_name(WANTED, Found("1", "qmd-vllm", "postgres", "running"))
    assert "name.taken" == told.value.code
    assert "docker inspect qmd-vllm" in told.value.hint
    assert "--generation-container" in told.value.hint
    docker_preflight.look_at_name(WANTED, Found("1", "qmd-vllm", "vllm", "exited", owner="us", service="generation"))
    docker_preflight.look_at_name(WANTED, None)


def test_the_way_to_another_name_can_be_typed():
    """An option that the hint names is one of `up`; the embed server's name has none, and is a setting that exists."""
    options = {option for one in typer.main.get_command(app).commands["up"].params for option in one.opts}
    hints = {}
    for service in services.SERVICES:
        with pytest.raises(PrerequisiteError) as told:
            docker_preflight.look_at_name(replace(WANTED, service=service), Found("1", "x", "postgres", "running"))
        hints[service] = told.value.hint
        assert set(re.findall(r"--[a-z-]+", told.value.hint)) <= options
    assert "embed_container" in settings.names()
    assert "qmd-remote settings set embed_container=NAME" in hints["embed"]
    assert "--generation-container NAME" in hints["generation"]


def test_the_container_of_another_installation_is_foreign():
    """An owner that is not ours is as foreign as none; so is our own container of the other service."""
    with pytest.raises(PrerequisiteError):
        docker_preflight.look_at_name(WANTED, Found("1", "qmd-vllm", "vllm", "running", owner="them"))
    with pytest.raises(PrerequisiteError):
        docker_preflight.look_at_name(WANTED, Found("1", "qmd-vllm", "e", "running", owner="us", service="embed"))


def test_a_port_is_refused_with_the_process_that_has_it(listener):
    """Who listens is named, and so is the option for another port."""
    error = taken(on(listener.getsockname()[1]))
    assert f"(pid {os.getpid()})" in error.message
    assert "--generation-port" in error.hint
    assert "--port" in taken(replace(on(listener.getsockname()[1]), service="embed")).hint


def test_a_port_is_refused_with_the_container_that_has_it(free_port):
    """A container is named instead of the engine's own process, even where none can be seen to listen."""
    for address in ("127.0.0.1", "0.0.0.0", ""):
        error = taken(on(free_port), Published("web", address, free_port))
        assert f"port {free_port} is taken by the container web" == error.message
    assert "web" in taken(on(free_port, "0.0.0.0"), Published("web", "127.0.0.1", free_port)).message


def test_a_port_on_another_address_is_free(free_port):
    """Two containers may have one port on two addresses."""
    docker_preflight.look_at_port(on(free_port), FACTS, [Published("web", "127.0.0.2", free_port)])
    docker_preflight.look_at_port(on(free_port), FACTS, [Published("web", "::1", free_port)])
    docker_preflight.look_at_port(on(free_port), FACTS, [Published("web", "127.0.0.1", free_port + 1)])


def test_our_own_container_holds_no_port_against_us(listener):
    """It is kept, or makes way; a container of ours for another service does neither."""
    port = listener.getsockname()[1]
    docker_preflight.look_at_port(on(port), FACTS, [Published("qmd-vllm", "127.0.0.1", port, "us", "generation")])
    assert "qmd-embed" in taken(on(port), Published("qmd-embed", "127.0.0.1", port, "us", "embed")).message
    taken(on(port), Published("qmd-vllm", "127.0.0.1", port, "them", "generation"))


def test_our_own_process_holds_no_port_against_us(listener):
    """A service that runs as a process is stopped before its container takes the port over."""
    port, me = listener.getsockname()[1], psutil.Process()
    services.write(Record("generation", me.pid, me.create_time(), f"http://127.0.0.1:{port}"))
    docker_preflight.look_at_port(on(port), FACTS, [])
    services.write(Record("generation", me.pid, me.create_time(), "http://127.0.0.1:1"))
    taken(on(port))


def test_an_address_of_another_machine_is_refused(free_port):
    """Nothing can be published on it."""
    with pytest.raises(ConfigError) as told:
        docker_preflight.look_at_port(on(free_port, "192.0.2.1"), FACTS, [])
    assert "bind.address" == told.value.code


def test_the_hosts_own_network_has_no_port_to_look_at():
    """What such a container listens on is its own matter."""
    docker_preflight.look_at_port(WANTED, FACTS, [Published("web", "0.0.0.0", 8000)])


def test_a_port_below_1024_is_the_engines_to_take(monkeypatch):
    """An engine that runs as root may what its user may not; a rootless one may not either."""

    def needs_root(*_: object, **__: object) -> None:
        raise PrerequisiteError("port 80 needs root", code="port.permission")

    monkeypatch.setattr(docker_preflight, "listen", needs_root)
    docker_preflight.look_at_port(on(80), FACTS, [])
    with pytest.raises(PrerequisiteError):
        docker_preflight.look_at_port(on(80), replace(FACTS, rootless=True), [])


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """Left to itself the engine would refuse it later, or make it as root; volumes are its own business."""
    there = Mount(str(tmp_path), "/a")
    docker_preflight.look_at_mounts(replace(WANTED, mounts=(there, Mount("cache", "/c", kind="volume"))))
    with pytest.raises(ConfigError) as told:
        docker_preflight.look_at_mounts(replace(WANTED, mounts=(there, Mount(str(tmp_path / "no"), "/b"))))
    assert "mount.missing" == told.value.code
    assert f"mkdir -p {tmp_path}/no" in told.value.hint


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    """A cache must be writable; what is mounted read-only need not be."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    docker_preflight.look_at_mounts(replace(WANTED, mounts=(Mount(str(tmp_path), "/a", read_only=True),)))
    with pytest.raises(ConfigError) as told:
        docker_preflight.look_at_mounts(replace(WANTED, mounts=(Mount(str(tmp_path), "/a"),)))
    assert "mount.permission" == told.value.code


@pytest.mark.parametrize("image", ["qmd-embed-rerank", "qmd-embed-rerank:latest"])
def test_our_own_image_is_built_and_not_pulled(image):
    """No registry has it, so that a pull would ask for a login."""
    with pytest.raises(PrerequisiteError) as told:
        docker_preflight.look_at_absence(replace(WANTED, service="embed", image=image))
    assert "image.missing" == told.value.code
    assert "docker build -t qmd-embed-rerank ." in told.value.hint


def test_an_image_of_another_name_may_be_pulled():
    """Somebody may have put it into a registry, and under our name vLLM's is not ours."""
    for name in ("registry.example/qmd-embed-rerank", "qmd-embed-rerank:2", "acme"):
        docker_preflight.look_at_absence(replace(WANTED, service="embed", image=name))
    docker_preflight.look_at_absence(replace(WANTED, image="qmd-embed-rerank"))


def test_an_image_for_another_processor_is_refused():
    """The hint fetches the right one; an image that does not tell is let through."""
    docker_preflight.look_at_image(WANTED, ImageFacts("1", "amd64"), FACTS)
    docker_preflight.look_at_image(WANTED, ImageFacts("1", ""), FACTS)
    with pytest.raises(ConfigError) as told:
        docker_preflight.look_at_image(WANTED, ImageFacts("1", "arm64"), FACTS)
    assert "image.arch" == told.value.code
    assert "docker pull --platform linux/amd64" in told.value.hint


@pytest.mark.parametrize(
    ("image", "free", "warns"),
    [
        ("nvcr.io/nvidia/vllm:1", 60e9, False),
        ("nvcr.io/nvidia/vllm:1", 20e9, True),
        ("vllm/vllm-openai", 20e9, True),
        ("qmd-embed-rerank", 20e9, False),
    ],
)
def test_little_room_for_a_large_image_is_a_warning(image, free, warns, monkeypatch, tmp_path):
    """The size of what is to be pulled is not known before, so it is only said."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, int(free)))
    warnings = docker_preflight.look_at_disk(replace(WANTED, image=image), replace(FACTS, root_dir=str(tmp_path)))
    assert warns == bool(warnings)


def test_no_room_is_refused(monkeypatch, tmp_path):
    """A pull that must fail is not begun."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**8))
    with pytest.raises(PrerequisiteError) as told:
        docker_preflight.look_at_disk(WANTED, replace(FACTS, root_dir=str(tmp_path)))
    assert "disk.full" == told.value.code


@pytest.mark.parametrize("root", ["", "/no/such/folder"])
def test_a_disk_that_cannot_be_seen_is_not_judged(root):
    """The engine may keep its images in a virtual machine."""
    assert () == docker_preflight.look_at_disk(WANTED, replace(FACTS, root_dir=root))


def test_a_gpu_that_nothing_shows_is_a_warning(tmp_path):
    """A runtime, a specification or Podman says enough; a folder of specifications alone does not."""
    with_cdi = replace(FACTS, cdi=("/no/such/folder", str(tmp_path)))
    assert re.search("NVIDIA Container Toolkit", docker_preflight.look_at_gpu(WANTED, with_cdi)[0])
    (tmp_path / "other.yaml").write_text("kind: example.com/fpga")
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe")
    assert docker_preflight.look_at_gpu(WANTED, with_cdi)
    (tmp_path / "nvidia.yaml").write_text("cdiVersion: 0.6.0\nkind: nvidia.com/gpu\n")
    for facts in (with_cdi, replace(FACTS, runtimes=("nvidia", "runc")), replace(FACTS, podman=True)):
        assert () == docker_preflight.look_at_gpu(WANTED, facts)
    assert () == docker_preflight.look_at_gpu(replace(WANTED, gpus="none"), FACTS)


def test_a_podman_that_passes_over_the_request_for_a_gpu_is_refused():
    """Its container would start without one, and vLLM would end minutes later."""
    old = replace(FACTS, podman=True, version="4.3.1")
    with pytest.raises(PrerequisiteError) as told:
        docker_preflight.look_at_gpu(replace(WANTED, gpus="all"), old)
    assert "gpu.toolkit" == told.value.code
    assert "5.4 is the first" in told.value.message
    assert () == docker_preflight.look_at_gpu(replace(WANTED, gpus="none"), old)
    assert () == docker_preflight.look_at_gpu(replace(WANTED, gpus="all"), replace(old, version="5.4.2"))
