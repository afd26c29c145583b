"""`doctor` beside a real container engine."""

from __future__ import annotations

import socket
from pathlib import Path

import docker
import pytest

from qmd_remote import doctor_checks, doctor_containers, settings
from qmd_remote.errors import PrerequisiteError
from qmd_remote.launch import containers
from qmd_remote.launch.docker_engine import DockerEngine
from qmd_remote.launch.plan import Plan


def test_the_engine_is_shown(engine: DockerEngine, home: Path):
    """It is ok, with its endpoint and version, also where no plan can be made."""

    def no_plan() -> Plan:
        raise PrerequisiteError("there is no GPU")

    wanted = settings.resolve({"preset": "gpu"})
    found = doctor_containers.engine(wanted, containers.connect, no_plan)
    facts = engine.facts()
    assert "ok" == found.state
    assert facts.version in found.detail
    assert found.detail.endswith(f" at {engine.endpoint}")


def test_a_port_that_a_container_has_is_told_as_its(
    engine_client: docker.DockerClient, vllm_image: str, prefix: str, home: Path
):
    """Not the proxy process that holds it for the container, which nobody should stop."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    engine_client.containers.run(
        vllm_image,
        ["python3", "-c", "import time; time.sleep(60)"],
        name=f"{prefix}-other",
        detach=True,
        ports={"8000/tcp": ("127.0.0.1", port)},
    )
    wanted = settings.resolve({"preset": "mini", "port": port})
    with pytest.raises(PrerequisiteError) as caught:
        doctor_checks.ports(wanted)
    assert f"taken by the container {prefix}-other" in caught.value.message
    assert f"docker stop {prefix}-other" in caught.value.hint
