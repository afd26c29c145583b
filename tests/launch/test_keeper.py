"""The life of a generation engine under its keeper, as processes, with a small program in the place of transformers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qmd_remote import services
from qmd_remote.errors import Exit
from qmd_remote.launch.keeper import free_port
from qmd_remote.services import GENERATION

LIMIT_S = 20
SECRET = "k3y-that-nobody-may-read"
# found before the real transformers, as `python -m transformers.cli.transformers serve MODEL …`
ENGINE = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
arguments = sys.argv[1:]
if arguments[1] == "acme/missing":
    sys.exit("OSError: acme/missing is not a local folder and is not a valid model identifier listed on the hub")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"pid": os.getpid(), "env": dict(os.environ), "argv": arguments}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
ThreadingHTTPServer(("127.0.0.1", int(arguments[arguments.index("--port") + 1])), Handler).serve_forever()
"""


class Kept:
    """A keeper and its engine."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process, self.url, self.folder = process, f"http://127.0.0.1:{port}", folder

    @property
    def out(self) -> str:
        """What the keeper printed."""
        return (self.folder / "out").read_text()

    @property
    def log(self) -> str:
        """What keeper and engine have logged up to now."""
        return (self.folder / "log").read_text()

    def ask(self) -> dict[str, Any]:
        """What the engine tells of itself; the call waits while there is none."""
        return dict(httpx.get(f"{self.url}/", timeout=LIMIT_S, trust_env=False).json())

    def end(self, number: signal.Signals) -> int:
        """Signal the keeper; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


@pytest.fixture
def keep(home: Path, tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    """Start a keeper as `up` does."""
    package = tmp_path / "transformers" / "cli"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "transformers.py").write_text(ENGINE)
    started: list[Kept] = []

    def start(**settings: str) -> Kept:
        port = int(settings.pop("QMD_REMOTE_GENERATION_PORT", free_port()))
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "QMD_REMOTE_GENERATION_COMMAND": "transformers",
            "QMD_REMOTE_GENERATION_MODEL": "acme/small",
            "QMD_REMOTE_GENERATION_PORT": str(port),
            "QMD_REMOTE_API_KEY": SECRET,
            **settings,
        }
        command = [sys.executable, "-P", "-m", "qmd_remote.launch.keeper"]
        with (tmp_path / "out").open("w") as out, (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, env=env, stdout=out, stderr=log)
        started.append(Kept(process, port, tmp_path))
        deadline = time.monotonic() + LIMIT_S
        while services.find(GENERATION) is None and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return started[-1]

    yield start
    for kept in started:
        kept.process.kill()
        kept.process.wait()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_engine_runs_behind_the_public_port(keep):
    """The engine gets its model and a private port on loopback, and neither our key nor leave to phone home."""
    kept = keep()
    facts = kept.ask()
    argv, env = facts["argv"], facts["env"]
    assert ["serve", "acme/small", "--host", "127.0.0.1", "--port"] == argv[:5]
    assert argv[5] != kept.url.rpartition(":")[2]
    assert SECRET not in json.dumps(facts)
    assert ("1", "1") == (env["DO_NOT_TRACK"], env["HF_HUB_DISABLE_TELEMETRY"])
    assert SECRET not in " ".join(psutil.Process(kept.process.pid).cmdline())
    found = services.find(GENERATION)
    assert found is not None
    expected = (kept.process.pid, kept.url, "acme/small", "transformers")
    assert expected == (found.pid, found.url, found.model, found.program)


def test_a_killed_engine_is_restarted_and_its_callers_wait(keep, eventually):
    """kill -9 of a ready engine: the next call on the same port is neither refused nor failed, a new engine answers."""
    kept = keep()
    first = kept.ask()["pid"]
    eventually(lambda: "ready after" in kept.log)
    os.kill(first, signal.SIGKILL)
    second = kept.ask()["pid"]
    assert first != second
    assert kept.process.poll() is None


def test_sigterm_ends_engine_and_keeper(keep):
    """Asked to end, the keeper ends its engine, takes back its record and its port, and exits with 0."""
    kept = keep()
    engine = kept.ask()["pid"]
    assert 0 == kept.end(signal.SIGTERM)
    assert gone(engine)
    assert not services.record_file(GENERATION).exists()
    with pytest.raises(httpx.ConnectError):
        kept.ask()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_killed_keeper_takes_its_engine_along(keep, eventually):
    """kill -9 of the keeper leaves no engine behind that holds memory, and its record is not believed."""
    kept = keep()
    engine = kept.ask()["pid"]
    kept.end(signal.SIGKILL)
    eventually(lambda: gone(engine))
    assert services.find(GENERATION) is None


def test_an_engine_that_cannot_start_ends_the_keeper(keep):
    """A model that does not exist is not tried again and again: the keeper ends, and its log tells the cause."""
    kept = keep(QMD_REMOTE_GENERATION_MODEL="acme/missing")
    assert 1 == kept.process.wait(LIMIT_S)
    assert "is not a valid model identifier" in kept.log
    assert 1 == kept.log.count(" started (pid ")
    assert services.find(GENERATION) is None


def test_a_taken_port_is_an_error_that_up_can_read(keep):
    """A public port that somebody else holds ends the keeper with one envelope, whose hint names the right flag."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        kept = keep(QMD_REMOTE_GENERATION_PORT=str(port))
        code = kept.process.wait(LIMIT_S)
    envelope = json.loads(kept.out)
    assert (Exit.PREREQUISITE, "port.taken") == (code, envelope["error"]["code"])
    assert f"port {port} is taken" in envelope["error"]["message"]
    assert "--generation-port" in envelope["error"]["hint"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"QMD_REMOTE_GENERATION_PORT": "70000"}, Exit.CONFIGURATION),
        ({"QMD_REMOTE_GENERATION": "off"}, Exit.CONFIGURATION),
    ],
)
def test_settings_that_it_cannot_work_with_are_an_error_that_up_can_read(settings: dict[str, str], code: Exit, keep):
    """Wrong settings, and a plan without a process, end the keeper with an envelope and not with a traceback."""
    kept = keep(**settings)
    assert code == kept.process.wait(LIMIT_S)
    assert "Traceback" not in kept.log
    assert not json.loads(kept.out)["ok"]
