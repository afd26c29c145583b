"""The progress of a pull as lines of a log: few enough to read, often enough to see that it moves."""

from __future__ import annotations

import time
from collections.abc import Callable

from qmd_remote.launch.engine import PullProgress

TELL_S = 1.0
NAMES = {
    "downloading": "pulling the image",
    "unpacking": "unpacking the image",
    "verifying": "checking the image",
    "waiting": "waiting for the registry",
}


def line(progress: PullProgress, rate: float = 0.0) -> str:
    """One line that `phases` reads again: what is being done, and how far. `rate` in bytes a second."""
    percent = f": {100 * progress.done // progress.total} %" if progress.total else ""
    parts = [f"{progress.layers_done} of {progress.layers_total} layers"]
    if progress.total:
        unit, name = (1e9, "GB") if progress.total >= 1e9 else (1e6, "MB")
        parts.append(f"{progress.done / unit:.1f} of {progress.total / unit:.1f} {name}")
    if rate > 0 and progress.step == "downloading":
        parts.append(f"{rate / 1e6:.1f} MB/s")
    return f"phase: {NAMES[progress.step]}{percent or ':'}{',' if percent else ''} {', '.join(parts)}"


class PullLines:
    """Says a line when a second has gone by or the step changed, and only if it says something new."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._began = self._last = clock()
        self._first: int | None = None
        self._step = self._said = ""

    def tell(self, progress: PullProgress) -> None:
        """Take the progress; a few times a second is fine."""
        now = self._clock()
        self._first = progress.done if self._first is None else self._first
        if progress.step == self._step and now - self._last < TELL_S:
            return
        text = line(progress, (progress.done - self._first) / max(now - self._began, TELL_S))
        if text != self._said:
            self._say(text)
        self._said, self._step, self._last = text, progress.step, now
