"""QMD's index, read without a trace: the SQLite file in which it keeps documents, vectors and cached answers.

Nothing is written, and no file is left beside the user's. Vectors are read from the tables in which sqlite-vec keeps
them, so the extension is not needed.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qmd_remote import paths
from qmd_remote.errors import ConfigError

SAMPLES = 4
CHUNK_CHARACTERS = 2720  # no chunk of QMD's is longer
TRIES = 3
BUSY_S = 2.0
TABLES = {"documents", "content", "content_vectors", "llm_cache"}
BLANKS = "\t\n\v\f\r \xa0\ufeff"

_DIMENSION = re.compile(r"float\[(\d+)\]")


@dataclass(frozen=True)
class Vectors:
    """What was embedded under one name of a model, for documents that are active."""

    model: str
    documents: int
    chunks: int


@dataclass(frozen=True)
class Sample:
    """A document that is a single chunk, and its stored vector."""

    model: str
    title: str
    text: str
    vector: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What an index holds. Documents are counted by content, as QMD embeds them; those without any text are left out.

    `half` counts documents of which only some chunks have a vector, `without_vectors` those of which no chunk has been
    recorded. `dimension` is None while there is no table of vectors. `cache` has QMD's cached answers as they stand.
    """

    path: Path
    documents: int
    vectors: tuple[Vectors, ...] = ()
    dimension: int | None = None
    without_vectors: int = 0
    half: int = 0
    cache: tuple[str, ...] = field(default=(), repr=False)
    samples: tuple[Sample, ...] = field(default=(), repr=False)


def index_file(index: str = "index", env: Mapping[str, str] = os.environ) -> Path:
    """QMD's index by QMD's own rule, whether it exists or not. Raises UsageError for what is no name of an index.

    `$INDEX_PATH`, else `$XDG_CACHE_HOME/qmd/<index>.sqlite`, else `~/.cache/qmd/<index>.sqlite`, on every system.
    """
    name = paths.qmd_config_file(index, env).stem  # which refuses what is no name
    if path := env.get("INDEX_PATH"):
        return Path(path)
    base = Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return base / "qmd" / f"{name}.sqlite"


def read(path: Path) -> IndexFacts:
    """Read an index. Raises ConfigError for one that is not there, cannot be read, or is none."""
    for _ in range(TRIES):
        try:
            before = _stamp(path)
            with _opened(path) as (database, locked):
                facts = _facts(path, database)
            if locked or _stamp(path) == before:
                return facts
        except sqlite3.Error as error:
            if _stamp(path) == before:
                raise _unreadable(path, str(error)) from error
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from error
    raise ConfigError(
        f"QMD writes its index {path} at this moment",
        hint="try once more when it has ended: qmd-remote doctor",
        code="index.busy",
    )


def _unreadable(path: Path, why: str) -> ConfigError:
    if not path.exists():
        return ConfigError(
            f"there is no index of QMD's at {path}",
            hint="let QMD make it: qmd collection add FOLDER; another one is named by --index NAME or INDEX_PATH",
            code="index.missing",
        )
    return ConfigError(
        f"{path} cannot be read as an index of QMD's: {why}",
        hint="see whether QMD can read it: qmd status",
        code="index.unreadable",
    )


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when the file is written; what waits in the log beside it is not in the file yet."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _opened(path: Path) -> Iterator[tuple[sqlite3.Connection, bool]]:
    """A connection that only reads, and whether it sees one state of the database for certain.

    QMD's index has a write-ahead log. An ordinary reader, even with mode=ro, makes the log and its shared memory where
    they are missing, and leaves them. So a database that nobody has open is read as one that cannot change
    (`read` sees whether it did), and one in use with shared memory that is only read. A log without shared memory is
    what a crash or a copy left: it can only be read where that memory can be made.
    """
    path = path.resolve()  # where a link leads to, there lies the log
    log, shared = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    if not log.exists() or not log.stat().st_size:
        with _connected(path, "immutable=1") as database:
            yield database, False
    elif shared.exists():
        with _connected(path, "readonly_shm=1") as database:
            database.execute("BEGIN")
            yield database, True
    else:
        with tempfile.TemporaryDirectory(prefix="qmd-remote-") as folder:
            copy = Path(folder) / "copy.sqlite"
            shutil.copyfile(path, copy)
            shutil.copyfile(log, copy.with_name(copy.name + "-wal"))
            with _connected(copy, "cache=private") as database:
                yield database, False


def _connected(path: Path, how: str) -> closing[sqlite3.Connection]:
    address = f"{path.absolute().as_uri()}?mode=ro&{how}"
    return closing(sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None))


