"""What `service install`, `uninstall` and `status` do, and say, beside a stand-in for systemd."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import service_flow, services, settings
from qmd_remote.errors import ConfigError, PrerequisiteError, QmdRemoteError, ServiceFailed, UsageError
from qmd_remote.launch import systemd, unit
from qmd_remote.output import Output
from tests.user_systemd import FLAGS, RUNS, StandInSystemd, install, said

Run = Callable[..., Any]
STARTED = ["daemon-reload", f"enable {unit.NAME}", f"reset-failed {unit.NAME}", f"start {unit.NAME}"]


@pytest.fixture
def user(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> StandInSystemd:
    """A user whose systemd is a stand-in."""
    stand_in = StandInSystemd(cli_home / "systemd")
    stand_in.take_over(monkeypatch, cli_home / "xdg config")
    return stand_in


@pytest.fixture
def file(user: StandInSystemd, cli_home: Path) -> Path:
    """Where the unit of that user lies."""
    return cli_home / "xdg config" / "systemd" / "user" / "qmd-remote.service"


# install


def test_install_writes_enables_and_starts(user: StandInSystemd, file: Path):
    """The unit lies where systemd looks for it, readable by its owner alone, and runs."""
    data = install()["data"]
    assert (str(file), True, True, True) == (data["path"], data["changed"], data["started"], data["linger"])
    assert STARTED == user.calls()
    assert unit.is_ours(file.read_text())
    assert " up --foreground --preset mini --generation external --generation-url " in file.read_text()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert [file.name] == [path.name for path in file.parent.iterdir()]


def test_install_again_changes_nothing(user: StandInSystemd, file: Path):
    """With the same options the bytes stay, and what runs is not touched."""
    install()
    before, _ = file.read_bytes(), user.calls()
    data = install()["data"]
    assert (False, False, "") == (data["changed"], data["started"], data["diff"])
    assert before == file.read_bytes()
    assert ["daemon-reload", f"enable {unit.NAME}"] == user.calls()


def test_install_with_other_options_shows_the_difference_and_restarts(user: StandInSystemd, file: Path):
    """The diff has the old line and the new one."""
    install()
    user.calls()
    data = install(port=9001)["data"]
    assert (True, True) == (data["changed"], data["started"])
    changed = [line for line in data["diff"].splitlines() if line.startswith(("-Exec", "+Exec"))]
    assert ["-", "+"] == [line[0] for line in changed]
    assert changed[1].endswith(" --port 9001")
    assert f"restart {unit.NAME}" == user.calls()[-1]


def test_a_service_that_failed_is_started_anew(user: StandInSystemd):
    """systemd forgets its failures first, or would refuse after too many."""
    install()
    user.calls()
    user.be(UnitFileState="enabled", ActiveState="failed")
    assert install()["data"]["started"]
    assert STARTED == user.calls()


@pytest.mark.parametrize(("origin", "named"), [("hardware", True), ("running services", True), ("file", False)])
def test_a_preset_that_nobody_named_is_named_in_the_unit(user: StandInSystemd, file: Path, origin: str, named: bool):
    """What depends on what runs now must not depend on it after a reboot; the settings file is read then, too."""
    given = {name: value for name, value in FLAGS.items() if name != "preset"}
    wanted = settings.resolve(given, preset="mini", preset_origin=origin)
    said(lambda out: service_flow.install(out, wanted, "", given))
    assert named == ("--preset mini" in file.read_text())


def test_a_foreign_unit_stays_as_it_is(user: StandInSystemd, file: Path):
    """A file of that name that we did not make is neither replaced nor removed."""
    file.parent.mkdir(parents=True)
    file.write_text("[Service]\nExecStart=/bin/true\n")
    for call in (install, lambda: service_flow.uninstall(Output("x")), lambda: service_flow.status(Output("x"))):
        with pytest.raises(ConfigError, match="not made by qmd-remote") as caught:
            call()
        assert "unit.foreign" == caught.value.code
        assert "mv " in caught.value.hint
    assert file.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert [] == user.calls()


def test_a_masked_unit_is_not_unmasked(file: Path):
    """The link to /dev/null was put there on purpose."""
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="masked") as caught:
        install()
    assert f"systemctl --user unmask {unit.NAME}" == caught.value.hint


def test_what_systemd_would_not_take_is_not_put_in_place(user: StandInSystemd, file: Path):
    """The verdict of systemd-analyze comes before the file, with its words."""
    user.fail("verify", f"{unit.NAME}: Unit configuration has fatal error, unit will not be started.")
    with pytest.raises(PrerequisiteError, match="fatal error") as caught:
        install()
    assert "unit.refused" == caught.value.code
    assert not file.exists()


def test_a_line_that_an_older_systemd_ignores_is_a_warning(user: StandInSystemd, file: Path):
    """So is nothing that it says of other units."""
    user.fail(
        "verify", f"/x/{unit.NAME}:30: Unknown key name 'OOMPolicy' in section 'Service', ignoring.\nother.service: bad"
    )
    warnings = install()["warnings"]
    assert 1 == len(warnings)
    assert "OOMPolicy" in warnings[0]["message"]
    assert file.exists()


def test_without_lingering_the_next_command_is_told(user: StandInSystemd):
    """The services would end with the login."""
    user.linger("no")
    envelope = install()
    assert envelope["data"]["linger"] is False
    assert ["loginctl enable-linger"] == [warning["hint"] for warning in envelope["warnings"]]


def test_a_logind_that_does_not_answer_is_no_obstacle(user: StandInSystemd):
    """Nothing is said of lingering then; a user without a session does not linger."""
    user.fail("show-user", "Failed to connect to bus: Host is down")
    assert install()["data"]["linger"] is None
    user.fail("show-user", "User ID 7 is not logged in or lingering")
    assert systemd.lingers() is False


def test_a_token_is_left_out_and_that_is_said(user: StandInSystemd, file: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither the unit nor a message holds it."""
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    envelope = install()
    assert "HF_TOKEN" in envelope["warnings"][0]["message"]
    assert "hf auth login" in envelope["warnings"][0]["hint"]
    assert "hf_s3cret" not in file.read_text() + json.dumps(envelope)


