"""What `up --dry-run` shows of the memory plan."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from qmd_remote import views_plan
from qmd_remote.launch import memory_plan
from qmd_remote.launch.memory_plan import GIB, Demand, Memory

DEMAND = Demand(weights=6 * GIB, kv_cache=2 * GIB, embed=4 * GIB)
FITS = memory_plan.make(Memory(24 * GIB, 23 * GIB), DEMAND)
TIGHT = memory_plan.make(Memory(12 * GIB, 11 * GIB), DEMAND)
SHARED = memory_plan.make(Memory(120 * GIB, 110 * GIB, unified=True), DEMAND)


def shown(what: RenderableType) -> str:
    """As a terminal without colours shows it."""
    written = io.StringIO()
    Console(file=written, width=120, color_system=None).print(what)
    return written.getvalue()


def test_the_bar_is_the_device():
    """Each part has its length and its own mark, the whole has the device's, and the size stands at the end."""
    bar = views_plan.memory_bar(FITS).plain
    assert bar.endswith("  24.0 GiB")
    drawn = bar.removesuffix("  24.0 GiB").strip()
    assert views_plan.WIDTH == len(drawn)
    assert 15 == pytest.approx(drawn.count("█"), abs=1)  # 6 of 24 GiB, its ends rounded
    assert 10 == pytest.approx(drawn.count("▞"), abs=1)  # 4 of 24 GiB
    assert views_plan.END not in drawn


def test_marks_can_be_told_apart_without_colours():
    """No two parts have the same mark, and every part of a plan has one."""
    marks = [mark for mark, _ in views_plan.MARKS.values()]
    assert len(marks) == len(set(marks))
    assert set(FITS.parts) == set(views_plan.MARKS)


def test_what_does_not_fit_stands_behind_the_end():
    """A plan that wants more than there is goes beyond the device's end, which is marked."""
    drawn = views_plan.memory_bar(TIGHT).plain.strip()
    inside, _, beyond = drawn.partition(views_plan.END)
    beyond = beyond.removesuffix("12.0 GiB").strip()
    assert views_plan.WIDTH == len(inside) + len(beyond)
    # 12 GiB are there; 1 is in use and 15.6 are wanted
    assert 12 / 16.6 == pytest.approx(len(inside) / views_plan.WIDTH, abs=0.02)


@given(st.integers(1, 300), st.floats(0, 1), st.booleans(), st.floats(0, 0.95))
def test_every_plan_can_be_drawn(total: int, free: float, unified: bool, share: float):
    """Bar, table and line of any plan are text with its size in it."""
    memory = Memory(total * GIB, int(total * GIB * free), unified)
    made = memory_plan.make(memory, DEMAND, chosen_share=share if share >= 0.01 else 0.0)
    assert f"{total}.0 GiB" in views_plan.memory_bar(made).plain
    assert len(views_plan.memory_bar(made).plain) <= 80
    assert "vLLM: weights" in shown(views_plan.memory_table(made))
    assert views_plan.memory_line(made)


def test_the_table_names_sizes():
    """Every part stands there with its GiB; what is missing is called so, without a minus."""
    text = shown(views_plan.memory_table(FITS))
    assert "memory of the GPU" in text
    assert [line.split()[-2:] for line in text.splitlines() if "embed server" in line] == [["4.0", "GiB"]]
    assert "free" in text
    short = shown(views_plan.memory_table(TIGHT))
    assert "missing" in short
    assert "-" not in short
    assert "CPU and GPU share it" in shown(views_plan.memory_table(SHARED))


def test_bar_and_sentence_of_what_is_too_large_name_the_same_sizes():
    """Of a plan that is refused no share is rounded up: its parts are what is needed."""
    model = Demand(weights=6 * GIB, kv_cache=int(2.25 * GIB), embed=4 * GIB)
    plan = memory_plan.make(Memory(12 * GIB, 11 * GIB), model)
    assert f"KV cache {memory_plan.gib(plan.parts['vLLM: KV cache'])}" in plan.why_not
    assert sum(plan.parts.values()) == plan.memory.total


def test_the_verdict_is_one_line():
    """The line tells vLLM's share, who chose it, and whether all fits or why not."""
    assert "vLLM gets 0.46 of the GPU's memory, as planned; fits" == views_plan.memory_line(FITS)
    assert "does not fit: vLLM needs 11.0 GiB" in views_plan.memory_line(TIGHT)
    chosen = memory_plan.make(Memory(24 * GIB, 23 * GIB), DEMAND, chosen_share=0.2)
    line = views_plan.memory_line(chosen)
    assert "vLLM gets 0.20 of the GPU's memory, as you chose (it needs about 11.0 GiB, which is 0.46); fits" == line
