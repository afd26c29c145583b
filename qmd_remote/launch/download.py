"""The download of a model by us, before the container that serves it starts, as a part of its keeper's life."""

from __future__ import annotations

import importlib.util
import logging
import os

from qmd_remote.errors import ServiceFailed
from qmd_remote.launch import diagnose, wait
from qmd_remote.logbook import Logbook
from qmd_remote.stop_wish import StopWish
from qmd_remote.supervision import Child, Supervisor, python_module

log = logging.getLogger("qmd_remote.download")

GRACE_S = 5.0


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
