"""Which device computes, in which precision, and why."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from typing import Literal

from qmd_remote.errors import ConfigError, DeviceUnavailable, ExtraMissing

# Padded tokens in one forward pass. A CPU is fastest while the work stays in its cache, and a query has to wait for
# the end of the pass in progress; a GPU wants as many as its memory holds.
CPU_TOKENS, MPS_TOKENS, CUDA_TOKENS = 2_048, 16_384, 65_536

CPU_FIX = "set DEVICE=cpu (or auto) to compute on the CPU"


@dataclass(frozen=True)
class Machine:
    """What torch sees. `cuda_build` is the CUDA or ROCm version torch was built for, None in a CPU-only build;
    `cuda_problem` is torch's own word on why a CUDA build finds no GPU."""

    cuda_build: str | None = None
    gpus: tuple[str, ...] = ()
    cuda_problem: str = ""
    mps: bool = False


@dataclass(frozen=True)
class Device:
    """The choice: torch's name for the device, the precision of the transformer, and the reason in words."""

    name: str
    dtype: Literal["float16", "bfloat16", "float32"]
    reason: str
    cuda_available: bool
    backend: Literal["torch", "openvino"] = "torch"

    @property
    def batch_tokens(self) -> int:
        """How many tokens, padding included, one forward pass should have."""
        return {"cpu": CPU_TOKENS, "mps": MPS_TOKENS}.get(self.name, CUDA_TOKENS)


def choose(wanted: str, machine: Machine) -> Device:
    """Settle the DEVICE setting: auto, cuda, cuda:N, mps or cpu. Pure.

    auto takes CUDA, else MPS, else the CPU. Raises DeviceUnavailable for a device named and absent, never falling
    back, and ConfigError for a name that is none of these.
    """
    name = wanted.strip().lower()
    if name == "auto":
        return _auto(machine)
    asked = f"DEVICE={wanted}"
    if name == "cpu":
        return Device("cpu", "float32", asked, bool(machine.gpus))
    if name == "mps":
        if not machine.mps:
            raise DeviceUnavailable(f"{asked}: this torch has no Apple GPU (MPS) to use here", hint=CPU_FIX)
        return Device("mps", "float32", asked, False)
    if match := re.fullmatch(r"cuda(?::(\d+))?", name):
        return _cuda(asked, int(match[1] or 0), machine)
    raise ConfigError(f"{asked}: there is no such device", hint="use auto, cuda, cuda:N (0, 1, …), mps or cpu")


def _auto(machine: Machine) -> Device:
    if machine.gpus:
        return Device("cuda:0", "float16", f"auto: {machine.gpus[0]}", True)
    if machine.mps:
        return Device("mps", "float32", "auto: Apple GPU, no CUDA", False)
    return Device("cpu", "float32", f"auto: {_no_cuda(machine)}", False)


def _cuda(asked: str, index: int, machine: Machine) -> Device:
    if index < len(machine.gpus):
        return Device(f"cuda:{index}", "float16", f"{asked}: {machine.gpus[index]}", True)
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
    # generation service, say) holds one of the cores. OpenMP reads this when torch is imported for the first time.
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
    )


def cpu_threads() -> int:
    """How many CPU threads torch computes with."""
    import torch

    return torch.get_num_threads()
