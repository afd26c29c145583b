"""What happened to a container, told by looks at it that follow each other. Pure."""

from __future__ import annotations

from enum import Enum

from qmd_remote.launch.engine import Found
from qmd_remote.supervision import how_it_ended

# the engine restarts one that ends: at once the first time, after a minute at most later; a container that is not even
# "restarting" for so long was stopped by a person
STOPPED_S = 10.0


class Happening(Enum):
    """What a look found out."""

    NOTHING = "nothing"
    ENDED = "ended"
    RESTARTED = "restarted"
    STOPPED = "stopped"
    REMOVED = "removed"


class Watch:
    """Follows one container from its first readiness on. ENDED is told once per end, also when the restart was missed.

    A container of the same name with another id is somebody else's: ours was REMOVED.
    """

    def __init__(self, found: Found) -> None:
        self.found = found
        self._ended = False
        self._rests_since: float | None = None

    def see(self, now: Found | None, at: float) -> Happening:
        """What happened since the last look; `at` is a monotonic time in seconds."""
        before = self.found
        if now is None or now.id != before.id:
            return Happening.REMOVED
        if not now.running:
            return self._rests(now, at)
        self.found, self._rests_since, ended = now, None, self._ended
        self._ended = False
        return Happening.RESTARTED if ended or now.started_at != before.started_at else Happening.NOTHING

    def restarted_by_us(self, now: Found) -> None:
        """A restart that was our own doing is nothing that happened."""
        self.found, self._ended, self._rests_since = now, False, None

    def _rests(self, now: Found, at: float) -> Happening:
        if not self._ended:
            self._ended, self._rests_since = True, at
            return Happening.ENDED
        if now.state in {"restarting", "paused"}:
            self._rests_since = at
        elif self._rests_since is not None and at - self._rests_since > STOPPED_S:
            return Happening.STOPPED
        return Happening.NOTHING


def end_in_words(found: Found) -> str:
    """How a container ended. An exit 0 that nobody asked for is a failure too."""
    if found.oom_killed:
        return "was killed: it used more memory than it may, or than there is"
    return how_it_ended(128 - found.exit_code if found.exit_code > 128 else found.exit_code)
