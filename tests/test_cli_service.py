"""`qmd-remote service …` through the installed program: beside a stand-in, without systemd, and with a real one."""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.launch import unit
from tests import user_systemd
from tests.launch.command_line import FOLDER, CommandLine
from tests.user_systemd import StandInSystemd, UserSystemd

Run = Callable[..., Any]
EXTERNAL = ("--preset", "mini", "--generation", "external", "--generation-url", "http://127.0.0.1:1")


@pytest.fixture
def service(qmd_remote: Run, cli_home: Path) -> Run:
    """Run `qmd-remote service …` beside a stand-in for systemd: `service.systemd`."""
    stand_in = StandInSystemd(cli_home / "systemd")
    variables = {**stand_in.variables, "XDG_CONFIG_HOME": str(cli_home / "config")}
    call = functools.partial(qmd_remote, "service", **variables)
    call.systemd = stand_in
    return call


def test_the_unit_is_printed_alone(qmd_remote: Run, cli_home: Path):
    """`--print` writes the unit to stdout, where there is no systemd, too, and writes no file."""
    done = qmd_remote("service", "install", "--print", *EXTERNAL, PATH="/nowhere", XDG_CONFIG_HOME=str(cli_home / "c"))
    assert (0, "") == (done.code, done.stderr)
    assert done.stdout.startswith(f"{unit.MARKER}\n\n[Unit]\n")
    assert f"ExecStart={sys.prefix}/bin/qmd-remote up --foreground --preset mini " in done.stdout
    assert not (cli_home / "c").exists()


@pytest.mark.parametrize("named", [("--api-key-file", "k"), ("--tls-cert", "c.pem", "--tls-key", "k.pem")])
def test_a_file_that_is_missing_gets_into_no_unit(named: tuple[str, ...], qmd_remote: Run, cli_home: Path):
    """A unit with a relative path to nothing would never start: it is refused as `up` does, and not printed."""
    done = qmd_remote("service", "install", "--print", *named, *EXTERNAL, QMD_REMOTE_API_KEY="of-this-shell")
    assert (4, "") == (done.code, done.stdout)
    assert named[1] in done.stderr


def test_what_is_printed_is_what_is_installed(service: Run, cli_home: Path):
    """The same options, the same bytes."""
    printed = service("install", "--print", *EXTERNAL).stdout
    assert 0 == service("install", *EXTERNAL).code
    assert printed == (cli_home / "config" / "systemd" / "user" / unit.NAME).read_text()


def test_a_person_is_told_what_happened_and_what_to_do(service: Run):
    """The file, how to follow the start, how to stay after logging out; a change is shown."""
    service.systemd.linger("no")
    done = service("install", *EXTERNAL)
    assert (0, "") == (done.code, done.stdout)
    assert f"{unit.NAME}: written" in done.stderr
    assert "qmd-remote status --watch" in done.stderr
    assert "loginctl enable-linger" in done.stderr
    changed = service("install", *EXTERNAL, "--port", "9001")
    assert "\n-ExecStart=" in changed.stdout
    assert "\n+ExecStart=" in changed.stdout
    assert "as it was" in service("install", *EXTERNAL, "--port", "9001").stderr


def test_status_is_read_at_a_glance(service: Run):
    """A line per check, and what to type below the one that is not ok."""
    service("install", *EXTERNAL)
    assert 0 == service("status").code
    service.systemd.be(UnitFileState="disabled", ActiveState="active")
    done = service("status")
    assert 1 == done.code
    assert "failure  it is not enabled (disabled): nothing starts it\n" in done.stdout
    assert f"systemctl --user enable {unit.NAME}\n" in done.stdout


