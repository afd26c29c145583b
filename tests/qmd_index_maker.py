"""An index in QMD's schema, made without QMD and without sqlite-vec: its tables of vectors are written by hand.

The schema is that of QMD 2.8 with sqlite-vec 0.1, to which a test holds it where QMD is there; `old` leaves out what
2.0 did not have.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path

PLACES = 2  # vectors in one blob; sqlite-vec takes 1024
MODEL = "hf:ggml-org/embeddinggemma-300M-GGUF/embeddinggemma-300M-Q8_0.gguf"
VIRTUAL = "CREATE VIRTUAL TABLE vectors_vec USING vec0(hash_seq TEXT PRIMARY KEY, embedding float[{}] {})"
SCHEMA = """
    CREATE TABLE content (hash TEXT PRIMARY KEY, doc TEXT NOT NULL, created_at TEXT NOT NULL);
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY AUTOINCREMENT, collection TEXT NOT NULL, path TEXT NOT NULL, title TEXT NOT NULL,
        hash TEXT NOT NULL, created_at TEXT NOT NULL, modified_at TEXT NOT NULL, active INTEGER NOT NULL DEFAULT 1,
        FOREIGN KEY (hash) REFERENCES content(hash) ON DELETE CASCADE, UNIQUE (collection, path)
    );
    CREATE TABLE llm_cache (hash TEXT PRIMARY KEY, result TEXT NOT NULL, created_at TEXT NOT NULL);
    CREATE TABLE content_vectors (
        hash TEXT NOT NULL, seq INTEGER NOT NULL DEFAULT 0, pos INTEGER NOT NULL DEFAULT 0, model TEXT NOT NULL,
        embedded_at TEXT NOT NULL, PRIMARY KEY (hash, seq)
    );
"""
COUNTED = """
    ALTER TABLE content_vectors ADD COLUMN embed_fingerprint TEXT NOT NULL DEFAULT '';
    ALTER TABLE content_vectors ADD COLUMN total_chunks INTEGER NOT NULL DEFAULT 1;
"""
VECTORS = """
    CREATE TABLE vectors_vec_chunks (
        chunk_id INTEGER PRIMARY KEY AUTOINCREMENT, size INTEGER NOT NULL, validity BLOB NOT NULL, rowids BLOB NOT NULL
    );
    CREATE TABLE vectors_vec_rowids (
        rowid INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, chunk_id INTEGER, chunk_offset INTEGER
    );
    CREATE TABLE vectors_vec_vector_chunks00 (rowid PRIMARY KEY, vectors BLOB NOT NULL);
"""


class Index:
    """An open index; each method writes as QMD does and commits."""

    def __init__(self, path: Path, *, dimension: int | None = 3, old: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.dimension = dimension
        self.old = old
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.executescript(SCHEMA + ("" if old else COUNTED))
        if dimension:
            self.database.executescript(VECTORS)
            sql = VIRTUAL.format(dimension, "distance_metric=cosine")
            self.database.execute("PRAGMA writable_schema = ON")
            insert = "INSERT INTO sqlite_master VALUES ('table', 'vectors_vec', 'vectors_vec', 0, ?)"
            self.database.execute(insert, [sql])
            self.database.execute("PRAGMA writable_schema = OFF")

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def document(self, path: str, text: str, *, title: str = "", active: bool = True) -> str:
        """A file of a collection; its content's hash."""
        key = hashlib.sha256(text.encode()).hexdigest()
        self.database.execute("INSERT OR IGNORE INTO content VALUES (?, ?, '')", [key, text])
        insert = "INSERT INTO documents (collection, path, title, hash, created_at, modified_at, active)"
        self.database.execute(f"{insert} VALUES ('notes', ?, ?, ?, '', '', ?)", [path, title, key, active])
        return key

    def chunk(
        self, key: str, seq: int, vector: Sequence[float] | None, *, pos: int = 0, of: int = 1, model: str = MODEL
    ) -> None:
        """A chunk that is recorded as embedded, with its vector or without."""
        insert = "INSERT INTO content_vectors (hash, seq, pos, model, embedded_at) VALUES (?, ?, ?, ?, '')"
        self.database.execute(insert, [key, seq, pos, model])
        if not self.old:
            self.database.execute("UPDATE content_vectors SET total_chunks = ? WHERE hash = ?", [of, key])
        if vector is not None:
            self._store(f"{key}_{seq}", vector)

    def embedded(self, path: str, text: str, vector: Sequence[float], *, title: str = "", model: str = MODEL) -> str:
        """A document that is a single chunk."""
        key = self.document(path, text, title=title)
        self.chunk(key, 0, vector, model=model)
        return key

    def cached(self, *results: str) -> None:
        """Answers of models."""
        for result in results:
            [[count]] = self.database.execute("SELECT count(*) FROM llm_cache")
            self.database.execute("INSERT INTO llm_cache VALUES (?, ?, '')", [f"{count:064d}", result])

    def _store(self, name: str, vector: Sequence[float]) -> None:
        [[count]] = self.database.execute("SELECT count(*) FROM vectors_vec_rowids")
        chunk, place = count // PLACES + 1, count % PLACES
        size = 4 * len(vector)
        if not place:
            blob = bytes(size * PLACES)
            self.database.execute("INSERT INTO vectors_vec_chunks VALUES (?, ?, ?, ?)", [chunk, PLACES, b"\0", b""])
            self.database.execute("INSERT INTO vectors_vec_vector_chunks00 VALUES (?, ?)", [chunk, blob])
        [[blob]] = self.database.execute("SELECT vectors FROM vectors_vec_vector_chunks00 WHERE rowid = ?", [chunk])
        filled = blob[: size * place] + struct.pack(f"<{len(vector)}f", *vector) + blob[size * (place + 1) :]
        self.database.execute("UPDATE vectors_vec_vector_chunks00 SET vectors = ? WHERE rowid = ?", [filled, chunk])
        insert = "INSERT INTO vectors_vec_rowids (id, chunk_id, chunk_offset) VALUES (?, ?, ?)"
        self.database.execute(insert, [name, chunk, place])
