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

from qmd_remote import logbook, paths, services
from qmd_remote.errors import Exit
from qmd_remote.launch import convert_gguf, diagnose, phases, wait
from qmd_remote.launch.keeper import free_port
from qmd_remote.presets import MINI_GENERATION
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
# a conversion that does what its file's name says
CONVERTER = """
import pathlib, sys, time
from qmd_remote.launch import convert_gguf
source, cache, model = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
def write_model(source, target):
    target.mkdir()
    (target / "model.safetensors").write_text("half")
    print("phase: reading the weights", flush=True)
    if source.name == "full.gguf":
        raise OSError(28, "No space left on device")
    if source.name == "slow.gguf":
        time.sleep(600)
    (target / "config.json").write_text("{}")
convert_gguf._write_model = write_model
convert_gguf.convert(source, cache, model)
"""
# the keeper, on a machine whose small model lies in a file of the test's and is converted as above
MINI_KEEPER = """
import dataclasses, os, pathlib, sys
from qmd_remote.launch import conversion, hardware, keeper
from qmd_remote.presets import MINI_GENERATION
probed = dataclasses.replace(hardware.probe(), bundled={MINI_GENERATION: pathlib.Path(sys.argv[1])})
keeper.hardware.probe = lambda: probed
conversion.python_module = lambda module, *arguments: [sys.executable, "-c", sys.argv[2], *arguments]
sys.exit(keeper.main("generation"))
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
        path = paths.log_file(GENERATION)
        return (self.folder / "log").read_text() + (path.read_text() if path.is_file() else "")

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
    for name in ("small", "missing"):  # nothing of these is to be downloaded first
        cache_model(tmp_path / "hf" / "hub", f"acme/{name}")
    started: list[Kept] = []

    def start(*program: str, **settings: str) -> Kept:
        port = int(settings.pop("QMD_REMOTE_GENERATION_PORT", free_port()))
        env = {
            **{name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_ORDER"},
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "QMD_REMOTE_GENERATION_COMMAND": "transformers",
            "QMD_REMOTE_GENERATION_MODEL": "acme/small",
            "QMD_REMOTE_GENERATION_PORT": str(port),
            "QMD_REMOTE_API_KEY": SECRET,
            **settings,
        }
        command = [sys.executable, "-P", *(program or ("-m", "qmd_remote.launch.keeper", "generation"))]
        paths.make_private(paths.log_dir())
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


def cache_model(cache: Path, name: str) -> None:
    """Lay a model out as the hub's library does, as far as anybody looks at it here."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("main")


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_engine_runs_behind_the_public_port(keep):
    """It gets its model, a private port and nvidia-smi's numbers, and neither our key nor leave to phone home."""
    kept = keep()
    facts = kept.ask()
    argv, env = facts["argv"], facts["env"]
    assert ["serve", "acme/small", "--host", "127.0.0.1", "--port"] == argv[:5]
    assert argv[5] != kept.url.rpartition(":")[2]
    assert SECRET not in json.dumps(facts)
    assert ("1", "1") == (env["DO_NOT_TRACK"], env["HF_HUB_DISABLE_TELEMETRY"])
    assert "PCI_BUS_ID" == env["CUDA_DEVICE_ORDER"]
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


def test_a_model_that_is_not_here_is_downloaded_before_its_engine_starts(keep):
    """Without a hub that ends at once, with the cause as the last thing in the log, and is remembered."""
    kept = keep(QMD_REMOTE_GENERATION_MODEL="acme/elsewhere")
    assert int(Exit.PREREQUISITE) == kept.process.wait(LIMIT_S)
    assert "phase: downloading the model" in kept.log
    assert "generation engine (transformers) started" not in kept.log
    assert "hub.unreachable" == diagnose.to_error("generation engine", kept.log, "ended", "the log").code
    assert "acme/elsewhere cannot be downloaded" in services.read(GENERATION).ended


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


def test_a_crash_is_told_with_where_its_last_words_are(keep, eventually):
    """After a restart the log names the file that holds what the crashed engine said last."""
    kept = keep()
    first = kept.ask()["pid"]
    eventually(lambda: "ready after" in kept.log)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "restarting at once" in kept.log)
    crash = logbook.crash_file(paths.log_file(GENERATION))
    assert f"restarting at once; its last lines are in {crash}" in kept.log
    header, _, *words = logbook.unstamped(crash.read_text()).splitlines()
    assert f"generation engine (transformers) (pid {first}) was killed by SIGKILL" == header
    assert any("GET / HTTP/1.1" in line for line in words)


# the conversion of its weights


