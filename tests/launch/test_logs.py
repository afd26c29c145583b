"""Reading the services' logs, to their end and beyond."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from qmd_remote import logbook, paths
from qmd_remote.errors import NotRunning, UsageError
from qmd_remote.launch import logs
from qmd_remote.launch.logs import Part
from qmd_remote.logbook import Logbook


@pytest.fixture(autouse=True)
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of the test's own, and no long pauses."""
    monkeypatch.setattr(logs, "POLL_S", 0.01)


def write(service: str, text: str) -> Path:
    """Add to a service's log."""
    path = paths.log_file(service)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)
    return path


def test_the_logs_there_are_can_be_found():
    """Both logs are found, or the one that was asked for, in the order in which the services start."""
    embed, generation = write("embed", "e\n"), write("generation", "g\n")
    assert [("generation", generation), ("embed", embed)] == list(logs.files(None).items())
    assert {"embed": embed} == logs.files("embed")


def test_a_log_that_was_never_written_is_not_there():
    """Before anything was started there is no log, and the hint says how to start."""
    write("embed", "e\n")
    assert ["embed"] == list(logs.files(None))
    with pytest.raises(NotRunning) as caught:
        logs.files("generation")
    assert "qmd-remote up" == caught.value.hint


def test_an_unknown_service_is_an_error_of_usage():
    """A service that does not exist is answered with those that do."""
    with pytest.raises(UsageError) as caught:
        logs.files("embedd")
    assert "'embedd'" in caught.value.message
    assert "generation, embed" in caught.value.hint


@pytest.mark.parametrize(("lines", "expected"), [(2, ["b", "c"]), (9, ["a", "b", "c"]), (0, []), (-1, [])])
def test_the_tail_is_the_last_lines(lines: int, expected: list[str]):
    """As many lines as asked for, from the end, whatever bytes the log holds."""
    path = write("embed", "a\nb\nc\n")
    assert expected == logs.tail(path, lines)


def test_bytes_that_are_no_text_are_shown_as_such():
    """A log with broken bytes is shown all the same."""
    path = write("embed", "")
    path.write_bytes(b"ok\n\xff\xfe\n")
    assert ["ok", "\ufffd\ufffd"] == logs.tail(path, 2)


def test_without_follow_a_stream_ends():
    """The last lines of every log come with the names of their services, and that is all."""
    write("generation", "g1\ng2\n")
    write("embed", "e1\ne2\n")
    assert [("generation", "g2"), ("embed", "e2")] == list(logs.stream(logs.files(None), 1, follow=False))


def test_following_shows_what_is_added_whole_lines_at_a_time():
    """What a service writes later comes later; half a line waits for its end."""
    write("embed", "old\n")
    stream = logs.stream(logs.files("embed"), 5, follow=True)
    assert ("embed", "old") == next(stream)
    write("embed", "one\ntw")
    assert ("embed", "one") == next(stream)
    write("embed", "o\n")
    assert ("embed", "two") == next(stream)


def test_following_goes_on_in_the_new_file_after_a_restart():
    """A restart begins a new log file; following shows it from its start."""
    path = write("embed", "before\n")
    stream = logs.stream(logs.files("embed"), 5, follow=True)
    assert ("embed", "before") == next(stream)
    path.replace(path.with_suffix(".log.1"))
    write("embed", "after\n")
    assert ("embed", "after") == next(stream)


def test_following_survives_a_file_that_was_cut():
    """A log that was emptied by hand is read from its start again."""
    path = write("embed", "a long line before\n")
    stream = logs.stream(logs.files("embed"), 5, follow=True)
    next(stream)
    path.write_text("new\n")
    assert ("embed", "new") == next(stream)


def test_a_line_is_the_same_line_however_it_is_read():
    """A progress bar that rewrites its line is cut into the same lines at the tail and while following."""
    text = "Loading weights:   0%|\rLoading weights: 100%|\nseparator\u2028inside\x0cof a line\n"
    path = write("embed", "x\n")
    stream = logs.stream(logs.files("embed"), 1, follow=True)
    next(stream)
    write("embed", text)
    assert logs.tail(path, 3) == [next(stream)[1] for _ in range(3)]


def stamped(minute: int, text: str) -> str:
    """A line as it was logged at a minute of an hour."""
    return f"2026-11-22T21:{minute:02}:00.000+00:00 {text}\n"


