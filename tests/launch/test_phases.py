"""Log lines → named phases, on excerpts of real logs."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.launch import phases
from qmd_remote.launch.phases import Phase


def story(log: str) -> list[str]:
    """The names of the phases that a log tells, each once, in their order."""
    lines = [phases.of_line(line) for line in re.split(r"[\r\n]+", log)]
    names = [phase.name for phase in lines if phase]
    return list(dict.fromkeys(names))


def test_a_vllm_start_tells_every_phase(excerpt: Callable[[str], str]):
    """From the version line to the server's start every stretch of a vLLM start has its name."""
    expected = ["starting", "downloading the model", "loading the weights", "compiling", "sizing the KV cache"]
    assert [*expected, "capturing CUDA graphs"] == story(excerpt("vllm_ready"))


def test_a_real_start_on_a_cpu_tells_its_phases(excerpt: Callable[[str], str]):
    """The same words come from a CPU, where no graphs are captured."""
    assert ["starting", "loading the weights", "compiling", "sizing the KV cache"] == story(excerpt("vllm_ready_cpu"))[
        :4
    ]


def test_a_transformers_start_tells_its_phases(excerpt: Callable[[str], str]):
    """`transformers serve` tells of its weights, and then that its server starts."""
    assert ["loading the weights", "starting"] == story(excerpt("transformers_ready"))


def test_a_conversion_tells_its_phases(excerpt: Callable[[str], str]):
    """Each step of a conversion is named, the long one with transformers' own progress."""
    expected = ["loading transformers", "reading the tokenizer", "reading the weights", "dequantising the weights"]
    assert [*expected, "loading the weights", "writing the weights", "saving"] == story(excerpt("convert_done"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]",
            Phase("loading the weights", 50),
        ),
        ("Loading checkpoint shards: 100%|██████████| 2/2", Phase("loading the weights", 100)),
        ("Loading weights:   0%|          | 0/103 [00:00<?, ?it/s]", Phase("loading the weights", 0)),
        ("Fetching 12 files:  25%|██▌       | 3/12 [00:01<00:04]", Phase("downloading the model", 25)),
        ("model-00001-of-00002.safetensors:  58%|█████▊    | 2.30G/3.97G", Phase("downloading the model", 58)),
        ("Capturing CUDA graphs (decode, FULL):  42%|████▏     | 5/12", Phase("capturing CUDA graphs", 42)),
        ("INFO 11-22 [monitor.py:40] Starting torch.compile", Phase("compiling")),
        ("INFO 11-22 [monitor.py:34] torch.compile took 20.33 s in total", Phase("compiling")),
        (
            "INFO 11-22 [kv_cache_utils.py:2327] CPU KV cache size: 1,024 tokens, Maximum concurrency",
            Phase("sizing the KV cache"),
        ),
        ("INFO 11-22 [api_utils.py:330] vLLM server version 0.32.0, serving model m", Phase("starting")),
        ("phase: writing the weights", Phase("writing the weights")),
        ('INFO:     127.0.0.1:54534 - "GET /health HTTP/1.1" 200 OK', None),
        ("", None),
    ],
)
def test_a_line_announces_its_phase(line: str, expected: Phase | None):
    """The messages of transformers 5.23 and of vLLM up to 0.32 are recognised, with their percentages."""
    assert expected == phases.of_line(line)


def test_the_latest_phase_counts_also_within_a_rewritten_line():
    """Progress bars rewrite their line with carriage returns; the last state is the one that holds."""
    log = "Started server process\nLoading weights:   0%|\rLoading weights:  62%|\rLoading weights: 100%|\nquiet\n"
    assert Phase("loading the weights", 100) == phases.latest(log)
    assert phases.latest("nothing known\n") is None


def test_a_percentage_is_shown_and_its_lack_is_not():
    """A phase's detail is its percentage, or nothing."""
    assert ("42 %", "") == (Phase("x", 42).detail, Phase("x").detail)


@given(st.text())
def test_any_log_can_be_read(log: str):
    """No text that a program may print makes reading its phases fail."""
    assert phases.latest(log) is None or phases.latest(log).name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("INFO converting its weights, once", Phase("converting its weights")),
        ("converting: phase: reading the tokenizer", Phase("converting its weights: reading the tokenizer")),
        (
            "converting: Converting and de-quantizing GGUF tensors...:  42%|####  | 114/272",
            Phase("converting its weights: dequantising the weights", 42),
        ),
        ("converting: some other line", None),
    ],
)
def test_steps_of_a_conversion_say_so(line: str, expected: Phase | None):
    """What the converting process prints is told as a step of the conversion, with its percentage."""
    assert expected == phases.of_line(line)
