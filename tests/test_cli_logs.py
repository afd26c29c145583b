"""`qmd-remote logs` as its users meet it: the end of a log, both logs, a reader that leaves, and following."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
PROGRAM = Path(sys.executable).with_name("qmd-remote")


@pytest.fixture
def log(cli_home: Path) -> Path:
    """A log of the embed server."""
    path = cli_home / "home" / "log" / "embed.log"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"line {n}\n" for n in range(20_000)), encoding="utf-8")
    return path


def test_the_end_of_a_log(qmd_remote: Run, log: Path):
    """-n counts from the end; one log has no name before its lines."""
    assert "line 19998\nline 19999\n" == qmd_remote("logs", "-n", "2").stdout
    done = qmd_remote("logs", "embed", "-n", "2", "--json")
    assert {"logs": {"embed": ["line 19998", "line 19999"]}} == done.envelope()["data"]


def test_logs_of_both_services_name_them(qmd_remote: Run, log: Path):
    """With two logs each line says whose it is."""
    log.with_name("generation.log").write_text("born\n", encoding="utf-8")
    lines = qmd_remote("logs", "-n", "1").stdout.splitlines()
    assert ["embed | line 19999", "generation | born"] == sorted(" ".join(line.split()) for line in lines)


def test_a_reader_that_leaves_early(cli_home: Path, log: Path):
    """`qmd-remote logs | head` ends with 0 and says nothing on stderr."""
    with subprocess.Popen(
        [PROGRAM, "logs", "-n", "20000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert ("", 0) == (process.stderr.read(), process.wait(30))


def test_following_a_log_until_ctrl_c(cli_home: Path, log: Path):
    """-f shows what is added, and Ctrl-C ends it with 130."""
    # a shell's background jobs, and so their children, ignore Ctrl-C unless told otherwise
    told = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", told, PROGRAM, "logs", "-f", "-n", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line 19999\n"
        with log.open("a", encoding="utf-8") as file:
            file.write("added\n")
        assert process.stdout.readline() == "added\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
