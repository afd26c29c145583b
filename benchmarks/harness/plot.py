"""A bar chart as SVG: how many times better each server is than plain sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from harness.report import ROWS, figure, ratio

BASE = "sentence-transformers"
COLOURS = ("#1a7f64", "#6abf9f", "#9a9a9a", "#d08a3c")
PLOTTED = (
    "index, tokens/s",
    "query, 16 clients, queries/s",
    "rerank, tokens/s",
    "one query during an index job, p50",
)
LEFT, WIDTH, BAR, GAP, TOP = 250, 430, 14, 16, 56
FONT = "font-family='Helvetica, Arial, sans-serif'"


def groups(report: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """(title, how many times better than the base each server is), for what both have a figure of."""
    found = []
    for stage in report["stages"]:
        servers: Mapping[str, Any] = stage["servers"]
        for row in ROWS:
            base = figure(servers.get(BASE, {}), row.path)
            if row.title not in PLOTTED or base is None or row.more_is_better is None:
                continue
            better = row.more_is_better
            values = {name: figure(one, row.path) for name, one in servers.items()}
            bars = {name: ratio(value, base, better) for name, value in values.items() if value is not None}
            model = stage["models"]["rerank"] if row.title.startswith("rerank") else stage["models"]["embed"]
            found.append((f"{model}: {row.title.partition(', tokens')[0]}", bars))
    return found


def svg(report: Mapping[str, Any]) -> str:
    """The chart; one colour per server, one group per kind of work."""
    found = groups(report)
    names = list(dict.fromkeys(name for _, bars in found for name in bars))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    longest = max((value for _, bars in found for value in bars.values()), default=1.0)
    scale, lines, y = WIDTH / longest, [], TOP
    for title, bars in found:
        middle = y + len(bars) * BAR / 2 + 4
        lines.append(_text(LEFT - 10, middle, title, "end", 12))
        for name, value in bars.items():
            width = max(1.0, value * scale)
            lines.append(f"<rect x='{LEFT}' y='{y}' width='{width:.1f}' height='{BAR - 2}' fill='{colours[name]}'/>")
            lines.append(_text(LEFT + width + 5, y + BAR - 4, f"{value:.1f}×", "start", 11))
            y += BAR
        y += GAP
    base = LEFT + scale
    ends = f"x1='{base:.1f}' y1='{TOP - 6}' x2='{base:.1f}' y2='{y - GAP + 4}'"
    lines.append(f"<line {ends} stroke='#444' stroke-dasharray='3 3'/>")
    legend, x = [], 20.0
    for name, colour in colours.items():
        legend.append(f"<rect x='{x:.0f}' y='30' width='11' height='11' fill='{colour}'/>")
        legend.append(_text(x + 16, 40, name, "start", 12))
        x += 34 + 6.8 * len(name)
    head = _text(20, 18, f"times better than {BASE}, same run, over HTTP", "start", 13)
    size = f"width='{LEFT + WIDTH + 60}' height='{y}' viewBox='0 0 {LEFT + WIDTH + 60} {y}'"
    ground = f"<rect width='{LEFT + WIDTH + 60}' height='{y}' fill='#ffffff'/>"
    body = "\n".join([ground, head, *legend, *lines])
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT}>\n{body}\n</svg>\n"


def _text(x: float, y: float, text: str, anchor: str, size: int) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' fill='#222'>{escape(text)}</text>"