def at(minute: int) -> float:
    """That minute."""
    return datetime.fromisoformat(f"2026-11-22T21:{minute:02}:00+00:00").timestamp()


# older files


def test_older_files_are_read_as_far_as_needed():
    """The tail goes back into the files that were put aside, and no line is there twice."""
    for suffix, name in ((".log.3", "a"), (".log.1", "b"), (".log", "c")):
        write("embed", "").with_suffix(suffix).write_text(f"{name}1\n{name}2\n")
    path = paths.log_file("embed")
    assert ["c2"] == logs.tail(path, 1)
    assert ["b2", "c1", "c2"] == logs.tail(path, 3)
    assert ["a1", "a2", "b1", "b2", "c1", "c2"] == logs.tail(path, 50) == logs.tail(path, None)


# by time


def test_since_is_counted_by_the_times_of_the_lines():
    """Only what was written from then on is shown, out of as many files as that takes."""
    path = write("embed", stamped(20, "c"))
    path.with_suffix(".log.1").write_text(stamped(10, "b1") + stamped(15, "b2"))
    path.with_suffix(".log.2").write_text(stamped(1, "a1") + stamped(5, "a2"))

    def since(minute: int, lines: int | None = None) -> list[str]:
        return [line.split()[1] for line in logs.read(path, Part(lines, at(minute)))]

    assert (["c"], ["b2", "c"], ["a2", "b1", "b2", "c"]) == (since(20), since(11), since(5))
    assert ([], ["b2", "c"]) == (since(21), since(0, lines=2))


def test_a_line_without_a_time_belongs_to_the_one_before():
    """A traceback printed past the log comes with the line above it; at the start of a file with the one below."""
    path = write("embed", "early\n" + stamped(5, "one") + "  raw\n" + stamped(6, "two"))
    expected = ["early", "one", "  raw", "two"]
    assert expected == [logbook.unstamped(line) for line in logs.read(path, Part(None, at(5)))]
    assert ["two"] == [logbook.unstamped(line) for line in logs.read(path, Part(None, at(6)))]


def test_a_log_without_any_time_counts_as_of_its_last_change():
    """What failed before its supervisor could log is still found by time."""
    path = write("embed", "Traceback\n")
    changed = path.stat().st_mtime
    assert ["Traceback"] == logs.read(path, Part(None, changed - 1))
    assert [] == logs.read(path, Part(None, changed + 1))


def test_the_lines_of_both_services_are_in_the_order_of_time():
    """Without following, lines of several logs are interleaved; times are shown only on demand."""
    write("generation", stamped(1, "g1") + "raw\n" + stamped(4, "g4"))
    write("embed", stamped(2, "e2") + stamped(3, "e3"))
    found = logs.files(None)
    expected = [("generation", "g1"), ("generation", "raw"), ("embed", "e2"), ("embed", "e3"), ("generation", "g4")]
    assert expected == list(logs.stream(found, 50, follow=False))
    assert stamped(1, "g1").strip() == next(iter(logs.stream(found, 50, follow=False, stamps=True)))[1]


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("10m", 600), ("2h", 7200), ("1d", 86400), (" 0s ", 0)])
def test_a_time_may_be_so_long_ago(text: str, seconds: int):
    """Seconds, minutes, hours and days before now."""
    assert 1e9 - seconds == logs.point_in_time(text, 1e9)


def test_a_time_may_be_an_iso_time():
    """With an offset, in UTC, in local time, or a day alone."""
    assert at(30) == logs.point_in_time("2026-11-22T21:30:00+00:00", 0) == logs.point_in_time("2026-11-22T21:30Z", 0)
    assert datetime(2026, 11, 22, 21, 30).timestamp() == logs.point_in_time("2026-11-22 21:30", 0)
    assert datetime(2026, 11, 22).timestamp() == logs.point_in_time("2026-11-22", 0)


@pytest.mark.parametrize("text", ["", "soon", "10", "10 m", "-5m", "1.5h", "10w", "9" * 400 + "d", "2026-13-01", "٣m"])
def test_another_time_is_an_error_of_usage_with_examples(text: str):
    """What cannot be understood is named, and what could be is shown."""
    with pytest.raises(UsageError) as caught:
        logs.part(None, text)
    assert f"'{text}'" in caught.value.message
    assert "--since 10m" in caught.value.hint


