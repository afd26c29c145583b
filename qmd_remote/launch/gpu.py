"""The NVIDIA GPUs of this machine, as `nvidia-smi` tells of them. A thin seam and a pure parser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ASK = ("name", "memory.total", "memory.free", "driver_version", "compute_cap")
LIMIT_S = 10.0  # it wakes a GPU that sleeps, which takes seconds
NOT_APPLICABLE = {"n/a", "not supported"}  # other words in brackets tell of a failure
SPARK_GPU = "GB10"
MIB = 1 << 20
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes.

    `total` is None where the driver reports N/A, since the memory is the system's, and 0 where it failed to tell;
    `free` is None in both cases.
    """

    name: str
    total: int | None = None
    free: int | None = None
    driver: str = ""
    compute_capability: str = ""

    @property
    def unified(self) -> bool:
        """Whether it shares the system's memory, as a GB10 does."""
        return self.total is None


@dataclass(frozen=True)
class SystemMemory:
    """MemTotal and MemAvailable, in bytes; zeros where the system does not tell."""

    total: int = 0
    available: int = 0


def query() -> tuple[Gpu, ...]:
    """The GPUs in their order; none where nvidia-smi is missing, fails, or does not answer in time."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    words = [program, f"--query-gpu={','.join(ASK)}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse(told.stdout) if told.returncode == 0 else ()


def by_names(names: Sequence[str]) -> tuple[Gpu, ...]:
    """The GPUs by what the kernel's driver calls them, where that tells enough: all of a kind without own memory."""
    known = all(SPARK_GPU in name.split() for name in names)
    return tuple(Gpu(name) for name in names) if known else ()


def parse(text: str) -> tuple[Gpu, ...]:
    """The lines of `nvidia-smi --query-gpu` with the fields of ASK; memory in MiB, "[N/A]" or a failure in brackets."""
    found = []
    for line in text.splitlines():
        row = [field.strip() for field in line.split(",")]
        if len(row) == len(ASK):
            name, total, free, driver, capability = row
            known = re.fullmatch(r"\d+\.\d+", capability)
            found.append(Gpu(name, _total(total), _bytes(free), driver, capability if known else ""))
    return tuple(found)


def system_memory(meminfo: Path = MEMINFO) -> SystemMemory:
    """How much memory this machine has, and how much of it could be had now."""
    try:
        told = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE))
    except (OSError, UnicodeDecodeError):
        return SystemMemory()
    return SystemMemory(int(told.get("MemTotal", 0)) << 10, int(told.get("MemAvailable", 0)) << 10)


def _total(field: str) -> int | None:
    return None if field.strip("[]").lower() in NOT_APPLICABLE else _bytes(field) or 0


def _bytes(field: str) -> int | None:
    return int(float(field) * MIB) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", field) else None
