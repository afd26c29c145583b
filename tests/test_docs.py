"""What README and docs claim is what the program does."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer.main

from qmd_remote.cli import app
from qmd_remote.client.families import find as find_family

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECORDINGS = sorted((ROOT / "docs" / "recordings").glob("*.svg"))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_qmd_remote_command_in_the_docs_exists(page):
    """Each `qmd-remote …` line in a sh block names a command and options that exist."""
    for line in shell_lines(page.read_text(encoding="utf-8")):
        words = re.split(r"\s[|>]", line)[0].split()
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


def test_every_dependency_has_its_reason():
    """Each package that pyproject.toml requires is named in docs/dependencies.md; type stubs go with their package."""
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[^\w.-]", one)[0].lower().removeprefix("types-") for one in required}
    assert {"typer", "torch", "pytest"} <= names
    assert not {name for name in names - {"qmd-remote"} if name not in page}


def test_modules_in_the_architecture_exist():
    """Each module that docs/architecture.md names is one of the package."""
    named = set(re.findall(r"(?<![\w*])[a-z]\w*\.py", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    assert named
    assert named <= {path.name for path in (ROOT / "qmd_remote").rglob("*.py")}


def test_extras_in_the_readme_exist():
    """Each extra that README installs is one the package declares."""
    declared = set(metadata.metadata("qmd-remote").get_all("Provides-Extra"))
    used = set(re.findall(r"\.\[([a-z]+)\]", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert used
    assert used <= declared


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page):
    """Each relative link in README and docs names a file that exists."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_pages_that_the_program_names_exist():
    """Help, hints and comments lead to pages that are there."""
    named = {
        (file.name, page)
        for file in (ROOT / "qmd_remote").rglob("*.py")
        for page in re.findall(r"docs/[\w./-]+\.md", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 3
    assert [] == sorted((name, page) for name, page in named if not (ROOT / page).is_file())


def test_the_reference_pages_are_generated_from_this_code():
    """docs/settings.md and docs/cli.md are what scripts/reference.py would write now."""
    done = subprocess.run([sys.executable, ROOT / "scripts" / "reference.py"], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stdout)


@pytest.fixture(scope="module")
def recorder():
    """scripts/record.py as a module."""
    spec = importlib.util.spec_from_file_location("record", ROOT / "scripts" / "record.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_recordings_of_what_people_meet_first():
    """up, status, test and config check are recorded."""
    assert {"up", "status", "test", "config-check"} <= {path.stem for path in RECORDINGS}


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_a_recording_is_small_contacts_nobody_and_tells_of_no_machine(recording):
    """Each SVG is well-formed, under 60 kB, shown on a page, without remote fonts and without a path outside ~."""
    svg = recording.read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert len(svg.encode()) < 60_000
    assert any(f"recordings/{recording.name}" in page.read_text(encoding="utf-8") for page in PAGES)
    for outside in ("@font-face", "@import", "url(http", "url(//", "<image", "<script", "href="):
        assert outside not in svg
    for path in ("/work/", "/root", "/home/", "/Users/", "/tmp", "site-packages"):
        assert path not in svg


def shown(svg: str) -> str:
    """The text of a drawing, line by line."""
    rows: dict[float, str] = {}
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" in text.attrib:  # the others are the window's title
            y = float(text.attrib["y"])
            rows[y] = rows.get(y, "") + "".join(text.itertext()).rstrip("\n")
    return "\n".join(rows[y] for y in sorted(rows)).replace("\xa0", " ")


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_a_recording_shows_commands_that_exist(recording):
    """Each prompt in a recording is followed by a command and options that exist."""
    commands = re.findall(r"^\$ qmd-remote (.+?)\s*$", shown(recording.read_text(encoding="utf-8")), re.MULTILINE)
    assert commands
    for line in commands:
        command, rest = find(line.split())
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known


def test_a_recorded_screen_ends_as_a_terminal_would(recorder):
    """A spinner's frames replace each other and vanish, long lines wrap, and styles stay with their characters."""
    screen = recorder.Screen(10)
    screen.feed("\x1b[?25l\x1b[32m⠋\x1b[0m one\r\x1b[2K\x1b[32m⠙\x1b[0m two\r\x1b[2K\x1b[?25h")
    screen.feed("a\r\nb\r\n\x1b[1A\x1b[2K0123456789ab \x1b[1;31mbad\x1b[0m\r\n")
    assert ["a", "0123456789", "ab \x1b[0m\x1b[1;31mbad\x1b[0m"] == screen.lines()


@pytest.mark.parametrize("output", ["\x1b[3B", "\x1b]0;title\x07", "a\tb"])
def test_a_recorded_screen_refuses_what_it_cannot_draw(recorder, output):
    """A control sequence that the screen does not know is an error, not a wrong picture."""
    with pytest.raises(ValueError, match="does not know"):
        recorder.Screen().feed(output)


def test_a_drawing_names_no_font_of_the_network(recorder):
    """What rich would have a browser fetch is not in the SVG, and the same lines give the same bytes."""
    lines = ["\x1b[1;32m$\x1b[0m qmd-remote status", "ready"]
    svg = recorder.drawing("qmd-remote status", lines)
    assert "@font-face" not in svg
    assert "url(http" not in svg
    assert svg == recorder.drawing("qmd-remote status", lines)
    assert "$ qmd-remote status\nready" in shown(svg)


def test_every_cell_of_the_compatibility_page_names_a_test():
    """A row's tests are in its file, by the names that stand there."""
    rows = re.findall(
        r"^\|[^|]+\| `(test_\w+\.py)` \|(.+)\|$", (ROOT / "docs" / "compatibility.md").read_text("utf-8"), re.M
    )
    assert len(rows) > 10
    for file, cells in rows:
        there = (ROOT / "tests" / "families" / file).read_text("utf-8")
        named = re.findall(r"`(test_\w+)`", cells)
        assert named
        assert [name for name in named if f"def {name}(" not in there] == []
        config = cells.split(" | ")[3].strip()
        assert config == "–" or find_family(re.sub(r"\[(.+)\].*", r"\1", config)).served
