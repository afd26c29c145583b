"""The DEVICE setting, on every kind of machine."""

from __future__ import annotations

import pytest
import torch

from qmd_remote.errors import ConfigError, DeviceUnavailable
from qmd_remote.server.device import Machine, choose, look

CPU_ONLY = Machine()
NO_DRIVER = Machine(cuda_build="12.8", cuda_problem="Found no NVIDIA driver on your system.")
ONE_GPU = Machine(cuda_build="12.8", gpus=("NVIDIA H200",))
TWO_GPUS = Machine(cuda_build="13.0", gpus=("NVIDIA GB10", "NVIDIA GB10"))
MAC = Machine(mps=True)


@pytest.mark.parametrize(
    ("wanted", "machine", "name", "dtype"),
    [
        ("auto", CPU_ONLY, "cpu", "float32"),
        ("auto", NO_DRIVER, "cpu", "float32"),
        ("auto", ONE_GPU, "cuda:0", "float16"),
        ("auto", MAC, "mps", "float32"),
        ("AUTO", TWO_GPUS, "cuda:0", "float16"),
        ("cpu", ONE_GPU, "cpu", "float32"),
        ("cuda", TWO_GPUS, "cuda:0", "float16"),
        ("cuda:1", TWO_GPUS, "cuda:1", "float16"),
        ("mps", MAC, "mps", "float32"),
    ],
)
def test_chosen_device(wanted, machine, name, dtype):
    """auto takes CUDA, else MPS, else the CPU; a name takes what it names; half precision only on CUDA."""
    found = choose(wanted, machine)
    assert (found.name, found.dtype) == (name, dtype)
    assert found.cuda_available == bool(machine.gpus)
    assert found.reason


@pytest.mark.parametrize(
    ("wanted", "machine", "cause", "fix"),
    [
        ("cuda", CPU_ONLY, "CPU-only build", "install a torch with CUDA"),
        ("cuda:0", NO_DRIVER, "Found no NVIDIA driver", "nvidia-smi"),
        ("cuda:1", ONE_GPU, "only one CUDA device, cuda:0", "DEVICE=auto"),
        ("cuda:7", TWO_GPUS, "cuda:0 to cuda:1", "DEVICE=auto"),
        ("cuda", MAC, "CPU-only build", "DEVICE=cpu"),
        ("mps", ONE_GPU, "Apple GPU", "DEVICE=cpu"),
    ],
)
def test_absent_device_is_an_error_with_cause_and_fix(wanted, machine, cause, fix):
    """A device named and absent is never replaced by another one."""
    with pytest.raises(DeviceUnavailable) as caught:
        choose(wanted, machine)
    assert f"DEVICE={wanted}" in caught.value.message
    assert cause in caught.value.message
    assert fix in caught.value.hint


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "xpu"])
def test_unknown_device_is_a_wrong_setting(wanted):
    """A name that torch could never know is a configuration error that lists the names there are."""
    with pytest.raises(ConfigError) as caught:
        choose(wanted, TWO_GPUS)
    assert "cuda:N" in caught.value.hint


def test_look_tells_what_torch_tells():
    """The machine as seen agrees with torch itself."""
    seen = look()
    assert bool(seen.gpus) == torch.cuda.is_available()
    assert (seen.cuda_build is None) == (torch.version.cuda is None and torch.version.hip is None)
    assert seen.mps == torch.backends.mps.is_available()
