"""Reading the services' logs: through their rotations, by time, and as they grow."""

from __future__ import annotations

import heapq
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from qmd_remote import logbook, paths, services
from qmd_remote.errors import NotRunning, UsageError

POLL_S = 0.25
LINES = 50  # shown when neither a number nor a time is asked for
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SINCE_HINT = "for example: --since 45s, --since 10m, --since 2h, --since 1d, --since 2026-11-22T21:30"


@dataclass(frozen=True)
class Line:
    """A line as it stands in the log, and when it was written (seconds since the epoch)."""

    when: float
    text: str


@dataclass(frozen=True)
class Part:
    """Which end of a log is wanted: at most so many lines, from a time (seconds since the epoch) on."""

    lines: int | None = LINES
    since: float | None = None


def part(lines: int | None, since: str | None, now: float | None = None) -> Part:
    """What -n and --since ask for; with a time alone all lines from then on. Raises UsageError."""
    if since is None:
        return Part(LINES if lines is None else lines)
    return Part(lines, point_in_time(since, time.time() if now is None else now))


def point_in_time(text: str, now: float) -> float:
    """`10m` before `now`, or an ISO time (local unless it has an offset), as seconds since the epoch."""
    ago = re.fullmatch(r"(\d+)([smhd])", text.strip(), re.ASCII)
    try:
        if ago:
            return now - int(ago[1]) * SECONDS[ago[2]]
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"'{text}' is no time to show the logs from", hint=SINCE_HINT) from None


def places(service: str | None) -> dict[str, Path]:
    """Where the log of one service or of all lies, once there is one. Raises UsageError."""
    names = services.SERVICES if service is None else (services.require_name(service),)
    return {name: paths.log_file(name) for name in names}


def files(service: str | None) -> dict[str, Path]:
    """The log files there are, of one service or of all. Raises UsageError or NotRunning."""
    found = {name: path for name, path in places(service).items() if path.is_file()}
    if not found:
        raise NotRunning("there is no log yet, since nothing was started", hint="qmd-remote up")
    return found


def crashes(service: str | None) -> dict[str, Path]:
    """The files with the last words of what crashed, of one service or of all. Raises UsageError."""
    kept = {name: logbook.crash_file(path) for name, path in places(service).items()}
    return {name: path for name, path in kept.items() if path.is_file()}


def last_words(path: Path, lines: int | None) -> list[str]:
    """The end of the file of one crash, with the times before its lines."""
    texts = _split(path.read_text(encoding="utf-8", errors="replace"))
    return texts if lines is None else texts[max(0, len(texts) - max(0, lines)) :]


def tail(path: Path, lines: int | None) -> list[str]:
    """The last lines of a log, from its older files too if need be."""
    return read(path, Part(lines))


def read(path: Path, wanted: Part) -> list[str]:
    """The wanted end of a log, with the times before its lines."""
    reader = Reader(path)
    return [line.text for line in reader.past(wanted, unfinished=True)]


def stream(
    found: Mapping[str, Path], wanted: Part | int, *, follow: bool, stamps: bool = False
) -> Iterator[tuple[str, str]]:
    """(service, line) of the wanted ends, in the order of time, and with `follow` of all that comes after this call."""
    wanted = Part(wanted) if isinstance(wanted, int) else wanted
    readers = {name: Reader(path) for name, path in found.items()}
    past = {name: reader.past(wanted, unfinished=not follow) for name, reader in readers.items()}
    return chain(_merged(past, stamps), _added(readers, None, stamps) if follow else ())


def follow(
    found: Mapping[str, Path], *, stop: threading.Event | None = None, stamps: bool = False
) -> Iterator[tuple[str, str]]:
    """(service, line) of all that comes from this call on, until `stop` is set; files may appear later."""
    readers = {name: Reader(path) for name, path in found.items()}
    for reader in readers.values():
        reader.past(Part(0), unfinished=False)
    return _added(readers, stop, stamps)


def _added(readers: Mapping[str, Reader], stop: threading.Event | None, stamps: bool) -> Iterator[tuple[str, str]]:
    last = False
    while not last:
        last = stop is not None and stop.is_set()
        yield from _merged({name: reader.added() for name, reader in readers.items()}, stamps)
        if stop is None:
            time.sleep(POLL_S)
        elif not last:
            stop.wait(POLL_S)


def _merged(found: Mapping[str, list[Line]], stamps: bool) -> Iterator[tuple[str, str]]:
    logs = [[(line.when, name, line.text) for line in lines] for name, lines in found.items()]
    for _, name, text in heapq.merge(*logs, key=lambda one: one[0]):
        yield name, text if stamps else logbook.unstamped(text)


