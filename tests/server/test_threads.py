"""How many threads compute."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server import threads
from qmd_remote.server.cores import Cores
from qmd_remote.server.threads import choose


@pytest.mark.parametrize(
    ("asked", "found", "count", "reason"),
    [
        (0, Cores(64), 64, "64 cores"),
        (0, Cores(1), 1, "1 core"),
        (0, Cores(64, quota=2.0), 2, "quota of 2 CPUs"),
        (0, Cores(64, quota=1.5), 1, "quota of 1.5 CPUs"),
        (0, Cores(64, quota=0.5), 1, "quota of 0.5 CPUs"),
        (0, Cores(4, quota=8.0), 4, "4 cores"),
        (0, Cores(8, omp=3), 3, "OMP_NUM_THREADS=3"),
        (5, Cores(2, quota=1.0, omp=1), 5, "threads=5"),
    ],
)
def test_chosen_threads(asked, found, count, reason):
    """The cores of this process, within its quota; what is asked wins."""
    choice = choose(asked, found)
    assert choice.count == count
    assert reason in choice.reason


@given(
    cores=st.integers(1, 512),
    quota=st.one_of(st.just(math.inf), st.floats(0.01, 1000)),
    omp=st.one_of(st.none(), st.integers(1, 1000)),
)
def test_threads_stay_between_one_and_what_is_allowed(cores, quota, omp):
    """Whatever the machine: at least one, at most its cores, the quota, and the user's own limit for OpenMP."""
    count = choose(0, Cores(cores, quota, omp)).count
    assert 1 <= count <= cores
    assert count <= max(1, quota)
    assert omp is None or count <= omp


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Torch has the number of threads that it had before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.usefixtures("torch_threads")
def test_the_thread_that_computes_gets_the_number(monkeypatch, count):
    """The model's thread starts after the one that loads has set it."""
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    seen = []
    threads.apply(count)
    worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    worker.start()
    worker.join()
    assert seen == [count]


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize(("users", "count", "expected"), [("", 1, "1"), ("", 4, "4"), ("", 64, "8"), ("5", 2, "5")])
def test_tokenizing_is_bounded(monkeypatch, users, count, expected):
    """No more threads than are free, and a handful at most; the user's own bound stays."""
    monkeypatch.setenv("RAYON_NUM_THREADS", users)
    if not users:
        monkeypatch.delenv("RAYON_NUM_THREADS")
    threads.apply(count)
    assert os.environ["RAYON_NUM_THREADS"] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="a process can be bound to CPUs on Linux only")
def test_a_process_bound_to_one_cpu_computes_with_one_thread():
    """As under `taskset` or in a container with a cpuset."""
    script = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from qmd_remote.server import cores, threads\n"
        "print(threads.choose(0, cores.look()).count)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
