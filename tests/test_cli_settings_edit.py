"""`qmd-remote settings edit`, and what the shell completes: the real program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.presets import PRESETS

PROGRAM = Path(sys.executable).with_name("qmd-remote")
Run = Callable[..., Any]


@pytest.fixture
def file(cli_home: Path) -> Path:
    """The settings file, which does not exist yet."""
    path = cli_home / "home" / "config" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture(autouse=True)
def no_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own editor is never opened."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)


@pytest.fixture
def editor(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make an editor of some lines of Python, which find the file's path in `path`."""

    def use(code: str) -> None:
        program = cli_home / "an editor.py"
        program.write_text(f"import pathlib, sys\npath = pathlib.Path(sys.argv[-1])\n{code}\n", encoding="utf-8")
        monkeypatch.setenv("EDITOR", f"{sys.executable} '{program}'")

    return use


# edit


def test_without_an_editor_the_file_is_named(qmd_remote: Run, file: Path):
    """With neither VISUAL nor EDITOR the error says which file to open, and makes none."""
    said = qmd_remote("settings", "edit", "--json")
    assert (5, "editor.missing", False) == (said.code, said.envelope()["error"]["code"], file.exists())
    assert str(file) in said.envelope()["error"]["message"] + said.envelope()["error"]["hint"]


def test_an_editor_that_is_not_there_is_named(qmd_remote: Run, file: Path, monkeypatch: pytest.MonkeyPatch):
    """An editor that cannot be started is an error, not a crash, and leaves no file behind."""
    monkeypatch.setenv("VISUAL", "no-such-editor --wait")
    said = qmd_remote("settings", "edit", "--json")
    assert (5, True, False) == (said.code, "no-such-editor" in said.envelope()["error"]["message"], file.exists())


def test_edit_opens_the_file_and_tells_what_changed(qmd_remote: Run, file: Path, editor: Callable[[str], None]):
    """The editor gets the file, new ones with a heading and for nobody else; what counts then is said."""
    editor("print('drawn'); assert path.stat().st_mode & 0o777 == 0o600; path.open('a').write('port = 9001\\n')")
    said = qmd_remote("settings", "edit", "--json")
    assert (0, ["port"], 9001) == (
        said.code,
        (data := said.envelope()["data"])["changed"],
        data["settings"][0]["value"],
    )
    assert file.read_text(encoding="utf-8").startswith("# ")


def test_an_edit_without_a_change_makes_no_file(qmd_remote: Run, file: Path, editor: Callable[[str], None]):
    """Who leaves the editor at once has no settings file afterwards."""
    editor("pass")
    assert (0, False) == (qmd_remote("settings", "edit").code, file.exists())


@pytest.mark.parametrize(
    ("text", "line"), [("port = 1\nprot = 2\n", 2), ("port = many\n", 1), ("\n\nmax_queue = 0\n", 3)]
)
def test_a_mistake_made_in_the_editor_is_told_and_kept(
    text: str, line: int, qmd_remote: Run, file: Path, editor: Callable[[str], None]
):
    """The mistake is told with its line, the text is not lost, and the way back is named."""
    editor(f"path.write_text({text!r})")
    said = qmd_remote("settings", "edit", "--json")
    assert (4, True) == (said.code, f"line {line}" in said.envelope()["error"]["message"]), said.envelope()["error"]
    assert "qmd-remote settings edit" in said.envelope()["error"]["hint"]
    assert text == file.read_text(encoding="utf-8")


def test_edit_mends_a_broken_file(qmd_remote: Run, file: Path, editor: Callable[[str], None]):
    """A file that every other command refuses can be opened and mended."""
    file.write_text("port = = 1\n", encoding="utf-8")
    editor("path.write_text('port = 9001\\n')")
    said = qmd_remote("settings", "edit", "--json")
    assert (0, ["port"]) == (said.code, said.envelope()["data"]["changed"])


def test_an_editor_that_fails_is_believed(qmd_remote: Run, file: Path, editor: Callable[[str], None]):
    """An editor that ends with an error (`:cq`) ends the command with one."""
    editor("sys.exit(3)")
    assert (1, False) == (qmd_remote("settings", "edit", "--json").code, file.exists())


# completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("set generation_p", {"generation_port"}),
        ("set api_key", {"api_key_file"}),
        ("unset tls_", {"tls_cert", "tls_key"}),
        ("set preset ", set(PRESETS)),
        ("set generation_engine ex", {"external"}),
        ("set access_log ", {"true", "false"}),
        ("set port=1 preset=c", {f"preset={name}" for name in PRESETS if name.startswith("c")}),
        ("set port=1 dev", {"device"}),
        ("set port 1 ", set()),
    ],
)
def test_the_shell_completes_names_and_choices(line: str, expected: set[str], cli_home: Path):
    """The real program answers the shell: names of settings, and values where they can be listed."""
    words = f"qmd-remote settings {line}"
    done = subprocess.run(
        [PROGRAM],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_QMD_REMOTE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
    )
    assert expected == set(done.stdout.split())