class Reader:
    """One log: its past, then what is added, each line once, however often a full file is put aside meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._offset = 0
        self._when: float | None = None

    def past(self, wanted: Part, *, unfinished: bool) -> list[Line]:
        """The wanted end of what is there now; a last line without an end counts only if `unfinished`."""
        opened = self._open_all()
        if not opened:
            return []
        self._file = opened[-1]
        newest = self._lines(self._take(unfinished=unfinished), self._file)
        blocks = deque([newest])
        for file in reversed(opened[:-1]):
            with file:
                if not _enough(blocks, wanted):
                    blocks.appendleft(self._lines(file.read(), file))
        self._when = newest[-1].when if newest else None
        lines = [line for block in blocks for line in block if wanted.since is None or line.when >= wanted.since]
        return lines if wanted.lines is None else lines[max(0, len(lines) - max(0, wanted.lines)) :]

    def added(self) -> list[Line]:
        """The whole lines that came since the last call."""
        lines: list[Line] = []
        while newer := self._newer():
            lines += self._rest(unfinished=True)  # nobody writes to a file that was put aside
            if self._file:
                self._file.close()
            self._file, self._offset, self._when = newer, 0, None
        return lines + self._rest(unfinished=False)

    def _rest(self, *, unfinished: bool) -> list[Line]:
        if self._file is None:
            return []
        lines = self._lines(self._take(unfinished=unfinished), self._file)
        self._when = lines[-1].when if lines else self._when
        return lines

    def _take(self, *, unfinished: bool) -> bytes:
        """What the file has beyond our place in it."""
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._offset:  # somebody emptied it
            self._offset = 0
        self._file.seek(self._offset)
        data = self._file.read()
        if not unfinished:
            data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return data

    def _lines(self, data: bytes, file: BinaryIO) -> list[Line]:
        """Lines with their times: one without a stamp belongs to the line before, or else to what follows it."""
        texts = _split(data.decode("utf-8", "replace"))
        stamps = [_time_of(text) for text in texts]
        when = self._when if file is self._file else None
        if when is None:
            when = next((stamp for stamp in stamps if stamp is not None), os.fstat(file.fileno()).st_mtime)
        lines = []
        for text, stamp in zip(texts, stamps, strict=True):
            when = when if stamp is None else stamp
            lines.append(Line(when, text))
        return lines

    def _newer(self) -> BinaryIO | None:
        """The file that follows ours, when ours was put aside or is gone."""
        if self._file is None:
            return next(iter(self._after(-1, self._open_all())), None)
        ours = os.fstat(self._file.fileno())
        try:
            if self._path.stat().st_ino == ours.st_ino:
                return None
        except FileNotFoundError:
            pass
        opened = self._open_all()
        inodes = [os.fstat(file.fileno()).st_ino for file in opened]
        if ours.st_ino in inodes:
            following = inodes.index(ours.st_ino) + 1
        else:  # put aside so often that it was dropped, or removed: what was written to after it is new
            later = (n for n, file in enumerate(opened) if os.fstat(file.fileno()).st_mtime_ns > ours.st_mtime_ns)
            following = next(later, len(opened))
        return next(iter(self._after(following - 1, opened)), None)

    @staticmethod
    def _after(index: int, opened: list[BinaryIO]) -> Iterable[BinaryIO]:
        """The file behind an index, alone; the others are closed."""
        for number, file in enumerate(opened):
            if number != index + 1:
                file.close()
        return opened[index + 1 : index + 2]

    def _open_all(self) -> list[BinaryIO]:
        """The files of the log that exist, oldest first, open; names that change meanwhile are looked at again."""
        while True:
            opened = [file for path in logbook.generations(self._path) if (file := _open(path))]
            seen = [os.fstat(file.fileno()).st_ino for file in opened]
            if seen == [stat for path in logbook.generations(self._path) if (stat := _inode(path))]:
                return opened
            for file in opened:
                file.close()


def _enough(blocks: Iterable[list[Line]], wanted: Part) -> bool:
    if wanted.since is not None and any(block and block[0].when < wanted.since for block in blocks):
        return True
    return wanted.lines is not None and sum(map(len, blocks)) >= wanted.lines


def _split(text: str) -> list[str]:
    """Lines as a text file has them: a progress bar's carriage returns end one, exotic separators do not."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _time_of(text: str) -> float | None:
    match = logbook.STAMP.match(text)
    try:
        return datetime.fromisoformat(match[0].strip()).timestamp() if match else None
    except (ValueError, OverflowError):  # it only looked like a time
        return None


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
