"""What is checked and what came of it: values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qmd_remote.client.causes import Cause
from qmd_remote.client.remote_block import ModelNames

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Target:
    """The two services to check, as a client would use them.

    A service whose URL is None is skipped for the reason given. Models without a name get one that the service
    knows. `generation_constrained` says whether the engine can hold an answer to a form; None stands for "not known".
    `names` has this machine's own server reached only under the names in its certificate, as QMD does it.
    """

    embed_url: str | None = None
    generation_url: str | None = None
    embed_reason: str = "no URL of an embed server is known"
    generation_reason: str = "no URL of a generation service is known"
    key: str = field(default="", repr=False)
    models: ModelNames = field(default_factory=ModelNames)
    generation_constrained: bool | None = None
    names: bool = True


@dataclass(frozen=True)
class CheckResult:
    """One row: what was sent where, what came back, in how many milliseconds, and what to do about it.

    `cause` is the stable code of a failure (`refused`, `timeout`, `dns`, `tls`, `unauthorized`, `wrong_service`,
    `bad_answer`, …); `latency_ms` is None where nothing came back.
    """

    name: str
    endpoint: str
    sent: str
    received: str
    latency_ms: float | None
    status: Status
    fix: str = ""
    cause: str = ""


@dataclass(frozen=True)
class Report:
    """Every row in order, the seconds they took together, and the cause of the first failure."""

    rows: tuple[CheckResult, ...]
    total_s: float
    first_cause: Cause | None = None

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(row.status == "fail" for row in self.rows)
