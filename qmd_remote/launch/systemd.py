"""The user's systemd: the one place that runs systemctl, loginctl and systemd-analyze."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qmd_remote.errors import PrerequisiteError, ServiceFailed
from qmd_remote.launch import unit

ASK_S = 30.0
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
RUNTIME = Path("/run/user")

ELSE = "start the services without it: qmd-remote up"
PROPERTIES = (
    *("LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "ExecMainStatus", "MainPID", "NRestarts"),
    *("NeedDaemonReload", "ActiveEnterTimestamp"),
)


@dataclass(frozen=True)
class UnitState:
    """The unit as systemd sees it, in its words: `active` is active, activating, deactivating, inactive or failed.

    `exit_code` is that of the last run that ended; `pid` is 0 while none runs.
    """

    load: str
    enabled: str
    active: str
    sub: str
    result: str
    exit_code: int
    pid: int
    restarts: int
    needs_reload: bool
    since: str

    @property
    def running(self) -> bool:
        """Whether it runs, or is about to, or ends."""
        return self.active not in {"inactive", "failed"}


def require() -> None:
    """Make sure that the user's systemd can be asked. Raises PrerequisiteError, saying why it cannot."""
    if platform.system() == "Darwin":
        raise PrerequisiteError(
            "this is macOS, whose service manager (launchd) qmd-remote does not know yet",
            hint=ELSE,
            code="systemd.missing",
        )
    if shutil.which("systemctl") is None:
        raise PrerequisiteError(
            "this machine has no systemctl: it is not run by systemd, or it is a container",
            hint=ELSE,
            code="systemd.missing",
        )
    asked = _run("systemctl", "--user", "show", "--property=Version")
    if asked.returncode == 0:
        return
    said = _said(asked)
    if not BOOTED.exists():
        raise PrerequisiteError(
            f"this machine is not run by systemd; it may be a container ({said})", hint=ELSE, code="systemd.missing"
        )
    raise PrerequisiteError(
        f"there is no systemd for {user()} here, who is not logged in or came by su or sudo ({said})",
        hint=f"log in as {user()} and type it again, or have it started: sudo loginctl enable-linger {user()}",
        code="systemd.unreachable",
    )


def user() -> str:
    """The name of the user whose services these are."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a number without a name, as in containers
        return str(os.getuid())


def state() -> UnitState:
    """The unit now; one that does not exist has `load` "not-found". Raises ServiceFailed."""
    done = _run("systemctl", "--user", "show", unit.NAME, f"--property={','.join(PROPERTIES)}")
    if done.returncode != 0:
        raise _failure("systemctl --user show", done)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return UnitState(
        load=found.get("LoadState", ""),
        enabled=found.get("UnitFileState", ""),
        active=found.get("ActiveState", ""),
        sub=found.get("SubState", ""),
        result=found.get("Result", ""),
        exit_code=_number(found.get("ExecMainStatus")),
        pid=_number(found.get("MainPID")),
        restarts=_number(found.get("NRestarts")),
        needs_reload=found.get("NeedDaemonReload") == "yes",
        since=found.get("ActiveEnterTimestamp", ""),
    )


def tell(verb: str, *options: str) -> None:
    """`systemctl --user VERB` for the unit, until it is done. Raises ServiceFailed with what systemctl says."""
    words = ["--user", verb, *options, *([] if verb == "daemon-reload" else [unit.NAME])]
    done = _run("systemctl", *words, limit_s=None)
    if done.returncode != 0:
        raise _failure(f"systemctl {' '.join(words)}", done)


def complaints(content: str) -> tuple[bool, tuple[str, ...]]:
    """Whether systemd would take a unit of this content, and what `systemd-analyze verify` says of it, line by line.

    Where that program is missing everything is taken.
    """
    if shutil.which("systemd-analyze") is None:
        return True, ()
    with tempfile.TemporaryDirectory(prefix="qmd-remote-") as folder:
        draft = Path(folder) / unit.NAME
        draft.write_text(content, encoding="utf-8")
        done = _run("systemd-analyze", "--user", "verify", str(draft))
        lines = [line.removeprefix(f"{folder}/") for line in done.stderr.splitlines()]
    # other units of the user are read along, and may be wrong in their own way
    ours = tuple(line for line in lines if unit.NAME in line)
    return done.returncode == 0 or all("ignoring" in line for line in ours), ours


def lingers() -> bool | None:
    """Whether the user's services start with the machine and outlive logins; None where logind cannot be asked."""
    if shutil.which("loginctl") is None:
        return None
    done = _run("loginctl", "show-user", user(), "--property=Linger")
    if done.returncode == 0:
        return done.stdout.strip() == "Linger=yes"
    return False if "not logged in or lingering" in done.stderr else None


def _run(program: str, *words: str, limit_s: float | None = ASK_S) -> subprocess.CompletedProcess[str]:
    path = shutil.which(program) or program
    try:
        return subprocess.run(
            [path, *words],
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServiceFailed(
            f"{program} {' '.join(words)} did not answer within {limit_s:.0f} s",
            hint="look at: systemctl --user status",
            code="systemd.stuck",
        ) from None


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """English and plain answers; and the place of the user's systemd, which a plain `su` or a cron job is not told."""
    usual = RUNTIME / str(os.getuid())
    found = {} if env.get("XDG_RUNTIME_DIR") or not usual.is_dir() else {"XDG_RUNTIME_DIR": str(usual)}
    return {**env, **found, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}


def _failure(line: str, done: subprocess.CompletedProcess[str]) -> ServiceFailed:
    return ServiceFailed(
        f"`{line}` failed: {_said(done)}",
        hint=f"look at: systemctl --user status {unit.NAME}",
        code="systemd.failed",
    )


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
