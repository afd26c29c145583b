"""The systemd user unit: its text, and what a real systemd makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote import settings
from qmd_remote.errors import ConfigError
from qmd_remote.launch import unit
from qmd_remote.settings_file import FileLayer
from tests import user_systemd
from tests.user_systemd import UserSystemd

NO_FILE = FileLayer(Path("/nowhere"))
ODD = [
    "a b",
    'say "hi"',
    "it's",
    "back\\slash",
    "50%",
    "%h",
    "$HOME",
    "${HOME}",
    "$$",
    ";",
    "",
    "tab\there",
    "ünï",
    "#x",
]

# tells what it was given, in the way that its last words ask for
PROGRAM = """#!{python}
import json, os, signal, sys, time
at = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(at[-1])))
facts = {{"argv": at, "env": dict(os.environ), "status": open("/proc/self/status").read(), "cwd": os.getcwd()}}
with open(r"{told}.new", "w") as file:
    json.dump(facts, file)
os.rename(r"{told}.new", r"{told}")
if at[-2] == "--end":
    sys.exit(int(at[-1]))
while True:
    time.sleep(60)
"""


def resolved(env: dict[str, str] | None = None, **flags: object) -> settings.Settings:
    """Settings as a command line and an environment give them, without a file."""
    return settings.resolve(flags, env or {}, file=NO_FILE)


def lines_of(text: str, name: str) -> list[str]:
    """The values of a key, in order."""
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


# the text


def test_the_unit_runs_up_in_the_foreground_with_the_given_options():
    """The program's full path, then `up --foreground` and the options as they were meant."""
    wanted = resolved(preset="spark", host="0.0.0.0", trust_remote_code=["a/b", "c/d"], insecure_no_auth=True)
    names = ("preset", "host", "trust_remote_code", "insecure_no_auth")
    one = unit.Unit(program=("/opt/bin/qmd-remote",), arguments=unit.arguments(wanted, names), stop_limit_s=190)
    expected = (
        "/opt/bin/qmd-remote up --foreground --preset spark --host 0.0.0.0 "
        "--trust-remote-code a/b --trust-remote-code c/d --insecure-no-auth"
    )
    assert [expected] == lines_of(unit.text(one), "ExecStart")
    assert ["190"] == lines_of(unit.text(one), "TimeoutStopSec")
    assert unit.is_ours(unit.text(one))


def test_a_unit_of_somebody_else_is_not_ours():
    """Only what begins with our marker is replaced or removed."""
    assert not unit.is_ours("[Unit]\n" + unit.MARKER)
    assert not unit.is_ours("")


def test_the_same_settings_give_the_same_bytes():
    """Installing twice changes nothing: no order of a dictionary shows."""
    variables = {"B": "2", "A": "1"}
    first = unit.Unit(program=("/p",), env=variables, stop_limit_s=1)
    second = unit.Unit(program=("/p",), env=dict(sorted(variables.items())), stop_limit_s=1)
    assert unit.text(first) == unit.text(second)


def test_what_no_repetition_mends_is_not_repeated():
    """A wrong command line and a wrong setting end it; a machine that lacks something may be about to get it."""
    text = unit.text(unit.Unit(program=("/p",), stop_limit_s=1))
    assert ["2 4"] == lines_of(text, "RestartPreventExitStatus")
    assert ["130"] == lines_of(text, "SuccessExitStatus")
    within, starts = int(lines_of(text, "StartLimitIntervalSec")[0]), int(lines_of(text, "StartLimitBurst")[0])
    # the limit is met at all, and not before a machine has booted
    assert 180 <= starts * int(lines_of(text, "RestartSec")[0]) < within


def test_a_value_that_begins_with_a_dash_stays_a_value():
    """`--generation-args` takes words that look like options."""
    wanted = resolved(generation_args="--enforce-eager")
    assert ("--generation-args=--enforce-eager",) == unit.arguments(wanted, ["generation_args"])


# what is kept of the environment


