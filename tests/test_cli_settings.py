"""`qmd-remote settings`, `set` and `unset` as their users meet them."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import cli, cli_life, services
from qmd_remote.launch.up import absolute
from qmd_remote.presets import PRESETS
from qmd_remote.settings import declared, names, resolve

SECRET = "k3y-that-nobody-may-read"
Main = Callable[..., "Said"]


class Said:
    """What a command said in JSON mode, and what it printed in the other."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr

    @property
    def envelope(self) -> dict[str, Any]:
        """The one envelope on stdout."""
        return json.loads(self.stdout)

    @property
    def data(self) -> dict[str, Any]:
        """Its data."""
        return self.envelope["data"]

    @property
    def error(self) -> dict[str, str]:
        """Its error."""
        return self.envelope["error"]

    def row(self, name: str) -> dict[str, Any]:
        """One setting."""
        return next(row for row in self.data["settings"] if row["name"] == name)


@pytest.fixture
def main(cli_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Call `qmd-remote settings …` in this process."""

    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["qmd-remote", "settings", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Said(int(end.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def file(cli_home: Path) -> Path:
    """The settings file, which does not exist yet."""
    path = cli_home / "home" / "config" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


# show


@pytest.mark.parametrize("words", [("--json",), ("show", "--json")])
def test_every_setting_is_shown_with_its_origin(
    words: tuple[str, ...], main: Main, file: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each row has name, value, origin, variable, default and meaning; the origins are those of the values."""
    file.write_text("port = 9001\ntrust_remote_code = ['a/b']\n", encoding="utf-8")
    monkeypatch.setenv("DEVICE", "cpu")
    said = main(*words)
    assert (0, names()) == (said.code, [row["name"] for row in said.data["settings"]])
    f = next(f for f in declared() if f.name == "port")
    expected = {
        "name": "port",
        "value": 9001,
        "origin": f"file ({file})",
        "environment": "QMD_REMOTE_PORT",
        "default": 8001,
        "about": f.metadata["about"],
    }
    assert expected == said.row("port")
    assert ["a/b"] == said.row("trust_remote_code")["value"]
    assert ("cpu", "environment (DEVICE)") == (said.row("device")["value"], said.row("device")["origin"])
    assert "default" == said.row("host")["origin"]
    assert str(file) == said.data["path"]


def test_what_is_shown_is_what_up_would_use(main: Main):
    """The preset is the one that `up` would choose, by the same reason, and its models are shown as its own."""
    settings, why = cli_life.settings_from({})
    said = main("--json")
    assert why
    assert why == said.data["preset_reason"]
    assert (settings.preset, settings.origins["preset"]) == (said.row("preset")["value"], said.row("preset")["origin"])
    assert f"preset ({settings.preset})" == said.row("generation_model")["origin"]
    assert all(getattr(settings, row["name"]) == row["value"] for row in said.data["settings"] if row["value"] != [])
    assert f"preset {settings.preset}, since {why}" in main().stderr


def test_another_preset_can_be_looked_at(main: Main):
    """--preset shows what that preset would give, and an unknown one names the nearest."""
    said = main("--preset", "mini", "--json")
    assert PRESETS["mini"].values["embed_model"] == said.row("embed_model")["value"]
    assert "did you mean mini?" in main("--preset", "minni", "--json").error["message"]


def test_only_changes_can_be_shown(main: Main, file: Path):
    """--changed leaves out what is only the default."""
    file.write_text("port = 9001\n", encoding="utf-8")
    shown = {row["name"]: row["origin"] for row in main("--changed", "--json").data["settings"]}
    assert f"file ({file})" == shown["port"]
    assert "default" not in shown.values()


def test_the_table_is_for_people(main: Main, file: Path):
    """Values stand there as they can be typed again; brackets in them are text."""
    file.write_text("access_log = false\nembed_model = '/x[bold]/y'\n", encoding="utf-8")
    lines = {line.split()[0]: line.split()[1:] for line in main().stdout.splitlines()}
    assert ["false", "file", f"({file})"] == lines["access_log"]
    assert "/x[bold]/y" == lines["embed_model"][0]
    assert ["–", "default"] == lines["tls_key"]


def test_no_secret_is_shown(main: Main, file: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither a key nor a password in a URL is in any output, from the environment or from the file."""
    monkeypatch.setenv("QMD_REMOTE_API_KEY", SECRET)
    file.write_text(f"generation_url = 'http://me:{SECRET}@box:1/v'\n", encoding="utf-8")
    for words in ((), ("--json",), ("set", "port", "1", "--json"), ("set", "generation_url", f"http://{SECRET}@b")):
        said = main(*words)
        assert SECRET not in said.stdout + said.stderr, words
    monkeypatch.delenv("QMD_REMOTE_API_KEY")
    file.write_text(f"api_key = '{SECRET}'\n", encoding="utf-8")
    file.chmod(0o600)
    said = main("--json")
    assert "(hidden)" == said.row("api_key")["value"]
    assert SECRET not in said.stdout


def test_a_broken_file_is_an_error_with_a_way_out(main: Main, file: Path):
    """`settings` names line, mistake and the command that mends it."""
    file.write_text("port = 1\nprot = 2\n", encoding="utf-8")
    said = main("--json")
    assert (4, "settings.unknown") == (said.code, said.error["code"])
    assert "line 2" in said.error["message"]
    assert "qmd-remote settings unset prot" in said.error["hint"]
    assert 0 == main("unset", "prot").code
    assert 0 == main().code


def test_options_in_front_of_a_command_are_not_lost(main: Main):
    """`settings --json path` would be answered without JSON: it is refused, and the right place is named."""
    said = main("--json", "path")
    assert (2, "qmd-remote settings path --help") == (said.code, said.error["hint"])


def test_path_says_where_the_file_is(main: Main, file: Path):
    """`settings path` prints the path alone, whether the file exists or not."""
    assert f"{file}\n" == main("path").stdout
    assert {"path": str(file), "exists": False} == main("path", "--json").data


# set and unset


def test_set_and_unset_and_what_counts_then(main: Main, file: Path):
    """A value is stored, said to be in force, and gone after `unset`; both can be repeated."""
    said = main("set", "port", "9001", "--json")
    assert (0, ["port"], 9001) == (said.code, said.data["changed"], said.row("port")["value"])
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert [] == main("set", "port=9001", "--json").data["changed"]
    assert "port = 9001\n" == file.read_text(encoding="utf-8")
    said = main("unset", "port", "--json")
    assert (["port"], 8001, "default") == (said.data["changed"], said.row("port")["value"], said.row("port")["origin"])
    said = main("unset", "port")
    assert (0, True) == (said.code, "nothing to write" in said.stderr)
    assert "port is 8001 now, by default" in said.stderr


def test_several_are_set_at_once_or_none(main: Main, file: Path):
    """With one wrong value among several nothing is written."""
    assert 2 == main("set", "port=9001", "max_batch_size=0").code
    assert not file.exists()
    assert 0 == main("set", "port=9001", "max_batch_size=8", "embed_model=a=b").code
    assert 'port = 9001\nmax_batch_size = 8\nembed_model = "a=b"\n' == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("prot", "1"), 2, "did you mean port?"),
        (("EMBED_MODEL=x",), 2, "did you mean embed_model?"),
        (("generation", "off"), 2, "did you mean generation_engine?"),
        (("port", "70000"), 2, "at most 65535"),
        (("port",), 2, "NAME VALUE"),
        (("port", "1", "2"), 2, "NAME VALUE"),
        (("port=1", "device"), 2, "NAME VALUE"),
        (("device", "banana"), 4, "no device 'banana'"),
        (("preset", "minni"), 2, "did you mean mini?"),
        (("host", ""), 2, "needs a value"),
        (("embed_model", "a\udcff"), 2, "UTF-8"),
    ],
)
def test_what_cannot_be_set_is_refused_before_anything_is_written(
    words: tuple[str, ...], code: int, says: str, main: Main, file: Path
):
    """A wrong name or value is told with what was meant, and makes no file."""
    said = main("set", *words, "--json")
    assert (code, True, False) == (said.code, says in said.error["message"], file.exists()), said.error


@pytest.mark.parametrize("words", [("api_key", SECRET), (f"api_key={SECRET}",), (f"api-key={SECRET}",)])
def test_a_key_is_not_taken_from_the_command_line(words: tuple[str, ...], main: Main, file: Path):
    """`set api_key` is refused without repeating the key; the ways to set one are named."""
    said = main("set", *words, "--json")
    assert (2, False) == (said.code, file.exists())
    assert SECRET not in said.stdout + said.stderr
    if "-" not in words[0].partition("=")[0]:
        assert "qmd-remote key rotate" in said.error["hint"]
        assert "settings set api_key_file" in said.error["hint"]


def test_local_files_are_stored_in_full(main: Main, file: Path, cli_home: Path):
    """What lies in this folder is found from every folder; links are kept, and what does not exist is left as typed."""
    (cli_home / "model").mkdir()
    (cli_home / "cert-of-today").touch()
    (cli_home / "cert").symlink_to("cert-of-today")
    assert 0 == main("set", "embed_model=./model", "tls_cert=cert", "rerank_model=BAAI/x").code
    found = resolve({}).embed_model, resolve({}).tls_cert, resolve({}).rerank_model
    assert (str(cli_home / "model"), str(cli_home / "cert"), "BAAI/x") == found
    said = main("set", "tls_key", "nowhere.pem", "--json")
    assert (0, "nowhere.pem") == (said.code, resolve({}).tls_key)
    assert "no file nowhere.pem" in said.envelope["warnings"][0]["message"]


def test_a_variable_that_wins_is_named(main: Main, monkeypatch: pytest.MonkeyPatch):
    """Who sets or unsets what the environment decides is told so, and how to change that."""
    monkeypatch.setenv("MAX_BATCH_SIZE", "3")
    for words in (("set", "max_batch_size", "5"), ("unset", "max_batch_size")):
        said = main(*words, "--json")
        assert (0, 3) == (said.code, said.row("max_batch_size")["value"])
        warning = said.envelope["warnings"][0]
        assert ("unset MAX_BATCH_SIZE", True) == (warning["hint"], "MAX_BATCH_SIZE" in warning["message"])


def test_a_key_that_wins_over_its_file_is_named(main: Main, cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """A key in the environment makes a key file in the settings file void, which is said."""
    (cli_home / "key").write_text("from-file\n", encoding="utf-8")
    monkeypatch.setenv("QMD_REMOTE_API_KEY", SECRET)
    hints = [warning["hint"] for warning in main("set", "api_key_file", "key", "--json").envelope["warnings"]]
    assert ["unset QMD_REMOTE_API_KEY"] == hints


def test_a_wrong_variable_does_not_hinder_a_change(main: Main, file: Path, monkeypatch: pytest.MonkeyPatch):
    """The file is changed all the same, and what is still wrong is said."""
    monkeypatch.setenv("QMD_REMOTE_PORT", "many")
    said = main("set", "host", "::1", "--json")
    assert (0, True) == (said.code, "QMD_REMOTE_PORT" in said.envelope["warnings"][0]["message"])
    assert 'host = "::1"\n' == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "restart"),
    [
        (("set", "max_batch_size", "8"), ["embed"]),
        (("set", "generation_model", "x/y"), ["generation"]),
        (("set", "generation_port", "8123"), ["generation", "embed"]),
        (("set", "preset", "mini"), ["generation", "embed"]),
        (("set", "stall_limit_s", "9"), []),
        (("set", "max_batch_size", "64"), []),
        (("unset", "max_batch_size"), []),
    ],
)
def test_running_services_that_it_concerns_are_named(
    words: tuple[str, ...], restart: list[str], main: Main, runs: Callable[..., services.Record]
):
    """After a change `up` is the next command where a running service would have to be restarted, and only there."""
    wanted = absolute(resolve({}, preset="cpu"))
    for service in services.SERVICES:
        runs(service, "http://127.0.0.1:1", preset="cpu", spec=services.spec_of(service, wanted))
    assert restart == main(*words, "--json").data["restart"]


def test_the_next_command_is_up(main: Main, runs: Callable[..., services.Record]):
    """A person reads which service still runs with other settings, and what to type."""
    runs("embed", "http://127.0.0.1:1", preset="cpu", spec={})
    assert "other settings: embed; next: qmd-remote up" in main("set", "port", "9001").stderr
