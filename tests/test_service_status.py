"""What `service status` makes of a unit's state, and what all of `service` says where there is no systemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmd_remote import service_flow
from qmd_remote.errors import PrerequisiteError
from qmd_remote.launch import systemd
from tests.user_systemd import RUNS, StandInSystemd, install, said


@pytest.fixture
def user(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> StandInSystemd:
    """A user whose systemd is a stand-in."""
    stand_in = StandInSystemd(cli_home / "systemd")
    stand_in.take_over(monkeypatch, cli_home / "xdg config")
    return stand_in


# status


def test_a_unit_that_runs_and_comes_back(user: StandInSystemd):
    """All checks are ok."""
    install()
    user.be(**RUNS, ActiveEnterTimestamp="Mon 2026-11-23 05:00:00 UTC")
    code, envelope = said(service_flow.status)
    data = envelope["data"]
    assert (0, True, True, "active", 4711) == (code, data["installed"], data["enabled"], data["active"], data["pid"])
    assert {"ok"} == {check["state"] for check in data["checks"]}
    assert [] == [check["fix"] for check in data["checks"] if check["fix"]]


def test_no_unit_is_not_running(user: StandInSystemd):
    """Exit code 3, and the command that makes one."""
    code, envelope = said(service_flow.status)
    assert (3, "unit.missing") == (code, envelope["error"]["code"])
    assert "qmd-remote service install" == envelope["error"]["hint"]


@pytest.mark.parametrize(
    ("state", "name", "message", "fix"),
    [
        ({"UnitFileState": "disabled"}, "enabled", "nothing starts it", "systemctl --user enable"),
        ({"ActiveState": "inactive"}, "active", "does not run", "systemctl --user start"),
        ({"NeedDaemonReload": "yes"}, "file", "has not read the unit", "daemon-reload"),
        ({"LoadState": "bad-setting"}, "file", "bad-setting", "journalctl"),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "4"},
            "active",
            "a setting or a file is wrong (exit code 4)",
            "journalctl",
        ),
        (
            {"ActiveState": "failed", "Result": "start-limit-hit", "ExecMainStatus": "5"},
            "active",
            "too often in a row; last: the machine lacks something (exit code 5)",
            "journalctl",
        ),
        ({"ActiveState": "failed", "Result": "oom-kill", "ExecMainStatus": "9"}, "active", "memory", "journalctl"),
        ({"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "7"}, "active", "code 7", "journalctl"),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "203"},
            "active",
            "program is not where",
            "qmd-remote service install",
        ),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code", "ExecMainStatus": "1"},
            "active",
            "is started again within 30 s: a service failed (exit code 1)",
            "journalctl",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(
    user: StandInSystemd, state: dict[str, str], name: str, message: str, fix: str
):
    """Exit code 1, and the first failure as the error."""
    install()
    user.be(**(RUNS | state))
    code, envelope = said(service_flow.status)
    assert (1, f"unit.{name}") == (code, envelope["error"]["code"])
    assert message in envelope["error"]["message"]
    assert fix in envelope["error"]["hint"]
    (found,) = [check for check in envelope["data"]["checks"] if check["state"] == "failure"]
    assert envelope["error"]["message"] == found["message"]


@pytest.mark.parametrize("state", [{"NRestarts": "3"}, {}])
def test_warnings_are_no_failure(user: StandInSystemd, state: dict[str, str]):
    """A service without lingering, and one that failed before, run: exit code 0."""
    install()
    user.be(**(RUNS | state))
    user.linger("no")
    code, envelope = said(service_flow.status)
    assert (0, None) == (code, envelope["error"])
    warnings = [check["name"] for check in envelope["data"]["checks"] if check["state"] == "warning"]
    assert (["active", "linger"] if state else ["linger"]) == warnings


# machines without it


def test_macos_is_told_plainly(user: StandInSystemd, monkeypatch: pytest.MonkeyPatch):
    """launchd is not supported yet; what runs without it can be seen."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(PrerequisiteError, match="launchd") as caught:
        said(service_flow.status)
    assert "qmd-remote status" in caught.value.hint


def test_a_machine_without_systemctl(user: StandInSystemd, monkeypatch: pytest.MonkeyPatch):
    """Exit code 5, why, and the way without it."""
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(PrerequisiteError, match="no systemctl") as caught:
        said(service_flow.status)
    assert (5, "systemd.missing") == (caught.value.exit_code, caught.value.code)
    assert "qmd-remote status" in caught.value.hint


def test_a_user_without_a_systemd_of_their_own(user: StandInSystemd, cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """On a machine with systemd, who came by su has none: that is another thing than a container."""
    user.fail("--property=Version", "Failed to connect to bus: No medium found")
    monkeypatch.setattr(systemd, "BOOTED", cli_home)
    with pytest.raises(PrerequisiteError, match=r"came by su or sudo .*No medium found") as caught:
        said(service_flow.status)
    assert "systemd.unreachable" == caught.value.code
    assert "enable-linger" in caught.value.hint
    monkeypatch.setattr(systemd, "BOOTED", cli_home / "nothing")
    with pytest.raises(PrerequisiteError, match="may be a container"):
        said(service_flow.status)


def test_the_usual_place_of_a_users_systemd_is_tried(
    user: StandInSystemd, cli_home: Path, monkeypatch: pytest.MonkeyPatch
):
    """A plain su sets no XDG_RUNTIME_DIR, though the user's systemd may run; one that is set stays."""
    monkeypatch.setattr(systemd, "RUNTIME", cli_home)
    assert "XDG_RUNTIME_DIR" not in systemd._environment({})
    (cli_home / str(os.getuid())).mkdir()
    assert str(cli_home / str(os.getuid())) == systemd._environment({})["XDG_RUNTIME_DIR"]
    assert "/mine" == systemd._environment({"XDG_RUNTIME_DIR": "/mine"})["XDG_RUNTIME_DIR"]
