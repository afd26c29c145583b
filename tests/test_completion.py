"""Completion: the scripts of three shells, and what the program answers to each of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.completion import SCRIPTS
from qmd_remote.presets import DESIGN_EMBED, DESIGN_GENERATION, DESIGN_RERANK, PRESETS

Run = Callable[..., Any]
PROGRAM = Path(sys.executable).with_name("qmd-remote")
HEAVY = {"docker", "fastapi", "httpx", "psutil", "tomlkit", "torch", "transformers", "uvicorn", "yaml"}


def needs(shell: str) -> pytest.MarkDecorator:
    """Only where this shell is installed."""
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def answers(qmd_remote: Run) -> Callable[[str], list[str]]:
    """What the program answers to bash about the last word of a line."""

    def ask(line: str) -> list[str]:
        words = f"{line}''" if line.endswith(" ") else line
        done = qmd_remote(_QMD_REMOTE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="-1")
        assert "" == done.stderr
        return done.stdout.split()

    return ask


# what is known


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qmd-remote co", ["compose", "config", "completion"]),
        ("qmd-remote config ", ["write", "remove", "check", "edit", "show", "path"]),
        ("qmd-remote logs ", ["embed", "generation"]),
        ("qmd-remote restart g", ["generation"]),
        ("qmd-remote up --preset ", list(PRESETS)),
        ("qmd-remote serve --preset=m", ["mini"]),
        ("qmd-remote settings --preset c", ["cpu"]),
        ("qmd-remote up --device c", ["cuda", "cpu"]),
        ("qmd-remote up --generation ", ["docker", "process", "external", "off"]),
        ("qmd-remote up --generation-command v", ["vllm"]),
        ("qmd-remote up --embed-model nomic", [DESIGN_EMBED]),
        ("qmd-remote serve --rerank-model BAAI/", [DESIGN_RERANK]),
        ("qmd-remote pull --generation-model Qwen/Qwen2.5-3", [DESIGN_GENERATION]),
        ("qmd-remote models BAAI/bge-r", [DESIGN_RERANK]),
        ("qmd-remote pull BAAI/bge-m3 Qwen/Qwen2.5-3", [DESIGN_GENERATION]),
        ("qmd-remote settings unset generation_p", ["generation_port"]),
        ("qmd-remote settings set pres", ["preset"]),
        ("qmd-remote settings set preset=m", ["preset=mini"]),
        ("qmd-remote settings set access_log ", ["true", "false"]),
        ("qmd-remote completion ", ["bash", "zsh", "fish"]),
        ("qmd-remote down --ver", ["--verbose"]),
        ("qmd-remote --install", []),
        ("qmd-remote config check --file /et", []),
    ],
)
def test_words_that_are_known(answers: Callable[[str], list[str]], line: str, expected: list[str]):
    """Commands, options and values complete; a path is left to the shell."""
    assert expected == answers(line)


def test_commands_come_with_their_meaning(qmd_remote: Run):
    """zsh and fish show a text beside each word, whole, however narrow the terminal is."""
    done = qmd_remote(
        _QMD_REMOTE_COMPLETE="complete_fish",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_ARGS="qmd-remote up --preset ",
        COLUMNS="20",
    )
    assert [f"{preset.name}\t{preset.summary}" for preset in PRESETS.values()] == done.stdout.splitlines()


@pytest.mark.parametrize("line", ["qmd-remote ", "qmd-remote up --embed-model ", "qmd-remote settings set p"])
def test_completing_imports_nothing_heavy(line: str, cli_home: Path):
    """Somebody waits at the key: no server's, model's or client's library is imported."""
    code = (
        "import sys; sys.argv = ['qmd-remote']\n"
        "from qmd_remote.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"sys.exit(', '.join({HEAVY} & set(sys.modules)) or 0)"
    )
    for way, asked in (
        ("complete_bash", {"COMP_WORDS": f"{line}''", "COMP_CWORD": "-1"}),
        ("complete_fish", {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={"QMD_REMOTE_HOME": str(cli_home), "_QMD_REMOTE_COMPLETE": way, **asked},
        )
        assert (0, "") == (done.returncode, done.stderr)
        assert done.stdout


# the scripts


@pytest.mark.parametrize("shell", [pytest.param(shell, marks=needs(shell)) for shell in SCRIPTS])
def test_the_script_is_one_that_its_shell_can_read(qmd_remote: Run, cli_home: Path, shell: str):
    """`completion SHELL` prints the script and nothing else; the shell finds no mistake in it."""
    done = qmd_remote("completion", shell)
    assert (0, "", SCRIPTS[shell]) == (done.code, done.stderr, done.stdout)
    script = cli_home / "script"
    script.write_text(done.stdout, encoding="utf-8")
    subprocess.run([shell, "-n", script], check=True)


def test_the_help_says_where_each_script_belongs(qmd_remote: Run):
    """A line to copy for each shell."""
    told = qmd_remote("completion", "--help").stdout
    for shell in SCRIPTS:
        assert f"qmd-remote completion {shell} > ~/." in told


def in_shell(shell: list[str], code: str, home: Path) -> list[str]:
    """What a shell prints that can read the script as $SCRIPT, with the program first on its PATH."""
    script = home / "script"
    script.write_text(SCRIPTS[shell[0]], encoding="utf-8")
    done = subprocess.run(
        [*shell, "-c", code],
        capture_output=True,
        text=True,
        cwd=home,
        timeout=60,
        env={"PATH": f"{PROGRAM.parent}:/usr/bin:/bin", "HOME": str(home), "SCRIPT": str(script), "LC_ALL": "C.UTF-8"},
    )
    assert ("", 0) == (done.stderr, done.returncode)
    return done.stdout.splitlines()


BASH_LINES = [
    (["qmd-remote", "up", "--preset", "m"], ["mini"]),
    (["qmd-remote", "up", "--preset", ""], list(PRESETS)),
    # bash makes words of their own of "=", and puts what is found behind it
    (["qmd-remote", "up", "--preset=m"], ["mini"]),
    (["qmd-remote", "settings", "set", "preset=m"], ["mini"]),
    (["qmd-remote", "pull", "BAAI/bge-m"], ["BAAI/bge-m3"]),
    ([str(PROGRAM), "logs", "e"], ["embed"]),
]


@needs("bash")
@pytest.mark.parametrize(("words", "expected"), BASH_LINES)
def test_completing_in_bash(cli_home: Path, words: list[str], expected: list[str]):
    """The function that the script gives to bash finds what the program knows, also behind an equals sign."""
    line = " ".join(words)
    asked = f'COMP_LINE="{line}" COMP_POINT={len(line)}; _qmd_remote "{words[0]}"'
    code = f'. "$SCRIPT"; {asked}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    assert expected == in_shell(["bash", "--norc"], code, cli_home)


@needs("fish")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qmd-remote up --preset=m", f"--preset=mini\t{PRESETS['mini'].summary}"),
        ("qmd-remote settings set preset=m", "preset=mini"),
        (f"{PROGRAM} logs e", "embed"),
        ("qmd-remote config check --file scr", "script"),
    ],
)
def test_completing_in_fish(cli_home: Path, line: str, expected: str):
    """fish finds what the program knows, and files where it knows nothing."""
    assert [expected] == in_shell(["fish", "--no-config"], f"source $SCRIPT; complete -C '{line}'", cli_home)


@needs("zsh")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qmd-remote", "up", "--preset", "m"], [f"mini:{PRESETS['mini'].summary}"]),
        (["qmd-remote", "settings", "set", "preset=m"], ["preset=mini"]),
        ([str(PROGRAM), "logs", ""], ["embed", "generation"]),
        (["qmd-remote", "config", "check", "--file", "scr"], ["files"]),
    ],
)
def test_completing_in_zsh(cli_home: Path, words: list[str], expected: list[str]):
    """The function that zsh is given finds what the program knows, and files where it knows nothing."""
    stubs = "compdef() { : }; compset() { : }; _files() { print files }; _describe() { print -l -- ${(P)2} }"
    given = " ".join(f"'{word}'" for word in words)
    code = f"{stubs}; . $SCRIPT; words=({given}); CURRENT=$#words; PREFIX=$words[-1]; _qmd-remote"
    assert expected == in_shell(["zsh", "-f"], code, cli_home)
