"""Having models ahead of time: which ones a command line means, whether they are here, and fetching the others."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qmd_remote import catalogue, presets
from qmd_remote.errors import ExtraMissing
from qmd_remote.server import hub
from qmd_remote.server.hub import Hub, Source
from qmd_remote.settings import Settings

State = Literal["bundled", "cached", "not yet"]
Outcome = Literal["local folder", "package", "already there", "downloaded", "package missing"]

OUTCOMES: dict[str, Outcome] = {
    "local folder": "local folder",
    "package": "package",
    "cache": "already there",
    "download": "downloaded",
}
REDRAW_S = 0.1


@dataclass(frozen=True)
class Wanted:
    """A model to have, and what for: embed, rerank, generation."""

    model: str
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pulled:
    """A model after `pull`: what was done, its size on the disk in bytes, and where it lies (None: it is not here)."""

    model: str
    roles: tuple[str, ...]
    outcome: Outcome
    size_bytes: int = 0
    folder: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The model as a member of the JSON envelope's data."""
        return {
            "model": self.model,
            "roles": self.roles,
            "outcome": self.outcome,
            "size_bytes": self.size_bytes,
            "folder": str(self.folder) if self.folder else None,
        }


@dataclass(frozen=True)
class Progress:
    """How far the download of a model is; `rate` is in bytes a second."""

    model: str
    done: int
    total: int
    rate: float

    def __str__(self) -> str:
        percent = 100 * self.done // self.total
        return f"{percent} %  {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB  {self.rate / 1e6:.1f} MB/s"


def here(model: str, at: Hub | None = None) -> tuple[State, Path | None]:
    """Whether a model can be used without a network, and where it lies. Needs neither network nor the hub's library."""
    if package := presets.bundled_path(model):
        return "bundled", package
    cached = hub.cached(model, at or Hub())
    return ("cached", cached.folder) if cached else ("not yet", None)


def of_settings(settings: Settings) -> list[Wanted]:
    """The models that `up` would load with these settings; generation only where it is a process of ours."""
    roles: dict[str, list[str]] = {}
    for role in catalogue.ROLES:
        if role != "generation" or settings.generation_engine in {"docker", "process"}:
            roles.setdefault(getattr(settings, f"{role}_model"), []).append(role)
    return [Wanted(model, tuple(found)) for model, found in roles.items()]


def of_names(names: Sequence[str]) -> list[Wanted]:
    """Models by name, each once; what for is known of those in the catalogue."""
    known = catalogue.CATALOGUE
    return [Wanted(name, (known[name].role,) if name in known else ()) for name in dict.fromkeys(names)]


def require_hub_library() -> None:
    """Raise ExtraMissing where only the base installation is."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ExtraMissing("server", "huggingface_hub")
    # it and the HTTP client under it tell of every retry, in the midst of the progress line
    for name in ("huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def pull(wanted: Wanted, at: Hub, tell: Callable[[Progress], None]) -> Pulled:
    """Have a model where `serve`, vLLM and transformers find it without a network.

    `tell` gets the progress of a download, a few times a second. Raises what `hub.find` raises.
    """
    model, roles = wanted.model, wanted.roles
    if model in presets.BUNDLED:
        # not through the hub: what runs the package's model would not look there
        if package := presets.bundled_path(model):
            return Pulled(model, roles, "package", _size(package), package)
        if model == presets.MINI_GENERATION:
            return Pulled(model, roles, "package missing")
    source = hub.without_hub(model)
    return _pulled(wanted, source) if source else from_hub(wanted, at, tell)


def from_hub(wanted: Wanted, at: Hub, tell: Callable[[Progress], None]) -> Pulled:
    """Have the hub's own files of a model, whatever installed packages hold: containers do not see those. As `pull`."""
    return _pulled(wanted, hub.cached(wanted.model, at) or _download(wanted.model, at, tell))


def _pulled(wanted: Wanted, source: Source) -> Pulled:
    return Pulled(wanted.model, wanted.roles, OUTCOMES[source.origin], _size(source.folder), source.folder)


def _download(model: str, at: Hub, tell: Callable[[Progress], None]) -> Source:
    """Report no more often than a person can read."""
    began = last = time.monotonic()
    first: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = done if first is None else first
        if now - last >= REDRAW_S or done == total:
            last = now
            tell(Progress(model, done, total, max(done - first, 0) / max(now - began, REDRAW_S)))

    return hub.download(model, at, report)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)
