"""Log lines → named phases. Pure; the signatures are those of transformers 5.23 and vLLM 0.11 to 0.32."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """What a starting service is doing; `percent` 0-100 and a `note` (sizes, speed) when the log tells."""

    name: str
    percent: int | None = None
    note: str = ""

    @property
    def detail(self) -> str:
        """The percentage and the note for a live display, or nothing."""
        return ", ".join(filter(None, ["" if self.percent is None else f"{self.percent} %", self.note]))


CONVERSION_BEGINS = "converting its weights, once"  # as the keeper logs it
CONVERSION_PREFIX = "converting: "  # before each line of the converting process

_SIGNATURES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("downloading the model", re.compile(r"(?:Fetching \d+ files|Downloading.*|\.safetensors):\s+(\d+)%")),
    (
        "loading the weights",
        re.compile(r"Loading (?:safetensors checkpoint shards|weights|checkpoint shards):\s+(\d+)%"),
    ),
    ("dequantising the weights", re.compile(r"Converting and de-quantizing GGUF tensors\W*\s+(\d+)%")),
    ("capturing CUDA graphs", re.compile(r"Capturing CUDA graphs.*?(\d+)%")),
    (
        "compiling",
        re.compile(
            r"Dynamo bytecode transform time|[Ss]tarting torch\.compile|torch\.compile t(?:akes|ook)|"
            r"Warming up model for the compilation"
        ),
    ),
    ("loading the compiled graph", re.compile(r"Directly load (?:the compiled graph|AOT compilation)")),
    ("loading the weights", re.compile(r"Loading weights took|Model loading took")),
    ("capturing CUDA graphs", re.compile(r"Graph capturing finished")),
    ("sizing the KV cache", re.compile(r"[CG]PU KV cache size")),
    ("waiting for the model hub", re.compile(r"Retrying in \d+s? \[Retry")),
    ("starting", re.compile(r"vLLM (?:API )?server version|non-default args|Started server process|engine .*started")),
    # our own, told by a keeper: phase: pulling the image: 43 %, 3 of 12 layers, 1.2 of 7.9 GB
    ("", re.compile(r"^phase: (?P<name>[a-z ]+)(?::(?: (?P<percent>\d+) %)?,? ?(?P<note>.*))?$")),
)


def of_line(line: str) -> Phase | None:
    """The phase a log line announces, if any."""
    if line.startswith(CONVERSION_PREFIX):
        step = of_line(line.removeprefix(CONVERSION_PREFIX))
        return step and Phase(f"converting its weights: {step.name}", step.percent)
    if CONVERSION_BEGINS in line:
        return Phase("converting its weights")
    for name, pattern in _SIGNATURES:
        if match := pattern.search(line.strip()):
            if "name" in pattern.groupindex:
                percent = match["percent"]
                return Phase(match["name"], int(percent) if percent else None, match["note"] or "")
            return Phase(name, int(match[1]) if match.lastindex else None)
    return None


def latest(log: str) -> Phase | None:
    """The last phase a log announces. Progress bars rewrite their line with carriage returns."""
    for line in reversed(re.split(r"[\r\n]+", log)):
        if phase := of_line(line):
            return phase
    return None
