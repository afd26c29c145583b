"""The command line as its users meet it: exit codes, one envelope on stdout, and flags that reach the settings."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import __version__, cli, cli_life, cli_run, up_flow
from qmd_remote.errors import NotRunning
from qmd_remote.output import Output
from qmd_remote.server import supervisor
from qmd_remote.settings import Settings

Run = Callable[..., Any]
PROGRAM = Path(sys.executable).with_name("qmd-remote")


@pytest.fixture
def main(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Call the entry point in this process, with a command line; returns the exit code."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["qmd-remote", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def upped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, str]]:
    """Nothing is started: what `up` would have started with, and why its preset was chosen, is noted."""
    noted: list[tuple[Settings, str]] = []

    def note(out: Output, wanted: Settings, why: str, how: object) -> int:
        noted.append((wanted, why))
        return out.finish({})

    monkeypatch.setattr(up_flow, "up", note)
    return noted


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The same for `serve`."""
    noted: list[Settings] = []

    def note(wanted: Settings, **_: bool) -> int:
        noted.append(wanted)
        return 0

    monkeypatch.setattr(supervisor, "serve", note)
    monkeypatch.setattr(supervisor, "missing_module", lambda: "")
    return noted


# refusals


LINES = """--json | nope --json | --json status | config --json | config nope --json | config show --nope --json
status --nope --json | status extra --json | down --nope --json | logs --lines many --json | logs --nope --json
config path --json --index | test --json --url | test --json --file | up --port many --json
up --json --max-batch-size | serve --json --embed-model | serve --managed=yes --json"""


@pytest.mark.parametrize("line", re.split(r" \| |\n", LINES))
def test_a_command_line_that_cannot_be_read_is_one_envelope(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], line: str
):
    """Unknown commands, unknown options and values of the wrong kind end with 2 and an envelope, in JSON mode."""
    code = main(*line.split())
    said = json.loads(capsys.readouterr().out)
    assert (2, 2, False, "usage") == (code, said["exit_code"], said["ok"], said["error"]["code"])
    assert said["error"]["message"]


@pytest.mark.parametrize(
    ("line", "code", "names"),
    [
        ("status", 3, "neither service"),
        ("logs", 3, "no log"),
        ("logs nosuch", 2, "nosuch"),
        ("test", 3, "nothing to test"),
        ("test --url http://h --embed-url http://g", 2, "--url"),
        ("test --url h:80", 2, "http://"),
        ("test --index ../x", 2, "../x"),
        ("test --api-key-file /nope", 4, "/nope"),
        ("test --api-key-env UNSET_KEY", 4, "UNSET_KEY"),
        ("config show", 4, "no file"),
        ("config show --index ../x", 2, "../x"),
        ("config path --index ../x", 2, "../x"),
        ("config write --index ../x", 2, "../x"),
        ("config write --url http://h --generation-url http://g", 2, "--url"),
        ("config write --api-key-literal", 4, "QMD_REMOTE_API_KEY"),
        ("serve --port 70000", 2, "70000"),
        ("serve --preset nano", 2, "nano"),
        ("serve --dtype float61", 2, "float16"),
        ("serve --backend onnx", 2, "openvino"),
        ("serve --threads -1", 2, "-1"),
        ("serve --host 0.0.0.0", 4, "0.0.0.0"),
        ("serve --api-key-file /nope", 4, "/nope"),
        ("serve --host 0.0.0.0 --api-key-file /nope", 4, "/nope"),
        ("up --preset gpuu", 2, "did you mean gpu"),
        ("up --generation sometimes", 2, "sometimes"),
        ("up --port 70000", 2, "70000"),
        ("up --max-batch-size 0", 2, "at least 1"),
        ("up --api-key-file /nope", 4, "/nope"),
        ("up --generation-port 8001", 4, "8001"),
        ("up --device banana", 4, "banana"),
        ("up --generation external --generation-url h:80", 2, "http://"),
    ],
)
def test_a_refusal_has_its_exit_code_and_names_its_cause(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], line: str, code: int, names: str
):
    """Every command's refusal is one envelope with its own name, the documented exit code and the value at fault."""
    assert code == main(*line.split(), "--json")
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (code, False, "") == (said["exit_code"], said["ok"], captured.err)
    assert line.startswith(said["command"])
    assert names in said["error"]["message"]


