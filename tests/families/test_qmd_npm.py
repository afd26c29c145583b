"""QMD's own package from npm, where there is one: its config file as it rewrites it, and its index as it makes it.

Without its native modules, which npm need not install, it makes an index all the same, but no table of vectors.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmd_remote.client import qmd_index
from tests.qmd_index_maker import VIRTUAL, Index

NAMED = os.environ.get("QMD_BIN", "")
QMD = NAMED or shutil.which("qmd") or ""
Run = Callable[..., Any]
REFERENCE = "${QMD_REMOTE_API_KEY}"
# YAML 1.1 makes numbers, dates and truths of these, QMD's YAML 1.2 does not; and what a careless writer breaks
ODD = """\
# my notes, by hand
global_context: "half past: 12:30 # no comment"   # a comment
editor_uri: 'vscode://file/{path}:{line}'
models: {embed: "hf:a/b/c.gguf"}
nobody_knows:
  time: 12:30
  day: 2024-01-01
  answer: yes
  octal: 0o17
  empty:
  fox: "🦊 # of: the garden"
  folded: >-
    two lines
    become one

    but not this
  list: [1, 1.5, null, "null", ~]
collections:
  old-name:
    path: NOTES
    pattern: '**/*.md'
    ignore: ["drafts/**", '*.tmp']
    update: "git pull --ff-only  # keep"
    includeByDefault: false
    context:
      "": everything
      /2024-01-01: "a day: that day"
"""
ODD_AS_QMD_SPELLS_IT = {
    "time": "12:30",
    "day": "2024-01-01",
    "answer": "yes",
    "octal": "15",
    "empty": "null",
    "fox": "🦊 # of: the garden",
    "folded": "two lines become one\nbut not this",
    "list": ["1", "1.5", "null", "null", "null"],
}
REWRITES = (
    ("context", "add", "/", "a summary: of everything"),
    ("context", "add", "qmd://old-name/garden", "fences # and beds"),
    ("context", "rm", "qmd://old-name/garden"),
    ("collection", "add", "OTHER", "--name", "second"),
    ("collection", "rename", "old-name", "new-name"),
    ("collection", "remove", "second"),
)


class Words(yaml.SafeLoader):
    """Every scalar as the word that stands there, since PyYAML's 1.1 would read other values than QMD's 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