def test_the_environment_that_counts_is_kept():
    """Settings from variables, and what says where things are; folders in full, the rest of a shell left out."""
    env = {
        "PATH": "/usr/bin:bin:/usr/bin::/opt/bin",
        "HF_HOME": "~/models",
        "QMD_REMOTE_HOME": "here",
        "DOCKER_HOST": "unix:///run/user/1000/docker.sock",
        "https_proxy": "http://proxy:3128",
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
        "QMD_REMOTE_MAX_QUEUE": "99",
        "QMD_REMOTE_DEBUG": "1",
        "EDITOR": "vi",
        "NO_PROXY": "",
    }
    kept, secret = unit.environment(resolved(env), env)
    assert {
        "PATH": "/usr/bin:/opt/bin",
        "HF_HOME": str(Path("~/models").expanduser()),
        "QMD_REMOTE_HOME": str(Path("here").absolute()),
        "DOCKER_HOST": "unix:///run/user/1000/docker.sock",
        "https_proxy": "http://proxy:3128",
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
        "QMD_REMOTE_MAX_QUEUE": "99",
    } == kept
    assert () == secret


def test_secrets_stay_behind_and_are_named():
    """A token and a proxy with a password are no part of the unit."""
    env = {"HF_TOKEN": "hf_s3cret", "HTTPS_PROXY": "http://me:s3cret@proxy:3128", "DOCKER_HOST": "ssh://me@box"}
    kept, secret = unit.environment(resolved(env), env)
    assert {"DOCKER_HOST": "ssh://me@box"} == kept
    assert {"HF_TOKEN", "HTTPS_PROXY"} == set(secret)


def test_a_key_that_is_only_in_the_shell_is_refused():
    """The unit cannot hold it, and after a reboot the variable is not there; the hint makes a file of it."""
    env = {"QMD_REMOTE_API_KEY": "s3cret"}
    with pytest.raises(ConfigError, match="this shell's QMD_REMOTE_API_KEY") as caught:
        unit.environment(resolved(env), env)
    assert "unit.secret" == caught.value.code
    assert "--api-key-file" in caught.value.hint
    assert "s3cret" not in caught.value.message + caught.value.hint


def test_a_key_file_on_the_command_line_makes_the_shells_key_irrelevant():
    """A flag wins over the variable, for `up` and so for the unit."""
    env = {"QMD_REMOTE_API_KEY": "s3cret"}
    kept, _ = unit.environment(resolved(env, api_key_file="/keys/k"), env)
    assert {} == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generation_args", "--api-key s3cret"),
        ("generation_args", "--api-key=s3cret"),
        ("generation_url", "http://me:s3cret@box:8000"),
        ("generation_url", "http://s3cret@box:8000"),
    ],
)
def test_a_secret_among_the_options_is_refused(name: str, value: str):
    """Neither as a flag nor as a variable does it get into a file that is a command line."""
    with pytest.raises(ConfigError) as caught:
        unit.arguments(resolved(**{name: value}), [name])
    assert "unit.secret" == caught.value.code
    assert "s3cret" not in caught.value.message
    variable = settings.field_of(name).metadata["env"]
    with pytest.raises(ConfigError):
        unit.environment(resolved({variable: value}), {variable: value})


# what systemd makes of it


def unquoted(text: str) -> str:
    """One word as systemd.syntax(7) defines it, read by a second hand."""
    text = text.replace("%%", "%")
    if not text.startswith('"'):
        return text
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), text[1:-1])


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_word_survives_quoting(word: str):
    """What is written for a word is one word, on one line, and means that word."""
    quoted = unit._quoted(word)
    assert "\n" not in quoted
    assert quoted.startswith('"') or not re.search(r"""[\s"'\\;#]""", quoted)
    assert word == unquoted(quoted)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("prepare", [(), ("/bin/true", "-u", "-c=0")])
def test_systemd_finds_nothing_to_complain_of(prepare: tuple[str, ...], tmp_path: Path):
    """`systemd-analyze verify` takes the unit without a word, odd values included."""
    file = tmp_path / unit.NAME
    variables = {f"ODD_{number}": word for number, word in enumerate(ODD)}
    one = unit.Unit(
        program=(sys.executable, "-P", "-m", "qmd_remote"),
        arguments=("--embed-model", *ODD),
        env=variables,
        prepare=prepare,
        stop_limit_s=190,
    )
    file.write_text(unit.text(one), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", file],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert [] == [line for line in done.stderr.splitlines() if unit.NAME in line]
    assert 0 == done.returncode, done.stderr


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserSystemd]:
    """A real user's systemd of the tests' own."""
    if why := user_systemd.missing():
        pytest.skip(why)
    # a socket's path has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="qr-") as runtime:
        real = UserSystemd(tmp_path_factory.mktemp("config"), Path(runtime))
        try:
            if not real.came_up():
                pytest.skip(f"no user's systemd can run here: {real.log.read_text().strip()}")
            yield real
        finally:
            real.close()


