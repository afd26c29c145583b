"""The progress of a pull as lines of a log."""

from __future__ import annotations

from qmd_remote.launch.engine import PullProgress
from qmd_remote.launch.pull_lines import PullLines, line

HALF = PullProgress(3_900_000_000, 7_800_000_000, 3, 12, "downloading")


def test_a_line_tells_step_share_layers_bytes_and_speed():
    """All that one wants to know while gigabytes come."""
    assert "phase: pulling the image: 50 %, 3 of 12 layers, 3.9 of 7.8 GB, 34.0 MB/s" == line(HALF, 34e6)


def test_a_registry_that_says_nothing_yet_has_no_percentage():
    """Sizes come with the first bytes."""
    assert "phase: waiting for the registry: 0 of 0 layers" == line(PullProgress(0, 0, 0, 0, "waiting"))


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