@pytest.fixture(scope="module", autouse=True)
def _qmd_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One that QMD_BIN names has to run; another one may be of no use, for want of a newer Node.js mostly."""
    how = "`npm install -g @tobilu/qmd`, Node.js 22 or newer, or QMD_BIN=…/qmd"
    if not QMD:
        pytest.skip(f"there is no `qmd` on PATH: {how}")
    home = str(tmp_path_factory.mktemp("probe"))
    done = start("status", HOME=home, XDG_CACHE_HOME=home, QMD_CONFIG_DIR=home)
    if done.returncode and not NAMED:
        pytest.skip(f"`{QMD}` does not run (exit code {done.returncode}): {how}")
    assert 0 == done.returncode, done.stdout + done.stderr


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run QMD, with the Node.js beside it where there is one."""
    path = os.pathsep.join((str(Path(QMD).parent.absolute()), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run([QMD, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.fixture
def file(cli_home: Path) -> Path:
    """QMD's file, written by hand, with two folders of notes beside it."""
    for name in ("NOTES", "OTHER"):
        (cli_home / name).mkdir()
        (cli_home / name / "fence.md").write_text("# Fence\nA wooden fence.\n", encoding="utf-8")
    path = cli_home / "qmd" / "index.yml"
    path.parent.mkdir()
    path.write_text(ODD.replace("NOTES", str(cli_home / "NOTES")), encoding="utf-8")
    return path


@pytest.fixture
def qmd(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run QMD with an index of its own, and tell what it printed: `qmd("collection", "list")`."""
    monkeypatch.setenv("HOME", str(cli_home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cli_home / "cache"))
    monkeypatch.delenv("INDEX_PATH", raising=False)

    def run(*arguments: str) -> str:
        done = start(*arguments)
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def written(qmd_remote: Run, file: Path, nobody: str) -> Path:
    """The same file with our block in it."""
    done = qmd_remote("config", "write", "--url", nobody, "--api-key-env", "QMD_REMOTE_API_KEY")
    assert 0 == done.code, done.stderr
    return file


def words(path: Path) -> dict[str, Any]:
    """The file's keys, with every value as it is spelt."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Words)


def rewrite(qmd: Run, path: Path, arguments: tuple[str, ...]) -> None:
    """Have QMD do it, and make sure that it wrote the file anew, which its lost comments show."""
    path.write_text("# to be lost\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    qmd(*(str(path.parent.parent / word) if word == "OTHER" else word for word in arguments))
    assert "to be lost" not in path.read_text(encoding="utf-8")


def test_the_block_survives_every_rewrite(qmd: Run, written: Path, qmd_remote: Run):
    """After each command of QMD's that writes the file: our block means the same, and `config check` passes."""
    block = words(written)["remote"]
    assert REFERENCE == block["api_key"]
    for arguments in REWRITES:
        rewrite(qmd, written, arguments)
        assert block == words(written)["remote"], arguments
        done = qmd_remote("config", "check", "--offline", "--json", QMD_REMOTE_API_KEY="k")
        data = done.envelope()["data"]
        assert (0, "remote", []) == (done.code, data["verdict"], data["findings"]), arguments


def test_writing_again_changes_nothing(qmd: Run, written: Path, qmd_remote: Run, nobody: str):
    """In the file as QMD spells it `config write` finds what it would write, with the URL given or taken from there."""
    for arguments in REWRITES:
        rewrite(qmd, written, arguments)
    spelt = written.read_bytes()
    for given in (("--url", nobody, "--api-key-env", "QMD_REMOTE_API_KEY"), ()):
        said = qmd_remote("config", "write", "--json", *given).envelope()["data"]
        assert (False, spelt) == (said["changed"], written.read_bytes()), given


def test_qmd_keeps_what_it_had(qmd: Run, written: Path):
    """QMD reads its collection out of the file with our block, and no key of the user's is lost by a rewrite."""
    before = words(written)
    assert "old-name" in qmd("collection", "list")
    for arguments in REWRITES:
        rewrite(qmd, written, arguments)
    after = words(written)
    assert before.keys() <= after.keys()
    assert ODD_AS_QMD_SPELLS_IT == after["nobody_knows"]
    assert "a summary: of everything" == after["global_context"]
    assert before["editor_uri"] == after["editor_uri"]
    assert before["models"].items() <= after["models"].items()
    assert {"new-name": before["collections"]["old-name"]} == after["collections"]


def test_removing_after_a_rewrite(qmd: Run, written: Path, qmd_remote: Run):
    """`config remove` takes our block out of QMD's spelling, and leaves the rest for QMD to read."""
    rewrite(qmd, written, REWRITES[0])
    rest = {key: value for key, value in words(written).items() if key != "remote"}
    done = qmd_remote("config", "remove")
    assert (0, rest) == (done.code, words(written)), done.stderr
    assert "old-name" in qmd("collection", "list")


@pytest.mark.parametrize(
    "variables",
    [{}, {"QMD_CONFIG_DIR": "", "XDG_CONFIG_HOME": "xdg"}, {"QMD_CONFIG_DIR": "", "XDG_CONFIG_HOME": ""}],
    ids=["QMD_CONFIG_DIR", "XDG_CONFIG_HOME", "HOME"],
)
@pytest.mark.parametrize("index", ["index", "work"])
def test_the_same_file(
    qmd: Run, qmd_remote: Run, cli_home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], index: str
):
    """QMD reads and writes the file that `config path` names, by each of its rules and for another index."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value and str(cli_home / value))
    path = Path(qmd_remote("config", "path", "--index", index).stdout.strip())
    assert path.is_relative_to(cli_home) and not path.exists()
    (cli_home / "notes").mkdir()
    qmd("--index", index, "collection", "add", str(cli_home / "notes"), "--name", "only-here")
    assert ["only-here"] == list(words(path)["collections"])


@pytest.mark.parametrize("odd", ["a\tb", "a \t b", "a\u2028b", "a\x85b"])
def test_odd_characters_that_qmd_writes_as_they_are(qmd: Run, written: Path, qmd_remote: Run, nobody: str, odd: str):
    """Older YAML ends a value or a line at them; QMD does not, and neither do `config check` and `config write`."""
    qmd("context", "add", "/", odd)
    assert odd in written.read_text(encoding="utf-8")
    assert 0 == qmd_remote("config", "check", "--offline", QMD_REMOTE_API_KEY="k").code
    done = qmd_remote("config", "write", "--url", f"{nobody}/other")
    assert (0, True) == (done.code, odd in written.read_text(encoding="utf-8")), done.stderr
    assert "old-name" in qmd("collection", "list")


def layout(path: Path, table: str) -> dict[str, Any]:
    """What a table is made of: its columns in any order, what is unique in it, and what it refers to."""
    with closing(sqlite3.connect(path)) as database:
        columns = database.execute(f"PRAGMA table_info({table})").fetchall()
        unique = [row[1] for row in database.execute(f"PRAGMA index_list({table})") if row[2]]
        keys = {tuple(row[2] for row in database.execute(f"PRAGMA index_info({name})")) for name in unique}
        references = {row[2:] for row in database.execute(f"PRAGMA foreign_key_list({table})")}
    return {"columns": {row[1]: row[2:] for row in columns}, "unique": keys, "references": references}


@pytest.fixture
def index(cli_home: Path, qmd: Run) -> Path:
    """QMD's index of one note."""
    (cli_home / "garden").mkdir()
    (cli_home / "garden" / "fence.md").write_text("# Fence\nA wooden fence.\n", encoding="utf-8")
    qmd("collection", "add", str(cli_home / "garden"))
    return qmd_index.index_file()


known = pytest.mark.skipif(not NAMED, reason="QMD_BIN names no QMD: one of another version may have another index")


@known
@pytest.mark.parametrize("table", sorted(qmd_index.TABLES))
def test_the_index_that_tests_make_is_qmds(index: Path, tmp_path: Path, table: str):
    """What `doctor --index` is tested with has the tables that QMD makes."""
    with Index(tmp_path / "made" / "index.sqlite") as made:
        assert layout(index, table) == layout(made.path, table)
    assert layout(index, table)["columns"]


@known
def test_the_table_of_vectors_that_tests_make_is_qmds():
    """QMD makes it by the same words. It takes a native module to do so: they are looked for where they stand."""
    words = VIRTUAL.format("${dimensions}", "distance_metric=cosine")
    package = next(one for one in Path(QMD).resolve().parents if (one / "package.json").is_file())
    assert [] != [one for one in package.rglob("dist/**/*.js") if f"`{words}`" in one.read_text(encoding="utf-8")]


def test_the_index_is_read_as_qmd_made_it(index: Path):
    """Our reader finds the note, without a vector yet, at the place where QMD keeps its index."""
    facts = qmd_index.read(index)
    assert (1, 1, None, ()) == (facts.documents, facts.without_vectors, facts.dimension, facts.vectors)
