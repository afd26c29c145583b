"""Rows of unequal length as one row of tokens, pure: where each begins, and what a model reads from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qmd_remote.server.model import Row

Ints = NDArray[np.int64]

# which token of a row a model's head reads; "last" may leave out padding tokens at the end, as some models do
Head = Literal["first", "last", "last but padding"]


@dataclass(frozen=True, eq=False)
class Packing:
    """Rows one behind the other, shortest first.

    `features` holds their values and `position_ids`, `owners` the row of each token: all [tokens]. `bounds` are their
    ends, after a 0: [rows + 1]. `places` says for each row as it was given where it is now: [rows].
    """

    features: dict[str, Ints]
    owners: Ints
    bounds: Ints
    lengths: list[int]
    places: Ints

    def heads(self, which: Head, pad_id: int | None = None) -> Ints:
        """Where in the row of all tokens a head reads, for each row: [rows]."""
        if which == "first":
            return self.bounds[:-1]
        if which == "last" or pad_id is None:
            return self.bounds[1:] - 1
        real = np.flatnonzero(self.features["input_ids"] != pad_id)
        found = np.searchsorted(real, self.bounds[1:]) - 1
        last = real[found] if len(real) else self.bounds[:-1]
        return np.where(found >= 0, np.maximum(last, self.bounds[:-1]), self.bounds[:-1])


def pack(rows: Sequence[Row], *, counted_from: int | None = None) -> Packing:
    """Lay rows (at least one) one behind the other.

    Positions begin at 0; for models of RoBERTa's family after `counted_from`, their padding token, which is not
    counted where it stands in a text.
    """
    given = np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)
    order = np.argsort(given, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    lengths = given[order]
    features = {name: np.concatenate([rows[i][name] for i in order]) for name in rows[0]}
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    owners = np.repeat(np.arange(len(lengths)), lengths)
    if counted_from is None:
        positions = np.arange(bounds[-1]) - bounds[:-1][owners]
    else:
        real = features["input_ids"] != counted_from
        seen = np.concatenate([[0], np.cumsum(real)])
        positions = (seen[1:] - seen[bounds[:-1]][owners]) * real + counted_from
    return Packing({**features, "position_ids": positions}, owners, bounds, lengths.tolist(), places)
