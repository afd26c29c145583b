"""The log of a supervised process: whole lines with their times, in files of bounded size, whatever the disk does."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote import logbook
from qmd_remote.logbook import LineSplitter, Logbook

LIMIT_S = 20
STAMP_WIDTH = len("2026-11-22T21:33:11.123+00:00 ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log lies."""
    return tmp_path / "log" / "embed.log"


@pytest.fixture
def book(path: Path) -> Logbook:
    """A logbook that takes 200 bytes a file."""
    path.parent.mkdir()
    return Logbook(path, max_bytes=200)


def texts(path: Path) -> list[str]:
    """A file's lines without their times."""
    return logbook.unstamped(path.read_text()).splitlines()


def everything(path: Path) -> list[str]:
    """The lines of all files of a log, oldest first."""
    return [line for file in logbook.generations(path) if file.exists() for line in texts(file)]


# lines


@given(st.lists(st.sampled_from([b"ab", b"c", b"\n", b"\r", b"\r\n", b"\n\n", "é".encode()]), max_size=20))
def test_lines_are_the_same_however_they_arrive(parts: list[bytes]):
    """Bytes that come one by one make the same lines as those that come at once; nothing but line ends is lost."""
    whole, slow = LineSplitter(), LineSplitter()
    data = b"".join(parts)
    expected = whole.feed(data) + whole.flush()
    found = [line for number in range(len(data)) for line in slow.feed(data[number : number + 1])] + slow.flush()
    assert expected == found
    assert data.translate(None, b"\r\n") == b"".join(found)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\r\nc\n", [b"a", b"b", b"c"]),
        (b"a\n\nb\n", [b"a", b"", b"b"]),
        (b"\rbar 1%\rbar 2%\r\n", [b"bar 1%", b"bar 2%"]),
        (b"unfinished", []),
    ],
)
def test_a_line_feed_and_a_carriage_return_end_a_line(data: bytes, lines: list[bytes]):
    """Empty lines are kept, but not those that a progress bar makes by returning before its text."""
    assert lines == LineSplitter().feed(data)


def test_the_start_of_a_line_that_was_told_is_not_told_again():
    """A prompt that waited too long for its end is a line, and its end makes no second, empty one."""
    splitter = LineSplitter()
    assert [] == splitter.feed(b"loading ")
    assert [b"loading "] == splitter.flush()
    assert [b"next"] == splitter.feed(b"\nnext\n")
    splitter.feed(b"half")
    splitter.flush()
    assert [b" done", b""] == splitter.feed(b" done\n\n")


def test_a_very_long_line_is_split():
    """A line beyond the limit becomes several, also before its end has come."""
    splitter = LineSplitter()
    size = logbook.LINE_LIMIT
    assert [b"x" * size, b"x" * size] == splitter.feed(b"x" * (2 * size + 5))
    assert [b"xxxxxy"] == splitter.feed(b"y\n")
    assert [size, 3] == [len(line) for line in splitter.feed(b"z" * (size + 3) + b"\n")]


# files


def test_every_line_has_its_time_in_front(book: Logbook, path: Path):
    """The stamp is local time with its offset, of fixed width, on each line of a message."""
    before = datetime.now().astimezone().replace(microsecond=0)
    book.say("one\ntwo")
    lines = path.read_text().splitlines()
    assert ["one", "two"] == [line[STAMP_WIDTH:] for line in lines]
    for line in lines:
        assert before <= datetime.fromisoformat(line[: STAMP_WIDTH - 1]) <= datetime.now().astimezone()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_full_file_is_put_aside(book: Logbook, path: Path):
    """Files have a bound, there are three older ones, and the newest lines are in order and without a gap."""
    for number in range(100):
        book.say(f"line {number}")
    files = [file for file in logbook.generations(path) if file.exists()]
    assert ["embed.log.3", "embed.log.2", "embed.log.1", "embed.log"] == [file.name for file in files]
    assert all(file.stat().st_size <= 200 for file in files)
    found = everything(path)
    assert [f"line {number}" for number in range(100 - len(found), 100)] == found
    assert 4 == len(list(path.parent.iterdir()))


def test_a_new_start_begins_a_new_file(path: Path):
    """The log of the run before is `.log.1`; an empty one is not worth keeping."""
    for words in (b"first\n", b"", b"second\n"):
        with logbook.begin(path) as file:
            file.write(words)
    assert b"second\n" == path.read_bytes()
    assert b"first\n" == path.with_suffix(".log.1").read_bytes()
    assert 2 == len(list(path.parent.iterdir()))
    assert (0o600, 0o700) == tuple(stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent))


def test_a_gap_in_the_older_files_is_filled_first(path: Path):
    """After a rotation that was interrupted no older file is dropped without need."""
    path.parent.mkdir()
    for number in (2, 3):
        path.with_suffix(f".log.{number}").write_text(f"older {number}\n")
    path.write_text("current\n")
    logbook.begin(path).close()
    assert ["older 3", "older 2", "current"] == everything(path)


def test_a_log_that_somebody_moved_or_removed_is_begun_again(book: Logbook, path: Path):
    """Whoever tidies up by hand, the folder included, does not end the log."""
    book.say("one")
    path.rename(path.with_name("mine"))
    book.say("two")
    assert ["two"] == texts(path)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    book.say("three")
    assert ["three"] == texts(path)


