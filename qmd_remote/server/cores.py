"""How much CPU this process may have: facts only, of which `threads` makes a number."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Cores:
    """How many cores this process may run on; CPUs that share one count once.

    `quota` is the CPU time per second that its cgroups allow, infinite without a limit; `omp` is OMP_NUM_THREADS.
    """

    cores: int
    quota: float = math.inf
    omp: int | None = None


def look() -> Cores:
    """Ask the system. Outside of Linux, torch's own count stands for the cores: it knows a Mac's fast ones."""
    omp = os.environ.get("OMP_NUM_THREADS", "")
    return Cores(
        physical(os.sched_getaffinity(0)) if sys.platform == "linux" else _torch_count(),
        quota(),
        int(omp) if omp.isdecimal() and int(omp) else None,
    )


def physical(cpus: Collection[int], topology: Path = TOPOLOGY) -> int:
    """How many cores the CPUs belong to; a CPU of which that is not known counts as one."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((topology / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            cores.add(str(cpu))
    return len(cores)


def quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """CPUs' worth of time that the tightest of this process's cgroups (v1 or v2) allows; infinite without a limit.

    Inside a container the path in `own` may be the host's: then `root` itself is the container's group.
    """
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return math.inf
    return min((_limit(folder) for line in lines for folder in _folders(root, line)), default=math.inf)


def _folders(root: Path, line: str) -> Iterator[Path]:
    """The folders of a group and all above it, for one line of /proc/self/cgroup; none if it is not about CPU time."""
    _, _, rest = line.partition(":")
    controllers, _, group = rest.partition(":")
    if controllers and "cpu" not in controllers.split(","):
        return
    mounts = (root,) if not controllers else (root / "cpu", root / controllers)
    path = PurePosixPath(group)
    for mount in mounts:
        for one in (path, *path.parents):
            yield mount / str(one).lstrip("/")


def _limit(folder: Path) -> float:
    unified = _words(folder / "cpu.max")  # "200000 100000", or "max 100000"
    if len(unified) == 2:
        return _share(*unified)
    return _share(*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us"))


def _share(*numbers: str) -> float:
    try:
        allowed, period = map(int, numbers)
    except ValueError:  # no such files, or "max"
        return math.inf
    return allowed / period if allowed > 0 and period > 0 else math.inf


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []


def _torch_count() -> int:
    import torch

    return torch.get_num_threads()
