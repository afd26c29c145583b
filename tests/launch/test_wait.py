"""Waiting for a service, on a real HTTP service and with a clock of the test's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from qmd_remote.errors import Exit, ServiceFailed, WaitEnded
from qmd_remote.launch import wait
from qmd_remote.launch.phases import Phase

NOWHERE = "http://127.0.0.1:1"


class Story:
    """What happens while a wait pauses: one step a pause; the clock goes on by `step_s` each time."""

    def __init__(self, log_file: Path, *steps: Callable[[], object], step_s: float = 1) -> None:
        self.log_file, self.steps, self.step_s = log_file, list(steps), step_s
        self.now = 0.0
        self.code: int | None = None
        self.told: list[Phase] = []

    def poll(self) -> int | None:
        """The process's exit code."""
        return self.code

    def ends(self, code: int) -> None:
        """Let the process end."""
        self.code = code

    def logs(self, text: str) -> None:
        """Let the service write to its log."""
        with self.log_file.open("a", newline="") as file:
            file.write(text)

    def pause(self, seconds: float) -> None:
        """The next step."""
        assert seconds > 0
        self.now += self.step_s
        if self.steps:
            self.steps.pop(0)()

    def wait(self, url: str, *, stall_s: float = 300, total_s: float = 3600, key: str = "") -> float:
        """Wait for the service to be ready."""
        return wait.until_ready(
            "the engine",
            url,
            self,
            log_file=self.log_file,
            limits=wait.Limits(stall_s, total_s),
            on_phase=self.told.append,
            key=key,
            clock=lambda: self.now,
            pause=self.pause,
        )


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """Where the service logs."""
    return tmp_path / "engine.log"


def test_a_service_that_answers_is_ready(scripted, log_file: Path):
    """200 on /health ends the wait, without a phase and without a pause."""
    story = Story(log_file)
    assert 0 == story.wait(scripted.url)
    assert (["/health"], []) == (scripted.seen, story.told)


def test_phases_of_the_log_are_told_once_each(scripted, log_file: Path):
    """While nobody answers the log tells what is going on; a phase is told when it begins or advances."""
    scripted.status, scripted.body = 502, b"not json"
    story = Story(
        log_file,
        lambda: story.logs("Loading weights:   0%|"),
        lambda: story.logs("some line\n"),
        lambda: story.logs("\rLoading weights:  62%|"),
        lambda: None,
        lambda: story.logs("\nINFO: Started server process [1]\n"),
        lambda: setattr(scripted, "status", 200),
    )
    assert 6 == story.wait(scripted.url)
    expected = [Phase("starting"), Phase("loading the weights", 0), Phase("loading the weights", 62)]
    assert [*expected, Phase("starting")] == story.told


def test_our_server_s_own_phase_goes_before_its_log(scripted, log_file: Path):
    """What our server's 503 says of its loading is told with its percentage, whatever the log says."""
    log_file.write_text("Loading weights: 3%|")
    scripted.status = 503
    scripted.body = json.dumps({"status": "loading", "phase": "loading acme/embed", "progress": 0.257}).encode()
    story = Story(
        log_file,
        lambda: setattr(scripted, "body", b'{"status": "loading", "phase": "warming up", "progress": null}'),
        lambda: setattr(scripted, "status", 200),
    )
    assert 2 == story.wait(scripted.url)
    assert [Phase("loading acme/embed", 26), Phase("warming up")] == story.told


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"phase": null}',
        b'{"phase": "x", "progress": "half"}',
        b"\xff",
        b'{"phase": "x", "progress": NaN}',
        b'{"phase": "x", "progress": 1e999}',
        b'{"error": {"message": "no"}}',
    ],
)
def test_a_strange_answer_does_not_end_the_wait(body: bytes, scripted, log_file: Path):
    """A 503 of any other shape means "not ready", and the log is asked instead."""
    scripted.status, scripted.body = 503, body
    log_file.write_text("Started server process\n")
    story = Story(log_file, lambda: setattr(scripted, "status", 200))
    story.wait(scripted.url)
    assert [Phase("starting")] == story.told


def test_the_end_of_the_process_ends_the_wait_with_the_cause(log_file: Path, excerpt):
    """A process that ends is noticed before the next pause, and the error tells why, from its log."""
    story = Story(log_file, lambda: story.logs(excerpt("transformers_gated")), lambda: story.ends(1))
    with pytest.raises(ServiceFailed) as caught:
        story.wait(NOWHERE)
    assert ("model.gated", 2) == (caught.value.code, story.now)
    assert "the engine could not start" in caught.value.message


def test_the_end_of_the_process_without_a_known_cause_points_at_the_log(log_file: Path):
    """Where the log holds no known cause, its last error is shown, and where the whole log lies."""
    story = Story(log_file, lambda: story.logs("ValueError: odd\n"), lambda: story.ends(3))
    with pytest.raises(ServiceFailed) as caught:
        story.wait(NOWHERE)
    assert "the engine ended with exit code 3: ValueError: odd" == caught.value.message
    assert str(log_file) in caught.value.hint


def test_standing_still_ends_the_wait(log_file: Path):
    """Without a new phase or a longer log the wait ends at the stall limit, and names what it was doing."""
    story = Story(log_file, lambda: story.logs("Loading weights: 62%|"), step_s=100)
    with pytest.raises(WaitEnded) as caught:
        story.wait(NOWHERE, stall_s=300)
    assert ("wait.stalled", Exit.WAIT_ENDED, 500) == (caught.value.code, caught.value.exit_code, story.now)
    assert "no progress for 400 s while loading the weights" in caught.value.message
    assert str(log_file) in caught.value.hint
    assert "QMD_REMOTE_STALL_LIMIT_S=900" in caught.value.hint


