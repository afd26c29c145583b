"""Hints are commands to type: with what the user gave, and with a next step for every error."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import options
from qmd_remote.output import Output

Run = Callable[..., Any]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# what was given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"preset": None, "insecure_no_auth": None, "no_wait": False}, ""),
        ({"preset": "mini", "port": 9001, "no_wait": True}, "--preset mini --port 9001 --no-wait"),
        ({"generation_engine": "off"}, "--generation off"),
        ({"trust_remote_code": ["a/b", "c d"]}, "--trust-remote-code a/b --trust-remote-code 'c d'"),
        ({"tls_cert": Path("/x y/$c.pem")}, "--tls-cert '/x y/$c.pem'"),
    ],
)
def test_options_are_told_as_they_are_typed(given: dict[str, Any], expected: str):
    """What was given becomes words that a shell reads as they were meant; what was not given is left out."""
    assert expected == options.typed(given)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("install it, then: qmd-remote up", "install it, then: qmd-remote up --port 9"),
        ("start it (qmd-remote up) and wait", "start it (qmd-remote up --port 9) and wait"),
        ("qmd-remote up --json", "qmd-remote up --port 9 --json"),
        ("qmd-remote up --preset mini", "qmd-remote up --preset mini"),
        ("qmd-remote update", "qmd-remote update"),
        ("qmd-remote status", "qmd-remote status"),
    ],
)
def test_a_hint_repeats_what_was_given_to_the_same_command(
    capsys: pytest.CaptureFixture[str], hint: str, expected: str
):
    """The same command gets its own options back, unless the hint names others; other commands do not."""
    out = Output("up", as_json=True, given="--port 9")
    out.warn("w", hint)
    out.finish({})
    assert expected == json.loads(capsys.readouterr().out)["warnings"][0]["hint"]


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("qmd-remote up --generation-sequences 2", "qmd-remote up --device cpu --gpus none --generation-sequences 2"),
        ("qmd-remote up --gpus 0; or wait", "qmd-remote up --device cpu --gpus 0; or wait"),
        (
            "`qmd-remote up --device cuda:1`, or --gpus all",
            "`qmd-remote up --gpus none --device cuda:1`, or --gpus all",
        ),
        ("qmd-remote up --device mps --gpus all", "qmd-remote up --device mps --gpus all"),
    ],
)
def test_a_hint_with_options_of_its_own_keeps_the_others(capsys: pytest.CaptureFixture[str], hint: str, expected: str):
    """What the hint names replaces what was given; all else that was given stays."""
    out = Output("up", as_json=True, given="--device cpu --gpus none")
    out.warn("w", hint)
    out.finish({})
    assert expected == json.loads(capsys.readouterr().out)["warnings"][0]["hint"]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_up_repeats_its_flags(qmd_remote: Run, taken: int):
    """What is to be typed after an installation is the `up` that was typed before it."""
    flags = ["--preset", "cpu", "--embed-model", "my model", "--port", str(taken), "--generation-command", "vllm"]
    done = qmd_remote("up", *flags, "--json", PATH="/usr/bin:/bin")
    said = done.envelope()
    assert (5, "port.taken") == (done.code, said["error"]["code"])
    expected = f"qmd-remote up --preset cpu --embed-model 'my model' --port {taken} --generation-command vllm"
    assert [warning["hint"] for warning in said["warnings"]] == [f"pip install vllm, then: {expected}"]


def test_logs_repeat_what_was_asked_for(qmd_remote: Run):
    """The way without --follow is the same line without it; the crash of one service stays that of one service."""
    done = qmd_remote("logs", "-f", "embed", "-n", "5", "--since", "10m", "--json")
    assert "qmd-remote logs embed --lines 5 --since 10m --json" == done.envelope()["error"]["hint"]
    done = qmd_remote("logs", "--crash", "embed", "-f", "--json")
    assert "qmd-remote logs --crash embed" == done.envelope()["error"]["hint"]


def test_a_start_command_about_another_file_keeps_the_file(qmd_remote: Run, cli_home: Path):
    """`test --file` leads to `config write --file`."""
    file = cli_home / "my index.yml"
    file.write_text("remote:\n  embed_url: http://127.0.0.1:1\n", encoding="utf-8")
    done = qmd_remote("test", "--file", file, "--json")
    assert f"qmd-remote config write --file '{file}'" == done.envelope()["error"]["hint"]


# a next step for errors


@pytest.mark.parametrize(
    ("line", "code", "step"),
    [
        ("serve --api-key-file /nope", "key.unreadable", "qmd-remote key rotate"),
        ("serve --host 203.0.113.7 --insecure-no-auth", "bind.address", "--host 0.0.0.0"),
        ("serve --embed-model EMPTY", "model.unsupported", "name the folder"),
        ("up --preset mini --tls-cert /nope --tls-key /nope", "tls.unusable", "PEM"),
        ("pull EMPTY", "model.unsupported", "name the folder"),
        ("restart embed", "not_running", "qmd-remote up"),
        ("config write --api-key-literal", "config", "export QMD_REMOTE_API_KEY"),
        ("models bge", "usage", "qmd-remote models"),
    ],
)
def test_an_error_says_what_to_do_next(qmd_remote: Run, cli_home: Path, line: str, code: str, step: str):
    """What is wrong comes with what to type, or to change."""
    empty = cli_home / "empty"
    empty.mkdir()
    done = qmd_remote(*line.replace("EMPTY", str(empty)).split(), "--json")
    error = json.loads(done.stdout)["error"]
    assert code == error["code"]
    assert step in error["hint"]


@pytest.mark.parametrize(
    ("text", "code", "step"),
    [
        ("port = { a = 1 }\n", "settings.type", "qmd-remote settings edit"),
        ("prot = 1\n", "settings.unknown", "qmd-remote settings unset prot"),
        ("api_key = 'two words'\n", "key.invalid", "qmd-remote key rotate"),
        (None, "settings.unreadable", "move it out of the way"),
    ],
)
def test_a_wrong_settings_file_says_what_to_do_next(
    qmd_remote: Run, cli_home: Path, text: str | None, code: str, step: str
):
    """Every mistake in the file has its way out."""
    file = cli_home / "home" / "config" / "config.toml"
    file.parent.mkdir(parents=True)
    if text is None:
        file.mkdir()
    else:
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)
    error = qmd_remote("settings", "--json").envelope()["error"]
    assert code == error["code"]
    assert step in error["hint"]
