"""How one device's memory is shared by vLLM and the embed server, computed before anything starts. Pure.

vLLM takes the share of the device that it is told, 0.9 by default; beside an embed server, and all the more where CPU
and GPU share their memory, that freezes the machine. The share is what it needs, and depends on settings and on the
size of the device alone: an identical `up` wants the same container, whatever is free at that moment. What is free
decides only whether to begin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

GIB = 1 << 30
# of vLLM beyond weights and KV cache: CUDA context, CUDA graphs, activations; more was seen on a GB10
OVERHEAD = 3 * GIB
OVERHEAD_UNIFIED = int(6.5 * GIB)
CUDA_CONTEXT = 1 * GIB  # of the embed server
RESERVE = GIB // 2  # what else may happen on a GPU of its own
RESERVE_UNIFIED = 8 * GIB  # the system and all other programs
LEAST, MOST = 0.01, 0.90


@dataclass(frozen=True)
class Memory:
    """A device's memory in bytes: all, and what can be had now. `unified`: it is the system's."""

    total: int
    available: int
    unified: bool = False


@dataclass(frozen=True)
class Demand:
    """What generation and the embed server will need, in bytes, by part."""

    weights: int
    kv_cache: int
    embed: int

    def generation(self, *, unified: bool) -> int:
        """What vLLM needs in all."""
        return self.weights + self.kv_cache + overhead(unified=unified)


@dataclass(frozen=True)
class Choice:
    """What could be asked for: what it needs, and the share that a person chose for vLLM (0: the plan's)."""

    demand: Demand
    chosen_share: float = 0.0


@dataclass(frozen=True)
class MemoryPlan:
    """The split, in bytes. `share` is vLLM's of the total; `chosen`: a person set it.

    `why_not` is empty when all fits; `alternatives` are options to type, each of which would fit. `parts` are what the
    total goes to; the last, `free`, is negative by what is missing.
    """

    memory: Memory
    demand: Demand
    share: float
    chosen: bool = False
    why_not: str = ""
    alternatives: tuple[str, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)


NOTHING_ELSE: Mapping[str, Choice] = MappingProxyType({})


def make(
    memory: Memory, demand: Demand, *, chosen_share: float = 0.0, others: Mapping[str, Choice] = NOTHING_ELSE
) -> MemoryPlan:
    """Split a device's memory.

    `chosen_share` is a person's own, which is taken as it is, whatever vLLM needs. `others` are what could be chosen
    instead, by the options to type; those that fit are named when this does not.
    """
    choice = Choice(demand, chosen_share)
    why_not = _why_not(memory, choice)
    return MemoryPlan(
        memory,
        demand,
        min(_share(memory, choice), 1.0 if chosen_share else MOST),
        chosen=bool(chosen_share),
        why_not=why_not,
        alternatives=tuple(option for option, other in others.items() if why_not and fits(memory, other)),
        parts=_parts(memory, choice),
    )


def fits(memory: Memory, choice: Choice) -> bool:
    """Whether vLLM, the embed server and the reserve find room in what can be had now.

    vLLM starts only where all of the share that it was told is free.
    """
    return not _too_large(memory, choice) and _asked(memory, choice) <= memory.available


def reserve(memory: Memory) -> int:
    """What is left for everything else."""
    return RESERVE_UNIFIED if memory.unified else RESERVE


def overhead(*, unified: bool) -> int:
    """What vLLM takes beside weights and KV cache."""
    return OVERHEAD_UNIFIED if unified else OVERHEAD


def gib(size: int) -> str:
    """A size in GiB for people."""
    return f"{size / GIB:.1f} GiB"


def _share(memory: Memory, choice: Choice) -> float:
    """vLLM's share of the device, in whole hundredths; more than MOST where the device is too small for it."""
    if choice.chosen_share:
        return choice.chosen_share
    needs = choice.demand.generation(unified=memory.unified)
    return max(-(-100 * needs // memory.total) / 100, LEAST)


def _taken(memory: Memory, choice: Choice) -> int:
    """What vLLM takes: all of its share, with KV cache where it has room; no share is given where it is too large."""
    if _too_large(memory, choice):
        return choice.demand.generation(unified=memory.unified)
    return math.ceil(_share(memory, choice) * memory.total)


def _asked(memory: Memory, choice: Choice) -> int:
    return _taken(memory, choice) + choice.demand.embed + reserve(memory)


def _too_large(memory: Memory, choice: Choice) -> bool:
    return not choice.chosen_share and _share(memory, choice) > MOST


def _why_not(memory: Memory, choice: Choice) -> str:
    if fits(memory, choice):
        return ""
    where = "memory, which CPU and GPU share," if memory.unified else "GPU memory"
    demand = choice.demand
    if _too_large(memory, choice):
        return (
            f"vLLM needs {gib(demand.generation(unified=memory.unified))} (weights {gib(demand.weights)}, KV cache "
            f"{gib(demand.kv_cache)}, and {gib(overhead(unified=memory.unified))} more), which is over {MOST:.0%} of "
            f"the {gib(memory.total)} of {where.rstrip(',')}"
        )
    return (
        f"{gib(_asked(memory, choice))} of {where} are needed (vLLM {gib(_taken(memory, choice))}, embed server "
        f"{gib(demand.embed)}, reserve {gib(reserve(memory))}), and {gib(memory.available)} of {gib(memory.total)} "
        "are free"
    )


def _parts(memory: Memory, choice: Choice) -> dict[str, int]:
    """What the device's memory goes to, in the order of a bar.

    What vLLM has beyond its needs becomes KV cache; where a person gave it less, KV cache is what it lacks first.
    """
    demand, taken = choice.demand, _taken(memory, choice)
    weights = min(demand.weights, taken)
    rest = min(overhead(unified=memory.unified), taken - weights)
    parts = {
        "in use": memory.total - memory.available,
        "vLLM: weights": weights,
        "vLLM: KV cache": taken - weights - rest,
        "vLLM: rest": rest,
        "embed server": demand.embed,
        "reserve": reserve(memory),
    }
    return parts | {"free": memory.total - sum(parts.values())}
