"""The log of a failed start → what happened and what to do. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from qmd_remote.errors import Exit, ServiceFailed


@dataclass(frozen=True)
class Diagnosis:
    """A cause with its cure. `code` is stable, for scripts; `exit_code` is what the command ends with."""

    code: str
    cause: str
    fix: str
    exit_code: Exit = Exit.FAILED


# signature → (code, cause, fix, exit code)
_SIGNATURES: tuple[tuple[str, str, str, str, Exit], ...] = (
    (r"CUDA out of memory|OutOfMemoryError", "memory.oom", "the GPU has too little free memory for the model",
     "end what else uses the GPU (nvidia-smi shows it), or choose a smaller --generation-model", Exit.FAILED),
    (r"less than desired GPU memory utilization", "memory.start", "the GPU has too little free memory for the engine",
     "end what else uses the GPU (nvidia-smi shows it), or choose a smaller --generation-model", Exit.FAILED),
    (r"GatedRepoError|Access to model .* is restricted|access a gated repo", "model.gated",
     "the model is gated on the hub",
     "accept its licence on its hub page, then: export HF_TOKEN=… and qmd-remote up", Exit.CONFIGURATION),
    (r"is not a valid model identifier|RepositoryNotFoundError|Repo id must be in the form", "model.missing",
     "no such model, neither as a folder nor on the hub", "check --generation-model", Exit.CONFIGURATION),
    (r"contains custom code which must be executed", "model.remote_code", "the model needs code of its own to run",
     "choose a model that transformers knows; qmd-remote does not run remote code", Exit.CONFIGURATION),
    (r"outgoing traffic has been disabled|LocalEntryNotFoundError|couldn't connect to", "hub.unreachable",
     "the model hub does not answer, and the model is not cached",
     "connect once to download it, name a local folder, or use models that need no hub: qmd-remote up --preset mini",
     Exit.PREREQUISITE),
    (r"[Nn]o space left on device", "disk.full", "the disk is full", "free some space (df -h), then: qmd-remote up",
     Exit.FAILED),
    (r"address already in use", "port.taken", "the engine's port is taken", "qmd-remote up", Exit.PREREQUISITE),
)  # fmt: skip

_ERROR_LINE = re.compile(r"\b(\w*(?:Error|Exception)\b: .*)")
# an attempt that is made again is no cause: it may have worked then
_RETRIED = re.compile(r"thrown while requesting|Retrying in \d")
# the last words of a program that only say that something before went wrong
_WRAPPER = re.compile(r"See root cause above|Engine core initialization failed")


def diagnose(log: str) -> Diagnosis | None:
    """The cause of a failure told by its log: our own error envelope if there is one, else a known signature."""
    return _envelope(log) or _signature(log)


def to_error(service: str, log: str, how: str, logs_hint: str) -> ServiceFailed:
    """An error for a service that failed to start: the diagnosis, else the log's last error line."""
    found = diagnose(log)
    if found is None:
        line = last_error_line(log)
        return ServiceFailed(f"{service} {how}" + (f": {line}" if line else ""), hint=logs_hint)
    error = ServiceFailed(f"{service} could not start: {found.cause}", hint=found.fix, code=found.code)
    error.exit_code = found.exit_code
    return error


def last_error_line(log: str) -> str:
    """The last line that names an error, searched upwards, without its log prefix; else the last line."""
    lines = _lines(log)
    for line in reversed(lines):
        if (match := _ERROR_LINE.search(line)) and not _WRAPPER.search(line):
            return match[1][:300]
    return lines[-1][:300] if lines else ""


def _lines(log: str) -> list[str]:
    """The lines that hold something. Progress bars end theirs with a carriage return."""
    return [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]


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


def _signature(log: str) -> Diagnosis | None:
    """The known signature nearest to the end; an unknown error below it means that it was survived."""
    for line in reversed(_lines(log)):
        if _RETRIED.search(line):
            continue
        for pattern, code, cause, fix, exit_code in _SIGNATURES:
            if re.search(pattern, line):
                return Diagnosis(code, cause, fix, exit_code)
        if _ERROR_LINE.search(line) and not _WRAPPER.search(line):
            return None
    return None
