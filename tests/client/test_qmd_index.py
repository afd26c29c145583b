"""QMD's index, read: where it is, what it holds, and that reading leaves no trace in whatever state it is."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmd_remote.client import qmd_index
from qmd_remote.client.qmd_index import IndexFacts, Vectors, index_file, read
from qmd_remote.errors import ConfigError, UsageError
from tests.qmd_index_maker import MODEL, Index

# Opens the index as QMD does, adds a cached answer that stays in the log, and holds it open until its input ends.
HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA wal_autocheckpoint = 0")
database.execute("INSERT INTO llm_cache VALUES ('held', '0.5', '')")
if sys.argv[2] == "writes":
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO llm_cache VALUES ('not committed', '0.7', '')")
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, how: str = "idle") -> Iterator[None]:
    """The index while another process has it open."""
    command = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            assert "ready" == process.stdout.readline().strip()
            yield
        finally:
            process.stdin.close()
            process.wait(30)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index with one document and one cached answer that nobody has open."""
    path = tmp_path / "cache" / "index.sqlite"
    with Index(path) as made:
        made.embedded("a.md", "# A\n\nText.", (1, 0, 0), title="A")
        made.cached("0.25")
    return path


@pytest.mark.parametrize(
    ("env", "index", "expected"),
    [
        ({"INDEX_PATH": "here.db", "XDG_CACHE_HOME": "/x"}, "work", Path("here.db")),
        ({"INDEX_PATH": "", "XDG_CACHE_HOME": "/x"}, "index", Path("/x/qmd/index.sqlite")),
        ({"XDG_CACHE_HOME": ""}, "a.b", Path.home() / ".cache/qmd/a.b.sqlite"),
        ({}, "work", Path.home() / ".cache/qmd/work.sqlite"),
    ],
)
def test_where_the_index_is(env: dict[str, str], index: str, expected: Path):
    """INDEX_PATH, else XDG_CACHE_HOME, else ~/.cache, where empty variables count as none."""
    assert expected == index_file(index, env)


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_no_name_of_an_index(name: str):
    """What leads to another folder is refused."""
    with pytest.raises(UsageError):
        index_file(name, {})


def test_what_an_index_holds(tmp_path: Path):
    """Documents by content, vectors by the name of their model, the dimension, the cache in its order."""
    with Index(tmp_path / "i.sqlite") as made:
        made.embedded("a.md", "one", (1, 0, 0))
        made.document("copy.md", "one")
        made.embedded("b.md", "two", (0, 1, 0))
        made.embedded("c.md", "three", (0, 0, 1), model="other")
        made.cached("0", "[]")
    facts = read(tmp_path / "i.sqlite")
    expected = IndexFacts(
        path=tmp_path / "i.sqlite",
        documents=3,
        vectors=(Vectors(MODEL, 2, 2), Vectors("other", 1, 1)),
        dimension=3,
        cache=("0", "[]"),
        samples=facts.samples,
    )
    assert expected == facts


def test_an_index_without_vectors(tmp_path: Path):
    """Nothing has been embedded: there is no table of vectors, and every document with a text lacks them."""
    with Index(tmp_path / "i.sqlite", dimension=None) as made:
        made.document("a.md", "one")
        made.document("empty.md", " \n\t\ufeff")
        made.document("gone.md", "two", active=False)
    facts = read(tmp_path / "i.sqlite")
    assert (1, 1, None) == (facts.documents, facts.without_vectors, facts.dimension)
    assert ((), ()) == (facts.vectors, facts.samples)


@pytest.mark.parametrize("old", [True, False])
def test_documents_embedded_in_part(tmp_path: Path, old: bool):
    """A gap, a text that goes on beyond the last chunk, a lost vector, a count not reached; a whole one is none."""
    long = "word " * 1000
    with Index(tmp_path / "i.sqlite", old=old) as made:
        gap, tail, lost, counted, whole = (made.document(f"{n}.md", f"{n} {long}") for n in range(5))
        made.chunk(gap, 0, (1, 0, 0), of=2)
        made.chunk(gap, 2, (1, 0, 0), pos=4000, of=2)
        made.chunk(tail, 0, (1, 0, 0))
        made.chunk(lost, 0, (1, 0, 0), of=2)
        made.chunk(lost, 1, None, pos=2500, of=2)
        made.chunk(counted, 0, (1, 0, 0), of=3)
        made.chunk(counted, 1, (1, 0, 0), pos=2500, of=3)
        made.chunk(whole, 0, (1, 0, 0), of=2)
        made.chunk(whole, 1, (1, 0, 0), pos=2500, of=2)
    facts = read(tmp_path / "i.sqlite")
    # an old index cannot know of a further chunk where the rest would fit into the last one
    assert (3 if old else 4, 0) == (facts.half, facts.without_vectors)


