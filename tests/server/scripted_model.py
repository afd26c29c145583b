"""A model whose every pass a test controls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from qmd_remote.server.batching import Lane
from qmd_remote.server.model import Prepared
from qmd_remote.server.scheduler import Scheduler

LIMIT_S = 30

Fault = Callable[[list[int]], None]


def items(*values: int) -> list[Prepared]:
    """One prepared item of one token for each number."""
    return [Prepared({"input_ids": np.array([value])}, 1) for value in values]


def numbers(rows: np.ndarray) -> list[int]:
    """The item each row belongs to."""
    return [int(row[0]) for row in rows]


class ScriptedModel:
    """A model whose row for an item is the item's number twice; `fault` and `late_fault` may raise in run and finish.

    `log` tells what happened, `batches` what ran; while `gate` (`late_gate`) is not set, a pass waits inside run
    (finish), having set `entered` (`waiting`). `most` is how many passes were between run and finish at a time.
    """

    packs = False

    def __init__(self, fault: Fault | None = None, *, late_fault: Fault | None = None, deferred: bool = False) -> None:
        self.log: list[tuple[str, list[int]]] = []
        self.fault, self.late_fault, self.deferred = fault, late_fault, deferred
        self.gate, self.entered, self.late_gate, self.waiting = (threading.Event() for _ in range(4))
        self.gate.set()
        self.late_gate.set()
        self.freed = self.widened = self.most = self._flying = 0
        self.not_finite: set[int] = set()
        self.half = False

    @property
    def batches(self) -> list[list[int]]:
        return [values for what, values in self.log if what == "run"]

    def prepare(self, inputs: Sequence[int]) -> list[Prepared]:
        return items(*inputs)

    def run(self, batch: Sequence[Prepared]) -> np.ndarray:
        values = [int(item.row["input_ids"][0]) for item in batch]
        self.log.append(("run", values))
        self.entered.set()
        assert self.gate.wait(LIMIT_S)
        if self.fault is not None:
            self.fault(values)
        self._flying += 1
        self.most = max(self.most, self._flying)
        return np.array([[np.nan if v in self.not_finite else v, v] for v in values], dtype=np.float32)

    def finish(self, output: np.ndarray) -> np.ndarray:
        values = [int(row[1]) for row in output]
        self._flying -= 1
        self.waiting.set()
        assert self.late_gate.wait(LIMIT_S)
        self.log.append(("finish", values))
        if self.late_fault is not None:
            self.late_fault(values)
        return output

    def widen(self) -> bool:
        if not self.half:
            return False
        self.half, self.not_finite = False, set()
        self.widened += 1
        return True

    def free(self) -> None:
        self.log.append(("free", []))
        self.freed += 1


def held(scheduler: Scheduler, model: ScriptedModel) -> None:
    """Have the model thread stand inside a pass over item 0, so that what comes next has to queue."""
    model.gate.clear()
    scheduler.submit(model, items(0), Lane.INDEX)
    assert model.entered.wait(LIMIT_S)
