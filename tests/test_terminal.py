"""On a terminal and in a pipe: colours, plain text, and what goes where. The terminal is a real one, made here."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
PROGRAM = Path(sys.executable).with_name("qmd-remote")
ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[[0-9;]*[34]\dm")  # a colour of the foreground or the background
DRAWN = re.compile(r"[\u2500-\u259f]")  # lines and blocks of boxes
SPEAKING = ["status", "settings", "models", "config check", "logs"]


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wish about colours comes from the caller."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def box(cli_home: Path, stand_in: Run, runs: Run) -> None:
    """A machine on which a server runs, QMD is told about it, and both services have logs."""
    url = stand_in().url
    runs("embed", url)
    index = cli_home / "qmd" / "index.yml"
    index.parent.mkdir(parents=True)
    index.write_text(f"remote:\n  url: {url}\n  api_key: ${{NO_SUCH_KEY}}\n", encoding="utf-8")
    log = cli_home / "home" / "log" / "embed.log"
    log.parent.mkdir(parents=True)
    log.write_text("ready\n", encoding="utf-8")
    log.with_name("generation.log").write_text("also ready\n", encoding="utf-8")


@pytest.fixture
def on_terminal(cli_home: Path) -> Iterator[Run]:
    """Run the program with stdout and stderr on a terminal of 80 columns: all that it shows there."""

    def run(line: str, **variables: str) -> str:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [PROGRAM, *line.split()],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cli_home,
            env={**os.environ, "COLUMNS": "80", **variables},
        )
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux: the last one has closed the other end
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        assert process.wait(60) in {0, 3, 4}
        return shown.decode()

    yield run


def steady(text: str) -> str:
    """A table without what time changes."""
    return re.sub(r" +", " ", re.sub(r"\d[\d:,.]*", "0", text))


# a pipe


@pytest.mark.parametrize("line", SPEAKING)
def test_in_a_pipe_all_is_plain_and_a_row_is_a_line(line: str, box: None, qmd_remote: Run):
    """No escape codes, no boxes; and however narrow the terminal is from which it is started, no row is folded."""
    wide, narrow = (qmd_remote(*line.split(), COLUMNS=columns) for columns in ("200", "20"))
    assert wide.stdout
    for text in (narrow.stdout, narrow.stderr):
        assert ESCAPE not in text
        assert "\r" not in text
        assert not DRAWN.search(text)
    assert steady(wide.stdout) == steady(narrow.stdout)


@pytest.mark.parametrize("line", SPEAKING)
def test_data_is_on_stdout_and_the_rest_on_stderr(line: str, box: None, qmd_remote: Run):
    """stdout is the same without what is said beside it."""
    data = {"status": "real/embed", "settings": "embed_model", "models": "BAAI/bge-m3", "logs": "also ready"}
    done = qmd_remote(*line.split())
    assert data.get(line, "QMD") in done.stdout
    assert steady(done.stdout) == steady(qmd_remote(*line.split(), "--quiet").stdout)
    for said in ("settings file:", "one in detail:", "next:", "error:", "warning:"):
        assert said not in done.stdout


def test_colours_in_a_pipe_are_for_who_asks_for_them(box: None, qmd_remote: Run):
    """FORCE_COLOR colours a pipe, too; --json stays what it is."""
    assert ESCAPE in qmd_remote("status", FORCE_COLOR="1").stdout
    done = qmd_remote("status", "--json", FORCE_COLOR="1")
    assert ESCAPE not in done.stdout
    assert "ready" == next(one for one in done.envelope()["data"]["services"] if one["service"] == "embed")["state"]


# a terminal


@pytest.mark.parametrize("line", SPEAKING)
def test_a_terminal_gets_colours_and_bold_headings(line: str, box: None, on_terminal: Run):
    """What the pipe has in plain text is styled on a terminal."""
    assert ESCAPE in on_terminal(line)


@pytest.mark.parametrize("line", SPEAKING)
def test_no_color_means_no_colour(line: str, box: None, on_terminal: Run):
    """NO_COLOR=1 leaves colours out on a terminal; bold may stay."""
    assert not COLOUR.search(on_terminal(line, NO_COLOR="1"))


@pytest.mark.parametrize("line", SPEAKING)
def test_a_dumb_terminal_gets_plain_text(line: str, box: None, on_terminal: Run):
    """TERM=dumb means no escape codes at all."""
    assert ESCAPE not in on_terminal(line, TERM="dumb")


def test_an_error_is_red_on_a_terminal_and_plain_where_colours_are_unwanted(on_terminal: Run):
    """Nothing runs: the error and the next command, in red or not."""
    told = on_terminal("status")
    assert COLOUR.search(told)
    assert "neither service is running" in told
    told = on_terminal("status", NO_COLOR="1")
    assert not COLOUR.search(told)
    assert "qmd-remote up" in told


def test_a_document_on_a_terminal_is_the_same_document(box: None, on_terminal: Run, qmd_remote: Run):
    """--json is not styled, wrapped or accompanied on a terminal."""
    shown = on_terminal("settings path --json")
    assert shown.replace("\r\n", "\n") == qmd_remote("settings", "path", "--json").stdout
