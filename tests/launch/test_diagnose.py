"""The log of a failed start → cause, cure and exit code, on excerpts of real logs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.errors import Exit
from qmd_remote.launch import diagnose

Read = Callable[[str], str]

# excerpt → (code, the exit code where the exception tree has one for it)
CAUSES: dict[str, tuple[str, Exit | None]] = {
    "transformers_port_taken": ("port.taken", Exit.PREREQUISITE),
    "transformers_no_hub": ("hub.unreachable", Exit.PREREQUISITE),
    "transformers_offline": ("hub.unreachable", Exit.PREREQUISITE),
    "transformers_gated": ("model.gated", Exit.CONFIGURATION),
    "transformers_missing": ("model.missing", Exit.CONFIGURATION),
    "transformers_no_folder": ("model.missing", Exit.CONFIGURATION),
    "transformers_custom_code": ("model.remote_code", Exit.CONFIGURATION),
    "convert_disk_full": ("disk.full", None),
    "vllm_memory_start": ("memory.start", None),
    "vllm_oom": ("memory.oom", None),
    "serve_no_folder": ("model.missing", Exit.CONFIGURATION),
    "serve_no_hub": ("hub.unreachable", Exit.PREREQUISITE),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_known_failure_has_its_code_cause_and_cure(name: str, excerpt: Read):
    """A start that failed for a known reason says which, and what to do about it."""
    found = diagnose.diagnose(excerpt(name))
    assert found is not None
    assert CAUSES[name][0] == found.code
    assert found.cause
    assert found.fix


@pytest.mark.parametrize("name", [name for name, (_, code) in CAUSES.items() if code])
def test_a_cause_ends_the_command_with_its_own_exit_code(name: str, excerpt: Read):
    """The same cause has the same exit code, whether our server told it or an engine's log: 4 settings, 5 machine."""
    error = diagnose.to_error("the engine", excerpt(name), "ended", "see the log")
    assert CAUSES[name][1] == error.exit_code


def envelope(**changes: object) -> str:
    """A failure as our own server prints it."""
    error = {"code": "model.missing", "message": "there is no model x", "hint": "name another"}
    members: dict[str, object] = {"schema": 1, "command": "serve", "ok": False, "exit_code": 4, "data": {}}
    return json.dumps({**members, "error": error, "warnings": [], **changes})


def test_our_own_envelope_wins_over_every_signature():
    """What our server says of itself is the cause, whatever else its log mentions."""
    log = f"CUDA out of memory\n{envelope()}\nAddress already in use\n"
    error = diagnose.to_error("embed server", log, "ended", "see the log")
    expected = ("model.missing", "embed server could not start: there is no model x", "name another", 4)
    assert expected == (error.code, error.message, error.hint, error.exit_code)


@pytest.mark.parametrize(
    "line",
    [
        '{"schema": 1',
        '{"schema": 1}',
        envelope(error=None),
        '{"schema": [',
        envelope(error={"code": "x"}),
        envelope(exit_code=99),
        envelope(exit_code=None),
    ],
)
def test_a_line_that_only_looks_like_an_envelope_is_no_cause(line: str):
    """A cut-off, successful or foreign envelope does not hide the cause that the log tells, nor does it fail."""
    error = diagnose.to_error("embed server", f"CUDA out of memory\n{line}\n", "ended", "see the log")
    assert "memory.oom" == error.code


def test_a_warning_from_long_before_is_not_the_cause():
    """Retries that were survived (a hub out of reach, the model cached) do not explain what failed afterwards."""
    log = (
        "'[Errno -2] Name or service not known' thrown while requesting HEAD https://hub.example/m/config.json\n"
        "Retrying in 1s [Retry 1/5].\n"
        "Loading weights: 100%|\n"
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use\n"
    )
    found = diagnose.diagnose(log)
    assert found is not None
    assert "port.taken" == found.code


def test_an_unknown_failure_after_survived_retries_shows_its_own_words():
    """Without a known signature at its end a log's last error is shown, not a retry from its beginning."""
    log = (
        "'[Errno -2] Name or service not known' thrown while requesting HEAD https://x\nRetrying in 1s\nKeyError: 'q'\n"
    )
    error = diagnose.to_error("the engine", log, "ended with exit code 1", "see the log")
    assert ("service.failed", "the engine ended with exit code 1: KeyError: 'q'", "see the log") == (
        error.code,
        error.message,
        error.hint,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm_memory_kv", "ValueError: No available memory for the cache blocks."),
        ("convert_cut_file", "ValueError: cannot reshape array of size 1214336 into shape (49152,612)"),
        ("transformers_empty_folder", "ValueError: Unrecognized processing class in /models/emptymodel."),
    ],
)
def test_an_unknown_failure_names_its_root(name: str, expected: str, excerpt: Read):
    """The line that is shown is the error itself, without its log prefix, and not the wrapper that vLLM ends with."""
    assert diagnose.last_error_line(excerpt(name)).startswith(expected)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("\n \n", ""),
        ("starting\nKilled\n", "Killed"),
        ("RuntimeError: first\nTypeError: second\nbye\n", "TypeError: second"),
        ("(APIServer pid=1) ERROR 11-22 [x.py:1] torch.OutOfMemoryError: big\n", "OutOfMemoryError: big"),
        ("progress 1%\rprogress 2%\rOSError: gone\r", "OSError: gone"),
    ],
)
def test_the_last_error_line_is_found(log: str, expected: str):
    """The last line that names an error counts, else the last line at all."""
    assert expected == diagnose.last_error_line(log)


@given(st.text(), st.sampled_from(["", "Error: ", '{"schema": ']))
def test_any_log_ends_in_an_error_that_can_be_shown(log: str, start: str):
    """Whatever a log holds, the failure has words, a hint and an exit code, and its words have a bound."""
    error = diagnose.to_error("the engine", f"{start}{log}", "ended", "see the log")
    assert error.message.startswith("the engine ")
    assert len(error.message) < 400
    assert error.hint
    assert error.exit_code in set(Exit)
