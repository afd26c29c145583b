"""The one-time conversion of a model's weights, before its engine can start, as a part of the keeper's life."""

from __future__ import annotations

import logging
import os

from qmd_remote.launch import convert_gguf, phases
from qmd_remote.launch.plan import Conversion
from qmd_remote.logbook import Logbook
from qmd_remote.stop_wish import StopWish
from qmd_remote.supervision import Child, Supervisor, how_it_ended, python_module

log = logging.getLogger("qmd_remote.conversion")

GRACE_S = 5.0


async def ensure(wanted: Conversion, book: Logbook, wish: StopWish) -> int:
    """Convert the weights unless that was done before; their output and ours goes into `book`.

    Returns 0 when they are there or when `wish` says stop, else the exit code for the whole process. What an attempt
    leaves that ended half-way, however it ended, is cleared away by the end of this call or by the next.
    """
    convert_gguf.clear_partial(wanted.cache, wanted.model)
    if convert_gguf.is_converted(wanted.cache, wanted.model, wanted.source):
        return 0
    log.info(phases.CONVERSION_BEGINS)
    arguments = (str(wanted.source), str(wanted.cache), wanted.model)
    child = Child(
        name="the conversion of its weights",
        argv=python_module("qmd_remote.launch.convert_gguf", *arguments),
        env=os.environ,
        ready=_never,
        grace_s=GRACE_S,
        prefix=phases.CONVERSION_PREFIX.encode(),
        finite=True,
    )
    code = await Supervisor(child, book=book, wish=wish).run_once()
    if code == 0 and not wish.asked.is_set():
        log.info("its weights are converted")
        return 0
    convert_gguf.clear_partial(wanted.cache, wanted.model)
    if wish.asked.is_set():
        return 0
    log.error("%s %s", child.name, how_it_ended(code))
    return code if code > 0 else 1


async def _never() -> bool:
    """A conversion serves nobody; its end is what is waited for."""
    return False
