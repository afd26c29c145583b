"""The progress of a pull as lines of a log: few enough to read, often enough to see that it moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from qmd_remote.launch.engine import PullProgress

TELL_S = 1.0
UNPACKING_S = 10  # between lines of a layer of which nothing but the time is known
NAMES = {
    "downloading": "pulling the image",
    "unpacking": "unpacking the image",
    "verifying": "checking the image",
    "waiting": "waiting for the registry",
}
LEAST_RATE = 5e4  # bytes a second; below it no digit would be seen
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def line(progress: PullProgress, rate: float = 0.0) -> str:
    """One line that `phases` reads again: what is being done, and how far. `rate` in bytes a second."""
    told = ", ".join(_parts(progress, rate))
    return f"phase: {NAMES[progress.step]}{': ' if told else ''}{told}"


def _parts(progress: PullProgress, rate: float) -> Iterator[str]:
    """What is known and means something: no share of sizes that are not all known, nor of a time."""
    if progress.step == "waiting":  # what there will be is not known yet
        return
    if progress.total and not progress.unsized and not progress.unpacking_s:
        yield f"{100 * progress.done // progress.total} %"
    if progress.layers_total:
        yield f"{progress.layers_done} of {progress.layers_total} layers"
    if progress.total:
        unit, name = next((one for one in UNITS if progress.total >= one[0]), UNITS[-1])
        least = "at least " if progress.unsized else ""
        yield f"{progress.done / unit:.1f} of {least}{progress.total / unit:.1f} {name}"
    if rate >= LEAST_RATE and progress.step == "downloading":
        yield f"{rate / 1e6:.1f} MB/s"
    if progress.unpacking_s >= UNPACKING_S:
        yield f"for {progress.unpacking_s // UNPACKING_S * UNPACKING_S} s"


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
