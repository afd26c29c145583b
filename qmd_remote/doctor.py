"""`qmd-remote doctor`: looks at all that the services and QMD need, in order, and says how to mend what is wrong.

Checks run side by side, have one limit of time in common, and are told in their order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

from rich.markup import escape

from qmd_remote.errors import QmdRemoteError, ServiceFailed
from qmd_remote.output import Output
from qmd_remote.views import table

T = TypeVar("T")
State = Literal["ok", "warning", "failure", "skipped"]
LIMIT_S = 15.0  # for all together; the slowest asks a GPU that sleeps
COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "failure": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Finding:
    """What one check found. `fix` is what to type where it is not ok; a skipped check says why in `detail`."""

    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A name to show, and what to look at."""

    name: str
    look: Callable[[], Finding]


@dataclass(frozen=True)
class Row:
    """A check that has been made, and the seconds it took."""

    name: str
    state: State
    detail: str
    fix: str
    seconds: float


def ok(detail: str) -> Finding:
    """All is as it should be."""
    return Finding("ok", detail)


def skipped(why: str) -> Finding:
    """There is nothing to look at."""
    return Finding("skipped", why)


def once(look: Callable[[], T]) -> Callable[[], T]:
    """The same, looked at once for all checks that ask; an error is told to each of them."""
    lock = threading.Lock()
    seen: Future[T] = Future()

    def told() -> T:
        with lock:
            if not seen.done():
                try:
                    seen.set_result(look())
                except QmdRemoteError as error:
                    seen.set_exception(error)
        return seen.result()

    return told


def run(out: Output, checks: Sequence[Check]) -> int:
    """Make all checks and show them. Exits with 1 when one is a failure."""
    began = time.monotonic()
    with out.progress("looking"):
        rows = examine(checks)
    shown = table("", "check", "found")
    for row in rows:
        style = COLOURS[row.state]
        shown.add_row(f"[{style}]{row.state}[/]", row.name, escape(row.detail))
    out.show(shown)
    failures = [row for row in rows if row.state == "failure"]
    for row in rows:
        if row.fix and row not in failures[:1]:  # the first failure's stands below the error
            out.note(f"{row.name}: {row.fix}")
    told = [asdict(row) | {"fix": out.about(row.fix)} for row in rows]
    data = {"checks": told, "seconds": round(time.monotonic() - began, 2)}
    if not failures:
        return out.finish(data)
    first = failures[0]
    more = f" ({len(failures) - 1} more failed)" if failures[1:] else ""
    return out.fail(ServiceFailed(f"{first.name}: {first.detail}{more}", hint=first.fix, code="doctor"), data)


def examine(checks: Sequence[Check], limit_s: float = LIMIT_S) -> list[Row]:
    """Make the checks side by side; one that does not end in time is a failure of its own."""
    deadline = time.monotonic() + limit_s
    begun = [(check.name, _begin(check)) for check in checks]
    rows = []
    for name, future in begun:
        try:
            rows.append(future.result(timeout=max(deadline - time.monotonic(), 0)))
        except TimeoutError:
            detail, fix = f"it gave no answer within {limit_s:g} s", "try once more: qmd-remote doctor"
            rows.append(Row(name, "failure", detail, fix, limit_s))
    return rows


def _begin(check: Check) -> Future[Row]:
    """Make a check in a thread that does not keep the program alive, as one of a pool would."""
    future: Future[Row] = Future()
    threading.Thread(target=lambda: future.set_result(_row(check)), name=check.name, daemon=True).start()
    return future


def _row(check: Check) -> Row:
    began = time.monotonic()
    try:
        found = check.look()
    except QmdRemoteError as error:
        found = Finding("failure", error.message, error.hint)
    except Exception as error:  # whatever one check meets, the others are told
        found = Finding("failure", f"it could not be looked at: {type(error).__name__}: {error}")
    return Row(check.name, found.state, found.detail, found.fix, round(time.monotonic() - began, 2))
