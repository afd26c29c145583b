"""A user's systemd for tests: a stand-in whose answers they choose, and a real one in a mount namespace of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import service_flow, settings
from qmd_remote.output import Output

MANAGER = Path("/usr/lib/systemd/systemd")
CGROUPS = Path("/sys/fs/cgroup")
LIMIT_S = 20

# a systemctl that notes its calls and keeps the little state that units have
STAND_IN = """#!/bin/sh
me=${0##*/}
echo "$me $*" >> "$STAND_IN_SYSTEMD/calls"
for verb; do
    if [ -e "$STAND_IN_SYSTEMD/fail-$verb" ]; then cat "$STAND_IN_SYSTEMD/fail-$verb" >&2; exit 1; fi
done
set_state() { sed -i "s/^$1=.*/$1=$2/" "$STAND_IN_SYSTEMD/state"; }
case "$me $*" in
    *--property=Version*) echo Version=252 ;;
    "loginctl "*) cat "$STAND_IN_SYSTEMD/linger" ;;
    "systemctl --user show "*) cat "$STAND_IN_SYSTEMD/state" ;;
    "systemctl --user enable "*) set_state UnitFileState enabled ;;
    "systemctl --user start "* | "systemctl --user restart "*) set_state ActiveState active; set_state MainPID 4711 ;;
    "systemctl --user stop "*) set_state ActiveState inactive ;;
    "systemctl --user disable --now "*) set_state UnitFileState disabled; set_state ActiveState inactive ;;
esac
"""
STATE = {
    "LoadState": "loaded",
    "UnitFileState": "",
    "ActiveState": "inactive",
    "SubState": "dead",
    "Result": "success",
    "ExecMainStatus": "0",
    "MainPID": "0",
    "NRestarts": "0",
    "NeedDaemonReload": "no",
    "ActiveEnterTimestamp": "",
}


RUNS = {"UnitFileState": "enabled", "ActiveState": "active", "SubState": "running", "MainPID": "4711"}
FLAGS = {"preset": "mini", "generation_engine": "external", "generation_url": "http://127.0.0.1:1"}


class StandInSystemd:
    """systemctl, loginctl and systemd-analyze as one small program; `variables` put it before the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name in ("systemctl", "loginctl", "systemd-analyze"):
            (programs / name).write_text(STAND_IN)
            (programs / name).chmod(0o755)
        self.variables = {"PATH": f"{programs}:/usr/bin:/bin", "STAND_IN_SYSTEMD": str(folder)}
        self.be()
        self.linger("yes")

    def take_over(self, monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
        """From now on it is what this process finds; the user's configuration lies in `config`."""
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
        for name in ("HF_TOKEN", "HTTPS_PROXY", "https_proxy", "DOCKER_HOST"):
            monkeypatch.delenv(name, raising=False)

    def be(self, **state: str) -> None:
        """From now on `systemctl show` tells this of the unit."""
        lines = [f"{name}={value}" for name, value in (STATE | state).items()]
        (self.folder / "state").write_text("\n".join(lines) + "\n")

    def linger(self, value: str) -> None:
        """From now on lingering is this: yes or no."""
        (self.folder / "linger").write_text(f"Linger={value}\n")

    def fail(self, word: str, text: str) -> None:
        """From now on calls with this word fail with this text."""
        (self.folder / f"fail-{word}").write_text(f"{text}\n")

    def calls(self) -> list[str]:
        """What was called to change something since the last time, without the program's common words."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [
            line.removeprefix("systemctl --user ") for line in lines if " show" not in line and "verify" not in line
        ]


class UserSystemd:
    """A real `systemd --user`. Its units lie in `units`; `variables` lead systemctl to it."""

    def __init__(self, config: Path, runtime: Path) -> None:
        self.units = config / "systemd" / "user"
        self.units.mkdir(parents=True)
        self.variables = {"XDG_CONFIG_HOME": str(config), "XDG_RUNTIME_DIR": str(runtime)}
        self.log = runtime / "manager.log"
        self.groups = [folder / f"qmd-remote-{runtime.name}" for folder in own_cgroups()]
        joins = [f"mkdir {group} && echo $$ > {group}/cgroup.procs" for group in self.groups]
        # it wants to see a machine that systemd has booted; nobody else sees what it sees
        booted = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system"
        script = " && ".join([*joins, booted, f"exec {MANAGER} --user --log-target=console"])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                env={**os.environ, **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run systemctl for this user."""
        return subprocess.run(
            ["systemctl", "--user", *words],
            env={**os.environ, **self.variables, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def came_up(self) -> bool:
        """Wait until it answers; False when it ends, or says nothing for too long."""
        until = time.monotonic() + LIMIT_S
        while self.process.poll() is None and time.monotonic() < until:
            if self.systemctl("is-active", "default.target").returncode == 0:
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        """End it with all that it started."""
        self.process.terminate()
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # what it made for its units, in other hierarchies as well
        for folder, _, _ in os.walk(CGROUPS, topdown=False):
            if any(group.name in folder.split("/") for group in self.groups):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def own_cgroups() -> list[Path]:
    """The folders of this process's groups in the hierarchies by which systemd knows its processes.

    It takes over all that is in its group when it starts, so it needs one of its own.
    """
    found: list[Path] = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kind, path = line.split(":", 2)
        mounts = {"name=systemd": ["systemd"], "": ["unified", ""]}.get(kind, [])
        folders = [CGROUPS / mount / path.lstrip("/") for mount in mounts]
        found += [folder for folder in folders if (folder / "cgroup.procs").exists()][:1]
    return found


def missing() -> str:
    """What a real one needs and is not here; empty when all is."""
    if sys.platform != "linux":
        return "systemd is for Linux"
    if os.geteuid() != 0:
        return "a user's systemd of one's own takes a mount namespace, and so root"
    lacking = [name for name in ("systemctl", "unshare") if shutil.which(name) is None]
    lacking += [] if MANAGER.exists() else [str(MANAGER)]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def said(call: Callable[[Output], int]) -> tuple[int, dict[str, Any]]:
    """The exit code and the envelope of a flow."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        code = call(Output("service", as_json=True))
    return code, json.loads(written.getvalue())


def install(why: str = "", **flags: Any) -> dict[str, Any]:
    """The envelope of an installation, which must succeed."""
    given = FLAGS | flags
    code, envelope = said(lambda out: service_flow.install(out, settings.resolve(given), why, given))
    assert 0 == code
    return envelope