def test_a_key_of_the_shell_alone_stops_it(user: StandInSystemd, file: Path, monkeypatch: pytest.MonkeyPatch):
    """Before anything is written or told to systemd."""
    monkeypatch.setenv("QMD_REMOTE_API_KEY", "s3cret")
    with pytest.raises(ConfigError, match="a unit is no place for it"):
        install()
    assert not file.exists()
    assert [] == user.calls()


def test_what_up_would_refuse_is_refused_before(user: StandInSystemd, file: Path, cli_home: Path):
    """A unit that could only fail is not made."""
    wrong: list[tuple[dict[str, Any], type[QmdRemoteError]]] = [
        ({"generation_url": ""}, ConfigError),
        ({"generation_url": "http://me@box"}, ConfigError),
        ({"generation_url": "box"}, UsageError),
        ({"device": "gpu7"}, ConfigError),
        ({"tls_cert": "/nope", "tls_key": "/nope"}, ConfigError),
    ]
    for flags, kind in wrong:
        with pytest.raises(kind):
            install(**flags)
    assert not file.exists()
    assert [] == user.calls()


def test_files_are_named_in_full(file: Path, cli_home: Path):
    """The unit runs in another folder."""
    (cli_home / "key").write_text("s3cret\n")
    install(api_key_file="key")
    assert f"--api-key-file {cli_home}/key" in file.read_text()
    assert "s3cret" not in file.read_text()


def test_beside_an_up_in_a_terminal_it_is_refused(file: Path, runs: Run, monkeypatch: pytest.MonkeyPatch):
    """Two of them cannot have the same services; the one of the unit itself is no other."""
    runs("embed", "http://127.0.0.1:1")
    monkeypatch.setattr(services, "foreground_owner", lambda _: 4242)
    with pytest.raises(ServiceFailed, match="pid 4242") as caught:
        install()
    assert "kill 4242" in caught.value.hint
    assert not file.exists()
    monkeypatch.setattr(services, "foreground_owner", lambda _: 0)
    install()


def test_a_folder_that_systemd_does_not_know_is_told(user: StandInSystemd):
    """XDG_CONFIG_HOME of the shell need not be that of systemd."""
    user.be(LoadState="not-found")
    with pytest.raises(ConfigError, match="does not look into") as caught:
        install()
    assert "unset XDG_CONFIG_HOME" in caught.value.hint


def test_what_systemctl_says_is_passed_on(user: StandInSystemd):
    """A start that systemd refuses is an error with its words, and with where to look."""
    user.fail("start", "Job for qmd-remote.service failed.")
    with pytest.raises(
        ServiceFailed, match=r"systemctl --user start .*: Job for qmd-remote\.service failed\."
    ) as caught:
        install()
    assert "systemctl --user status" in caught.value.hint


# the program's path


def test_the_program_is_named_by_the_path_it_was_called_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link stays: an upgrade replaces what it leads to. Without a path it is looked for; a module has its script."""
    monkeypatch.chdir(tmp_path)
    real = tmp_path / "venv" / "qmd-remote"
    real.parent.mkdir()
    real.write_text("#!/bin/sh\n")
    real.chmod(0o755)
    link = tmp_path / "bin" / "qmd-remote"
    link.parent.mkdir()
    link.symlink_to(real)
    monkeypatch.setenv("PATH", str(link.parent))
    assert (str(link),) == service_flow.program("bin/qmd-remote")
    assert (str(real),) == service_flow.program(str(real))
    assert (str(link),) == service_flow.program("qmd-remote")
    monkeypatch.setattr("sys.executable", str(real.with_name("python")))
    assert (str(real),) == service_flow.program("/lib/qmd_remote/__main__.py")
    real.unlink()
    assert (str(real.with_name("python")), "-P", "-m", "qmd_remote") == service_flow.program("/x/__main__.py")


# uninstall


def test_uninstall_stops_and_removes(user: StandInSystemd, file: Path):
    """The unit is gone, for systemd, too; a second time there is nothing to do."""
    install()
    user.calls()
    code, envelope = said(service_flow.uninstall)
    assert (0, {"path": str(file), "removed": True, "stopped": True}) == (code, envelope["data"])
    assert [f"disable --now {unit.NAME}", "daemon-reload", f"reset-failed {unit.NAME}"] == user.calls()
    assert not file.exists()
    code, envelope = said(service_flow.uninstall)
    assert (0, {"path": str(file), "removed": False, "stopped": False}) == (code, envelope["data"])
    assert [] == user.calls()


def test_uninstall_stops_a_service_whose_file_is_gone(user: StandInSystemd):
    """Somebody deleted the file, and systemd still runs what it said."""
    user.be(**RUNS)
    _, envelope = said(service_flow.uninstall)
    assert (False, True) == (envelope["data"]["removed"], envelope["data"]["stopped"])
    assert [f"stop {unit.NAME}"] == user.calls()


def test_a_unit_that_cannot_be_stopped_is_kept(user: StandInSystemd, file: Path):
    """While systemd still runs it, its file stays."""
    install()
    user.fail("disable", "Access denied")
    with pytest.raises(ServiceFailed, match="Access denied"):
        said(service_flow.uninstall)
    assert file.exists()
