"""The settings for device, backend and precision, on every kind of machine."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from qmd_remote.errors import ConfigError, DeviceUnavailable, ExtraMissing
from qmd_remote.server.device import CPU_TOKENS, CUDA_TOKENS, MPS_TOKENS, Machine, choose, look

CPU_ONLY = Machine()
NO_DRIVER = Machine(cuda_build="12.8", cuda_problem="Found no NVIDIA driver on your system.")
ONE_GPU = Machine(cuda_build="12.8", gpus=("NVIDIA H200",))
TWO_GPUS = Machine(cuda_build="13.0", gpus=("NVIDIA GB10", "NVIDIA GB10"))
MAC = Machine(mps=True)
XEON = Machine(cpu_flags=frozenset({"avx512f", "amx_bf16"}), openvino=True)
XEON_WITH_GPU = Machine(cuda_build="12.8", gpus=("NVIDIA H200",), cpu_flags=XEON.cpu_flags, openvino=True)


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
        ("auto", XEON, "cpu", "bfloat16"),
        ("cpu", XEON_WITH_GPU, "cpu", "bfloat16"),
    ],
)
def test_chosen_device(wanted, machine, name, dtype):
    """auto takes CUDA, else MPS, else the CPU; a name takes what it names; each has its precision."""
    found = choose(wanted, machine)
    assert (found.name, found.dtype) == (name, dtype)
    assert found.cuda_available == bool(machine.gpus)
    assert found.reason
    assert found.dtype_reason


@pytest.mark.parametrize(
    ("wanted", "machine", "device", "backend", "reason"),
    [
        ("auto", XEON, "auto", "openvino", "installed"),
        ("auto", CPU_ONLY, "auto", "torch", "not installed"),
        ("auto", XEON_WITH_GPU, "auto", "torch", "cuda"),
        ("auto", XEON_WITH_GPU, "cpu", "openvino", "installed"),
        ("auto", MAC, "auto", "torch", "mps"),
        ("torch", XEON, "auto", "torch", "backend=torch"),
        ("openvino", XEON, "auto", "openvino", "backend=openvino"),
    ],
)
def test_chosen_backend(wanted, machine, device, backend, reason):
    """OpenVINO where it is installed and the CPU computes, torch elsewhere; a name takes what it names."""
    found = choose(device, machine, backend=wanted)
    assert found.backend == backend
    assert reason in found.backend_reason


@pytest.mark.parametrize("machine", [XEON_WITH_GPU, MAC])
def test_openvino_on_a_gpu_is_a_contradiction(machine):
    """It is refused, with the way out, whether the GPU was named or found."""
    with pytest.raises(ConfigError, match="openvino") as caught:
        choose("auto", machine, backend="openvino")
    assert "--device cpu" in caught.value.hint


def test_openvino_asked_and_absent_says_how_to_install_it():
    """Nothing else is taken in its place."""
    with pytest.raises(ExtraMissing) as caught:
        choose("cpu", CPU_ONLY, backend="openvino")
    assert "qmd-remote[server,openvino]" in caught.value.hint


def test_unknown_backend_is_a_wrong_setting():
    """The names there are stand in the hint."""
    with pytest.raises(ConfigError) as caught:
        choose("cpu", XEON, backend="onnx")
    assert "openvino" in caught.value.hint


def test_a_precision_that_is_asked_wins():
    """And one that the device cannot compute in is refused."""
    assert choose("auto", XEON, "float32").dtype == "float32"
    with pytest.raises(ConfigError, match="float16"):
        choose("auto", XEON, "float16")


@pytest.mark.parametrize(
    ("machine", "dtype", "expected"),
    [(XEON, "auto", "float32"), (ONE_GPU, "auto", "float16"), (ONE_GPU, "bfloat16", "bfloat16")],
)
def test_weights_are_narrow_on_gpus_only(machine, dtype, expected):
    """On a CPU, bfloat16 is for matrix products alone, which backends narrow by themselves."""
    assert choose("auto", machine, dtype).weights_dtype == expected


@pytest.mark.parametrize(
    ("machine", "tokens"), [(CPU_ONLY, CPU_TOKENS), (MAC, MPS_TOKENS), (TWO_GPUS, CUDA_TOKENS)], ids=str
)
def test_token_budget_by_device_unless_set(machine, tokens):
    """Each kind of device has its own; the setting wins over it."""
    assert choose("auto", machine).batch_tokens == tokens
    assert choose("auto", machine, max_batch_tokens=77).batch_tokens == 77


def test_what_was_chosen_and_not_kept_is_said():
    """A model that leaves its precision or backend is not shown with the reasons for them alone."""
    device = choose("auto", XEON)
    assert device.why_dtype("bfloat16") == device.dtype_reason
    assert "bfloat16 was chosen" in device.why_dtype("float32")
    assert device.why_backend("openvino") == device.backend_reason
    assert "openvino was chosen" in device.why_backend("torch")


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
    assert seen.openvino == (importlib.util.find_spec("openvino") is not None)
