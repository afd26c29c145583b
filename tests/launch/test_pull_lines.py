"""The progress of a pull as lines of a log."""

from __future__ import annotations

from dataclasses import replace

from qmd_remote.launch import phases
from qmd_remote.launch.engine import PullProgress
from qmd_remote.launch.phases import Phase
from qmd_remote.launch.pull_lines import PullLines, line

HALF = PullProgress(3_900_000_000, 7_800_000_000, 3, 12, "downloading")


def test_a_line_tells_step_share_layers_bytes_and_speed():
    """All that one wants to know while gigabytes come."""
    assert "phase: pulling the image: 50 %, 3 of 12 layers, 3.9 of 7.8 GB, 34.0 MB/s" == line(HALF, 34e6)


def test_a_registry_that_says_nothing_yet_has_no_figures():
    """Layers are told one by one, and sizes come with the first bytes: before that there is nothing to count."""
    assert "phase: waiting for the registry" == line(PullProgress(0, 0, 0, 0, "waiting"))
    assert "phase: waiting for the registry" == line(PullProgress(0, 0, 1, 2, "waiting"))


def test_a_share_is_told_once_all_sizes_are_known():
    """76 % of the first small layer is no share of the image; small sizes have a unit in which they can be read."""
    first = PullProgress(760, 1000, 1, 4, "downloading", unsized=2)
    assert "phase: pulling the image: 1 of 4 layers, 0.8 of at least 1.0 kB" == line(first, 3e3)
    both = replace(first, done=50_000_000, total=100_000_000, unsized=0)
    assert "phase: pulling the image: 50 %, 1 of 4 layers, 50.0 of 100.0 MB, 2.0 MB/s" == line(both, 2e6)


def test_unpacking_that_is_told_in_seconds_moves_every_ten():
    """An engine that tells no bytes of a layer that it unpacks for minutes: a line now and then, and no share."""
    now, said = [0.0], []
    lines = PullLines(said.append, clock=lambda: now[0])
    for second in range(1, 401):
        now[0] = float(second)
        lines.tell(PullProgress(0, 9_000_000_000, 0, 1, "unpacking", unpacking_s=second))
    assert 41 == len(said)
    assert "phase: unpacking the image: 0 of 1 layers, 0.0 of 9.0 GB" == said[0]
    assert "phase: unpacking the image: 0 of 1 layers, 0.0 of 9.0 GB, for 400 s" == said[-1]
    assert Phase("unpacking the image", None, "0 of 1 layers, 0.0 of 9.0 GB, for 400 s") == phases.of_line(said[-1])


def test_a_step_is_told_at_once_and_its_progress_each_second():
    """A log of a long pull stays short."""
    now, said = [0.0], []
    lines = PullLines(said.append, clock=lambda: now[0])
    for tenth in range(25):
        now[0] = tenth / 10
        lines.tell(PullProgress(tenth, 100, 0, 1, "downloading"))
    lines.tell(PullProgress(100, 100, 1, 1, "unpacking"))
    assert 4 == len(said)
    assert said[-1].startswith("phase: unpacking the image: 100 %")
