"""`qmd-remote doctor` as it is typed: what it says, and what it exits with."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
NAMES = [
    *("python", "gpu", "container engine", "gpu for containers", "memory plan", "ports", "address and key", "disk"),
    *("model hub", "models", "QMD's config", "embed server", "generation"),
]


@pytest.fixture
def bare(cli_home: Path) -> dict[str, str]:
    """A machine without GPU, hub and container engine; the ports of the services are free ones."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [str(one.getsockname()[1]) for one in sockets]
    return {
        "QMD_REMOTE_PORT": ports[0],
        "QMD_REMOTE_GENERATION_PORT": ports[1],
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cli_home / "hf"),
        "DOCKER_HOST": f"unix://{cli_home}/nobody.sock",
    }


def by_name(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The checks by their names."""
    return {row["name"]: row for row in data["checks"]}


def test_a_machine_on_which_nothing_was_set_up(qmd_remote: Run, bare: dict[str, str], cli_home: Path):
    """No config of QMD, nothing running, no GPU: nothing is wrong with that, and nothing is made."""
    done = qmd_remote("doctor", "--preset", "mini", "--json", **bare)
    said = done.envelope()
    assert (0, None) == (done.code, said["error"])
    assert NAMES == [row["name"] for row in said["data"]["checks"]]
    rows = by_name(said["data"])
    for name in ("QMD's config", "embed server", "generation", "container engine"):
        assert "skipped" == rows[name]["state"]
    assert [] == [path for path in cli_home.rglob("*") if path.is_file()]


def test_without_any_option(qmd_remote: Run, bare: dict[str, str]):
    """The plain command is the one that most people type."""
    done = qmd_remote("doctor", **bare)
    assert all(name in done.stdout for name in NAMES), done.stderr
    assert "unexpected" not in done.stderr


def test_a_person_gets_a_table(qmd_remote: Run, bare: dict[str, str]):
    """A line for each check on stdout; with --quiet nothing else."""
    done = qmd_remote("doctor", "--preset", "mini", "-q", **bare)
    assert (0, "") == (done.code, done.stderr)
    assert len(NAMES) + 1 == len(done.stdout.splitlines())
    assert f"{bare['QMD_REMOTE_PORT']} is free" in done.stdout


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a GPU here")
def test_the_preset_gpu_without_a_gpu(qmd_remote: Run, bare: dict[str, str]):
    """Exit code 1, the cause, and what else there is; the engine is missed, too."""
    done = qmd_remote("doctor", "--preset", "gpu", "--json", **bare)
    said = done.envelope()
    assert (1, "doctor") == (done.code, said["error"]["code"])
    assert said["error"]["message"].startswith("gpu: no NVIDIA driver is installed")
    assert "qmd-remote up --preset cpu" in said["error"]["hint"]
    engine = by_name(said["data"])["container engine"]
    assert ("failure", True) == (engine["state"], bool(engine["fix"]))


def test_hints_name_the_file_that_was_meant(qmd_remote: Run, bare: dict[str, str], cli_home: Path):
    """Commands about QMD's file repeat --file, in the text and in the envelope."""
    file = cli_home / "other.yml"
    file.write_text("remote:\n  url: nonsense\n", encoding="utf-8")
    line = ("doctor", "--preset", "mini", "--file", file)
    told = by_name(qmd_remote(*line, "--json", **bare).envelope()["data"])["QMD's config"]
    assert ("failure", True) == (told["state"], f"qmd-remote config check --file {file}" in told["fix"])
    done = qmd_remote(*line, **bare)
    assert (1, 1) == (done.code, done.stderr.count(f"config check --file {file}"))
