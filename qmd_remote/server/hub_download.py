"""Large files of the hub, received so that a killed process loses nothing: the next one goes on from the last byte.

The hub's own library begins every file anew in a new process. This puts a file where that library looks for it
(`blobs/ETAG` in its cache); the library then makes the links.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from qmd_remote import hub_cache
from qmd_remote.errors import HubUnreachable

log = logging.getLogger(__name__)

LARGE = 10_000_000  # bytes from which a file is worth the trouble
TOO_LARGE = 50_000_000_000  # the hub serves no larger ones by plain HTTP
PATIENCE_S = 60.0
LONGEST_PAUSE_S = 10.0
MOMENTARY = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class File:
    """A file of a model on the hub: `url` redirects to its bytes, `etag` names its blob in the cache.

    `etag` is the SHA-256 of the content for the files that the hub keeps in large-file storage. `size` is in bytes.
    """

    model: str
    name: str
    url: str
    etag: str
    size: int
    headers: Mapping[str, str]


class _Momentary(Exception):
    """An answer that may be better next time."""


def fill(file: File, cache: Path, report: Callable[[int], None], *, patience_s: float = PATIENCE_S) -> None:
    """Have the file's blob in the cache; `report` gets the bytes of it that are there.

    Raises HubUnreachable when nothing came for `patience_s` seconds, or what came is not what the hub promised;
    httpx.HTTPError for a refusal; OSError from the disk.
    """
    blobs = hub_cache.model_folder(file.model, cache) / "blobs"
    blob, part = blobs / file.etag, blobs / f"{file.etag}.part"
    blobs.mkdir(parents=True, exist_ok=True)
    with _alone(_lock_of(file.model, cache, file.etag), lambda: report(_size(part))):
        if blob.exists():
            return
        resumed = _size(part) > 0
        _receive(file, part, report, patience_s)
        if resumed and not _is_right(file, part):
            # what an earlier run left there may be what is wrong
            part.unlink()
            _receive(file, part, report, patience_s)
        if not _is_right(file, part):
            part.unlink()
            raise HubUnreachable(
                f"{file.name} of {file.model} did not come as the hub keeps it: its SHA-256 is another one",
                hint=f"try once more: qmd-remote pull {file.model}; if it happens again, something on the way to "
                "the hub changes what it sends",
                code="hub.checksum",
            )
        part.replace(blob)


def forget_parts(model: str, cache: Path) -> None:
    """Remove what was begun of files that the model no longer has, unless somebody is receiving them."""
    for part in (hub_cache.model_folder(model, cache) / "blobs").glob("*.part"):
        lock = _lock_of(model, cache, part.stem)
        try:
            with lock.acquire(timeout=0):
                part.unlink(missing_ok=True)
        except Timeout:
            continue


def bytes_begun(model: str, cache: Path) -> int:
    """How much of a model's unfinished files is on the disk already."""
    return sum(_size(part) for part in (hub_cache.model_folder(model, cache) / "blobs").glob("*.part"))


def _lock_of(model: str, cache: Path, etag: str) -> FileLock:
    """The same lock that the hub's library takes for this blob."""
    folder = cache / ".locks" / hub_cache.model_folder(model, cache).name
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{etag}.lock")


@contextmanager
def _alone(lock: FileLock, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; while another process has it, call `waiting` every second."""
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()


def _receive(file: File, part: Path, report: Callable[[int], None], patience_s: float) -> None:
    """Append to `part` until it is whole, over as many connections as that takes."""
    from huggingface_hub import constants

    if _size(part) > file.size:
        part.unlink()
    alive = time.monotonic()  # when the last byte came
    pause = 1.0
    with httpx.Client(follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as client:
        while _size(part) < file.size:
            before = _size(part)
            report(before)
            try:
                _append(client, file, part, report)
                cause = "the answer was too short"
            except (httpx.TransportError, _Momentary) as error:
                cause = str(error) or type(error).__name__
            have = _size(part)
            if have > before:
                alive, pause = time.monotonic(), 1.0
            if have >= file.size:
                break
            if time.monotonic() - alive >= patience_s:
                raise _stalled(file, have, patience_s, cause)
            log.info("%s of %s: %s; going on from byte %d", file.name, file.model, cause, have)
            time.sleep(min(pause, LONGEST_PAUSE_S, patience_s))
            pause *= 2
    if not part.exists():  # a file of no bytes
        part.touch()
    report(file.size)


def _append(client: httpx.Client, file: File, part: Path, report: Callable[[int], None]) -> None:
    """One request for what `part` still lacks."""
    have = _size(part)
    # the URL names a commit, so its bytes never change; and the validators of the hub's stores differ from its own
    headers = {**file.headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with client.stream("GET", file.url, headers=headers) as answer:
        if answer.status_code in MOMENTARY:
            raise _Momentary(f"HTTP {answer.status_code}")
        answer.raise_for_status()
        goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
        if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise _Momentary("another range than was asked for")
        with part.open("ab" if goes_on else "wb") as sink:
            have = have if goes_on else 0
            for chunk in answer.iter_raw():
                have += sink.write(chunk)
                sink.flush()  # what has come must outlive this process
                report(min(have, file.size))


def _is_right(file: File, part: Path) -> bool:
    """Whether size and, where it is known, SHA-256 are those of the file on the hub."""
    if _size(part) != file.size:
        return False
    if not re.fullmatch(r"[0-9a-f]{64}", file.etag):
        return True
    with part.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest() == file.etag


def _stalled(file: File, have: int, patience_s: float, cause: str) -> HubUnreachable:
    return HubUnreachable(
        f"nothing came from the model hub for {patience_s:.0f} s ({cause}); {have / 1e6:.0f} of "
        f"{file.size / 1e6:.0f} MB of {file.name} of {file.model} are kept",
        hint=f"go on from there with: qmd-remote pull {file.model}",
        code="hub.stalled",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