def test_uninstall_says_what_it_did(service: Run):
    """Removed once, and then not installed."""
    service("install", *EXTERNAL)
    assert "removed" in service("uninstall").stderr
    assert "not installed" in service("uninstall").stderr


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs this machine")
@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is not installed")
@pytest.mark.parametrize("command", ["install", "uninstall", "status"])
def test_without_systemd_the_real_systemctl_says_why(command: str, qmd_remote: Run, cli_home: Path):
    """In a container: exit code 5 with systemctl's own words, and the way without it."""
    options = EXTERNAL if command == "install" else ()
    config = cli_home / "config"
    done = qmd_remote("service", command, *options, "--json", XDG_CONFIG_HOME=str(config), XDG_RUNTIME_DIR="")
    error = done.envelope()["error"]
    assert (5, "systemd.missing") == (done.code, error["code"])
    assert "Failed to connect to bus" in error["message"]
    first, second = error["hint"].split("; ")
    if command == "install":
        assert "qmd-remote service install" in first
        assert {"--print", *EXTERNAL} <= set(first.split())
        assert "qmd-remote up" in second
        assert set(EXTERNAL) <= set(second.split())
    else:  # there is nothing to look at or to remove, and `up` would start something
        assert first.endswith("qmd-remote status")
        assert second.endswith("qmd-remote down")
    assert not config.exists()


# with a real one


@pytest.fixture
def manager(cli_home: Path) -> Iterator[UserSystemd]:
    """A real user's systemd of the test's own."""
    if why := user_systemd.missing():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="qr-") as runtime:
        real = UserSystemd(cli_home / "config", Path(runtime))
        try:
            if not real.came_up():
                pytest.skip(f"no user's systemd can run here: {real.log.read_text().strip()}")
            yield real
        finally:
            real.close()


def test_the_whole_life_in_a_real_systemd(manager: UserSystemd, cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """Installed, the services run; again, they stay; another port, they move; uninstalled, they are gone."""
    for name, value in manager.variables.items():
        monkeypatch.setenv(name, value)
    line = CommandLine(cli_home)
    # the unit runs what is called qmd-remote, which here starts stand-ins
    program = cli_home / "bin" / "qmd-remote"
    program.parent.mkdir()
    python = line.env["STAND_IN_PYTHON"]
    program.write_text(f'#!/bin/sh\nSTAND_IN_PYTHON={python} exec {sys.executable} {FOLDER}/on_stand_ins.py "$@"\n')
    program.chmod(0o755)
    line.env["PATH"] = f"{program.parent}:{line.env['PATH']}"
    try:
        code, said = line.run("service", "install")
        assert (0, True) == (code, said["data"]["started"]), said
        until(lambda: all(line.answers()))
        code, said = line.run("service", "status")
        assert (0, True, "active") == (code, said["data"]["enabled"], said["data"]["active"]), said
        first = said["data"]["pid"]
        # what `up` starts now is what the unit has started
        assert ["already running"] * 2 == [one["action"] for one in line.run("up")[1]["data"]["services"]]
        assert not line.run("service", "install")[1]["data"]["changed"]
        assert first == line.run("service", "status")[1]["data"]["pid"]

        code, said = line.run("service", "install", "--max-batch-size", "7")
        assert (0, True) == (code, said["data"]["changed"])
        until(lambda: all(line.answers()))
        assert first != line.run("service", "status")[1]["data"]["pid"]

        code, said = line.run("down")
        # what belongs to them stops the other one itself, and may be quicker
        assert {"embed"} <= set(said["data"]["stopped"]) <= {"embed", "generation"}
        until(lambda: line.run("service", "status")[1]["data"]["active"] == "inactive")
        assert 0 == line.run("service", "install", "--max-batch-size", "7")[0]
        until(lambda: all(line.answers()))

        code, said = line.run("service", "uninstall")
        assert (0, True, True) == (code, said["data"]["removed"], said["data"]["stopped"])
        assert [False, False] == line.answers()
        assert (3, "unit.missing") == ((found := line.run("service", "status"))[0], found[1]["error"]["code"])
        assert [] == [path for path in manager.units.rglob("*") if not path.is_dir()]
    finally:
        line.close()


def until(condition: Callable[[], object], within_s: float = 60) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
