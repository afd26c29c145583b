"""Which device computes, by which backend, in which precision, and why."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from dataclasses import dataclass
from typing import Literal

from qmd_remote.errors import ConfigError, DeviceUnavailable, ExtraMissing
from qmd_remote.server import precision
from qmd_remote.server.precision import Dtype

Backend = Literal["torch", "openvino"]

# Tokens, padding included, in one forward pass. A CPU is as fast with few, which stay in its cache, and a query has to
# wait for the end of the pass in progress. A GPU needs more to be busy; its two figures are not measured.
CPU_TOKENS, MPS_TOKENS, CUDA_TOKENS = 512, 8_192, 16_384

CPU_FIX = "set DEVICE=cpu (or auto) to compute on the CPU"


@dataclass(frozen=True)
class Machine:
    """What torch sees. `cuda_build` is the CUDA or ROCm version torch was built for, None in a CPU-only build;
    `cuda_problem` is torch's own word on why a CUDA build finds no GPU; `cpu_flags` are the CPU's as Linux names
    them; `openvino` says whether that package is installed."""

    cuda_build: str | None = None
    gpus: tuple[str, ...] = ()
    cuda_problem: str = ""
    mps: bool = False
    cpu_flags: frozenset[str] = frozenset()
    openvino: bool = False


@dataclass(frozen=True)
class Device:
    """The choice: torch's name for the device, the precision of the transformer, the backend; each with its reason.

    `max_batch_tokens` is what the settings say, 0 where they leave it to the device. `threads` is for backends that
    have to know it in advance: how many CPU threads to compute with, 0 for their own choice.
    """

    name: str
    dtype: Dtype
    reason: str
    cuda_available: bool
    backend: Backend = "torch"
    dtype_reason: str = ""
    backend_reason: str = ""
    max_batch_tokens: int = 0
    threads: int = 0

    @property
    def batch_tokens(self) -> int:
        """How many tokens, padding included, one forward pass should have."""
        return self.max_batch_tokens or {"cpu": CPU_TOKENS, "mps": MPS_TOKENS}.get(self.name, CUDA_TOKENS)

    @property
    def weights_dtype(self) -> Dtype:
        """What weights are loaded in. On a CPU bfloat16 is for matrix products alone, and backends narrow those."""
        return "float32" if (self.name, self.dtype) == ("cpu", "bfloat16") else self.dtype

    def why_dtype(self, used: str) -> str:
        """Why a forward pass computes in `used`; after an overflow, or on some backends, it is not what was chosen."""
        if used == self.dtype:
            return self.dtype_reason
        return f"{self.dtype} was chosen ({self.dtype_reason}) but could not be kept"

    @property
    def named_backend(self) -> bool:
        """Whether somebody asked for this backend by its name."""
        return not self.backend_reason.startswith("auto")

    def why_backend(self, used: str) -> str:
        """Why a model runs on the backend `used`; the chosen one does not take every model."""
        if used == self.backend:
            return self.backend_reason
        return f"{self.backend} was chosen ({self.backend_reason}) but could not be used; the log says why"


def choose(
    wanted: str, machine: Machine, dtype: str = "auto", backend: str = "auto", max_batch_tokens: int = 0
) -> Device:
    """Settle the settings of these names: `wanted` is DEVICE, that is auto, cuda, cuda:N, mps or cpu. Pure.

    auto takes CUDA, else MPS, else the CPU. Raises DeviceUnavailable for a device named and absent, never falling
    back, ConfigError for a name that is none of these and for what contradicts itself, ExtraMissing for a backend
    that is not installed.
    """
    name, reason = _place(wanted, machine)
    settled_dtype, dtype_reason = precision.choose(dtype, name, machine.cpu_flags)
    emulated = name == "cpu" and settled_dtype == "bfloat16" and not precision.computes_bfloat16(machine.cpu_flags)
    settled_backend, backend_reason = _backend(backend, name, machine, emulated=emulated)
    return Device(
        name,
        settled_dtype,
        reason,
        bool(machine.gpus),
        settled_backend,
        dtype_reason,
        backend_reason,
        max_batch_tokens,
    )


def _backend(wanted: str, device: str, machine: Machine, *, emulated: bool) -> tuple[Backend, str]:
    """The backend and the reason for it; `emulated`: the CPU has no instructions for the precision."""
    asked = f"backend={wanted}"
    if wanted == "torch":
        return "torch", asked
    if wanted == "openvino":
        if device != "cpu":
            raise ConfigError(
                f"{asked}: it computes on the CPU, and the device is {device}",
                hint="add --device cpu, or use --backend auto",
                code="backend.device",
            )
        if not machine.openvino:
            raise ExtraMissing("server,openvino", "openvino")
        if emulated:
            raise ConfigError(
                f"{asked}: it does not emulate bfloat16, and this CPU has no instructions for it",
                hint="use --dtype auto, or --backend torch",
                code="dtype.unsupported",
            )
        return "openvino", asked
    if wanted != "auto":
        raise ConfigError(f"{asked}: there is no such backend", hint="use auto, torch or openvino")
    if device != "cpu":
        return "torch", f"auto: the one backend for {device.partition(':')[0]}"
    if emulated:
        return "torch", "auto: openvino does not emulate bfloat16"
    if machine.openvino:
        return "openvino", "auto: installed, and the fastest on CPUs"
    return "torch", "auto: openvino is not installed"


def _place(wanted: str, machine: Machine) -> tuple[str, str]:
    """The device and the reason for it."""
    name = wanted.strip().lower()
    if name == "auto":
        return _auto(machine)
    asked = f"DEVICE={wanted}"
    if name == "cpu":
        return "cpu", asked
    if name == "mps":
        if not machine.mps:
            raise DeviceUnavailable(f"{asked}: this torch has no Apple GPU (MPS) to use here", hint=CPU_FIX)
        return "mps", asked
    if match := re.fullmatch(r"cuda(?::(\d+))?", name):
        return _cuda(asked, int(match[1] or 0), machine)
    raise ConfigError(f"{asked}: there is no such device", hint="use auto, cuda, cuda:N (0, 1, …), mps or cpu")


def _auto(machine: Machine) -> tuple[str, str]:
    if machine.gpus:
        return "cuda:0", f"auto: {machine.gpus[0]}"
    if machine.mps:
        return "mps", "auto: Apple GPU, no CUDA"
    return "cpu", f"auto: {_no_cuda(machine)}"


def _cuda(asked: str, index: int, machine: Machine) -> tuple[str, str]:
    if index < len(machine.gpus):
        return f"cuda:{index}", f"{asked}: {machine.gpus[index]}"
    if machine.gpus:
        count = len(machine.gpus)
        there = "one CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        raise DeviceUnavailable(f"{asked}: there is only {there}", hint="name one that is there, or set DEVICE=auto")
    fix = (
        "install a torch with CUDA (https://pytorch.org/get-started/locally)"
        if machine.cuda_build is None
        else "check the driver with `nvidia-smi`; in a container, start it with `--gpus all`"
    )
    raise DeviceUnavailable(f"{asked}: {_no_cuda(machine)}", hint=f"{fix}, or {CPU_FIX}")


def _no_cuda(machine: Machine) -> str:
    if machine.cuda_build is None:
        return "the torch installed here is a CPU-only build"
    why = f" ({machine.cuda_problem})" if machine.cuda_problem else ""
    return f"torch is built for CUDA {machine.cuda_build} and finds no GPU or no driver for it{why}"


def look() -> Machine:
    """Ask torch what there is. Raises ExtraMissing where torch is not installed."""
    # Threads that spin while they wait make a forward pass several times slower as soon as another process (the
    # generation service, say) holds one of the cores: figures in `threads`. OpenMP reads this when torch is imported
    # for the first time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ImportError:
        raise ExtraMissing("server", "torch") from None

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    problem = " ".join(str(caught[0].message).partition("(Triggered")[0].split()) if caught else ""
    return Machine(
        cuda_build=torch.version.cuda or torch.version.hip,
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) if available else (),
        cuda_problem=problem,
        mps=torch.backends.mps.is_available(),
        # only oneDNN has kernels for those instructions
        cpu_flags=precision.cpu_flags() if _has_onednn() else frozenset(),
        openvino=importlib.util.find_spec("openvino") is not None,
    )


def _has_onednn() -> bool:
    import torch

    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
