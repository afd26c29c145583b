"""From a model's name to a folder on this machine: local folder, package, cache, download, in this order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qmd_remote.errors import HubUnreachable, ModelNotFound, ModelUnsupported, QmdRemoteError
from qmd_remote.presets import bundled_path
from qmd_remote.server import checkpoint
from qmd_remote.server.hub_errors import translate

log = logging.getLogger(__name__)

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Source:
    """Where a model lies. `id` is what clients see: a hub id, or the base name of a local folder."""

    id: str
    folder: Path
    origin: Literal["local folder", "package", "cache", "download"]


@dataclass(frozen=True)
class Hub:
    """Which hub and which cache; None stands for huggingface_hub's own choice (HF_ENDPOINT, HF_HOME)."""

    endpoint: str | None = None
    cache: Path | None = None


def shown_id(name: str) -> str:
    """The id clients see for a model setting; where a local folder lies is not their business."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() or _is_path(name) else name


def find(name: str, *, progress: Progress = lambda _: None, hub: Hub | None = None) -> Source:
    """The folder of a model, downloaded if need be; `progress` then gets the share of bytes done, 0 to 1.

    Raises ModelNotFound, ModelGated, ModelUnsupported (a folder without a model), HubUnreachable, and
    PrerequisiteError for a full disk.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not checkpoint.is_loadable(folder):
            raise ModelUnsupported(
                f"the folder {name} holds no model: it needs config.json and model.safetensors (or pytorch_model.bin)"
            )
        return Source(shown_id(name), folder.resolve(), "local folder")
    if _is_path(name):
        raise ModelNotFound(f"there is no folder {name}", hint="name an existing folder, or a model on the hub")
    if package := _bundled(name):
        return Source(name, package, "package")
    silence()
    hub = hub or Hub()
    cached = list(_snapshots(name, hub))
    for snapshot in cached:
        if checkpoint.is_complete(snapshot):
            return Source(name, snapshot, "cache")
    try:
        return Source(name, _download(name, hub, progress), "download")
    except HubUnreachable as error:
        for snapshot in filter(checkpoint.is_loadable, cached):
            log.warning("%s; using what the cache holds of %s", error.message, name)
            return Source(name, snapshot, "cache")
        raise


def silence() -> None:
    """Keep huggingface_hub from sending telemetry and from drawing progress bars of its own."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    # imported before the variable was set, the library has already read it
    constants.HF_HUB_DISABLE_TELEMETRY = True
    disable_progress_bars()


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name in ("", ".", "..") or "\\" in name


def _bundled(name: str) -> Path | None:
    folder = bundled_path(name)
    return folder if folder and checkpoint.is_loadable(folder) else None


def _snapshots(name: str, hub: Hub) -> Iterator[Path]:
    """Snapshots of a model in the cache: the one `main` points to, then the others, newest first."""
    from huggingface_hub import constants

    base = (hub.cache or Path(constants.HF_HUB_CACHE)) / f"models--{name.replace('/', '--')}"
    main = base / "refs" / "main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    folders = sorted((base / "snapshots").glob("*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    yield from sorted(folders, key=lambda folder: folder.name != commit)


def _download(name: str, hub: Hub, progress: Progress) -> Path:
    """Fetch what the model needs into the cache; what an earlier, interrupted download left there is kept."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=hub.endpoint).model_info(name, files_metadata=True, timeout=30)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        commit = str(info.sha)
        folders: list[str] = []
        if "modules.json" in sizes:
            folders = checkpoint.module_folders(_fetch(name, "modules.json", commit, hub, lambda _: None).parent)
        names = checkpoint.wanted(list(sizes), folders)
        if not any(file.endswith("config.json") for file in names):
            raise ModelUnsupported(f"{name} is on the hub, but has no config.json: it is no transformers model")
        total = sum(sizes[file] for file in names) or 1
        done = 0
        snapshot = Path()
        for file in names:
            path = _fetch(name, file, commit, hub, _share_of(progress, done, total))
            snapshot = path.parents[file.count("/")]
            done += sizes[file]
            progress(done / total)
        return snapshot
    except QmdRemoteError:
        raise
    except Exception as error:  # the libraries below raise their own kinds, which change between versions
        raise translate(error, name) from error


def _share_of(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Reports the bytes of one file as a share of all."""
    return lambda now: progress((before + now) / total)


def _fetch(name: str, file: str, commit: str, hub: Hub, report: Callable[[int], None]) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            name, file, revision=commit, cache_dir=hub.cache, endpoint=hub.endpoint, tqdm_class=_bar(report)
        )
    )


def _bar(report: Callable[[int], None]) -> type:
    """A tqdm class that draws nothing and reports the bytes of one file."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    most = 0  # several bars may follow one file: bytes received, bytes written

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self._bytes = 0

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self._bytes += int(n or 0)
            if self._bytes > most:
                most = self._bytes
                report(most)

    return Bar
