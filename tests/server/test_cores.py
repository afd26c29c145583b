"""What the system gives this process of its CPUs."""

from __future__ import annotations

import math
import os
import sys

import pytest

from qmd_remote.server import cores

V2 = "0::/user/box\n"
V1 = "9:memory:/x\n4:cpu,cpuacct:/docker/abc\n0::/\n"


def tree(tmp_path, files):
    """A file system of control groups: path → content."""
    for name, content in files.items():
        file = tmp_path / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="ascii")
    return tmp_path / "sys"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {"cpu.max": "200000 100000\n"}, 2.0),
        (V2, {"user/box/cpu.max": "150000 100000\n", "cpu.max": "max 100000\n"}, 1.5),
        (V2, {"user/box/cpu.max": "max 100000\n", "user/cpu.max": "50000 100000\n"}, 0.5),
        (V2, {"user/box/cpu.max": "800000 100000\n", "user/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/../../host/path\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        (
            V1,
            {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "50000"},
            1.0,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        (V2, {"cpu.max": "max 100000\n"}, math.inf),
        (V2, {"cpu.max": "nonsense"}, math.inf),
        (V2, {"cpu.max": "100000 0\n"}, math.inf),
        (V2, {"cpu.max": ""}, math.inf),
        ("", {"cpu.max": "100000 100000\n"}, math.inf),
        ("9:cpuset:/x\n", {"cpuset/cpu.max": "100000 100000\n"}, math.inf),
    ],
)
def test_the_tightest_quota_counts(tmp_path, own, files, expected):
    """Of this group and all above it, in both versions of control groups; no limit where there is none."""
    groups = tmp_path / "own"
    groups.write_text(own, encoding="utf-8")
    assert cores.quota(tree(tmp_path, files), groups) == expected


def test_no_control_groups_means_no_limit(tmp_path):
    """As on other systems than Linux."""
    assert cores.quota(tmp_path / "sys", tmp_path / "own") == math.inf


def test_cpus_that_share_a_core_count_once(tmp_path):
    """Siblings of which only one is allowed are a core too; a CPU that tells nothing is one of its own."""
    sys_cpu = tree(tmp_path, {f"cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)})
    assert cores.physical(range(8), sys_cpu) == 4
    assert cores.physical([0, 4, 5], sys_cpu) == 2
    assert cores.physical([0, 11], sys_cpu) == 2


def test_this_machine_as_the_system_tells_it(monkeypatch):
    """No more cores than CPUs in the affinity; a limit for OpenMP is a number or nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    seen = cores.look()
    if sys.platform == "linux":
        assert 1 <= seen.cores <= len(os.sched_getaffinity(0))
    assert seen.quota > 0
    assert seen.omp == 3
    for text in ("", "4,2", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert cores.look().omp is None
