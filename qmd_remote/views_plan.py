"""What `up --dry-run` shows of the memory plan: a bar, its parts, and the verdict. Values in, renderables out."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from qmd_remote.launch.memory_plan import MemoryPlan, gib
from qmd_remote.views import table

WIDTH = 60  # of the bar
END = "│"  # of the device, where more is wanted than it has
# a mark and a colour for each part: the bar can be read without colours, too
MARKS = {
    "in use": ("▒", "dim"),
    "vLLM: weights": ("█", "blue"),
    "vLLM: KV cache": ("▓", "cyan"),
    "vLLM: rest": ("▚", "blue"),
    "embed server": ("▞", "green"),
    "reserve": ("░", "yellow"),
    "free": ("·", "dim"),
}


def memory_bar(plan: MemoryPlan) -> Text:
    """One line of WIDTH for the device; what does not fit stands behind its end, and all is drawn smaller for it."""
    bar, done = Text(), 0
    wanted = sum(size for size in plan.parts.values() if size > 0)
    for part, size in plan.parts.items():
        mark, style = MARKS[part]
        start, done = done, done + max(size, 0)
        bar.append(mark * (_cells(done, wanted) - _cells(start, wanted)), style=style)
    if wanted > plan.memory.total:
        inside, beyond = bar.divide([_cells(plan.memory.total, wanted)])
        bar = Text.assemble(inside, (END, "bold red"), beyond)
    return Text.assemble("  ", bar, f"  {gib(plan.memory.total)}")


def _cells(size: int, wanted: int) -> int:
    return round(WIDTH * size / wanted)


def memory_table(plan: MemoryPlan) -> Table:
    """The parts with their sizes."""
    rows = table("", "memory" + (" (CPU and GPU share it)" if plan.memory.unified else " of the GPU"), "size")
    for part, size in plan.parts.items():
        mark, style = MARKS[part]
        missing = part == "free" and size < 0
        rows.add_row(Text(mark, style=style), "missing" if missing else part, gib(abs(size)))
    return rows


def memory_line(plan: MemoryPlan) -> str:
    """What vLLM is told, and whether all fits."""
    verdict = f"does not fit: {plan.why_not}" if plan.why_not else "fits"
    return f"vLLM gets {plan.share:.2f} of the GPU's memory, {_whose(plan)}; {verdict}"


def _whose(plan: MemoryPlan) -> str:
    if not plan.chosen:
        return "as planned"
    needs = plan.demand.generation(unified=plan.memory.unified)
    return f"as you chose (it needs about {gib(needs)}, which is {needs / plan.memory.total:.2f})"
