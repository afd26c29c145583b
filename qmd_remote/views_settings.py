"""Settings → rows for scripts, and what a person reads. Values in, rich renderables out; nothing is printed here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from qmd_remote.settings import Settings, declared

HIDDEN = "(hidden)"
DEFAULT = "default"
_USER_INFO = re.compile(r"(?<=//)[^/@\s]+(?=@)")


@dataclass(frozen=True)
class Row:
    """One setting; secrets in `value` are hidden. `environment` is the name of its variable."""

    name: str
    value: Any
    origin: str
    environment: str
    default: Any
    about: str


def rows(settings: Settings, *, changed: bool = False) -> list[Row]:
    """Every setting in order, or those alone that are not the default."""
    every = [
        Row(
            f.name,
            _public(getattr(settings, f.name), secret=f.metadata["secret"]),
            settings.origins[f.name],
            f.metadata["env"],
            list(f.default) if isinstance(f.default, tuple) else f.default,
            f.metadata["about"],
        )
        for f in declared()
    ]
    return [row for row in every if not changed or row.origin != DEFAULT]


def _public(value: Any, *, secret: bool) -> Any:
    if secret:
        return HIDDEN if value else ""
    if isinstance(value, str):
        return _USER_INFO.sub(HIDDEN, value)
    return list(value) if isinstance(value, tuple) else value


def as_text(value: Any) -> str:
    """A value as `settings set` takes it; a dash for nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    return (",".join(value) if isinstance(value, list) else str(value)) or "–"


def table(shown: Sequence[Row]) -> Table:
    """`settings`: a row each; what is only the default stands back."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("setting", no_wrap=True)
    result.add_column("value", overflow="fold")
    result.add_column("origin", overflow="fold")
    for row in shown:
        cells = (row.name, as_text(row.value), row.origin.replace(f"({Path.home()}/", "(~/"))
        result.add_row(*(escape(cell) for cell in cells), style="dim" if row.origin == DEFAULT else "")
    return result


def line(row: Row) -> str:
    """One setting in a sentence; a value from the file needs no origin there, since the file was just named."""
    return f"{row.name} is {as_text(row.value)} now" + ("" if row.origin.startswith("file") else f", by {row.origin}")
