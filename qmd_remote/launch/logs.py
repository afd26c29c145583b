"""Reading the services' log files."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from qmd_remote import paths, services
from qmd_remote.errors import NotRunning, UsageError

POLL_S = 0.25


def files(service: str | None) -> dict[str, Path]:
    """The log files there are, of one service or of all. Raises UsageError or NotRunning."""
    if service is not None and service not in services.SERVICES:
        raise UsageError(f"there is no service '{service}'", hint=f"the services are: {', '.join(services.SERVICES)}")
    names = services.SERVICES if service is None else (service,)
    found = {name: path for name in names if (path := paths.log_file(name)).is_file()}
    if not found:
        raise NotRunning("there is no log yet, since nothing was started", hint="qmd-remote up")
    return found


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=max(0, lines))]


def stream(found: Mapping[str, Path], lines: int, *, follow: bool) -> Iterator[tuple[str, str]]:
    """(service, line) of the last lines and, with `follow`, of all that comes; restarts begin a new file."""
    positions: dict[str, tuple[int, int]] = {}
    for name, path in found.items():
        stat = path.stat()
        positions[name] = (stat.st_ino, stat.st_size)
        for line in tail(path, lines):
            yield name, line
    while follow:
        time.sleep(POLL_S)
        for name, path in found.items():
            if not path.is_file():
                continue
            inode, offset = positions[name]
            stat = path.stat()
            offset = offset if stat.st_ino == inode and stat.st_size >= offset else 0
            with path.open("rb") as file:
                file.seek(offset)
                added = file.read()
            whole = added[: added.rfind(b"\n") + 1]
            positions[name] = (stat.st_ino, offset + len(whole))
            for line in _lines(whole):
                yield name, line


def _lines(text: bytes) -> list[str]:
    """Lines as a text file has them: a progress bar's carriage returns end one, exotic separators do not."""
    with io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file]
