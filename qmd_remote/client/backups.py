"""The copies that a change of a configuration file leaves beside it: none is ever overwritten by another text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path


@dataclass(frozen=True)
class Backup:
    """A copy of an earlier file."""

    path: Path
    text: str = field(repr=False)


def place(file: Path, text: str) -> Path:
    """Where a copy of `text` belongs: the one that has it already, else the first free name.

    An older copy may be the only one that still holds what a client's key was before it was ours.
    """
    for path in _names(file):
        if not os.path.lexists(path) or _read(path) == text:
            return path
    raise AssertionError("there is always another name")


def newest_first(file: Path) -> list[Backup]:
    """The copies that can be read, the last one that was written first."""
    found = []
    for number, path in enumerate(_names(file)):
        if not os.path.lexists(path):
            break
        text = _read(path)
        if text is not None:
            found.append((path.stat().st_mtime_ns, number, Backup(path, text)))
    return [backup for _, _, backup in sorted(found, key=lambda one: one[:2], reverse=True)]


def _names(file: Path) -> Iterator[Path]:
    return (file.with_name(f"{file.name}.bak{number if number > 1 else ''}") for number in count(1))


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
