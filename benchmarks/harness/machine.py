"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

COUNTS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
THREADING = re.compile(r"(OMP|KMP|MKL|GOMP|OPENBLAS)_\w+")


def machine() -> dict[str, Any]:
    """The processor, its instructions that matter here, and variables that change how threads work."""
    text = _cpuinfo()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "cpu": name[1] if name else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "flags": flags(text),
        "system": platform.platform(),
        "environment": threading_variables(os.environ),
    }


def flags(cpuinfo: str) -> list[str]:
    """Those of the instruction sets that decide how fast a matrix product is."""
    line = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    have = set(line[1].split()) if line else set()
    return [flag for flag in COUNTS if flag in have]


def threading_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What the caller has set for the libraries' threads; all servers inherit it."""
    return {name: value for name, value in sorted(environment.items()) if THREADING.fullmatch(name)}


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