def test_a_full_disk_costs_lines_and_nothing_else(book: Logbook, path: Path):
    """What cannot be written is counted, and told when there is room again."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path.unlink()
    path.symlink_to("/dev/full")
    book.say("lost\nlost too")
    path.unlink()
    book.say("back")
    assert ["WARNING 2 lines are missing here: they could not be written", "back"] == texts(path)
    book.say("and on")
    assert "and on" == texts(path)[-1]


def test_a_folder_that_cannot_be_made_costs_lines_and_nothing_else(tmp_path: Path):
    """A logbook without a place counts its lines until it has one."""
    book = Logbook(tmp_path / "gone" / "log" / "embed.log")
    book.say("lost")
    (tmp_path / "gone").mkdir()
    book.say("back")
    assert ["WARNING 1 lines are missing here: they could not be written", "back"] == texts(book.path)


# the whole process


PROGRAM = """
import logging, os, pathlib, sys
from qmd_remote import logbook
book = logbook.take_over(pathlib.Path(sys.argv[1]))
book._max_bytes = 300
for number in range(4):
    logging.getLogger("x").info("message %d", number)
    if number:
        book.append([b"-" * 280])  # the next one needs a new file
logging.getLogger("x").warning("last message\\nof two lines")
print("raw words", flush=True)
logging.getLogger("x").error("failed", exc_info=ValueError("odd"))
raise RuntimeError("raw traceback")
"""


def test_logging_stdout_and_stderr_of_a_process_lead_to_the_current_file(path: Path):
    """Also after rotations what a supervisor prints lies in the current file, and its messages bear one time each."""
    path.parent.mkdir()
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, timeout=60, check=False)
    assert (1, b"", b"") == (done.returncode, done.stdout, done.stderr)
    lines = path.read_text().splitlines()
    assert "WARNING last message" in texts(path)
    assert "of two lines" in texts(path)
    assert "raw words" in lines
    assert "ValueError: odd" in texts(path)
    assert "RuntimeError: raw traceback" == lines[-1]
    assert all(line.count("+") <= 1 for line in lines)
    assert path.with_suffix(".log.3").exists()


def test_our_own_lines_have_a_time_unless_somebody_else_gives_it():
    """A worker whose lines are stamped by its supervisor leaves out its own time."""
    assert "asctime" in logbook.line_format({})
    assert "asctime" not in logbook.line_format({logbook.STAMPED: "1"})
    assert "asctime" in logbook.line_format({logbook.STAMPED: ""})


# a child's output


def run_child(book: Logbook, code: str, *, prefix: bytes = b"") -> list[str]:
    """Run a program whose output goes into the book; returns what is recent, without times."""

    async def scene() -> list[bytes]:
        intake = await book.intake(prefix)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-c", code, stdout=intake.fd, stderr=intake.fd
        )
        async with asyncio.timeout(LIMIT_S):
            await process.wait()
            await intake.finish()
        return list(intake.recent)

    return [logbook.unstamped(line.decode()) for line in asyncio.run(scene())]


def test_stdout_and_stderr_of_a_child_are_one_log(path: Path):
    """Both are written in their order, with a prefix if there is one, and the last unfinished line too."""
    path.parent.mkdir()
    code = "import sys; print('out'); print('err', file=sys.stderr); print('1%\\r2%', end='\\r'); print('bye', end='')"
    found = run_child(Logbook(path), code, prefix=b"child: ")
    assert ["child: out", "child: err", "child: 1%", "child: 2%", "child: bye"] == found == texts(path)


def test_the_last_lines_of_a_child_are_waited_for_but_not_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A grandchild that keeps the pipe open delays its grandparent by no more than the limit."""
    monkeypatch.setattr(logbook, "DRAIN_S", 0.2)
    path.parent.mkdir()
    sleeper = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True).pid"
    found = run_child(Logbook(path), f"import subprocess, sys; print({sleeper}); print('half', end='')")
    os.kill(int(found[0]), 9)
    assert "half" == found[1]


def test_the_start_of_a_line_is_shown_before_its_end(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A line that takes long to be finished can be read before: a prompt, a bar."""
    monkeypatch.setattr(logbook, "UNFINISHED_S", 0.05)
    path.parent.mkdir()

    async def scene() -> None:
        intake = await Logbook(path).intake()
        os.write(intake.fd, b"Loading: 3%")
        async with asyncio.timeout(LIMIT_S):
            while not texts(path):  # noqa: ASYNC110 - a file sets no event
                await asyncio.sleep(0.01)
        os.write(intake.fd, b"\nnext\n")
        await intake.finish()

    asyncio.run(scene())
    assert ["Loading: 3%", "next"] == texts(path)


def test_a_child_that_prints_much_loses_nothing(path: Path):
    """Many lines at once are all there, across files, in order, and do not fill the memory."""
    path.parent.mkdir()
    book = Logbook(path, max_bytes=1_000_000)
    recent = run_child(book, "import sys; sys.stdout.write(''.join(f'line {n}\\n' for n in range(40_000)))")
    assert [f"line {n}" for n in range(40_000)] == everything(path)
    assert [f"line {n}" for n in range(40_000 - logbook.CRASH_LINES, 40_000)] == recent


# crashes


def test_the_last_words_before_a_crash_are_kept_twice(book: Logbook, path: Path):
    """The newest crash has its file, and so has the one before; new starts do not touch them."""
    for number in range(3):
        kept = book.keep_crash(f"child was killed by SIGKILL, {number}", [b"line %d" % number])
        assert path.with_name("embed.crash.log") == kept
        logbook.begin(path).close()
    assert ["child was killed by SIGKILL, 2", "its last lines, at most 400:", "line 2"] == texts(kept)
    assert "line 1" == texts(kept.with_name("embed.crash.log.1"))[-1]
    assert 0o600 == stat.S_IMODE(kept.stat().st_mode)
    assert 3 == len(list(path.parent.iterdir()))


def test_a_crash_that_cannot_be_kept_is_no_error(tmp_path: Path):
    """Without a place for it nothing is kept, and the supervisor goes on."""
    assert Logbook(tmp_path / "gone" / "log" / "embed.log").keep_crash("child ended", []) is None
