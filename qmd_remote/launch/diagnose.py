"""The log of a failure → what happened and what to do. Pure; what is known lies in `diagnoses.py`.

A log is searched upwards from its end, and only as far as its latest start: what lies before was survived.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from qmd_remote.errors import Exit, ServiceFailed
from qmd_remote.launch.diagnoses import ENDS, OUT_OF_MEMORY, PART_KILLED, ROWS, Row

LONGEST = 300  # characters of what a log says
READ = 2000  # characters of a line that are looked at: patterns take long on longer ones, and no message is longer


@dataclass(frozen=True)
class Diagnosis:
    """A cause with its cure. `code` is stable, for scripts; `exit_code` is what the command ends with."""

    code: str
    cause: str
    fix: str
    exit_code: Exit = Exit.FAILED


@dataclass(frozen=True)
class _Line:
    """A log line without its prefix; a `quiet` one is no error, by its level or by what it says.

    An `inner` one is within a traceback, or goes on with what the line before began.
    """

    text: str
    quiet: bool
    at_error_level: bool
    inner: bool


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# (EngineCore pid=140) ERROR 11-22 10:00:24 [core.py:1120] · ERROR: · 2026-11-22 19:46:22,461 ERROR
_PREFIX = re.compile(
    r"(?:\((?:\w+ )*pid=\d+\)\s*)*(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S* )?"
    r"(?:(?P<level>CRITICAL|ERROR|WARNING|INFO|DEBUG)(?::|\b)\s*(?:\d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\])?)?[ ]?"
)
_ERROR_LEVELS = frozenset({"CRITICAL", "ERROR"})
_QUIET_LEVELS = frozenset({"WARNING", "INFO", "DEBUG"})
# an attempt that is made again is no cause: it may have worked then
_RETRIED = r"thrown while requesting|Retrying in \d"
# words that only say that something before went wrong
_WRAPPER = (
    r"[Ss]ee root cause above|Engine core initialization failed|[Ss]ee stack trace|EngineDeadError|"
    r"WorkerProc initialization failed"
)
# what is left behind by a program that ends anyway
_SHUTDOWN = (
    r"resource_tracker|destroy_process_group|Exception ignored in|CancelledError|ContextTerminated|BrokenPipeError|"
    r"ConnectionResetError|ProcessLookupError|Event loop is closed|cannot schedule new futures"
)
_NOT_A_CAUSE = re.compile(f"{_RETRIED}|{_WRAPPER}|{_SHUTDOWN}")
_ERROR = re.compile(r"\b(\w*(?:Error|Exception)\b: .*)|^(Value error, .*)|^(?:[\w.]+\.)?(\w+(?:Error|Exception))$")
# argparse and other programs on their way out: `vllm serve: error: …`
_PLAIN_ERROR = re.compile(r"^[\w. -]{0,60}\berror: .*")
# pydantic's title; what is wrong follows it
_TITLE = re.compile(r"\d+ validation errors? for \w+$")
_STARTS = re.compile(r"vLLM (?:API )?server version|non-default args|Application startup complete")
_CHAINED = re.compile(r"was the direct cause of the following exception|During handling of the above exception")
_OF_ENGINE = re.compile(
    r"Error response from daemon|docker\.errors\.|http\+docker|OCI runtime|nvidia-container|"
    r"could not select device driver|unresolvable CDI|GPU vendor from CDI|runtime.* nvidia|[Ee]xec [Ff]ormat error|"
    r"no matching manifest|library version mismatch"
)
# vLLM's processes tell that another one is gone, and some by which signal
_PART_GONE = re.compile(
    r"Engine core initialization failed(?:.*Failed core proc\(s\): \{[^}]*: -(?P<signal>\d{1,2})\b)?|EngineDeadError|"
    r"died unexpectedly"
)


def diagnose(log: str) -> Diagnosis | None:
    """The cause of a failure told by its log: our own error envelope if there is one, else a known signature."""
    lines = _latest_start(log)
    return _envelope(log) or _signature(lines) or _part_gone(lines)


def diagnose_end(log: str, exit_code: int, oom_killed: bool) -> Diagnosis | None:
    """The cause of a container's end: killed for its memory, else what its log tells, else what its exit code means.

    Who is killed for its memory has no last words; every other end may have.
    """
    if oom_killed:
        return _told(OUT_OF_MEMORY)
    return diagnose(log) or _end(exit_code)


def before_restart(log: str) -> str:
    """A log without its latest run, where it holds several: some engines tell the next run in the same stream."""
    starts = [found.start() for found in re.finditer(r"(?m)^.*vLLM (?:API )?server version.*$", log)]
    return log[: starts[-1]] if len(starts) > 1 else log


def to_error(service: str, log: str, how: str, logs_hint: str) -> ServiceFailed:
    """An error for a service that failed to start: the diagnosis, else the log's last error line."""
    found = diagnose(log)
    if found is None:
        line = last_error_line(log)
        return ServiceFailed(f"{service} {how}" + (f": {line}" if line else ""), hint=logs_hint)
    # its keeper has said what of already
    told = found.cause.startswith((f"{service} could not start", f"the {service} "))
    cause = found.cause if told else f"{service} could not start: {found.cause}"
    error = ServiceFailed(cause, hint=found.fix, code=found.code)
    error.exit_code = found.exit_code
    return error


