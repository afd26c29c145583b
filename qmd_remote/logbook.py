"""The log of a service that `up` started: what its process prints and what its supervisor says, with the time, in
files of bounded size.

The supervisor reads its child through a pipe and writes each line behind a stamp of fixed width (local time with its
offset) to LOG/<service>.log; a full file becomes .log.1, that one .log.2, and so on. Writing never fails for the one
who writes: what a full disk refuses is counted and told when there is room again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from qmd_remote import paths
from qmd_remote.errors import ConfigError

MAX_BYTES = 10_000_000
OLDER = 3  # files beside the current one
LINE_LIMIT = 16_384  # bytes; a longer line is split
UNFINISHED_S = 0.5  # how long the start of a line waits for its end
DRAIN_S = 1.0  # how long the output of an ended child is waited for, when a grandchild holds the pipe
CRASH_LINES = 400

STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d ", re.MULTILINE)
STAMPED = "QMD_REMOTE_LOG_IS_STAMPED"  # "1" in a child's environment: its lines get their time from the supervisor
WITH_TIME = "%(asctime)s %(levelname)s %(message)s"
WITHOUT_TIME = "%(levelname)s %(message)s"

_LINE_END = re.compile(rb"\r\n|\r|\n")


def unstamped(text: str) -> str:
    """A log's text without the time before its lines."""
    return STAMP.sub("", text)


def line_format(env: Mapping[str, str] = os.environ) -> str:
    """The format of our own log lines: without a time where a supervisor puts one before them."""
    return WITHOUT_TIME if env.get(STAMPED) == "1" else WITH_TIME


def generations(log_file: Path) -> list[Path]:
    """Where the files of a log may lie, oldest first; any may be missing."""
    return [_older(log_file, number) for number in range(OLDER, 0, -1)] + [log_file]


def crash_file(log_file: Path) -> Path:
    """Where the last words of a child that crashed are kept; those of the crash before have `.1` behind."""
    return log_file.with_suffix(".crash.log")


def begin(log_file: Path) -> BinaryIO:
    """A fresh file for a new start, owner-readable; what was there becomes `.log.1`. Raises ConfigError or OSError."""
    paths.make_private(log_file.parent)
    if log_file.exists() and log_file.stat().st_size:
        _shift(log_file)
    return os.fdopen(_open(log_file), "wb", buffering=0)


def take_over(log_file: Path) -> Logbook:
    """The log of this process from now on: its stdout, its stderr and its logging lead to the current file."""
    with suppress(ConfigError):  # its lines are counted until there is a place
        paths.make_private(log_file.parent)
    book = Logbook(log_file, streams=(1, 2))
    logging.basicConfig(handlers=[_Handler(book)], level=logging.INFO, format=WITHOUT_TIME)
    return book


class Logbook:
    """One log file and its older ones. `streams` are descriptors of this process that follow the current file."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, streams: Sequence[int] = ()) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._streams = streams
        self._fd = -1
        self._identity = (-1, -1)
        self._torn = False
        self._lost = 0
        self.append([])

    def say(self, text: str) -> None:
        """Write a message, each of its lines with the time."""
        self.append(_stamp(text.encode("utf-8", "backslashreplace").split(b"\n")))

    def append(self, lines: Sequence[bytes]) -> None:
        """Write whole lines as they are. Never raises: lines that cannot be written are counted."""
        data = b"".join(line + b"\n" for line in lines)
        try:
            self._reach(len(data))
            if self._lost and data:
                note = _stamp([b"WARNING %d lines are missing here: they could not be written" % self._lost])[0]
                self._write(note + b"\n")
                self._lost = 0
            self._write(data)
        except OSError:
            self._lost += len(lines)

    async def intake(self, prefix: bytes = b"") -> Intake:
        """A new pipe for a child, whose lines are written here behind `prefix`. Raises OSError."""
        read_end, write_end = os.pipe()
        intake = Intake(self, write_end, prefix)
        await asyncio.get_running_loop().connect_read_pipe(lambda: intake, os.fdopen(read_end, "rb", buffering=0))
        return intake

    def keep_crash(self, how: str, lines: Iterable[bytes]) -> Path | None:
        """Keep the last words of a child beside the log; returns where, or None when they cannot be written."""
        path = crash_file(self.path)
        draft = path.with_suffix(".tmp")
        title = b"\n".join(_stamp([how.encode(), b"its last lines, at most %d:" % CRASH_LINES]))
        try:
            draft.unlink(missing_ok=True)
            with os.fdopen(_open(draft), "wb") as file:
                file.write(b"\n".join([title, *lines, b""]))
            if path.exists():
                path.replace(path.with_name(f"{path.name}.1"))
            draft.replace(path)
        except OSError:
            return None
        return path

    def _reach(self, coming: int) -> None:
        """Have the current file open: it may be full, or somebody may have moved or removed it or its folder."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            return self._reopen()
        if (there.st_dev, there.st_ino) != self._identity:
            return self._reopen()
        if there.st_size and there.st_size + coming > self._max_bytes:
            with suppress(OSError):  # then it grows beyond its limit, which is better than silence
                _shift(self.path)
            self._reopen()
        return None

    def _reopen(self) -> None:
        fd = _open(self.path)
        for stream in self._streams:
            os.dup2(fd, stream)
        if self._fd >= 0:
            os.close(self._fd)
        there = os.fstat(fd)
        self._fd, self._identity, self._torn = fd, (there.st_dev, there.st_ino), False

    def _write(self, data: bytes) -> None:
        if self._torn and data:
            data = b"\n" + data
        while data:
            written = os.write(self._fd, data)
            self._torn = data[written - 1 : written] != b"\n"
            data = data[written:]