def _facts(path: Path, database: sqlite3.Connection) -> IndexFacts:
    tables = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())
    if missing := TABLES - set(tables):
        raise _unreadable(path, f"it has no table {min(missing)}")
    found = _DIMENSION.search(tables.get("vectors_vec") or "")
    dimension = int(found[1]) if found else None
    columns = {row[1] for row in database.execute("PRAGMA table_info(content_vectors)")}
    database.execute("PRAGMA temp_store = MEMORY")
    database.execute(_LIVE, {"blanks": BLANKS})
    [[documents, bare]] = database.execute(_DOCUMENTS)
    lacking = [_GAPS]
    lacking += [_COUNTED] if "total_chunks" in columns else []
    lacking += [_LOST] if dimension else []
    half = {row[0] for query in lacking for row in database.execute(query, {"longest": CHUNK_CHARACTERS})}
    return IndexFacts(
        path=path,
        documents=documents,
        vectors=tuple(Vectors(*row) for row in database.execute(_VECTORS)),
        dimension=dimension,
        without_vectors=bare,
        half=len(half),
        cache=tuple(str(row[0]) for row in database.execute("SELECT result FROM llm_cache ORDER BY rowid")),
        samples=_samples(database, dimension) if dimension else (),
    )


# A row for each content that an active document has, with the title that QMD gave to the model. In a table of this
# connection's own, so that the texts are read once.
_LIVE = """
    CREATE TEMP TABLE live AS
    SELECT d.hash AS hash, d.title AS title, min(d.path) AS path, length(c.doc) AS length
    FROM documents d JOIN content c ON c.hash = d.hash
    WHERE d.active = 1 AND trim(c.doc, :blanks) <> '' GROUP BY d.hash
"""
_DOCUMENTS = "SELECT count(*), coalesce(sum(hash NOT IN (SELECT hash FROM content_vectors)), 0) FROM live"
_VECTORS = """
    SELECT v.model, count(DISTINCT v.hash), count(*) FROM content_vectors v JOIN live USING (hash)
    GROUP BY v.model ORDER BY count(*) DESC, v.model
"""


# Documents of which some chunks have a vector. The last chunk is missing where the text goes on beyond what a chunk can
# hold; that QMD counts in UTF-16 units and SQLite in characters only makes this more careful.
_GAPS = """
    SELECT v.hash FROM content_vectors v JOIN live USING (hash) GROUP BY v.hash
    HAVING count(*) < max(v.seq) + 1 OR live.length - max(v.pos) > :longest
"""
# Newer indexes know how many chunks there are; of documents that older clients embedded they only say 1.
_COUNTED = """
    SELECT v.hash FROM content_vectors v JOIN live USING (hash) GROUP BY v.hash HAVING count(*) < max(v.total_chunks)
"""
# QMD records a chunk before its vector, and can end between the two.
_LOST = """
    SELECT DISTINCT v.hash FROM content_vectors v JOIN live USING (hash)
        LEFT JOIN vectors_vec_rowids r ON r.id = v.hash || '_' || v.seq
    WHERE r.id IS NULL
"""
# Of each model the shortest first: there a prompt weighs most, and each is a single chunk for certain.
_SINGLE = """
    WITH single AS (
        SELECT v.model AS model, live.title AS title, v.hash AS hash, r.chunk_id AS chunk, r.chunk_offset AS place,
            row_number() OVER (PARTITION BY v.model ORDER BY live.length, v.hash) AS turn
        FROM content_vectors v JOIN live USING (hash) JOIN vectors_vec_rowids r ON r.id = v.hash || '_0'
        WHERE v.seq = 0 AND live.length < :short
            AND v.hash NOT IN (SELECT hash FROM content_vectors WHERE seq > 0)
    )
    SELECT few.model, few.title, content.doc, substr(b.vectors, few.place * :bytes + 1, :bytes)
    FROM (SELECT * FROM single ORDER BY turn, model LIMIT :samples) few
        JOIN content USING (hash) JOIN vectors_vec_vector_chunks00 b ON b.rowid = few.chunk
    ORDER BY few.turn, few.model
"""


def _samples(database: sqlite3.Connection, dimension: int) -> tuple[Sample, ...]:
    """Documents of one chunk with their vectors, which sqlite-vec keeps as float32, many in one blob."""
    limits = {"bytes": 4 * dimension, "short": CHUNK_CHARACTERS // 2, "samples": SAMPLES}
    rows = database.execute(_SINGLE, limits).fetchall()
    return tuple(
        Sample(model, title, text, struct.unpack(f"<{dimension}f", blob))
        for model, title, text, blob in rows
        if len(blob) == 4 * dimension
    )
