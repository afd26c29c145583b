"""What a unit's state means: whether the services come back after a reboot, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qmd_remote.errors import Exit, QmdRemoteError
from qmd_remote.launch import unit
from qmd_remote.output import Output

if TYPE_CHECKING:
    from qmd_remote.launch.systemd import UnitState

NO_LINGER = "lingering is off: the services of {user} start at the first login, and end with the last one"
LINGER_FIX = "loginctl enable-linger"
JOURNAL = f"journalctl --user -u {unit.NAME} -n 50"
STYLE = {"ok": "green", "warning": "yellow", "failure": "bold red"}
NO_EXEC = 203  # systemd's own code: the program cannot be run

MEANING: dict[int, str] = {
    Exit.FAILED: "a service failed",
    Exit.USAGE: "its command line is wrong",
    Exit.CONFIGURATION: "a setting or a file is wrong",
    Exit.PREREQUISITE: "the machine lacks something",
    Exit.WAIT_ENDED: "a service did not become ready in time",
    NO_EXEC: "its program is not where the unit says",
}
RESULTS = {
    "timeout": "it did not end in time, and was killed",
    "signal": "it was killed by a signal",
    "core-dump": "it crashed",
    "oom-kill": "the kernel killed it for its memory",
    "start-limit-hit": "it failed too often in a row",
}


@dataclass(frozen=True)
class Check:
    """One thing that is looked at; `fix` is a command to type, empty where all is well."""

    name: str
    state: Literal["ok", "warning", "failure"]
    message: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The check as a member of the JSON envelope's data."""
        return asdict(self)


class Failed(QmdRemoteError):
    """What is wrong first; one that was only stopped is not running."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.message, hint=check.fix, code=f"unit.{check.name}")


def judge(now: UnitState, lingers: bool | None, user: str) -> tuple[Check, ...]:
    """Every check of an installed unit, in the order of mending."""
    return tuple(check for check in (_file(now), _enabled(now), _active(now), _linger(lingers, user)) if check)


def show(out: Output, path: Path, checks: Iterable[Check]) -> None:
    """The checks as lines, with the fix below."""
    from rich.markup import escape

    out.show(escape(str(path)))
    for check in checks:
        out.show(f"[{STYLE[check.state]}]{check.state:<7}[/]  {escape(check.message)}")
        if check.fix:
            out.show(escape(f"         {out.typed(check.fix)}"))


def _file(now: UnitState) -> Check:
    if now.load not in {"loaded", "not-found"}:
        return Check("file", "failure", f"systemd does not take the unit ({now.load})", JOURNAL)
    if now.needs_reload or now.load == "not-found":
        fix = f"systemctl --user daemon-reload && systemctl --user restart {unit.NAME}"
        return Check("file", "failure", "systemd has not read the unit as it is now", fix)
    return Check("file", "ok", "the unit is installed")


def _enabled(now: UnitState) -> Check:
    if now.enabled == "enabled":
        return Check("enabled", "ok", "it is enabled: systemd starts it with the user's services")
    fix = f"systemctl --user enable {unit.NAME}"
    return Check("enabled", "failure", f"it is not enabled ({now.enabled or 'unknown'}): nothing starts it", fix)


def _active(now: UnitState) -> Check:
    again = f"systemctl --user start {unit.NAME}"
    if now.active == "failed":
        fix = f"{JOURNAL}; when that is mended: {again}"
        if now.exit_code == NO_EXEC:
            fix = "qmd-remote service install, with the options that it was installed with"
        return Check("active", "failure", f"it failed: {_failure(now)}", fix)
    if now.sub == "auto-restart":
        message = f"it failed and is started again within {unit.RESTART_S} s: {_failure(now)}"
        return Check("active", "failure", message, JOURNAL)
    if now.active == "inactive":
        return Check("active", "failure", "it does not run", again)
    since = f" since {now.since}" if now.since else ""
    if now.restarts:
        message = f"it runs{since}, after {now.restarts} failed runs"
        return Check("active", "warning", message, JOURNAL)
    return Check("active", "ok", f"it is {now.active}{since}; for its services: qmd-remote status")


def _failure(now: UnitState) -> str:
    """Why the last run ended: in systemd's words, and by the exit code of our command."""
    code = now.exit_code
    ended = f"{MEANING[code]} (exit code {code})" if code in MEANING else f"exit code {code}"
    why = RESULTS.get(now.result, "")
    if now.result == "start-limit-hit":
        return f"{why}; last: {ended}"
    return why or ended


def _linger(lingers: bool | None, user: str) -> Check | None:
    if lingers is None:
        return None
    if lingers:
        return Check("linger", "ok", "lingering is on: it starts with the machine, and stays when you log out")
    return Check("linger", "warning", NO_LINGER.format(user=user), LINGER_FIX)