class Mini:
    """A keeper that converts its model first."""

    def __init__(self, keep: Callable[..., Kept], folder: Path) -> None:
        self._keep, self._folder = keep, folder
        self.cache = paths.cache_dir() / "hub"
        self.home = convert_gguf.snapshot(self.cache, MINI_GENERATION, self.source("quick")).parent.parent

    def source(self, kind: str) -> Path:
        """A file to convert: quick, slow (it stands still half-way) or full (the disk is)."""
        path = self._folder / f"{kind}.gguf"
        path.write_bytes(b"GGUF")
        return path

    def keep(self, kind: str) -> Kept:
        """Start it."""
        arguments = ("-c", MINI_KEEPER, str(self.source(kind)), CONVERTER)
        return self._keep(*arguments, QMD_REMOTE_GENERATION_MODEL=MINI_GENERATION)

    def is_half_made(self) -> bool:
        """Whether a conversion is at work, or left something."""
        return any(self.home.glob("partial-*/model/model.safetensors"))

    def is_there(self, kind: str) -> bool:
        """Whether the model would be taken for converted."""
        return convert_gguf.is_converted(self.cache, MINI_GENERATION, self.source(kind))


@pytest.fixture
def mini(keep: Callable[..., Kept], tmp_path: Path) -> Mini:
    """A machine with a small model in a file."""
    return Mini(keep, tmp_path)


def converters(kept: Kept) -> list[psutil.Process]:
    """The converting processes below a keeper."""
    try:
        found = psutil.Process(kept.process.pid).children()
        return [child for child in found if any("convert_gguf" in part for part in child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def test_a_model_is_converted_once_before_its_engine_starts(mini: Mini):
    """A caller that comes during the conversion waits for the engine; the next start converts nothing."""
    kept = mini.keep("quick")
    assert ["serve", MINI_GENERATION] == kept.ask()["argv"][:2]
    assert mini.is_there("quick")
    log = logbook.unstamped(kept.log)
    assert phases.CONVERSION_BEGINS in log
    assert log.index("converting: phase: reading the weights") < log.index("generation engine (transformers) started")
    assert 0 == kept.end(signal.SIGTERM)
    assert not logbook.crash_file(paths.log_file(GENERATION)).exists()
    paths.log_file(GENERATION).unlink()
    again = mini.keep("quick")
    again.ask()
    assert phases.CONVERSION_BEGINS not in again.log


def test_a_failed_conversion_ends_the_keeper_and_its_log_tells_why(mini: Mini, still_running):
    """A full disk ends the keeper with 1; `up` reads the cause from the log, and nothing half-made is left."""
    kept = mini.keep("full")
    assert 1 == kept.process.wait(LIMIT_S)
    error = diagnose.to_error("generation engine", wait.read_tail(paths.log_file(GENERATION)), "ended", "the log")
    assert "disk.full" == error.code
    assert "the conversion of its weights ended by itself with exit code 1" in kept.log
    assert "No space left on device" in logbook.crash_file(paths.log_file(GENERATION)).read_text()
    assert not mini.is_half_made()
    assert not mini.is_there("full")
    assert services.find(GENERATION) is None
    assert [] == still_running()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_conversion_can_be_stopped(number: signal.Signals, mini: Mini, eventually, still_running):
    """Asked to end while it converts, the keeper ends at once with 0 and clears away what was half-made."""
    kept = mini.keep("slow")
    eventually(mini.is_half_made)
    eventually(lambda: "phase: reading the weights" in kept.log)
    text = wait.read_tail(paths.log_file(GENERATION))
    assert "converting its weights: reading the weights" == phases.latest(text).name
    assert 0 == kept.end(number)
    assert not mini.is_half_made()
    assert not services.record_file(GENERATION).exists()
    assert [] == still_running()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("victim", ["keeper", "converter"])
def test_a_killed_conversion_leaves_nothing_that_the_next_start_cannot_clear(
    victim: str, mini: Mini, eventually, still_running
):
    """kill -9 of either process ends both; half a model is not taken for a whole one, and the next start is clean."""
    kept = mini.keep("slow")
    eventually(mini.is_half_made)
    process = kept.process.pid if victim == "keeper" else converters(kept)[0].pid
    os.kill(process, signal.SIGKILL)
    assert kept.process.wait(LIMIT_S) in {1, -signal.SIGKILL}
    eventually(lambda: still_running() == [])
    assert services.find(GENERATION) is None
    assert not mini.is_there("slow")
    assert ["serve", MINI_GENERATION] == mini.keep("quick").ask()["argv"][:2]
    assert not mini.is_half_made()
    assert mini.is_there("quick")
    assert {"refs", "snapshots"} == {path.name for path in mini.home.iterdir()}
