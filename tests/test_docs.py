"""What README and docs claim is what the program does."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer.main

from qmd_remote.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines(text: str) -> list[str]:
    """The commands in a page's sh blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def find(words: list[str]):
    """The command that `qmd-remote WORDS` runs, and the words left for its options."""
    command = typer.main.get_command(app)
    while words and not words[0].startswith("-") and getattr(command, "commands", None):
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_qmd_remote_command_in_the_docs_exists(page):
    """Each `qmd-remote …` line in a sh block names a command and options that exist."""
    for line in shell_lines(page.read_text(encoding="utf-8")):
        words = line.split()
        if "qmd-remote" not in words or (words[0] not in {"qmd-remote"} and "=" not in words[0]):
            continue
        command, rest = find(words[words.index("qmd-remote") + 1 :])
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        for word in rest:
            if word.startswith("-"):
                assert word.split("=")[0] in known, f"{line}: no option {word}"


def test_readme_first_screen_has_the_two_and_the_three_commands():
    """The first 40 lines name make up, make test, and the three commands of daily use."""
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    for command in ("make up", "make test", "qmd-remote up", "qmd-remote test", "qmd-remote config write"):
        assert f"\n{command} " in first


def test_make_targets_in_the_docs_exist():
    """Each `make TARGET` in a sh block is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {line.split()[1] for page in PAGES for line in shell_lines(page.read_text()) if line.startswith("make ")}
    assert used
    assert used <= targets


def test_extras_in_the_readme_exist():
    """Each extra that README installs is one the package declares."""
    declared = set(metadata.metadata("qmd-remote").get_all("Provides-Extra"))
    used = set(re.findall(r"\.\[([a-z]+)\]", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert used
    assert used <= declared


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    """Each relative link in README and docs names a file that exists."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_reference_pages_are_generated_from_this_code():
    """docs/settings.md and docs/cli.md are what scripts/reference.py would write now."""
    done = subprocess.run([sys.executable, ROOT / "scripts" / "reference.py"], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stdout)
