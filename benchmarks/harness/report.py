"""From figures to tables. Pure: nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEGIN, END = "<!-- figures: written by benchmarks/run.py --write-docs -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Row:
    """A line of the table: which figure, how it is shown, whether more of it is better (None: no ratio is shown)."""

    title: str
    path: tuple[str, ...]
    show: Callable[[float], str]
    more_is_better: bool | None = None


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


ROWS = (
    Row("index, tokens/s", ("work", "index", "tokens_per_s", "median"), _count, True),
    Row("query, 16 clients, queries/s", ("work", "query", "per_s", "median"), _count, True),
    Row("query, 16 clients, p50", ("work", "query", "p50_ms"), _ms, False),
    Row("query, 16 clients, p95", ("work", "query", "p95_ms"), _ms, False),
    Row("rerank, tokens/s", ("work", "rerank", "tokens_per_s", "median"), _count, True),
    Row("rerank, one request", ("work", "rerank", "seconds"), lambda value: f"{value:.2f} s", False),
    Row("one query during an index job, p50", ("work", "while_indexing", "p50_ms"), _ms, False),
    Row("one query during an index job, p95", ("work", "while_indexing", "p95_ms"), _ms, False),
    Row("index beside a process that holds a core, tokens/s", ("work", "neighbour", "tokens_per_s", "median"), _count),
    Row("start to ready", ("seconds_to_ready",), lambda value: f"{value:.1f} s"),
)
ANSWERS = (
    ("least cosine to float32", ("answers", "to_float32")),
    ("least cosine, alone ↔ in a batch of 32", ("answers", "alone_and_in_batch")),
    ("least cosine, under load from 16 ↔ in a batch", ("answers", "under_load_and_in_batch")),
)


def figure(found: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number at `path`, or None."""
    value: Any = found
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return float(value)


def ratio(ours: float, theirs: float, more_is_better: bool) -> float:
    """How many times better ours is."""
    best, worst = (ours, theirs) if more_is_better else (theirs, ours)
    return best / worst if worst else math.inf


def markdown(report: Mapping[str, Any]) -> str:
    """The machine, and a table per stage."""
    parts = [_about(report)]
    parts += [_stage(stage, report["peak"]) for stage in report["stages"]]
    return "\n\n".join(parts) + "\n"


def replace(page: str, text: str) -> str:
    """The page with `text` between the two marks. Raises ValueError where they are not."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def _about(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    flags = ", ".join(machine["flags"]) or "none of interest"
    peaks = ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {name}" for name, value in report["peak"].items())
    lines = [
        f"Measured {report['date']} on {machine['cores']} cores of {machine['cpu']} ({flags}), "
        f"{machine['memory_gb']:g} GB, {machine['system']}.",
    ]
    if peaks:
        lines.append(f"Matrix products of torch reach {peaks} here.")
    if machine["environment"]:
        set_ = " ".join(f"{name}={value}" for name, value in machine["environment"].items())
        lines.append(f"Set for all servers: `{set_}`.")
    versions = [
        f"- **{name}**: " + ", ".join(f"{package} {version}" for package, version in found.items())
        for name, found in report["versions"].items()
    ]
    return " ".join(lines) + "\n\n" + "\n".join(versions)


def _stage(stage: Mapping[str, Any], peak: Mapping[str, float]) -> str:
    servers: Mapping[str, Any] = stage["servers"]
    ours = [name for name, found in servers.items() if found["ours"]]
    peers = [name for name, found in servers.items() if not found["ours"]]
    compared = [(mine, peer) for mine in ours for peer in peers]
    head = ["", *servers, *(f"{mine} ÷ {peer}" for mine, peer in compared)]
    table = [_row(head), _row([":--", *["--:"] * (len(head) - 1)])]
    for row in ROWS:
        values = {name: figure(found, row.path) for name, found in servers.items()}
        if all(value is None for value in values.values()):
            continue
        cells = ["–" if value is None else row.show(value) for value in values.values()]
        table.append(_row([row.title, *cells, *(_ratio(values[mine], values[peer], row) for mine, peer in compared)]))
    table += _derived(servers, peak, len(compared))
    return f"### {_title(stage)}\n\n{_work(stage)}\n\n" + "\n".join(table) + _failures(servers)


def _ratio(mine: float | None, peer: float | None, row: Row) -> str:
    if mine is None or peer is None or row.more_is_better is None:
        return ""
    return f"**{ratio(mine, peer, row.more_is_better):.1f}×**"


def _derived(servers: Mapping[str, Any], peak: Mapping[str, float], blanks: int) -> list[str]:
    """Rows that no ratio is made of: shares, cosines, order."""
    lines = []

    def add(title: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        cells = [cell(found) for found in servers.values()]
        if any(text != "–" for text in cells):
            lines.append(_row([title, *cells, *[""] * blanks]))

    for kind in ("index", "rerank"):
        for name, limit in peak.items():
            add(f"{kind}, share of the {name} peak", lambda found, k=kind, p=limit: _share(found, k, p))
    add("beside a process that holds a core, share of the undisturbed", _undisturbed)
    for title, path in ANSWERS:
        add(title, lambda found, p=path: _cosine(figure(found, p)))
    add("rerank, pairs the other way round than in float32", _order)
    add("CPU while idle", lambda found: _percent(figure(found, ("idle_cpu",))))
    return lines


def _share(found: Mapping[str, Any], kind: str, peak: float) -> str:
    value = figure(found, ("work", kind, "flops_per_s"))
    return _percent(None if value is None else value / peak)


def _undisturbed(found: Mapping[str, Any]) -> str:
    beside = figure(found, ("work", "neighbour", "tokens_per_s", "median"))
    alone = figure(found, ("work", "index", "tokens_per_s", "median"))
    return _percent(beside / alone if beside and alone else None)


def _order(found: Mapping[str, Any]) -> str:
    order = found.get("answers", {}).get("order")
    return "–" if order is None else f"{order['swapped']} of {order['pairs']}"


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{min(value, 1.0):.7f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def _title(stage: Mapping[str, Any]) -> str:
    models = stage["models"]
    return models["embed"] if not models["rerank"] else f"{models['embed']}, {models['rerank']}"


def _work(stage: Mapping[str, Any]) -> str:
    work = stage["work"]
    chunks, documents = work["chunks"], work["documents"]
    capped = f", {chunks['at_cap']:.0%} of them the longest" if chunks["at_cap"] else ""
    text = f"Rounds: {stage['rounds']}; chunks of {chunks['shortest']}–{chunks['longest']} words{capped}"
    if documents["count"]:
        text += f"; {documents['count']} documents of {documents['shortest']}–{documents['longest']} words"
    return f"{text}; {work['queries']} queries from 16 clients."


def _failures(servers: Mapping[str, Any]) -> str:
    lines = [
        f"- {name}, {key.removesuffix('_failed')}: {reason}"
        for name, found in servers.items()
        for key, reason in found.items()
        if key.endswith("_failed")
    ]
    return "\n\nFailed:\n\n" + "\n".join(lines) if lines else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