def test_a_settings_variable_that_is_wrong_is_a_matter_of_configuration(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A wrong value in the environment ends with 4 and names its variable, for commands that take no such flag too."""
    monkeypatch.setenv("QMD_REMOTE_PORT", "many")
    assert 4 == main("key", "path", "--json")
    assert "QMD_REMOTE_PORT" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_generation_url_in_the_environment_that_is_none_is_a_matter_of_configuration(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The external engine's URL is checked like any other variable: 4, not the 2 of a wrong command line."""
    monkeypatch.setenv("QMD_REMOTE_GENERATION", "external")
    monkeypatch.setenv("QMD_REMOTE_GENERATION_URL", "box:8000")
    assert 4 == main("config", "write", "--dry-run", "--json")
    assert "QMD_REMOTE_GENERATION_URL" in json.loads(capsys.readouterr().out)["error"]["message"]


# the program itself


def test_serve_with_a_key_file_that_is_not_there(qmd_remote: Run):
    """The program says so in one envelope with exit code 4, and nothing else on stdout or stderr."""
    done = qmd_remote("serve", "--api-key-file", "/nope", "--json")
    said = done.envelope()
    assert (4, "serve", "key.unreadable") == (done.code, said["command"], said["error"]["code"])
    assert done.stderr == ""


def test_a_failure_without_json_is_for_people(qmd_remote: Run):
    """Without --json stdout stays empty, and stderr has the error and the next command."""
    done = qmd_remote("status")
    assert (3, "") == (done.code, done.stdout)
    assert done.stderr.startswith("error: neither service is running")
    assert "qmd-remote up" in done.stderr


def test_an_unknown_command_without_json(qmd_remote: Run):
    """It ends with 2, names the command, and shows no traceback."""
    done = qmd_remote("nope")
    assert (2, "") == (done.code, done.stdout)
    assert "nope" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version(qmd_remote: Run, cli_home: Path):
    """The console script and `python -m` are one program."""
    module = subprocess.run([sys.executable, "-m", "qmd_remote", "--version"], capture_output=True, text=True)
    assert f"qmd-remote {__version__}\n" == qmd_remote("--version").stdout == module.stdout


def test_down_with_nothing_to_stop(qmd_remote: Run):
    """It is no failure to stop what does not run."""
    done = qmd_remote("down", "--json")
    assert (0, {"stopped": []}) == (done.code, done.envelope()["data"])


def test_status_of_a_service_that_answers(qmd_remote: Run, runs: Run, stand_in: Run):
    """A ready service is exit code 0, with what it says of itself."""
    runs("embed", stand_in().url, model="recorded")
    done = qmd_remote("status", "--json")
    embed = next(one for one in done.envelope()["data"]["services"] if one["service"] == "embed")
    told = (embed["state"], embed["model"], embed["device"])
    assert (0, ("ready", "real/embed, real/rerank", "cpu")) == (done.code, told)


def test_status_of_a_service_that_does_not_answer(qmd_remote: Run, runs: Run, nobody: str):
    """A service whose process lives and that answers nothing is exit code 1; the envelope is not ok."""
    runs("embed", nobody)
    done = qmd_remote("status", "--json")
    states = {one["service"]: one["state"] for one in done.envelope()["data"]["services"]}
    assert (1, {"embed": "not answering", "generation": "not running"}) == (done.code, states)


# flags and settings


def test_models_that_may_run_code_are_two_names(main: Callable[..., int], upped: Any, served: list[Settings]):
    """--trust-remote-code may be repeated, for up and for serve."""
    twice = ("--trust-remote-code", "one/model", "--trust-remote-code", "/two")
    assert (0, 0) == (main("up", *twice), main("serve", *twice))
    assert ("one/model", "/two") == upped[0][0].trust_remote_code == served[0].trust_remote_code


def test_flags_that_are_not_given_leave_the_environment_alone(
    main: Callable[..., int], upped: Any, served: list[Settings], monkeypatch: pytest.MonkeyPatch
):
    """Lists, switches and numbers without their flag come from the environment."""
    for name, value in {
        "QMD_REMOTE_TRUST_REMOTE_CODE": "a,b",
        "QMD_REMOTE_INSECURE_NO_AUTH": "1",
        "MAX_BATCH_SIZE": "7",
        "QMD_REMOTE_GENERATION": "off",
    }.items():
        monkeypatch.setenv(name, value)
    assert (0, 0) == (main("up"), main("serve"))
    for wanted in (upped[0][0], served[0]):
        assert (("a", "b"), True, 7, "off") == (
            wanted.trust_remote_code,
            wanted.insecure_no_auth,
            wanted.max_batch_size,
            wanted.generation_engine,
        )


def test_how_to_compute_is_said_by_flags(main: Callable[..., int], upped: Any, served: list[Settings]):
    """Backend, precision, threads and tokens reach the settings, of up and of serve."""
    flags = ("--backend", "torch", "--dtype", "bfloat16", "--threads", "3", "--max-batch-tokens", "99")
    assert (0, 0) == (main("up", *flags), main("serve", *flags))
    for wanted in (upped[0][0], served[0]):
        assert ("torch", "bfloat16", 3, 99) == (wanted.backend, wanted.dtype, wanted.threads, wanted.max_batch_tokens)


def test_generation_is_a_flag_of_its_own_name(main: Callable[..., int], upped: Any):
    """--generation names the engine; every other flag has the name of its setting."""
    assert 0 == main("up", "--generation", "external", "--generation-url", "http://h:1", "--generation-port", "9")
    wanted = upped[0][0]
    told = (wanted.generation_engine, wanted.generation_url, wanted.generation_port)
    assert ("external", "http://h:1", 9) == told


@pytest.mark.parametrize(
    ("flags", "variable", "expected"),
    [({}, "", "mini"), ({}, "cpu", "cpu"), ({"preset": "gpu"}, "cpu", "gpu")],
)
def test_a_plain_up_keeps_the_preset_that_runs(
    runs: Run, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], variable: str, expected: str
):
    """Without --preset and variable the running service's preset is taken, and its models with it."""
    if variable:
        monkeypatch.setenv("QMD_REMOTE_PRESET", variable)
    runs("embed", "http://127.0.0.1:1", preset="mini")
    wanted, why = cli_life.settings_from(flags)
    assert (expected, expected == "mini") == (wanted.preset, bool(why))
    assert ("MiniLM" in wanted.embed_model) == (expected == "mini")


# failures nobody expected


def _raise(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (ZeroDivisionError("ouch"), 1, "bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (NotRunning("gone", hint="do"), 3, "not_running"),
    ],
)
def test_every_exception_becomes_an_envelope(
    cli_home: Path, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, name: str
):
    """A bug, Ctrl-C and an expected failure each end in an envelope with their code."""
    with pytest.raises(cli_run.typer.Exit) as end:
        cli_run.run(Output("x", as_json=True), _raise(error))
    said = json.loads(capsys.readouterr().out)
    assert (code, code, name) == (end.value.exit_code, said["exit_code"], said["error"]["code"])


def test_a_bug_shows_its_traceback_when_asked_to(cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """With QMD_REMOTE_DEBUG=1 an unexpected exception is not swallowed."""
    monkeypatch.setenv("QMD_REMOTE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli_run.run(Output("x"), _raise(ZeroDivisionError()))
