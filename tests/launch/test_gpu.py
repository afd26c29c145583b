"""What nvidia-smi tells of the GPUs, and what /proc tells of the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.launch import gpu, hardware
from qmd_remote.launch.gpu import Gpu, SystemMemory

MIB = 1 << 20
DISCRETE = "NVIDIA GeForce RTX 4090, 24564, 23028, 580.95.05, 8.9\n"
SPARK = "NVIDIA GB10, [N/A], [N/A], 580.95.05, 12.1\n"
MEMINFO = "MemTotal:       127535724 kB\nMemFree:         2038420 kB\nMemAvailable:   117440512 kB\n"


def test_a_gpu_with_memory_of_its_own():
    """A GPU's size and what is free of it are MiB of nvidia-smi as bytes, beside driver and compute capability."""
    expected = Gpu("NVIDIA GeForce RTX 4090", 24564 * MIB, 23028 * MIB, "580.95.05", "8.9")
    assert (expected,) == gpu.parse(DISCRETE)
    assert not expected.unified


@pytest.mark.parametrize("told", ["[N/A]", "N/A", "[Not Supported]"])
def test_memory_that_does_not_apply_is_the_systems(told: str):
    """N/A, as a GB10 reports it, is no failure: CPU and GPU share the memory."""
    (found,) = gpu.parse(SPARK.replace("[N/A]", told))
    assert Gpu("NVIDIA GB10", None, None, "580.95.05", "12.1") == found
    assert found.unified


@pytest.mark.parametrize("told", ["[Unknown Error]", "[GPU is lost]", "[Insufficient Permissions]", "ERR!"])
def test_a_failure_is_not_taken_for_shared_memory(told: str):
    """A driver that fails to tell a size has not said that the GPU has none of its own."""
    (found,) = gpu.parse(f"NVIDIA A100, {told}, {told}, 550.1, [N/A]\n")
    assert (0, None, False, "") == (found.total, found.free, found.unified, found.compute_capability)


def test_gpus_keep_their_order():
    """Several GPUs come in nvidia-smi's order, which is that of their numbers."""
    assert ["NVIDIA GB10", "NVIDIA GeForce RTX 4090"] == [one.name for one in gpu.parse(SPARK + DISCRETE)]


@given(st.text())
def test_any_text_is_read_or_passed_over(text: str):
    """Whatever a program of that name writes, it is no reason to end."""
    assert all(one.total is None or one.total >= 0 for one in gpu.parse(text))


def fake_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put an nvidia-smi on the PATH that does this."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_it_is_asked_once_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One call of nvidia-smi tells all facts, as bare comma-separated values."""
    fake_tool(tmp_path, monkeypatch, f'echo "$@" >> {tmp_path}/calls; printf "%s" "{DISCRETE}"')
    assert gpu.parse(DISCRETE) == gpu.query()
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert "--query-gpu=name,memory.total,memory.free,driver_version,compute_cap" in call
    assert "--format=csv,noheader,nounits" in call


@pytest.mark.parametrize("body", ["echo 'NVIDIA-SMI has failed'; exit 9", "exec sleep 60", "exit 0", "kill -9 $$"])
def test_a_tool_that_does_not_tell_gives_no_gpus(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A failure, silence, and a call that never ends are all "not known"."""
    monkeypatch.setattr(gpu, "LIMIT_S", 0.5)
    fake_tool(tmp_path, monkeypatch, body)
    assert () == gpu.query()


def test_without_the_tool_there_is_nothing_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where nvidia-smi is not installed there are no facts, and no failure."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert () == gpu.query()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("NVIDIA GB10",), (Gpu("NVIDIA GB10"),)),
        (("NVIDIA GeForce RTX 4090",), ()),
        (("NVIDIA GB10", "NVIDIA GeForce RTX 4090"), ()),
        (("NVIDIA GB102",), ()),
        ((), ()),
    ],
)
def test_a_name_tells_enough_of_a_gpu_without_own_memory(names: tuple[str, ...], expected: tuple[Gpu, ...]):
    """Where only the kernel's driver answers, a GB10's memory is known to be the system's; others' is not known."""
    assert expected == gpu.by_names(names)


def test_memory_of_the_system(tmp_path: Path):
    """Total and available memory are read from the kernel's table, in bytes."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert SystemMemory(127535724 << 10, 117440512 << 10) == gpu.system_memory(tmp_path / "meminfo")


def test_a_system_that_does_not_tell_its_memory(tmp_path: Path):
    """Without such a table, as on a Mac, or with another text in it, the sizes are zeros."""
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    assert SystemMemory() == gpu.system_memory(tmp_path / "nothing") == gpu.system_memory(tmp_path / "other")


def driver(folder: Path, name: str) -> Path:
    """A folder as the kernel's driver makes it, with one GPU."""
    (folder / "gpus" / "0").mkdir(parents=True)
    (folder / "gpus" / "0" / "information").write_text(f"Model: \t\t {name}\n")
    (folder / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module\n")
    return folder


def test_the_machine_has_the_gpus_that_the_tool_tells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a driver the probe asks nvidia-smi; where that does not answer, a GB10 is known by its name."""
    proc = driver(tmp_path / "proc", "NVIDIA GB10")
    fake_tool(tmp_path, monkeypatch, "exit 9")
    assert (Gpu("NVIDIA GB10"),) == hardware.probe(proc).gpus
    fake_tool(tmp_path, monkeypatch, f'printf "%s" "{SPARK}"')
    assert gpu.parse(SPARK) == hardware.probe(proc).gpus


def test_without_a_driver_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The probe of a machine without NVIDIA's driver runs no program, and so takes no time."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    seen = hardware.probe(tmp_path / "nothing")
    assert (False, ()) == (seen.nvidia, seen.gpus)
    assert gpu.system_memory().total == seen.memory.total
