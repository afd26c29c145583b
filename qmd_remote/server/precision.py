"""Which number format a model computes in, and why. Pure, but for `cpu_flags`.

Half precision is for the transformer's matrix products only: pooling, normalisation and logits are float32 everywhere.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal

from qmd_remote.errors import ConfigError

Dtype = Literal["float16", "bfloat16", "float32"]

DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")
# With one of these a CPU multiplies bfloat16 in hardware. Plain AVX-512 does it by converting, which is slower than
# float32. So do most ARM CPUs as torch uses them; those that name `bf16` (Grace, Graviton 3) would be faster, but
# whether the answers keep there has not been measured.
BF16_FLAGS = ("amx_bf16", "avx512_bf16")
CPUINFO = Path("/proc/cpuinfo")


def choose(wanted: str, device: str, flags: AbstractSet[str] = frozenset()) -> tuple[Dtype, str]:
    """The precision for a device (cpu, mps or cuda:N), and the reason in words.

    `wanted` is auto or a precision's name; `flags` are the CPU's. Raises ConfigError for one that the device cannot
    compute in.
    """
    kind = device.partition(":")[0]
    if wanted == "auto":
        return _auto(kind, flags)
    for dtype in DTYPES:
        if wanted == dtype:
            _require_sense(dtype, kind)
            return dtype, f"dtype={dtype}{_warning(dtype, kind, flags)}"
    raise ConfigError(f"dtype={wanted}: there is no such precision", hint=f"use auto, {', '.join(DTYPES)}")


def _auto(kind: str, flags: AbstractSet[str]) -> tuple[Dtype, str]:
    if kind == "cuda":
        # bfloat16 has the range but not the digits: rerankers lose several times as much quality by it
        return "float16", "auto: CUDA computes it fastest, and it keeps more digits than bfloat16"
    if kind == "mps":
        return "float32", "auto: half precision is not known to keep the answers on Apple GPUs"
    if found := _bf16_flag(flags):
        return "bfloat16", f"auto: the CPU has {found}"
    return "float32", "auto: the CPU has neither amx_bf16 nor avx512_bf16"


def _require_sense(dtype: Dtype, kind: str) -> None:
    if kind == "cpu" and dtype == "float16":
        raise ConfigError(
            "dtype=float16: CPUs compute it slower than float32 and overflow",
            hint="use --dtype auto, or bfloat16 where the CPU has amx_bf16 or avx512_bf16",
            code="dtype.unsupported",
        )
    if kind == "mps" and dtype == "bfloat16":
        raise ConfigError(
            "dtype=bfloat16: not every Apple GPU and macOS can compute it",
            hint="use --dtype auto (float32), or float16",
            code="dtype.unsupported",
        )


def _warning(dtype: Dtype, kind: str, flags: AbstractSet[str]) -> str:
    if kind == "cpu" and dtype == "bfloat16" and not _bf16_flag(flags):
        return ", emulated and slow: the CPU has neither amx_bf16 nor avx512_bf16"
    return ""


def computes_bfloat16(flags: AbstractSet[str]) -> bool:
    """Whether a CPU with these flags multiplies bfloat16 in hardware."""
    return bool(_bf16_flag(flags))


def _bf16_flag(flags: AbstractSet[str]) -> str:
    return next((flag for flag in BF16_FLAGS if flag in flags), "")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """What this CPU can do, as Linux names it. Empty elsewhere: no Mac has the instructions asked for here."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = [set(value.split()) for name, _, value in (line.partition(":") for line in lines) if _names_flags(name)]
    # of unlike cores (big and little ones), what all of them can do
    return frozenset(set.intersection(*found)) if found else frozenset()


def _names_flags(name: str) -> bool:
    return name.strip().lower() in {"flags", "features"}
