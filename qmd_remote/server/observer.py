"""What the engine tells of its work, to whom it may concern. It knows nothing of HTTP, and nothing of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from qmd_remote.server.batching import Lane

Role = Literal["embed", "rerank"]


@dataclass(frozen=True)
class Batch:
    """One batch that has run: for which job, how many texts, tokens with padding, and seconds on the device.

    `role` is "both" where one model does both jobs and texts of both met.
    """

    role: Role | Literal["both"]
    texts: int
    tokens: int
    seconds: float


class Observer(Protocol):
    """Is told where and when things happen: its methods are quick, safe in any thread, and never raise."""

    def loaded(self, role: Role, seconds: float) -> None:
        """A model has been read into memory."""
        ...

    def tokenized(self, seconds: float) -> None:
        """A slice of a request has been tokenised."""
        ...

    def waited(self, lane: Lane, seconds: float) -> None:
        """A slice of a request has left the queue: its first text runs."""
        ...

    def ran(self, batch: Batch) -> None:
        """A batch has run, with all its retries."""
        ...

    def out_of_memory(self) -> None:
        """A batch did not fit into the memory; what can be split is tried again."""
        ...

    def widened(self) -> None:
        """A model goes on in float32 because half precision gave numbers that are not finite."""
        ...

    def answered(self, role: Role, texts: int, tokens: int, truncated: int) -> None:
        """A request has its result; `truncated` of its texts were cut to the model's length."""
        ...


class Silent:
    """An observer that keeps all to itself."""

    def loaded(self, role: Role, seconds: float) -> None:
        """Nothing."""

    def tokenized(self, seconds: float) -> None:
        """Nothing."""

    def waited(self, lane: Lane, seconds: float) -> None:
        """Nothing."""

    def ran(self, batch: Batch) -> None:
        """Nothing."""

    def out_of_memory(self) -> None:
        """Nothing."""

    def widened(self) -> None:
        """Nothing."""

    def answered(self, role: Role, texts: int, tokens: int, truncated: int) -> None:
        """Nothing."""


SILENT = Silent()
