"""`qmd-remote serve`, the parent: what it refuses, whom it tells, and how it ends. A stand-in does the worker's job."""

from __future__ import annotations

import asyncio
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

from qmd_remote import services, supervision
from qmd_remote.errors import ConfigError, PrerequisiteError
from qmd_remote.server import supervisor
from qmd_remote.services import EMBED
from qmd_remote.settings import Settings

LIMIT_S = 20
SECRET = "k3y-that-nobody-may-read"
WORKER = """
import json, os, socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"pid": os.getpid(), "key": os.environ["QMD_REMOTE_API_KEY"],
                           "order": os.environ["CUDA_DEVICE_ORDER"]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.socket.setblocking(True)
server.serve_forever()
"""
PARENT = """
import sys
from qmd_remote.server import supervisor
from qmd_remote.settings import resolve
supervisor.python_module = lambda module, fd, mode: [sys.executable, "-c", sys.argv[1], fd, mode]
sys.exit(supervisor.serve(resolve(), managed="managed" in sys.argv))
"""


class Served:
    """A parent with its stand-in worker."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    def ask(self) -> dict[str, Any]:
        """What the worker tells of itself."""
        return dict(httpx.get(f"{self.url}/", timeout=LIMIT_S, trust_env=False).json())

    def says(self, words: str) -> None:
        """Wait until the log holds these words."""
        deadline = time.monotonic() + LIMIT_S
        while words not in self.told():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.02)

    def told(self) -> str:
        """What the log holds; a managed server makes its own."""
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """Start a parent on a port of its own choice."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path / "home"))
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **settings: str) -> Served:
        env = {**os.environ, "QMD_REMOTE_PORT": "0", "QMD_REMOTE_API_KEY": SECRET, **settings}
        path = tmp_path / "serve.log"
        (tmp_path / "home" / "log").mkdir(parents=True)  # as `up` makes it
        with path.open("w") as log:
            command = [sys.executable, "-c", PARENT, WORKER, *arguments]
            process = subprocess.Popen(command, env=env, stderr=log, text=True)
        started.append(process)
        if "managed" in arguments:
            path = tmp_path / "home" / "log" / "embed.log"
        served = Served(process, "", path)
        served.says("embed worker started")
        line = next(line for line in served.told().splitlines() if "embed server on" in line)
        served.url = line.rpartition(" ")[2]
        return served

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("own", "expected"), [("", "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
def test_gpus_have_the_numbers_of_nvidia_smi_unless_the_user_says_otherwise(serve, monkeypatch, own, expected):
    """`cuda:1` is the GPU that nvidia-smi calls 1, and not the second fastest; an order of one's own is kept."""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert expected == serve(**({"CUDA_DEVICE_ORDER": own} if own else {})).ask()["order"]


def test_the_worker_gets_socket_and_key_and_nobody_can_read_the_key(serve):
    """The worker answers on the parent's port; the key reaches it by its environment, never by a command line."""
    served = serve()
    facts = served.ask()
    assert SECRET == facts["key"]
    for pid in (served.process.pid, facts["pid"]):
        assert SECRET not in " ".join(psutil.Process(pid).cmdline())
    assert SECRET not in served.log.read_text()
    served.says("embed worker ready after")


def test_a_killed_worker_is_replaced_on_the_same_port(serve):
    """kill -9 of a ready worker: the next call is answered by a new one."""
    served = serve()
    first = served.ask()["pid"]
    served.says("embed worker ready after")
    os.kill(first, signal.SIGKILL)
    served.says("was killed by SIGKILL; restarting at once")
    assert first != served.ask()["pid"]


@pytest.mark.parametrize(("arguments", "known"), [(["managed"], True), ([], False)])
def test_only_a_managed_server_is_known_to_status_and_down(arguments: list[str], known: bool, serve):
    """What `up` starts announces itself, and takes that back at its end; a server in the foreground does not."""
    served = serve(*arguments)
    found = services.find(EMBED)
    assert known is (found is not None)
    if found is not None:
        assert (served.process.pid, served.url) == (found.pid, found.url)
    served.process.send_signal(signal.SIGTERM)
    assert 0 == served.process.wait(LIMIT_S)
    assert services.find(EMBED) is None
    assert not services.record_file(EMBED).exists()


def test_serving_everybody_is_said_aloud(serve):
    """An open address without a key, asked for by name, is served with a warning in the log."""
    served = serve(QMD_REMOTE_HOST="0.0.0.0", QMD_REMOTE_API_KEY="", QMD_REMOTE_INSECURE_NO_AUTH="1")
    assert "" == served.ask()["key"]
    assert "is served without a key" in served.log.read_text()


def test_an_open_address_without_a_key_is_refused_before_anything_starts():
    """Without a key strangers are not served, and no port was opened for them."""
    with pytest.raises(ConfigError) as caught:
        supervisor.serve(Settings(host="0.0.0.0", port=0))
    assert "bind.no_key" == caught.value.code


def test_a_taken_port_names_its_holder():
    """Who starts a second server reads which program holds the port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PrerequisiteError) as caught:
            supervisor.serve(Settings(port=port))
    assert f"port {port} is taken by" in caught.value.message
    assert f"(pid {os.getpid()})" in caught.value.message


@pytest.mark.parametrize(
    ("status", "ready"), [(b"200 OK", True), (b"503 Busy", False), (b"401 No", False), (b"", False)]
)
def test_ready_is_what_the_health_check_says(status: bytes, ready: bool):
    """Only a 200 on /health is ready; another status, silence or a hang-up is not, and is no error."""

    async def scene() -> bool:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert (await reader.readline()).startswith(b"GET /health ")
            if status:
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await supervision.answers_ok(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    assert ready is asyncio.run(scene())
    assert not asyncio.run(supervision.answers_ok("http://127.0.0.1:1"))


def test_the_first_missing_module_is_named(monkeypatch: pytest.MonkeyPatch):
    """With the server's extra installed nothing is missing; without it the first module that lacks is named."""
    assert "" == supervisor.missing_module()
    find = supervisor.importlib.util.find_spec
    monkeypatch.setattr(supervisor.importlib.util, "find_spec", lambda name: None if name == "orjson" else find(name))
    assert "orjson" == supervisor.missing_module()