def test_samples_are_single_chunks_of_every_model(tmp_path: Path):
    """The shortest documents of one chunk, in turn by model, with the vectors of their own places in the blobs."""
    with Index(tmp_path / "i.sqlite") as made:
        for n in range(5):
            made.embedded(f"{n}.md", "x" * (n + 1), (n, 0.5, -n), title=f"T{n}")
        made.embedded("o.md", "much longer", (9, 9, 9), title="O", model="other")
        long = made.document("long.md", "a b")
        made.chunk(long, 0, (7, 7, 7))
        made.chunk(long, 1, (7, 7, 7), pos=1)
        made.embedded("big.md", "x" * 2000, (8, 8, 8))
    samples = read(tmp_path / "i.sqlite").samples
    expected = [("T0", (0, 0.5, 0)), ("O", (9, 9, 9)), ("T1", (1, 0.5, -1)), ("T2", (2, 0.5, -2))]
    assert expected == [(one.title, one.vector) for one in samples]
    assert ["x", "much longer", "xx", "xxx"] == [one.text for one in samples]


def test_a_closed_index_gets_no_company(index: Path):
    """No file is made beside an index that nobody has open, and none is changed."""
    before = contents(index.parent)
    assert ["index.sqlite"] == list(before)
    assert ("0.25",) == read(index).cache
    assert before == contents(index.parent)


@pytest.mark.parametrize("how", ["idle", "writes"])
def test_an_index_in_use(index: Path, how: str):
    """What was committed is read from the log of a running QMD, what was not is not, and nothing is written."""
    with held(index, how):
        before = contents(index.parent)
        assert {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm"} == set(before)
        assert ("0.25", "0.5") == read(index).cache
        assert before == contents(index.parent)


def test_an_index_behind_a_link(index: Path, tmp_path: Path):
    """The log lies beside the file, not beside the link."""
    link = tmp_path / "link.sqlite"
    link.symlink_to(index)
    with held(index):
        assert ("0.25", "0.5") == read(link).cache


def test_what_a_crash_left(index: Path, tmp_path: Path):
    """A log without shared memory is read in a copy; the folder stays as it is."""
    left = tmp_path / "left"
    left.mkdir()
    with held(index):
        for end in ("", "-wal"):
            shutil.copyfile(f"{index}{end}", left / f"index.sqlite{end}")
    before = contents(left)
    assert ("0.25", "0.5") == read(left / "index.sqlite").cache
    assert before == contents(left)


def test_an_index_that_is_written_meanwhile(index: Path, monkeypatch: pytest.MonkeyPatch):
    """It is read again when it changed under the reader, and given up when it does so each time."""
    facts = qmd_index._facts
    writes = [1]

    def disturbed(path: Path, database: sqlite3.Connection) -> IndexFacts:
        found = facts(path, database)
        if writes[0]:
            writes[0] -= 1
            with sqlite3.connect(index) as other:
                other.execute("INSERT INTO llm_cache VALUES (hex(randomblob(8)), '0.5', '')")
            other.close()
        return found

    monkeypatch.setattr(qmd_index, "_facts", disturbed)
    assert 2 == len(read(index).cache)
    writes[0] = qmd_index.TRIES
    with pytest.raises(ConfigError) as caught:
        read(index)
    assert "index.busy" == caught.value.code


def test_there_is_no_index(tmp_path: Path):
    """The message names the file and what makes one; none is made."""
    with pytest.raises(ConfigError, match="no index") as caught:
        read(tmp_path / "index.sqlite")
    assert ("index.missing", []) == (caught.value.code, list(tmp_path.iterdir()))
    assert "qmd collection add" in caught.value.hint


@pytest.mark.parametrize("kind", ["text", "folder", "other database"])
def test_what_is_no_index(tmp_path: Path, kind: str):
    """Other files say why they cannot be read."""
    path = tmp_path / "index.sqlite"
    if kind == "text":
        path.write_text("no database, only a text " * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        sqlite3.connect(path).execute("CREATE TABLE a (b)").connection.close()
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert "index.unreadable" == caught.value.code
    assert str(path) in caught.value.message
