"""From a model's name to a folder on this machine: local folder, package, cache, download, in this order."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qmd_remote import hub_cache
from qmd_remote.errors import HubUnreachable, ModelNotFound, ModelUnsupported, PrerequisiteError, QmdRemoteError
from qmd_remote.presets import bundled_path
from qmd_remote.server import checkpoint, hub_download
from qmd_remote.server.hub_errors import translate

log = logging.getLogger(__name__)

Progress = Callable[[float], None]
Report = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Source:
    """Where a model lies. `id` is what clients see: a hub id, or the base name of a local folder."""

    id: str
    folder: Path
    origin: Literal["local folder", "package", "cache", "download"]


@dataclass(frozen=True)
class Hub:
    """Which hub and which cache; None stands for the usual ones (HF_ENDPOINT, HF_HOME).

    `patience_s` is how long a large file may bring nothing before its download is given up.
    """

    endpoint: str | None = None
    cache: Path | None = None
    patience_s: float = hub_download.PATIENCE_S

    @property
    def folder(self) -> Path:
        """The cache."""
        return self.cache or hub_cache.folder()


def shown_id(name: str) -> str:
    """The id clients see for a model setting; where a local folder lies is not their business."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() or _is_path(name) else name


def find(name: str, *, progress: Progress = lambda _: None, hub: Hub | None = None) -> Source:
    """The folder of a model, downloaded if need be; `progress` then gets the share of bytes done, 0 to 1.

    Raises ModelNotFound, ModelGated, ModelUnsupported (a folder without a model), HubUnreachable, and
    PrerequisiteError for a full disk.
    """
    if here := without_hub(name):
        return here
    hub = hub or Hub()
    cached = list(hub_cache.snapshots(name, hub.folder))
    for snapshot in cached:
        if checkpoint.is_complete(snapshot):
            return Source(name, snapshot, "cache")
    try:
        return download(name, hub, lambda done, total: progress(done / total))
    except HubUnreachable as error:
        for snapshot in filter(checkpoint.is_loadable, cached):
            log.warning("%s; using what the cache holds of %s", error.message, name)
            return Source(name, snapshot, "cache")
        raise


def without_hub(name: str) -> Source | None:
    """The model as a local folder or from an installed package; None for one of the hub's.

    Raises ModelNotFound for a folder that is not there, ModelUnsupported for one without a model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not checkpoint.is_loadable(folder):
            raise ModelUnsupported(
                f"the folder {name} holds no model: it needs config.json and model.safetensors (or pytorch_model.bin)",
                hint="name the folder in which these files lie, or a model on the hub",
            )
        return Source(shown_id(name), folder.resolve(), "local folder")
    if _is_path(name):
        raise ModelNotFound(f"there is no folder {name}", hint="name an existing folder, or a model on the hub")
    package = _bundled(name)
    return Source(name, package, "package") if package else None


def cached(name: str, hub: Hub) -> Source | None:
    """The model as every program finds it in the cache without a network; None when something is missing there."""
    snapshot = hub_cache.main_snapshot(name, hub.folder)
    return Source(name, snapshot, "cache") if snapshot and checkpoint.is_complete(snapshot) else None


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


def download(name: str, hub: Hub, report: Report) -> Source:
    """Fetch what the model needs into the cache; what an earlier, interrupted download left there is kept.

    Raises what `find` raises of the hub and the disk.
    """
    try:
        silence()
        from huggingface_hub import HfApi

        info = HfApi(endpoint=hub.endpoint).model_info(name, files_metadata=True, timeout=30)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        return Source(name, _fetch_all(name, str(info.sha), sizes, hub, report), "download")
    except QmdRemoteError:
        raise
    except Exception as error:  # the libraries below raise their own kinds, which change between versions
        raise translate(error, name) from error


def _fetch_all(name: str, commit: str, sizes: Mapping[str, int], hub: Hub, report: Report) -> Path:
    """The snapshot of a commit, with everything of `sizes` (bytes by file name) that the model needs."""
    folders: list[str] = []
    if "modules.json" in sizes:
        folders = checkpoint.module_folders(_fetch(name, "modules.json", commit, hub, lambda _: None).parent)
    names = checkpoint.wanted(list(sizes), folders)
    if not any(file.endswith("config.json") for file in names):
        raise ModelUnsupported(
            f"{name} is on the hub, but has no config.json: it is no transformers model",
            hint="recommended models: qmd-remote models",
        )
    snapshot = hub_cache.model_folder(name, hub.folder) / "snapshots" / commit
    missing = sum(sizes[file] for file in names if not (snapshot / file).exists())
    _require_room(name, missing - hub_download.bytes_begun(name, hub.folder), hub.folder)
    total = sum(sizes[file] for file in names) or 1
    done = 0
    for file in names:
        told = _after(report, done, total)
        if hub_download.LARGE <= sizes[file] <= hub_download.TOO_LARGE and not (snapshot / file).exists():
            _fetch_large(name, file, commit, hub, told)
        path = _fetch(name, file, commit, hub, told)
        snapshot = path.parents[file.count("/")]
        done += sizes[file]
        report(done, total)
    hub_cache.point_main_to(snapshot)
    hub_download.forget_parts(name, hub.folder)
    return snapshot


def _require_room(name: str, size: int, cache: Path) -> None:
    """Refuse a download that cannot end well, before its first byte. `size` is in bytes."""
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise PrerequisiteError(
            f"{name} needs {size / 1e6:.0f} MB more in the model cache, and its disk has {free / 1e6:.0f} MB free",
            hint=f"make room in {cache}, or set HF_HOME to a folder on another disk",
            code="disk.full",
        )


def _after(report: Report, before: int, total: int) -> Callable[[int], None]:
    """Reports the bytes of one file as part of all."""
    return lambda now: report(before + now, total)


def _fetch_large(name: str, file: str, commit: str, hub: Hub, report: Callable[[int], None]) -> None:
    """Have a large file's blob in the cache, so that only its links are still missing."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(name, file, revision=commit, endpoint=hub.endpoint)
    about = get_hf_file_metadata(url, endpoint=hub.endpoint)
    if not about.etag or not about.size:
        return  # no hub that we know: its own library shall see
    blob = hub_download.File(name, file, url, about.etag, about.size, build_hf_headers())
    hub_download.fill(blob, hub.folder, report, patience_s=hub.patience_s)


def _fetch(name: str, file: str, commit: str, hub: Hub, report: Callable[[int], None]) -> Path:
    """A file's path in its snapshot; what is not in the cache yet is fetched by the hub's own library."""
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            name, file, revision=commit, cache_dir=hub.folder, endpoint=hub.endpoint, tqdm_class=_bar(report)
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
