"""The download of a model before the engine that serves it starts, or by its container: a part of its keeper's life."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qmd_remote.errors import ServiceFailed
from qmd_remote.launch import diagnose, wait
from qmd_remote.logbook import Logbook
from qmd_remote.stop_wish import StopWish
from qmd_remote.supervision import Child, Supervisor, python_module

log = logging.getLogger("qmd_remote.download")

GRACE_S = 5.0
LOOK_S = 5.0
BLOCK_BYTES = 512  # of st_blocks, whatever the file system: what is reserved and not written yet does not count


def possible() -> bool:
    """Whether this installation can download; the base one leaves it to the container, and gives it the token."""
    return importlib.util.find_spec("huggingface_hub") is not None


async def ensure(model: str, book: Logbook, wish: StopWish) -> bool:
    """Fetch a model into the hub's cache. Returns False when told to stop; what has come is kept.

    Raises ServiceFailed with the cause.
    """
    book.say("phase: downloading the model")
    child = Child(
        name=f"the download of {model}",
        argv=python_module("qmd_remote.fetch", model),
        env=os.environ,
        ready=_never,
        grace_s=GRACE_S,
        finite=True,
    )
    code = await Supervisor(child, book=book, wish=wish).run_once()
    if wish.asked.is_set():
        return False
    if code:
        raise _why(model, wait.read_tail(book.path), code)
    return True


class Growth:
    """Sees how folders grow while a container downloads into them: its own words may tell nothing."""

    def __init__(self, folders: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._folders, self._clock = folders, clock
        self._next = 0.0
        self._size = self._bytes()

    def news(self) -> str:
        """A line for the log if more has come, else empty; it walks through the folders every LOOK_S at most."""
        if self._clock() < self._next:
            return ""
        before, self._size = self._size, self._bytes()
        self._next = self._clock() + LOOK_S
        return f"phase: downloading the model: {self._size / 1e9:.2f} GB" if self._size > before else ""

    def _bytes(self) -> int:
        found = 0
        for folder in self._folders:
            for here, _, names in os.walk(folder):  # what cannot be read is passed over
                for name in names:
                    try:
                        found += os.lstat(Path(here, name)).st_blocks * BLOCK_BYTES
                    except OSError:
                        continue
        return found


def _why(model: str, text: str, code: int) -> ServiceFailed:
    found = diagnose.diagnose(text)
    if found is None:
        return ServiceFailed(f"the download of {model} ended with exit code {code}", hint="go on with: qmd-remote up")
    error = ServiceFailed(f"{model} cannot be downloaded: {found.cause}", hint=found.fix, code=found.code)
    error.exit_code = found.exit_code
    return error


async def _never() -> bool:
    """A download serves nobody; its end is what is waited for."""
    return False
