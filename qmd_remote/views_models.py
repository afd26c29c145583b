"""Models → what a person reads. Values in, rich renderables out; nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from qmd_remote.catalogue import ROLES, Model, Role
from qmd_remote.pull_flow import Pulled

TITLES: dict[Role, str] = {"embed": "embedding", "rerank": "reranking", "generation": "generation"}
STATE_STYLE = {"bundled": "green", "cached": "green", "not yet": "dim"}


def count(number: int) -> str:
    """A number of parameters: 22.7 M, 3.09 B."""
    return f"{number / 1e9:.3g} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def megabytes(size: float) -> str:
    """A size given in MB: 92 MB, 2.3 GB."""
    return f"{size / 1000:.1f} GB" if size >= 1000 else f"{size:.0f} MB"


def models_tables(models: Sequence[Model], states: Sequence[str]) -> RenderableType:
    """The catalogue, a table a role and two lines a model, so that it fits a terminal of 80 columns."""
    parts: list[RenderableType] = []
    for role in ROLES:
        table = _table(TITLES[role])
        for heading in ("dimension", "tokens", "size") if role == "embed" else ("tokens", "size"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("here", no_wrap=True)
        for model, state in zip(models, states, strict=True):
            if model.role == role:
                about = [count(model.parameters), model.licence, ", ".join(model.presets)]
                table.add_row(
                    f"{escape(model.id)}\n[dim]  {' · '.join(filter(None, about))}[/]",
                    *([str(model.dimension)] if role == "embed" else []),
                    str(model.tokens),
                    f"~{megabytes(model.size_mb)}",
                    f"[{STATE_STYLE[state]}]{state}[/]",
                )
        parts += [table, ""]
    return Group(*parts)


def model_details(model: Model, state: str, folder: Path | None, commands: Sequence[str]) -> RenderableType:
    """Everything about one model, and the commands to use it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("model", escape(model.id))
    table.add_row("for", f"{TITLES[model.role]}: {model.use}")
    if model.dimension:
        table.add_row("dimension", str(model.dimension))
    table.add_row("longest input", f"{model.tokens} tokens")
    table.add_row("parameters", count(model.parameters))
    table.add_row("size", f"about {megabytes(model.size_mb)}")
    table.add_row("licence", model.licence)
    if model.role == "embed":
        table.add_row("query prompt", escape(repr(model.query_prompt)) if model.query_prompt else "none")
        table.add_row("document prompt", escape(repr(model.document_prompt)) if model.document_prompt else "none")
    table.add_row("presets", ", ".join(model.presets) or "none")
    table.add_row("here", state + (escape(f", {folder}") if folder else ""))
    table.add_row("use it with", escape(commands[0]))
    for command in commands[1:]:
        table.add_row("", escape(command))
    return table


def pulled_table(pulled: Sequence[Pulled]) -> RenderableType:
    """What `pull` did, a row a model."""
    table = _table("model")
    for heading in ("for", "size", "what was done"):
        table.add_column(heading, no_wrap=True)
    table.add_column("where", overflow="fold")
    for one in pulled:
        table.add_row(
            escape(one.model),
            ", ".join(one.roles) or "–",
            megabytes(one.size_bytes / 1e6) if one.folder else "–",
            one.outcome,
            escape(str(one.folder)) if one.folder else "–",
        )
    return table


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold", no_wrap=True)  # on a narrow terminal ids can still be copied
    return table
