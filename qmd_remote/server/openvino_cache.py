"""Converted models on disk, so that a model is converted once. What lies there can be made again at any time.

One folder per model, in it one per state of the model and version of what converts it; there is never a reason to
keep more than the newest. Nothing here is an error to the caller: without a cache, conversion takes its time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qmd_remote.server.checkpoint import module_folders
from qmd_remote.server.openvino_runtime import runtime

log = logging.getLogger(__name__)

# Raised when we hand OpenVINO another network for the same files.
FORMAT = 2
MAKERS = ("openvino", "torch", "transformers", "sentence-transformers")
READ = (".json", ".safetensors", ".bin", ".py")
FILE, WEIGHTS = "model.xml", "model.bin"
CHECKSUM = "checksum"
PARTS, PART = 1024, 4096  # of a file that are looked at, and the bytes of one
DRAFT = ".tmp"
WRITTEN_S = 3600.0  # how long another process may take to write its draft


class ConvertedModel:
    """The place of one model's conversion below `cache`; `wanted` says what is to be computed from the files."""

    def __init__(self, cache: Path, folder: Path, wanted: Sequence[str]) -> None:
        self._home = cache / "openvino" / _short([_name(folder), *wanted])
        self._place = self._home / _short(_state(folder))

    def read(self, core: Any) -> Any | None:
        """The model, its weights mapped from disk; None when it is not there, or is not whole."""
        if not self._place.is_dir():
            return None
        try:
            if (self._place / CHECKSUM).read_text(encoding="ascii") != _checksum(self._place):
                raise RuntimeError("its files are not those that were written")
            return core.read_model(self._place / FILE)
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("a converted model cannot be read, and is made again: %s", reason(error))
            return None

    def write(self, model: Any) -> bool:
        """Put `model` in the place of what is there for this model; False, and a warning, when that fails."""
        draft: Path | None = None
        try:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = Path(tempfile.mkdtemp(prefix=".", suffix=DRAFT, dir=self._home))
            runtime().save_model(model, draft / FILE, compress_to_fp16=False)
            (draft / CHECKSUM).write_text(_checksum(draft), encoding="ascii")
            _flush(draft)
            self.drop()
            draft.rename(self._place)
        except (OSError, RuntimeError) as error:
            log.warning("the converted model is not kept, the next start converts again: %s", reason(error))
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
            return False
        self._clear()
        return True

    def drop(self) -> None:
        """Forget the conversion."""
        shutil.rmtree(self._place, ignore_errors=True)

    def _clear(self) -> None:
        """Remove what was made of the model's former states, or by former versions."""
        for other in self._home.iterdir():
            drafted = other.name.endswith(DRAFT) and time.time() - other.stat().st_mtime < WRITTEN_S
            if other != self._place and not drafted:
                shutil.rmtree(other, ignore_errors=True)


def _name(folder: Path) -> str:
    """What stays the same when the model changes: in the hub's cache, the folder above its snapshots."""
    whole = folder.resolve()
    return str(whole.parents[1] if whole.parent.name == "snapshots" else whole)


def _state(folder: Path) -> Iterator[str]:
    """What a conversion depends on."""
    yield str(FORMAT)
    for package in MAKERS:
        yield f"{package} {metadata.version(package)}"
    for part in ("", *module_folders(folder)):
        for file in sorted((folder / part).glob("*")):
            if file.suffix in READ and file.is_file():
                found = file.stat()
                yield f"{part}/{file.name} {found.st_size} {found.st_mtime_ns} {_sample(file, found.st_size)}"


def _sample(file: Path, size: int) -> str:
    """A digest of parts of a file: images and archives give every file the same time, and one architecture one size."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        for start in range(0, size, max(PART, size // PARTS)):
            content.seek(start)
            digest.update(content.read(PART))
    return digest.hexdigest()


def _checksum(folder: Path) -> str:
    """A checksum of a conversion: a disk that gives back something else would give wrong vectors. About 1 GB/s."""
    found = []
    for name in (FILE, WEIGHTS):
        checksum = 0
        with (folder / name).open("rb") as content:
            while part := content.read(1 << 22):
                checksum = zlib.crc32(part, checksum)
        found.append(f"{checksum:08x}")
    return " ".join(found)


def _short(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _flush(folder: Path) -> None:
    """Have the files on disk before the folder gets its name: after a power cut it would name empty ones."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def reason(error: BaseException) -> str:
    """The last line of what began it: OpenVINO puts advice around that, and its own source files before it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
