"""Where the hub's own library keeps models, read without that library: the base installation does not have it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path


def folder(env: Mapping[str, str] = os.environ) -> Path:
    """The cache by the library's rule.

    `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    """
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    named = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(named)).expanduser()


def model_folder(name: str, cache: Path) -> Path:
    """Where the cache keeps a model, whether it is there or not."""
    return cache / f"models--{name.replace('/', '--')}"


def main_snapshot(name: str, cache: Path) -> Path | None:
    """The snapshot that programs without a network take: the one that `main` points to; None when there is none."""
    home = model_folder(name, cache)
    try:
        commit = (home / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = home / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def snapshots(name: str, cache: Path) -> Iterator[Path]:
    """Every snapshot of a model: the one `main` points to, then the others, newest first."""
    main = main_snapshot(name, cache)
    found = (model_folder(name, cache) / "snapshots").glob("*")
    newest_first = sorted(found, key=lambda one: one.stat().st_mtime, reverse=True)
    yield from sorted(newest_first, key=lambda one: one != main)


def point_main_to(snapshot: Path) -> None:
    """Let `main` name this snapshot, in one step. Raises OSError."""
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    draft = refs / f".main.{os.getpid()}"
    draft.write_text(snapshot.name, encoding="utf-8")
    draft.replace(refs / "main")
