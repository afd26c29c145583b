"""Pull events as Docker Engine 20.10 sent them, as newer ones with containerd's image store do, and any others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.launch.docker_pull import Layers


def event(layer: str, status: str, current: int | None = None, total: int | None = None) -> dict[str, object]:
    """An event about a layer."""
    detail = {} if current is None else {"current": current, **({} if total is None else {"total": total})}
    return {"id": layer, "status": status, "progressDetail": detail}


def after(*events: dict[str, object]):
    """The progress after these."""
    layers = Layers()
    progress = layers.progress()
    for one in events:
        progress = layers.add(one)
    return progress


def test_a_whole_pull_is_told_layer_by_layer():
    """From the first layer's bytes through unpacking to the end, each step has its name and its bytes."""
    layers = Layers()
    layers.add({"id": "1", "status": "Pulling from llm"})
    layers.add(event("a", "Pulling fs layer"))
    waiting = layers.add(event("b", "Waiting"))
    assert ("waiting", 0, 2) == (waiting.step, waiting.layers_done, waiting.layers_total)
    layers.add(event("a", "Downloading", 30, 100))
    loading = layers.add(event("b", "Downloading", 200, 1000))
    assert ("downloading", 230, 1100) == (loading.step, loading.done, loading.total)
    assert (("a", "Downloading", 30, 100), ("b", "Downloading", 200, 1000)) == loading.layers
    layers.add(event("a", "Verifying Checksum"))
    layers.add(event("a", "Download complete"))
    layers.add(event("a", "Extracting", 50, 100))
    both = layers.add(event("b", "Downloading", 500, 1000))
    assert ("downloading", 600) == (both.step, both.done)  # the slower of the two works is told
    unpacking = layers.add(event("b", "Download complete"))
    assert ("unpacking", 50, 0) == (unpacking.step, unpacking.done, unpacking.layers_done)
    layers.add(event("a", "Pull complete"))
    unpacking = layers.add(event("b", "Extracting", 900, 1000))
    assert (1000, 1, (("b", "Extracting", 900, 1000),)) == (unpacking.done, unpacking.layers_done, unpacking.layers)
    layers.add(event("b", "Pull complete"))
    end = layers.add({"status": "Digest: sha256:abc"})
    assert ("verifying", 1100, 1100, 2, 2, ()) == (
        end.step,
        end.done,
        end.total,
        end.layers_done,
        end.layers_total,
        end.layers,
    )


def test_layers_that_are_here_count_as_done():
    """A pull that goes on tells how much is left: what exists already needs no bytes."""
    progress = after(event("a", "Already exists"), event("b", "Downloading", 10, 40))
    assert (1, 2, 10, 40) == (progress.layers_done, progress.layers_total, progress.done, progress.total)


def test_a_slow_line_that_is_tried_again_is_no_end():
    """`Retrying in N seconds` leaves a layer under way, with what it had."""
    progress = after(event("a", "Downloading", 10, 40), event("a", "Retrying in 5 seconds"))
    assert ("downloading", 10, 40) == (progress.step, progress.done, progress.total)


def test_sizes_that_are_not_told_stay_out_of_the_sum():
    """Some engines tell bytes without a total, or -1: the sum is of those that are known."""
    progress = after(event("a", "Downloading", 10, -1), event("b", "Downloading", 5), event("c", "Downloading", 1, 2))
    assert (1, 2) == (progress.done, progress.total)


def seconds(layer: str, elapsed: int) -> dict[str, object]:
    """A layer that is unpacked, as containerd's image store tells of it."""
    return {"id": layer, "status": "Extracting", "progressDetail": {"current": elapsed, "units": "s"}}


def test_unpacking_in_seconds_is_told_as_such():
    """Where an engine counts the seconds of an unpacking they are no bytes, and their number is what moves."""
    layers = Layers()
    layers.add(event("a", "Pulling fs layer"))
    layers.add(event("a", "Downloading", 5_000, 9_000))
    layers.add(event("a", "Download complete"))
    for elapsed in (1, 40, 400):
        progress = layers.add(seconds("a", elapsed))
        assert ("unpacking", 0, 9_000, elapsed) == (
            progress.step,
            progress.done,
            progress.total,
            progress.unpacking_s,
        )
    end = layers.add(event("a", "Pull complete"))
    assert ("verifying", 9_000, 0) == (end.step, end.done, end.unpacking_s)


def test_the_slowest_layer_is_the_one_whose_time_is_told():
    """Several are unpacked at once; one in units that nobody knows counts for nothing."""
    after_all = after(seconds("a", 3), seconds("b", 70), seconds("c", 20))
    assert 70 == after_all.unpacking_s
    odd = {"id": "a", "status": "Extracting", "progressDetail": {"current": 7, "total": 9, "units": "furlongs"}}
    told = after(event("a", "Downloading", 1, 100), odd)
    assert (0, 100, 0) == (told.done, told.total, told.unpacking_s)


def test_layers_are_announced_before_anything_is_said_of_the_whole():
    """The first of them may be here, and what a manifest weighs is no layer: nothing is checked or unpacked yet."""
    layers = Layers()
    steps = [
        layers.add(one).step
        for one in (
            event("index", "Download complete"),
            {"id": "1", "status": "Pulling from acme/llm"},
            event("a", "Already exists"),
            event("b", "Pulling fs layer"),
            event("config", "Download complete"),
            event("b", "Downloading", 10, 100),
            event("b", "Download complete"),
            seconds("b", 1),
            event("b", "Pull complete"),
        )
    ]
    assert [*["waiting"] * 5, "downloading", "unpacking", "unpacking", "verifying"] == steps
    assert (2, 2) == (layers.progress().layers_done, layers.progress().layers_total)


def test_what_is_all_here_is_checked_once_the_engine_says_so():
    """A repeated pull tells of nothing but layers that exist, and then of the end."""
    here = [event("a", "Already exists"), event("b", "Already exists")]
    assert "waiting" == after(*here).step
    assert "verifying" == after(*here, {"status": "Digest: sha256:abc"}).step


def test_sizes_that_are_still_to_come_are_counted():
    """A layer that waits for its turn has no size yet, so that the sum is the least that it may be."""
    first = after(event("a", "Pulling fs layer"), event("b", "Pulling fs layer"), event("a", "Downloading", 760, 1000))
    assert (1000, 1) == (first.total, first.unsized)


STATUSES = st.sampled_from(
    [
        *("Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Download complete", "Extracting"),
        *("Pull complete", "Already exists", "Retrying in 3 seconds", "something new", ""),
    ]
)
NUMBERS = st.none() | st.integers(-1, 10**11)


@given(st.lists(st.tuples(st.sampled_from("abc"), STATUSES, NUMBERS, NUMBERS), max_size=40))
def test_any_events_make_a_progress_that_adds_up(events):
    """Whatever an engine sends, no more is done than there is, and no layer counts twice."""
    layers = Layers()
    for layer, status, current, total in events:
        progress = layers.add(event(layer, status, current, total))
        assert 0 <= progress.done <= progress.total
        assert 0 <= progress.layers_done <= progress.layers_total <= 3
        assert 0 <= progress.unsized <= progress.layers_total
        assert all(0 <= done <= size for _, _, done, size in progress.layers)
