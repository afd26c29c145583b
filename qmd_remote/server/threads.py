"""How many CPU threads a forward pass takes: as many as there are cores for this process. `choose` is pure.

A busy neighbour is no reason to take fewer, as long as threads sleep while they wait for each other, as `device.look`
has them do. Measured on 2 cores with torch 2.13: passes/s alone → beside a process that spins on one of the cores.

| threads | waiting            | MiniLM, 4 × 128 tokens | BERT-base layers, 1 × 512 tokens |
|---------|--------------------|------------------------|----------------------------------|
| 1       | –                  | 6.0 → 6.2              | 3.3 → 3.3                        |
| 2       | asleep             | 8.3 → 5.8 (70 %)       | 5.8 → 3.1 (54 %)                 |
| 2       | spinning (ACTIVE)  | 10.2 → 3.7 (36 %)      | 5.9 → 2.4 (41 %)                 |
| 2       | OpenMP's default   | 10.5 → 4.0 (38 %)      | 6.1 → 2.0 (33 %)                 |
| 1 and 2 | OpenVINO           | 7.1 → 6.7, 12.8 → 7.0  | 3.5 → 3.4, 6.6 → 3.5             |

Going down to one thread while the neighbour is there would gain 6 %. Where more processes want to run than there are
cores it loses: time is shared by the thread, and who asks for less gets less.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from qmd_remote.server.cores import Cores

# tokenising: about 0.4 million tokens a second and core; eight of them keep any one device busy
MOST_FOR_TEXT = 8


@dataclass(frozen=True)
class Choice:
    """`count` threads, and why."""

    count: int
    reason: str


def choose(asked: int, found: Cores) -> Choice:
    """The number of threads: what is `asked`, or for 0 what the machine gives this process."""
    if asked:
        return Choice(asked, f"threads={asked}")
    allowed = [(found.cores, _plural(found.cores, "core"))]
    if found.omp is not None:
        allowed.append((found.omp, f"OMP_NUM_THREADS={found.omp}"))
    if found.quota < math.inf:
        # rounded down: threads that together want more than the quota are all stopped, at the same time
        allowed.append((max(1, math.floor(found.quota)), f"the cgroup's quota of {found.quota:g} CPUs"))
    count, reason = min(allowed, key=lambda one: one[0])
    return Choice(count, f"auto: {reason}")


def apply(count: int) -> None:
    """Have torch compute with so many in the calling thread and in threads that start later, and tokenizers with few.

    Others keep their number: OpenMP has one for each thread, and torch sets it when a thread computes for the first
    time. Where the user has bounded tokenizers already, that stays.
    """
    import torch

    torch.set_num_threads(count)
    # read by tokenizers when they first split a list of texts
    os.environ.setdefault("RAYON_NUM_THREADS", str(min(count, MOST_FOR_TEXT)))


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
