"""A container that ended while it started → an error with its cause: from its log, else from how it ended. Pure."""

from __future__ import annotations

from pathlib import Path

from qmd_remote.errors import QmdRemoteError, ServiceFailed
from qmd_remote.launch import diagnose
from qmd_remote.launch.container_watch import end_in_words
from qmd_remote.launch.engine import Found


def to_error(title: str, log: str, found: Found, log_file: Path) -> QmdRemoteError:
    """The error for the service `title` whose container ended like this with this log."""
    known = diagnose.diagnose_end(log, found.exit_code, found.oom_killed)
    if known is None:
        return diagnose.to_error(title, log, end_in_words(found), f"the full log is {log_file}")
    error = ServiceFailed(
        f"{title} could not start: {known.cause}", hint=f"{known.fix}; the full log is {log_file}", code=known.code
    )
    error.exit_code = known.exit_code
    return error
