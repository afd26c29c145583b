"""What a command prints, and where: the contract with scripts and with people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.table import Table

from qmd_remote import output
from qmd_remote.errors import ConfigError, Exit, ExtraMissing, QmdRemoteError
from qmd_remote.output import Output

KEYS = ["schema", "command", "ok", "exit_code", "data", "error", "warnings"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
VISIBLE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=60)
LONG = "qmd-remote up " + "--embed-model /a/rather/long/path/that/no/terminal/shows/in/one/line " * 3


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow terminal that is none: what wraps or is coloured there must not matter."""
    monkeypatch.setenv("COLUMNS", "40")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def envelope(captured: str) -> dict[str, object]:
    """The one JSON line that stdout holds."""
    assert captured.endswith("\n")
    assert 1 == captured.count("\n")
    return json.loads(captured)


# JSON mode


def test_success_is_one_envelope(capsys: pytest.CaptureFixture[str]):
    """A command that did its work prints exactly the declared members, in their order, with its data."""
    assert 0 == Output("status", as_json=True).finish({"services": []})
    got = envelope(capsys.readouterr().out)
    assert KEYS == list(got)
    expected = {"schema": 1, "command": "status", "ok": True, "exit_code": 0, "data": {"services": []}}
    assert {**expected, "error": None, "warnings": []} == got


def test_failure_is_the_same_envelope_with_its_error(capsys: pytest.CaptureFixture[str]):
    """A command that failed prints the same members, the error's code, message and hint, and what data it has."""
    error = ConfigError("wrong", hint="mend it", code="config.odd")
    assert 4 == Output("up", as_json=True).fail(error, {"preset": "mini"})
    captured = capsys.readouterr()
    got = envelope(captured.out)
    assert KEYS == list(got)
    assert (False, 4, {"preset": "mini"}) == (got["ok"], got["exit_code"], got["data"])
    assert {"code": "config.odd", "message": "wrong", "hint": "mend it"} == got["error"]
    assert "" == captured.err


def test_warnings_travel_in_the_envelope(capsys: pytest.CaptureFixture[str]):
    """A warning does not fail a command; scripts find it, in order, with its hint."""
    out = Output("up", as_json=True)
    out.warn("generation is off", hint="pip install it")
    out.warn("slow")
    out.finish({})
    captured = capsys.readouterr()
    expected = [{"message": "generation is off", "hint": "pip install it"}, {"message": "slow", "hint": ""}]
    assert expected == envelope(captured.out)["warnings"]
    assert "" == captured.err


def test_an_answer_that_is_not_ok_says_so_without_an_error(capsys: pytest.CaptureFixture[str]):
    """A command that worked and found something ill has ok false, its exit code, and no error."""
    assert 1 == Output("status", as_json=True).finish({}, exit_code=Exit.FAILED)
    got = envelope(capsys.readouterr().out)
    assert (False, 1, None) == (got["ok"], got["exit_code"], got["error"])


SAYINGS: dict[str, Callable[[Output], None]] = {
    "show": lambda out: out.show("a table"),
    "note": lambda out: out.note("a note"),
    "warn": lambda out: out.warn("a warning", hint="a hint"),
    "phase": lambda out: out.phase("loading", detail="3 %"),
    "raw": lambda out: out.raw("a log line\n"),
}


@pytest.mark.parametrize("saying", SAYINGS)
def test_in_json_mode_stdout_holds_nothing_but_the_envelope(saying: str, capsys: pytest.CaptureFixture[str]):
    """Whatever a command says on its way, a script that reads stdout meets the envelope alone."""
    out = Output("up", as_json=True)
    with out.progress("starting"):
        SAYINGS[saying](out)
    out.finish({})
    captured = capsys.readouterr()
    assert "up" == envelope(captured.out)["command"]
    assert "" == captured.err


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.dictionaries(st.text(), JSON, max_size=4), message=st.text(), hint=st.text())
def test_any_data_and_any_words_survive(
    data: dict[str, object], message: str, hint: str, capsys: pytest.CaptureFixture[str]
):
    """Every text, line breaks and brackets included, comes back from the envelope unchanged."""
    Output("x", as_json=True).fail(QmdRemoteError(message, hint=hint), data)
    got = envelope(capsys.readouterr().out)
    assert (data, message, hint) == (got["data"], got["error"]["message"], got["error"]["hint"])  # type: ignore[index]


def test_a_lone_surrogate_does_not_break_the_envelope(capsys: pytest.CaptureFixture[str]):
    """A path or text that is no valid Unicode still ends in an envelope that can be parsed."""
    Output("test", as_json=True).finish({"sent": "\ud83d", "path": b"/caf\xe9".decode("utf-8", "surrogateescape")})
    assert "/caf\udce9" == envelope(capsys.readouterr().out)["data"]["path"]  # type: ignore[index]


# human mode


def test_data_goes_to_stdout_and_all_else_to_stderr(capsys: pytest.CaptureFixture[str]):
    """`qmd-remote X > file` stores the result alone; what is said meanwhile stays on the terminal."""
    out = Output("up")
    out.note("a note")
    out.warn("a warning", hint="its hint")
    with out.progress("starting"):
        out.phase("loading the weights")
    table = Table()
    table.add_column("service")
    table.add_row("embed server")
    out.show(table)
    out.raw("raw text\n")
    assert 0 == out.finish({"not": "shown"})
    captured = capsys.readouterr()
    assert "embed server" in captured.out
    assert captured.out.endswith("raw text\n")
    assert ["a note", "warning: a warning", "  its hint", "starting", "loading the weights"] == (
        captured.err.splitlines()
    )


