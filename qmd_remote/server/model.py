"""The three-step model contract: prepare (tokenise) → run (forward) → finish (numbers).

Everything above it (policy, scheduler, engine) knows models only through this contract, and the contract knows
nothing of HTTP, queues or threads. Its steps are kept apart because they want different places: `prepare` any CPU
thread, `run` the one thread that owns the device, `finish` whichever thread waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Input_contra = TypeVar("Input_contra", contravariant=True)
Float32 = NDArray[np.float32]
Row = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One tokenised input: `row` maps a feature's name to its int64 values, each of shape [length], length ≥ 1.

    `truncated` says that tokens were cut off to get there.
    """

    row: Row
    length: int
    truncated: bool = False


class Model(Protocol[Input_contra]):
    """What the scheduler needs of a model. Implementations choose what an input is: a text, a pair of texts."""

    @property
    def packs(self) -> bool:
        """Whether a batch costs the sum of its lengths; otherwise its longest row times its rows."""
        ...

    @property
    def deferred(self) -> bool:
        """Whether `run` returns before the device has computed, so that `finish` waits for it."""
        ...

    def prepare(self, inputs: Sequence[Input_contra]) -> list[Prepared]:
        """Tokenise, truncated to the model's length: one result per input, in order. Safe in any thread."""
        ...

    def run(self, batch: Sequence[Prepared]) -> Any:
        """Run one forward pass; the result stays on the device. Only the model thread calls it."""
        ...

    def finish(self, output: Any) -> Float32:
        """Bring what `run` returned to the host: float32 [len(batch), width], not checked for NaN."""
        ...

    def widen(self) -> bool:
        """Continue in float32 for good. False if that is what the model computes in already."""
        ...

    def free(self) -> None:
        """Give back device memory that is only cached."""
        ...


def pad(
    rows: Sequence[Row], *, pad_id: int, side: Literal["left", "right"], least: int = 1
) -> dict[str, NDArray[np.int64]]:
    """Stack rows of unequal length into arrays [len(rows), longest], and the `attention_mask` of what is real.

    They are `least` wide at least. `input_ids` are filled with `pad_id`, every other feature with 0.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    shape = (len(rows), max(least, *lengths))
    batch = {name: np.full(shape, pad_id if name == "input_ids" else 0, dtype=np.int64) for name in rows[0]}
    mask = np.zeros(shape, dtype=np.int64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        where = slice(0, length) if side == "right" else slice(shape[1] - length, shape[1])
        mask[i, where] = 1
        for name, values in row.items():
            batch[name][i, where] = values
    return {**batch, "attention_mask": mask}
