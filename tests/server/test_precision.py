"""Which precision a device computes in, and why."""

from __future__ import annotations

import pytest

from qmd_remote.errors import ConfigError
from qmd_remote.server import precision

AMX = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16"})
ZEN4 = frozenset({"avx2", "avx512f", "avx512_bf16"})
SKYLAKE = frozenset({"avx2", "avx512f"})
GRACE = frozenset({"asimd", "sve", "bf16", "i8mm"})


@pytest.mark.parametrize(
    ("device", "flags", "dtype", "reason"),
    [
        ("cuda:0", AMX, "float16", "CUDA"),
        ("cuda:3", frozenset(), "float16", "CUDA"),
        ("mps", frozenset(), "float32", "Apple"),
        ("cpu", AMX, "bfloat16", "has amx_bf16"),
        ("cpu", ZEN4, "bfloat16", "has avx512_bf16"),
        ("cpu", SKYLAKE, "float32", "neither"),
        ("cpu", GRACE, "float32", "neither"),
        ("cpu", frozenset(), "float32", "neither"),
    ],
)
def test_precision_by_hardware(device, flags, dtype, reason):
    """float16 on CUDA, bfloat16 on CPUs that multiply it in hardware, float32 elsewhere, each with its reason."""
    found, why = precision.choose("auto", device, flags)
    assert found == dtype
    assert why.startswith("auto: ")
    assert reason in why


@pytest.mark.parametrize(
    ("wanted", "device", "flags", "slow"),
    [
        ("float32", "cuda:0", frozenset(), False),
        ("bfloat16", "cuda:0", frozenset(), False),
        ("float16", "cuda:0", frozenset(), False),
        ("float32", "cpu", AMX, False),
        ("bfloat16", "cpu", ZEN4, False),
        ("bfloat16", "cpu", SKYLAKE, True),
        ("float16", "mps", frozenset(), False),
    ],
)
def test_what_is_asked_is_taken(wanted, device, flags, slow):
    """A precision that is named wins over the hardware's; one that is emulated is told to be slow."""
    found, why = precision.choose(wanted, device, flags)
    assert (found, f"dtype={wanted}") == (wanted, why.partition(",")[0])
    assert ("emulated and slow" in why) == slow


@pytest.mark.parametrize(
    ("wanted", "device", "fix"),
    [("float16", "cpu", "bfloat16"), ("bfloat16", "mps", "float32"), ("int8", "cpu", "float32")],
)
def test_what_a_device_cannot_do_is_refused(wanted, device, fix):
    """The error names what was asked, and what to use instead."""
    with pytest.raises(ConfigError) as caught:
        precision.choose(wanted, device, AMX)
    assert f"dtype={wanted}" in caught.value.message
    assert fix in caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\nvmx flags\t: vnmi\n", {"fpu", "amx_bf16"}),
        ("processor\t: 0\nFeatures\t: asimd bf16\n\nprocessor\t: 1\nFeatures\t: asimd\n", {"asimd"}),
        ("model name\t: something\n", set()),
        ("", set()),
    ],
)
def test_flags_are_those_that_all_cores_have(tmp_path, text, expected):
    """x86 and ARM name them differently; where cores differ, only what all have counts."""
    file = tmp_path / "cpuinfo"
    file.write_text(text, encoding="utf-8")
    assert precision.cpu_flags(file) == expected


def test_no_cpuinfo_means_no_flags(tmp_path):
    """Other systems than Linux have no such file."""
    assert precision.cpu_flags(tmp_path / "absent") == frozenset()