def test_a_failure_says_what_and_then_what_to_do(capsys: pytest.CaptureFixture[str]):
    """An error is two lines on stderr, what happened and the next command, and nothing on stdout."""
    assert 1 == Output("up").fail(QmdRemoteError("it broke", hint="qmd-remote logs"), {"not": "shown"})
    captured = capsys.readouterr()
    assert ("", "error: it broke\n  qmd-remote logs\n") == (captured.out, captured.err)


def test_quiet_keeps_results_warnings_and_errors(capsys: pytest.CaptureFixture[str]):
    """--quiet drops notes and progress; data, warnings and errors are what is left."""
    out = Output("up", quiet=True)
    out.note("a note")
    with out.progress("starting"):
        out.phase("loading")
    out.show("data")
    out.warn("careful")
    out.fail(QmdRemoteError("broken"))
    captured = capsys.readouterr()
    assert ("data\n", "warning: careful\nerror: broken\n") == (captured.out, captured.err)


@pytest.mark.parametrize("colours", [True, False])
def test_lines_of_several_logs_are_data(
    colours: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each has its service's name in front, in colour only where colours are shown; --quiet leaves them, JSON not."""
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
    Output("logs", quiet=True).labelled("embed", "[bold] 1 :key:")
    shown = capsys.readouterr().out
    assert colours == ("\x1b[" in shown)
    assert "embed      | [bold] 1 :key:\n" == re.sub(r"\x1b\[[\d;]*m", "", shown)
    Output("logs", as_json=True).labelled("embed", "1")
    assert "" == capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["qmd-remote[mini]", "[bold]not bold[/]", "[/]", "a [link=x] b", "x:key:y", ":warning:"]
)
def test_what_looks_like_markup_is_text(text: str, capsys: pytest.CaptureFixture[str]):
    """Square brackets and colons in messages, hints, warnings and phases are shown as they are."""
    out = Output("up")
    out.warn(text, hint=text)
    out.fail(QmdRemoteError(text, hint=text))
    out.phase(text)
    captured = capsys.readouterr().err
    assert [f"warning: {text}", f"  {text}", f"error: {text}", f"  {text}", text] == captured.splitlines()


@pytest.mark.parametrize("text", ["http://[fe80::1]:8001 answers", "~/notes[old]/index.yml written", ":key:"])
def test_a_note_is_plain_text(text: str, capsys: pytest.CaptureFixture[str]):
    """URLs, paths and names in a note are shown as they are."""
    Output("config write").note(text)
    assert f"{text}\n" == capsys.readouterr().err


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(text=VISIBLE)
def test_any_visible_text_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]):
    """No visible character of an error is lost or changed on its way to the terminal."""
    Output("up").fail(QmdRemoteError(text))
    assert f"error: {text}\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "on_path", "expected"),
    [
        ("bin/qmd-remote", False, "bin/qmd-remote"),
        ("bin/qmd-remote", True, "qmd-remote"),
        ("pytest", False, "qmd-remote"),
    ],
)
def test_the_next_command_is_one_that_works_here(
    typed: str, on_path: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the program is not on the PATH its commands are told by its path; every other mention stays."""
    program = tmp_path / "bin" / "qmd-remote"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / typed)])
    monkeypatch.setenv("PATH", str(program.parent) if on_path else "")
    output._program.cache_clear()
    try:
        text = (
            "pip install 'qmd-remote[mini]', then: qmd-remote up; pipx runpip qmd-remote install x; ~/qmd-remote logs"
        )
        assert text.replace("then: qmd-remote up", f"then: {expected} up") == output.as_typed(text)
    finally:
        output._program.cache_clear()


def test_commands_stay_in_one_line(capsys: pytest.CaptureFixture[str]):
    """A hint longer than the terminal is wide is not wrapped, so that it can be copied or piped."""
    Output("up").fail(QmdRemoteError("no", hint=LONG.strip()))
    assert f"  {LONG.strip()}" in capsys.readouterr().err.splitlines()


def test_the_installers_of_an_extra_can_be_copied(capsys: pytest.CaptureFixture[str]):
    """The command that installs an extra keeps its square brackets."""
    Output("serve").fail(ExtraMissing("server", "torch"))
    assert "pipx install --force 'qmd-remote[server]" in capsys.readouterr().err


def test_a_phase_is_named_once_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    """In a log of its own each phase has one line, however often its percentage changes."""
    out = Output("up")
    with out.progress("starting"):
        for percent in (0, 40, 100):
            out.phase("loading the weights", detail=f"{percent} %")
        out.phase("starting to serve")
    assert ["starting", "loading the weights", "starting to serve"] == capsys.readouterr().err.splitlines()


def test_on_a_terminal_the_line_lives_only_as_long_as_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The live line ends with its block even when that fails, leaves the cursor visible, and spares stdout."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = Output("up")
    with pytest.raises(KeyboardInterrupt), out.progress("starting"):
        out.phase("loading the weights", detail="40 %")
        raise KeyboardInterrupt
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "\x1b[?25h" in captured.err  # the cursor is shown again
    monkeypatch.delenv("FORCE_COLOR")
    out.phase("afterwards")
    assert "afterwards\n" == capsys.readouterr().err