class Installed:
    """The unit, with a program that tells what it was given, in a real systemd."""

    def __init__(self, manager: UserSystemd, folder: Path) -> None:
        self.manager, self.told = manager, folder / "told"
        self.program = folder / "pro gram"
        self.program.write_text(PROGRAM.format(python=sys.executable, told=self.told))
        self.program.chmod(0o755)

    def start(self, *words: str, **parts: object) -> None:
        """Put the unit with these last words in place and start it."""
        values = {"program": (str(self.program),), "arguments": words, "stop_limit_s": 20, **parts}
        (self.manager.units / unit.NAME).write_text(unit.text(unit.Unit(**values)), encoding="utf-8")
        self.manager.systemctl("daemon-reload")
        done = self.manager.systemctl("start", unit.NAME)
        assert 0 == done.returncode, done.stderr

    def state(self, name: str) -> str:
        """A property of the unit."""
        return self.manager.systemctl("show", unit.NAME, f"--property={name}", "--value").stdout.strip()

    def facts(self) -> dict[str, object]:
        """What the program told."""
        return json.loads(self.told.read_text())


@pytest.fixture
def installed(manager: UserSystemd, tmp_path: Path) -> Iterator[Installed]:
    """See Installed; nothing of it is left."""
    yield Installed(manager, tmp_path)
    manager.systemctl("stop", unit.NAME)
    (manager.units / unit.NAME).unlink(missing_ok=True)
    manager.systemctl("reset-failed")
    manager.systemctl("daemon-reload")


def test_words_and_variables_arrive_as_they_are(installed: Installed, eventually: Callable[..., None]):
    """systemd gives the program exactly the words and variables that the unit was made from."""
    variables = {f"ODD_{number}": word for number, word in enumerate(ODD)}
    installed.start(*ODD, "--stay", "0", env=variables)
    eventually(installed.told.exists)
    facts = installed.facts()
    assert ["up", "--foreground", *ODD, "--stay", "0"] == facts["argv"]
    assert variables == {name: value for name, value in facts["env"].items() if name.startswith("ODD_")}


def test_the_service_gains_no_privileges_and_what_prepares_it_may(
    installed: Installed, tmp_path: Path, eventually: Callable[..., None]
):
    """no_new_privs is for the service alone: a setuid program before it, as nvidia-modprobe is, keeps its rights."""
    first = tmp_path / "first"
    first.write_text(f"#!/bin/sh\ngrep NoNewPrivs /proc/self/status > {tmp_path}/before\n")
    first.chmod(0o755)
    installed.start("--stay", "0", prepare=(str(first), "-u"))
    eventually(installed.told.exists)
    assert "NoNewPrivs:\t1" in str(installed.facts()["status"])
    assert "NoNewPrivs:\t0" == (tmp_path / "before").read_text().strip()


def test_a_preparation_that_fails_stops_nothing(installed: Installed, eventually: Callable[..., None]):
    """A machine whose GPU has gone still gets its services, or their own message."""
    installed.start("--stay", "0", prepare=("/bin/false",))
    eventually(installed.told.exists)
    assert "active" == installed.state("ActiveState")


@pytest.mark.parametrize("code", [2, 4])
def test_a_wrong_setting_is_not_started_again(installed: Installed, code: int, eventually: Callable[..., None]):
    """The unit has failed, with the code to be seen."""
    installed.start("--end", str(code))
    eventually(lambda: installed.state("ActiveState") == "failed")
    assert (str(code), "0") == (installed.state("ExecMainStatus"), installed.state("NRestarts"))


@pytest.mark.parametrize("code", [1, 5, 6])
def test_what_may_pass_is_started_again(installed: Installed, code: int, eventually: Callable[..., None]):
    """A failed service, a machine that lacks something and a wait that ended are tried again, after a pause."""
    installed.start("--end", str(code))
    eventually(lambda: installed.state("SubState") == "auto-restart")
    assert str(code) == installed.state("ExecMainStatus")


@pytest.mark.parametrize("code", [0, 130])
def test_a_stop_is_no_failure(installed: Installed, code: int, eventually: Callable[..., None]):
    """`systemctl stop` of a service that runs (0) or still starts (130) leaves it inactive, not failed."""
    installed.start("--stay", str(code))
    eventually(installed.told.exists)
    installed.manager.systemctl("stop", unit.NAME)
    assert "inactive" == installed.state("ActiveState")
