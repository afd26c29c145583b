"""Reading the services' logs, to their end and beyond."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmd_remote import paths
from qmd_remote.errors import NotRunning, UsageError
from qmd_remote.launch import logs


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
