"""What happened to a container, told by looks at it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.launch.container_watch import STOPPED_S, Happening, Watch, end_in_words
from qmd_remote.launch.engine import Found

RUNNING = Found("a1", "qmd-vllm", "vllm", "running", started_at="1")
ENDED = replace(RUNNING, state="restarting", exit_code=1)
STOPPED = replace(RUNNING, state="exited")


def test_a_container_that_runs_on_is_no_news():
    """The same run of the same container is nothing."""
    watch = Watch(RUNNING)
    assert [Happening.NOTHING] * 3 == [watch.see(RUNNING, at) for at in (1.0, 2.0, 3.0)]


def test_an_end_is_told_once_and_the_restart_after_it():
    """While the engine waits before a restart nothing more is told."""
    watch = Watch(RUNNING)
    again = replace(RUNNING, started_at="2")
    looks = [ENDED, ENDED, ENDED, again, again]
    told = [watch.see(look, float(at)) for at, look in enumerate(looks)]
    assert [Happening.ENDED, Happening.NOTHING, Happening.NOTHING, Happening.RESTARTED, Happening.NOTHING] == told
    assert again == watch.found


def test_a_restart_between_two_looks_is_seen():
    """Another start of the same container means that it ended."""
    assert Happening.RESTARTED is Watch(RUNNING).see(replace(RUNNING, started_at="2"), 1.0)


def test_a_restart_of_our_own_is_no_news():
    """What we did ourselves is not told as a crash."""
    watch = Watch(RUNNING)
    again = replace(RUNNING, started_at="2")
    watch.restarted_by_us(again)
    assert Happening.NOTHING is watch.see(again, 1.0)


def test_one_that_stays_down_was_stopped():
    """The engine restarts what ends; what rests longer was stopped by a person."""
    watch = Watch(RUNNING)
    assert Happening.ENDED is watch.see(STOPPED, 0.0)
    assert Happening.NOTHING is watch.see(STOPPED, STOPPED_S)
    assert Happening.STOPPED is watch.see(STOPPED, STOPPED_S + 1)


@pytest.mark.parametrize("state", ["restarting", "paused"])
def test_one_that_will_go_on_is_waited_for(state: str):
    """A back-off of the engine and a pause may last as long as they like."""
    watch = Watch(RUNNING)
    look = replace(RUNNING, state=state)
    watch.see(look, 0.0)
    assert {Happening.NOTHING} == {watch.see(look, at) for at in (5.0, 50.0, 500.0)}


@pytest.mark.parametrize("now", [None, replace(RUNNING, id="b2")])
def test_one_that_is_gone_was_removed(now: Found | None):
    """No container, or another one of this name, is not ours any more."""
    assert Happening.REMOVED is Watch(RUNNING).see(now, 1.0)


@given(st.lists(st.sampled_from(["run", "again", "down", "stop"]), max_size=40))
def test_no_end_is_told_twice(looks: list[str]):
    """Between two ends there is always a restart."""
    watch, started, told = Watch(RUNNING), 1, []
    for at, look in enumerate(looks):
        started += look == "again"
        state = {"down": "restarting", "stop": "exited"}.get(look, "running")
        told.append(watch.see(replace(RUNNING, state=state, started_at=str(started)), at / 10))
    news = [one for one in told if one is not Happening.NOTHING]
    assert all(pair != (Happening.ENDED, Happening.ENDED) for pair in itertools.pairwise(news))


@pytest.mark.parametrize(
    ("code", "oom", "words"),
    [
        (0, False, "ended by itself with exit code 0"),
        (1, False, "ended by itself with exit code 1"),
        (137, False, "was killed by SIGKILL"),
        (137, True, "was killed: it used more memory than it may, or than there is"),
        (139, False, "was killed by SIGSEGV"),
    ],
)
def test_an_end_is_put_into_words(code: int, oom: bool, words: str):
    """Exit codes above 128 are signals, as Docker tells them."""
    assert words == end_in_words(replace(STOPPED, exit_code=code, oom_killed=oom))