def test_progress_of_any_kind_puts_the_stall_limit_off(scripted, log_file: Path):
    """A percentage, a phase or a line of log each count as progress; the time for all of it may be longer."""
    scripted.status = 503
    scripted.body = b'{"phase": "a", "progress": 0.1}'
    story = Story(
        log_file,
        lambda: setattr(scripted, "body", b'{"phase": "a", "progress": 0.2}'),
        lambda: story.logs("anything"),
        lambda: setattr(scripted, "body", b'{"phase": "b", "progress": 0.2}'),
        lambda: story.logs("."),
        lambda: setattr(scripted, "status", 200),
        step_s=100,
    )
    assert 500 == story.wait(scripted.url, stall_s=150)


def test_the_answers_to_our_own_questions_are_no_progress(scripted, log_file: Path):
    """A service that stands still, and logs each of our questions, stands still."""
    scripted.status = 503
    asked = ("/health", "/v1/models", "/qmd-remote/status")
    lines = "".join(f'INFO:     127.0.0.1:54534 - "GET {path} HTTP/1.1" 503 Service Unavailable\n' for path in asked)
    story = Story(log_file, *[lambda: story.logs(lines)] * 50, step_s=100)
    with pytest.raises(WaitEnded) as caught:
        story.wait(scripted.url)
    assert "wait.stalled" == caught.value.code


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"data": [{"id": "acme/fine"}]}', True),
        (200, b'{"data": []}', False),
        (200, b"not JSON", False),
        (503, b"{}", False),
        (200, b'{"data": [{"id": "acme/other"}]}', "model.other_name"),
        (401, b"{}", "key.refused"),
    ],
)
def test_an_engine_that_will_never_serve_the_model_has_failed(status: int, body: bytes, expected: bool | str):
    """A list that is not there yet is waited for; other names only, and a key that is refused, end the wait."""
    answer = httpx.Response(status, content=body)
    if isinstance(expected, bool):
        assert expected == wait.serves(answer, "acme/fine")
        return
    with pytest.raises(ServiceFailed) as caught:
        wait.serves(answer, "acme/fine")
    assert expected == caught.value.code


def test_the_hard_cap_ends_even_a_wait_with_progress(log_file: Path):
    """A start that goes on and on ends at the cap, and says how to allow more."""
    story = Story(log_file, *[lambda: story.logs("x")] * 100, step_s=100)
    with pytest.raises(WaitEnded) as caught:
        story.wait(NOWHERE, total_s=1000)
    assert ("wait.limit", 1100) == (caught.value.code, story.now)
    assert "not ready after 1100 s" in caught.value.message
    assert "QMD_REMOTE_START_LIMIT_S=3000" in caught.value.hint


def test_ready_counts_before_any_limit(scripted, log_file: Path):
    """A service that became ready in the very pause in which its time ran out is ready."""
    scripted.status = 503
    story = Story(log_file, lambda: setattr(scripted, "status", 200), step_s=5000)
    assert 5000 == story.wait(scripted.url)


def test_proxies_of_the_environment_are_not_asked(scripted, log_file: Path, monkeypatch: pytest.MonkeyPatch):
    """A service on this machine is reached directly, whatever HTTP_PROXY says."""
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    assert 0 == Story(log_file).wait(scripted.url)


@pytest.mark.parametrize(("key", "sent"), [("", None), ("k", "Bearer k")])
def test_a_server_with_a_key_is_asked_with_it(key: str, sent: str | None, scripted, log_file: Path):
    """A server that has a key tells its phase only to those who know it."""
    Story(log_file).wait(scripted.url, key=key)
    assert [sent] == scripted.keys


def test_only_the_end_of_a_long_log_is_read(log_file: Path):
    """The tail of a log has a bound, cuts no character into an error, and is empty without a file."""
    assert "" == wait.read_tail(log_file)
    log_file.write_bytes("ä".encode() * 1000)
    assert "\ufffd" + "ä" * 2 == wait.read_tail(log_file, size=5)
    assert os.stat(log_file).st_size == 2000  # noqa: PTH116 - the file is left as it was


def test_a_log_is_read_without_its_times(log_file: Path):
    """Phases and causes are looked for in what was printed, not in the stamps before it."""
    stamp = "2026-11-22T21:33:11.123+00:00 "
    log_file.write_text(f'{stamp}phase: saving\n{stamp}{{"schema": 1}}\nraw\n')
    assert 'phase: saving\n{"schema": 1}\nraw\n' == wait.read_tail(log_file)


def test_a_log_that_was_put_aside_goes_on_to_be_progress(log_file: Path):
    """News are told whether they come in the same file or in a shorter, new one; empty lines are none."""
    news = wait.News(log_file)
    assert not news.came()
    log_file.write_text("a long line\n" * 10)
    assert [True, False] == [news.came(), news.came()]
    log_file.rename(log_file.with_suffix(".log.1"))
    log_file.write_text("new\n")
    assert [True, False] == [news.came(), news.came()]
    with log_file.open("a") as file:
        file.write("2026-11-22T21:33:11.123+00:00 \n")
    assert not news.came()
