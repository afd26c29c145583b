"""Our view of a container engine, on a real one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from qmd_remote.errors import ConfigError, Exit, PrerequisiteError, QmdRemoteError, ServiceFailed
from qmd_remote.launch import container_end, docker_engine
from qmd_remote.launch.container import Container, Mount, Ulimit
from qmd_remote.launch.docker_engine import DockerEngine
from qmd_remote.launch.engine import PullProgress


@pytest.fixture
def container(vllm_image: str, prefix: str, free_port: Callable[[], int]) -> Container:
    """A container of the stand-in."""
    return Container(
        name=f"{prefix}-vllm",
        service="generation",
        image=vllm_image,
        command=("vllm", "serve", "acme/fine"),
        owner=prefix,
        version="1",
        gpus="none",
        publish=("127.0.0.1", free_port(), 8000),
        shm_bytes=1 << 30,
    )


def started(engine: DockerEngine, container: Container):
    """Start it."""
    image = engine.image(container.image)
    assert image is not None
    return engine.run(container, image)


def log_of(engine: DockerEngine, found) -> str:
    """All that it wrote."""
    return b"".join(engine.logs(found, follow=False)).decode()


def test_the_engine_tells_what_it_is(engine: DockerEngine):
    """Its endpoint, version and processor."""
    facts = engine.facts()
    assert facts.endpoint == engine.endpoint
    assert facts.version
    assert facts.architecture in {"amd64", "arm64"}


def test_a_container_is_made_as_planned(
    engine: DockerEngine, engine_client: docker.DockerClient, container: Container, tmp_path: Path
):
    """Labels, limits, mounts, address, restart policy: all as the plan says, and nothing published elsewhere."""
    folder = tmp_path / "cache"
    folder.mkdir()
    mounts = (Mount(str(folder), "/cache"), Mount(f"{container.name}-cache", "/compiled", kind="volume"))
    ulimits = (Ulimit("nofile", 512, 1024), Ulimit("stack", 67108864, 67108864))  # that any engine may set
    wanted = replace(container, mounts=mounts, ulimits=ulimits, env={"A": "1"}, secret_env={"VLLM_API_KEY": "s3cret"})
    found = started(engine, wanted)
    told = engine_client.api.inspect_container(found.id)
    host = told["HostConfig"]
    assert found.owner == container.owner
    assert found.spec_hash == wanted.spec_hash
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["Init"] is True
    assert host["ShmSize"] == 1 << 30
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert {(one["Name"], one["Soft"], one["Hard"]) for one in host["Ulimits"]} == {
        (one.name, one.soft, one.hard) for one in ulimits
    }
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "20m"}}
    assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(container.publish[1])}]}
    assert {one["Destination"]: one["Type"] for one in told["Mounts"]} == {"/cache": "bind", "/compiled": "volume"}
    assert {"A=1", "VLLM_API_KEY=s3cret"} <= set(told["Config"]["Env"])
    engine.remove(found, found.owner)


@pytest.mark.parametrize("entrypoint", ["", '["vllm", "serve"]', '["/usr/local/bin/vllm"]'])
def test_the_entrypoint_of_the_image_decides_what_it_is_given(
    engine: DockerEngine,
    engine_client: docker.DockerClient,
    container: Container,
    base_image: str,
    prefix: str,
    entrypoint: str,
):
    """Images that have the program in their entrypoint get the rest of the command."""
    from tests.docker import images

    name = images.build_standin(engine_client, base_image, f"{prefix}-image:1", entrypoint=entrypoint)
    try:
        found = started(engine, replace(container, image=name))
        until(lambda: "startup complete" in log_of(engine, found))
        engine.remove(found, found.owner)
    finally:
        engine_client.images.remove(name, force=True)


def test_ours_are_known_by_label(engine: DockerEngine, engine_client: docker.DockerClient, container: Container):
    """One without our labels, and one of another installation, are not ours."""
    found = started(engine, container)
    foreign = engine_client.containers.create(container.image, ["vllm"], name=f"{container.name}-foreign")
    assert [found.id] == [one.id for one in engine.ours(container.owner)]
    assert [] == list(engine.ours(container.owner, "embed"))
    assert [] == list(engine.ours("somebody else"))
    with pytest.raises(ServiceFailed):
        engine.remove(engine.find(foreign.name), container.owner)
    with pytest.raises(ServiceFailed):
        engine.remove(found, "somebody else")
    assert None not in (engine.find(foreign.name), engine.find(found.name))
    engine.remove(found, found.owner)


def test_removing_waits_until_it_is_gone_and_may_be_repeated(engine: DockerEngine, container: Container):
    """After it the name is free, and a second removal is no error."""
    found = started(engine, container)
    engine.remove(found, found.owner, grace_s=1)
    assert engine.find(container.name) is None
    engine.remove(found, found.owner)
    engine.remove(started(engine, container), container.owner, grace_s=1)


def test_a_start_that_fails_leaves_no_container(engine: DockerEngine, container: Container):
    """The engine itself leaves one in the state "created"."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PrerequisiteError) as caught:
            started(engine, replace(container, publish=("127.0.0.1", port, 8000)))
    assert "port.taken" == caught.value.code
    assert engine.find(container.name) is None