def last_error_line(log: str) -> str:
    """The last line that names an error, searched upwards, without its log prefix; else the last line."""
    lines = [line for line in reversed(_latest_start(log)) if not line.quiet]
    named = (_error_of(line) for line in lines)
    plain = (line.text for line in lines if not line.inner and (line.at_error_level or _PLAIN_ERROR.search(line.text)))
    rest = (line.text for line in reversed(_lines(log)) if not (line.inner or _NOT_A_CAUSE.search(line.text)))
    return next(chain(filter(None, named), plain, rest), "")[:LONGEST]


def _lines(log: str) -> list[_Line]:
    """The lines that hold something. Progress bars end theirs with a carriage return."""
    found = []
    for whole in re.split(r"[\r\n]+", _COLOUR.sub("", log)):
        prefix = _PREFIX.match(whole)
        start, level = (prefix.end(), prefix["level"]) if prefix else (0, None)
        rest = whole[start : start + READ]
        if text := rest.strip():
            quiet = level in _QUIET_LEVELS or bool(_NOT_A_CAUSE.search(text))
            found.append(_Line(text, quiet, level in _ERROR_LEVELS, inner=rest.startswith("  ")))
    return found


def _latest_start(log: str) -> list[_Line]:
    lines = _lines(log)
    begin = next((at for at in reversed(range(len(lines))) if _STARTS.search(lines[at].text)), -1)
    return lines[begin + 1 :]


def _envelope(log: str) -> Diagnosis | None:
    for line in reversed(log.splitlines()):
        if line.startswith('{"schema":'):
            try:
                envelope = json.loads(line)
                error, code = envelope["error"], Exit(envelope["exit_code"])
                return Diagnosis(error["code"], error["message"], error["hint"], code)
            except (ValueError, KeyError, TypeError):
                continue
    return None


def _signature(lines: Sequence[_Line]) -> Diagnosis | None:
    """The known signature nearest to the end; an unknown error below it means that it was survived."""
    vague: Diagnosis | None = None
    for at in reversed(range(len(lines))):
        line = lines[at]
        if line.quiet:
            continue
        known, error = _known(line.text), _error_of(line)
        if known and not known[0].vague:
            return _told(*known)
        if known and vague is None:
            vague = _told(*known)
        if error and not _has_cause(lines, at):
            return vague
    return vague


def _known(text: str) -> tuple[Row, re.Match[str]] | None:
    of_engine = bool(_OF_ENGINE.search(text))
    for row in ROWS:
        if row.of_engine and not of_engine:
            continue
        if match := re.search(row.pattern, text, re.IGNORECASE if row.of_engine else 0):
            return row, match
    return None


def _told(row: Row, match: re.Match[str] | None = None) -> Diagnosis:
    """A row with the figures of the line that it was found in."""
    figures = {name: value for name, value in match.groupdict().items() if value} if match else {}
    asked = {name for _, name, _, _ in string.Formatter().parse(row.figures) if name}
    cause = row.cause
    if asked and asked <= figures.keys():
        cause = f"{cause}: {row.figures.format(**figures)}"
    try:
        exact = row.exact(figures) if row.exact else ""
    except (KeyError, ValueError):  # a figure that is missing, or is none
        exact = ""
    return Diagnosis(row.code, cause[:LONGEST], exact or row.fix, row.exit_code)


def _error_of(line: _Line) -> str:
    """The error that a line names, as `XxxError: …`, or nothing."""
    match = None if line.quiet or _TITLE.search(line.text) else _ERROR.search(line.text)
    return next(filter(None, match.groups()), "") if match else ""


def _has_cause(lines: Sequence[_Line], at: int) -> bool:
    """Whether the error on this line ends a traceback that goes on upwards with what caused it."""
    for before in reversed(range(at)):
        if lines[before].text.startswith("Traceback (most recent call last)"):
            return before > 0 and bool(_CHAINED.search(lines[before - 1].text))
        if _error_of(lines[before]):
            return False
    return False


def _part_gone(lines: Sequence[_Line]) -> Diagnosis | None:
    """A process of the engine was killed and left no words; the others tell of it, and some by which signal."""
    if any(_error_of(line) for line in lines):
        return None
    told = [match for line in lines if (match := _PART_GONE.search(line.text))]
    if not told:
        return None
    signals = [int(match["signal"]) for match in told if match["signal"]]
    return (_end(128 + signals[-1]) if signals else None) or _told(PART_KILLED)


def _end(exit_code: int) -> Diagnosis | None:
    return _told(ENDS[exit_code]) if exit_code in ENDS else None
