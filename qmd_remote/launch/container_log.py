"""What a container writes, copied into one of our logs while it is followed."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

from qmd_remote.errors import QmdRemoteError
from qmd_remote.launch.engine import Engine, Found
from qmd_remote.logbook import Intake, Logbook


class ContainerLog:
    """Copies the output of one run of a container at a time."""

    def __init__(self, engine: Engine, book: Logbook) -> None:
        self._engine = engine
        self._book = book
        self._intake: Intake | None = None

    @property
    def recent(self) -> Sequence[bytes]:
        """The last lines that came, as the log has them."""
        return self._intake.recent if self._intake else ()

    async def follow(self, found: Found, tail: int | None = None) -> None:
        """Copy what this run of the container wrote and will write, the last `tail` lines of the past or all."""
        await self.leave()
        self._intake = await self._book.intake()
        # a descriptor of its own: the number of the intake's may be given to another file before the thread ends
        sink = os.dup(self._intake.fd)
        threading.Thread(target=self._copy, args=(found, sink, tail), daemon=True, name=f"log of {found.name}").start()

    async def leave(self) -> None:
        """Take the last lines of a run that ended, for a second at most, and stop copying."""
        intake, self._intake = self._intake, None
        if intake is not None:
            await intake.finish()

    def _copy(self, found: Found, sink: int, tail: int | None) -> None:
        # it ends with the run, with the engine, or with the first line that nobody reads any more
        with os.fdopen(sink, "wb", buffering=0) as pipe, suppress(OSError, QmdRemoteError):
            for chunk in self._engine.logs(found, tail=tail, since=found.started_at):
                pipe.write(chunk)