class LineSplitter:
    """Bytes as they come → whole lines. A carriage return ends a line too, as progress bars use it."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_return = False
        self._told = False

    @property
    def unfinished(self) -> bool:
        """Whether the start of a line waits for its end."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete, without their ends."""
        if self._after_return:
            data = data.removeprefix(b"\n")
            self._after_return = False
        if not data:
            return []
        self._after_return = data.endswith(b"\r")
        data = self._rest + data
        lines: list[bytes] = []
        start = 0
        for end in _LINE_END.finditer(data):
            text, start = data[start : end.start()], end.end()
            # a bar's return before its text ends nothing, and neither does the end of a line that was told already
            if text or not (self._told or end[0].startswith(b"\r")):
                lines += _pieces(text)
            self._told = False
        *full, self._rest = _pieces(data[start:])
        return lines + full

    def flush(self) -> list[bytes]:
        """The start of a line that has no end yet, if there is one."""
        rest, self._rest = self._rest, b""
        if not rest:
            return []
        self._told = True
        return [rest]


class Intake(asyncio.Protocol):
    """The output of one child on its way into a logbook. Hand `fd` to the child; call `finish` after its end."""

    def __init__(self, book: Logbook, fd: int, prefix: bytes) -> None:
        self.fd = fd
        self.recent: deque[bytes] = deque(maxlen=CRASH_LINES)
        self._book = book
        self._prefix = prefix
        self._splitter = LineSplitter()
        self._ended = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is watched."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The child printed something."""
        self._keep(self._splitter.feed(data))
        if self._splitter.unfinished and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(UNFINISHED_S, self._flush)

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody holds the pipe's other end any more."""
        self._ended.set()

    async def finish(self) -> None:
        """Wait for the child's last lines, for a second at most: something that it started may hold the pipe."""
        os.close(self.fd)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), DRAIN_S)
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._keep(self._splitter.flush())

    def _keep(self, lines: Sequence[bytes]) -> None:
        if lines:
            stamped = _stamp([self._prefix + line for line in lines])
            self.recent.extend(stamped)
            self._book.append(stamped)


class _Handler(logging.Handler):
    """Our own log messages, in the same book."""

    def __init__(self, book: Logbook) -> None:
        super().__init__()
        self._book = book

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        try:
            self._book.say(self.format(record))
        except Exception:  # a message that cannot be formatted must not end who said it: logging's own rule
            self.handleError(record)


def _stamp(lines: Sequence[bytes], now: Callable[[], datetime] = datetime.now) -> list[bytes]:
    stamp = now().astimezone().isoformat(timespec="milliseconds").encode()
    return [b"%s %s" % (stamp, line) for line in lines]


def _pieces(line: bytes) -> list[bytes]:
    return [line[start : start + LINE_LIMIT] for start in range(0, max(1, len(line)), LINE_LIMIT)]


def _older(log_file: Path, number: int) -> Path:
    return log_file.with_name(f"{log_file.name}.{number}")


def _shift(log_file: Path) -> None:
    """Make room for a new file. Numbers that are free are used first, so that no file is dropped without need."""
    used = next((number for number in range(1, OLDER + 1) if not _older(log_file, number).exists()), OLDER)
    for number in range(used, 1, -1):
        _older(log_file, number - 1).replace(_older(log_file, number))
    log_file.replace(_older(log_file, 1))


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