def test_a_time_alone_means_all_lines_since():
    """-n has a default only without --since."""
    assert Part(50, None) == logs.part(None, None)
    assert Part(7, None) == logs.part(7, None)
    assert Part(None, 40) == logs.part(None, "1m", now=100)
    assert Part(7, 40) == logs.part(7, "1m", now=100)


# crashes


def test_the_newest_crash_alone_is_shown():
    """The last words before the newest crash, or the last few of them; the crash before is another file."""
    path = write("embed", "")
    for number in range(2):
        Logbook(path).keep_crash(f"crash {number}", [b"one", b"two"])
    found = logs.crashes(None)
    assert ["embed"] == list(found)
    words = [logbook.unstamped(line) for line in logs.last_words(found["embed"], None)]
    assert ("crash 1", 4) == (words[0], len(words))
    assert (["two"], []) == (logs.last_words(found["embed"], 1), logs.last_words(found["embed"], 0))
    assert {} == logs.crashes("generation")


# following


def lines_of(stream: Iterator[tuple[str, str]], count: int) -> list[str]:
    """The next lines."""
    return [text for _, text in itertools.islice(stream, count)]


def test_following_loses_and_repeats_nothing_while_files_are_put_aside():
    """However often the log is rotated between two looks (as long as the files exist), each line comes once."""
    path = write("embed", "")
    book = Logbook(path, max_bytes=2000)
    stream = logs.stream(logs.files("embed"), 0, follow=True)
    book.say("first")
    assert ["first"] == lines_of(stream, 1)
    for start in range(0, 300, 60):
        for number in range(start, start + 60):
            book.say(f"line {number}")
        assert [f"line {number}" for number in range(start, start + 60)] == lines_of(stream, 60)
    assert path.with_suffix(".log.3").exists()


def test_following_meets_a_writer_in_full_swing():
    """A writer in another thread that rotates while we read: every line comes, once, in order."""
    book = Logbook(write("embed", ""), max_bytes=20_000)
    stream = logs.stream(logs.files("embed"), 0, follow=True)
    behind = threading.Semaphore(300)  # fewer lines than three files hold

    def work() -> None:
        for number in range(3000):
            behind.acquire()
            book.say(f"line {number}")

    book.say("first")
    writer = threading.Thread(target=work, daemon=True)
    assert "first" == next(stream)[1]
    writer.start()
    for number in range(3000):
        assert f"line {number}" == next(stream)[1]
        behind.release()
    writer.join(10)


def test_following_goes_on_after_more_was_put_aside_than_is_kept():
    """Who reads too slowly loses what is gone, and goes on with the rest of its file and the oldest that is there."""
    path = write("embed", "")
    book = Logbook(path, max_bytes=200)
    stream = logs.stream(logs.files("embed"), 0, follow=True)
    book.say("first")
    assert ["first"] == lines_of(stream, 1)
    for number in range(100):
        book.say(f"line {number}")
    kept = [logbook.unstamped(text) for text in logs.tail(path, None)]
    found = [text for _, text in itertools.takewhile(lambda one: one[1] != "line 99", stream)]
    numbers = [int(text.split()[1]) for text in found]
    assert kept == [*found, "line 99"][-len(kept) :]
    assert sorted(set(numbers)) == numbers
    assert 0 == numbers[0]
    assert len(numbers) < 99


def test_a_log_that_was_removed_by_hand_does_not_bring_older_lines_back():
    """After `rm embed.log` following goes on with the new file, and not with the files that were read long ago."""
    path = write("embed", "")
    path.with_suffix(".log.1").write_text("long ago\n")
    book = Logbook(path)
    stream = logs.stream(logs.files("embed"), 0, follow=True)
    book.say("first")
    assert ["first"] == lines_of(stream, 1)
    path.unlink()
    book.say("second")
    assert ["second"] == lines_of(stream, 1)


def test_following_waits_for_a_log_that_is_not_there_yet():
    """The log of a service that is started later is shown from its first line."""
    write("embed", "old\n")
    stream = logs.stream(logs.places(None), 5, follow=True)
    assert ("embed", "old") == next(stream)
    write("generation", "born\n")
    assert ("generation", "born") == next(stream)


def test_following_ends_when_it_is_told_to():
    """A follower that is stopped shows what came before, and ends; it begins where it was made."""
    write("embed", "old\n")
    stop = threading.Event()
    stream = logs.follow(logs.places(None), stop=stop)
    write("embed", "new\n")
    write("generation", stamped(1, "born"))
    stop.set()
    assert {("embed", "new"), ("generation", "born")} == set(stream)