def test_a_gpu_that_nobody_can_give_is_told_with_its_cure(engine: DockerEngine, container: Container):
    """`--gpus all` without NVIDIA's toolkit."""
    if engine.facts().cdi or "nvidia" in engine.facts().runtimes:
        pytest.skip("this engine has a GPU to give")
    with pytest.raises(PrerequisiteError) as caught:
        started(engine, replace(container, gpus="all"))
    assert "gpu.toolkit" == caught.value.code
    assert "nvidia-ctk" in caught.value.hint
    assert engine.find(container.name) is None


def test_a_program_that_the_image_lacks_ends_the_container_with_127(engine: DockerEngine, container: Container):
    """The init process starts, and does not find it: an image without vLLM."""
    found = started(engine, replace(container, command=("no-such-program",)))
    until(lambda: engine.find(container.name).state == "exited")
    error = container_end.to_error("engine", "", engine.find(container.name), Path("engine.log"))
    assert "program.missing" == error.code
    engine.remove(found, found.owner)


def test_the_name_of_a_foreign_container_is_refused(
    engine: DockerEngine, engine_client: docker.DockerClient, container: Container
):
    """Before anything is made, and the other one is not touched."""
    other = engine_client.containers.create(container.image, ["vllm"], name=container.name)
    with pytest.raises(PrerequisiteError) as caught:
        engine.preflight(container)
    assert ("name.taken", Exit.PREREQUISITE) == (caught.value.code, caught.value.exit_code)
    assert other.id == engine.find(container.name).id


def test_a_taken_port_is_refused_with_its_holder(engine: DockerEngine, container: Container, prefix: str):
    """A container that holds it is named."""
    first = started(engine, container)
    second = replace(container, name=f"{prefix}-other", owner=f"{prefix}-other")
    with pytest.raises(PrerequisiteError) as caught:
        engine.preflight(second)
    assert "port.taken" == caught.value.code
    assert container.name in caught.value.message
    assert () == engine.preflight(container)
    engine.remove(first, first.owner, grace_s=1)


def test_a_folder_that_is_missing_is_refused(engine: DockerEngine, container: Container, tmp_path: Path):
    """The engine would make it, as root."""
    with pytest.raises(ConfigError) as caught:
        engine.preflight(replace(container, mounts=(Mount(str(tmp_path / "none"), "/cache"),)))
    assert "mount.missing" == caught.value.code
    assert not (tmp_path / "none").exists()


def test_an_image_that_does_not_exist_is_told(engine: DockerEngine):
    """The registry is this machine's, where none listens; the address is told."""
    told: list[PullProgress] = []
    with pytest.raises(QmdRemoteError) as caught:
        engine.pull("127.0.0.1:9/acme/none:1", told.append, lambda: False)
    assert "registry.unreachable" == caught.value.code
    assert engine.image("127.0.0.1:9/acme/none:1") is None


def test_a_restart_policy_is_set_after_readiness(engine: DockerEngine, container: Container):
    """Until then the engine must not restart what cannot start."""
    found = started(engine, container)
    assert "no" == found.restart_policy
    engine.keep_running(found)
    assert "unless-stopped" == engine.find(container.name).restart_policy
    engine.remove(found, found.owner, grace_s=1)


def test_an_engine_that_is_not_there_is_told_with_its_endpoint(tmp_path: Path):
    """A socket that does not exist."""
    endpoint = f"unix://{tmp_path}/none.sock"
    with pytest.raises(PrerequisiteError) as caught:
        docker_engine.connect({**os.environ, "DOCKER_HOST": endpoint})
    assert "docker.down" == caught.value.code
    assert endpoint in caught.value.message


@pytest.mark.parametrize("endpoint", ["ssh://box", "tcp://203.0.113.7:2375"])
def test_an_engine_on_another_machine_is_refused(endpoint: str):
    """Its loopback is not ours; nothing is sent there."""
    with pytest.raises(PrerequisiteError) as caught:
        docker_engine.connect({"DOCKER_HOST": endpoint})
    assert "docker.remote" == caught.value.code


def until(true: Callable[[], bool], within_s: float = 20) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
