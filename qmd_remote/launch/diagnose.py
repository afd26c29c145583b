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
    exit_code: int = Exit.FAILED


# signature → (code, cause, fix); the first match wins, so the specific ones stand first
_SIGNATURES: tuple[tuple[str, str, str, str], ...] = (
    (r"CUDA out of memory|OutOfMemoryError", "memory.oom", "the GPU has too little free memory for the model",
     "end what else uses the GPU (nvidia-smi shows it), or choose a smaller --generation-model"),
    (r"less than desired GPU memory utilization", "memory.start", "the GPU has too little free memory for the engine",
     "end what else uses the GPU (nvidia-smi shows it), or choose a smaller --generation-model"),
    (r"GatedRepoError|Access to model .* is restricted", "model.gated", "the model is gated on the hub",
     "accept its licence on its hub page, then: export HF_TOKEN=… and qmd-remote up"),
    (r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError", "model.missing",
     "no such model, neither as a folder nor on the hub", "check --generation-model"),
    (r"contains custom code which must be executed", "model.remote_code", "the model needs code of its own to run",
     "choose a model that transformers knows; qmd-remote does not run remote code"),
    (r"outgoing traffic has been disabled|LocalEntryNotFoundError|couldn't connect to|Name or service not known"
     r"|Temporary failure in name resolution|Cannot reach", "hub.unreachable",
     "the model hub does not answer, and the model is not cached",
     "connect once to download it, name a local folder, or use models that need no hub: qmd-remote up --preset mini"),
    (r"[Nn]o space left on device", "disk.full", "the disk is full", "free some space (df -h), then: qmd-remote up"),
    (r"address already in use", "port.taken", "the engine's port is taken", "qmd-remote up"),
)  # fmt: skip


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
    error.exit_code = Exit(found.exit_code)
    return error


def last_error_line(log: str) -> str:
    """The last line that names an error, searched upwards, without its log prefix; else the last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]
    for line in reversed(lines):
        if match := re.search(r"\b(\w*(?:Error|Exception)\b: .*)", line):
            return match[1][:300]
    return lines[-1][:300] if lines else ""


def _envelope(log: str) -> Diagnosis | None:
    for line in reversed(log.splitlines()):
        if line.startswith('{"schema":'):
            try:
                envelope = json.loads(line)
                error = envelope["error"]
                return Diagnosis(error["code"], error["message"], error["hint"], envelope["exit_code"])
            except (ValueError, KeyError, TypeError):
                continue
    return None


def _signature(log: str) -> Diagnosis | None:
    for pattern, code, cause, fix in _SIGNATURES:
        if re.search(pattern, log):
            return Diagnosis(code, cause, fix)
    return None
