"""A worker that is killed over its requests: the real parent, with a stand-in for the worker, and the real program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from qmd_remote.expansion import chat_body
from qmd_remote.presets import MINI_EMBED
from tests.server.generation_service import ASKED, Service, begin_stream, delta, good
from tests.server.tiny_models import until

LIMIT_S = 30
PROGRAM = Path(sys.executable).with_name("qmd-remote")


def kept_by(pid: int) -> int:
    """How many whole requests this process holds in files in memory."""
    found = 0
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += one.readlink().name.startswith("memfd:") and one.read_bytes().startswith(b"POST")
    return found


# the real parent, with a stand-in for the worker: it hands every POST over, and then does what its path says

WORKER = """
import os, signal, socket, sys, time
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(True)
number, token = os.environ["QMD_REMOTE_SAFEKEEPING"].split()
safe, kept = socket.socket(fileno=int(number)), 0
while True:
    connection = listener.accept()[0]
    asked = connection.recv(65536)
    if not asked:  # a probe that was given up while it waited
        continue
    if asked.startswith(b"GET"):
        connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\nconnection: close\\r\\n\\r\\n")
        connection.close()
        continue
    if token.encode() not in asked:
        file = os.memfd_create("request")
        line, _, rest = asked.partition(b"\\r\\n")
        os.write(file, b"\\r\\n".join([line, b"x-qmd-remote-resent: " + token.encode(), rest]))
        socket.send_fds(safe, [b"K" + kept.to_bytes(8, sys.byteorder)], [connection.fileno(), file])
    if asked.startswith(b"POST /killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
"""
PARENT = """
import sys
from qmd_remote.server import supervisor
from qmd_remote.settings import resolve
supervisor.python_module = lambda module, fd, mode: [sys.executable, "-c", sys.argv[1], fd, mode]
sys.exit(supervisor.serve(resolve()))
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """The process, its address and its log."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**os.environ, "QMD_REMOTE_HOME": str(tmp_path), "QMD_REMOTE_PORT": str(port)}
    log = tmp_path / "serve.log"
    with log.open("wb") as sink:
        process = subprocess.Popen([sys.executable, "-c", PARENT, WORKER], env=env, stderr=sink)
    try:
        until(lambda: "embed worker ready" in log.read_text(), LIMIT_S)
        yield process, f"http://127.0.0.1:{port}", log
    finally:
        process.kill()
        process.wait()


def test_a_request_that_kills_each_worker_ends_with_a_503(parent):
    """Three workers die of it; then its caller reads so, on the connection that it came by, and the service lives."""
    process, url, log = parent
    answer = httpx.post(f"{url}/killer", content=b"work", timeout=LIMIT_S, trust_env=False)
    error = answer.json()["error"]
    assert (503, "worker_died", "close") == (answer.status_code, error["code"], answer.headers["connection"])
    until(lambda: log.read_text().count("was killed by SIGKILL") == 3, LIMIT_S)
    assert 1 == log.read_text().count("the worker died over 1 requests; they are sent again")
    assert process.poll() is None


def test_a_stop_that_ends_a_worker_over_its_requests_tells_their_callers(parent):
    """The worker does not drain: its caller reads a 503 from the parent, and no reset."""
    process, url, log = parent
    with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0), LIMIT_S) as caller:
        caller.sendall(b"POST /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: kept_by(process.pid), LIMIT_S)
        process.send_signal(signal.SIGTERM)
        answer = b""
        while part := caller.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code": "shutting_down"' in answer
    assert 0 == process.wait(LIMIT_S), log.read_text()


# the real program, with MiniLM


@pytest.fixture(scope="module")
def engine() -> Iterator[Service]:
    """The generation service behind it."""
    with closing(Service()) as service:
        yield service


@pytest.fixture(scope="module")
def program(
    tmp_path_factory: pytest.TempPathFactory, engine: Service
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """`qmd-remote serve`, ready; its address and its log."""
    folder = tmp_path_factory.mktemp("kept")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    mine = {
        "QMD_REMOTE_HOME": str(folder),
        "QMD_REMOTE_PORT": str(port),
        "QMD_REMOTE_API_KEY": "k",
        "QMD_REMOTE_GENERATION": "external",
        "QMD_REMOTE_GENERATION_URL": engine.url,
        "QMD_REMOTE_BACKEND": "torch",
        "QMD_REMOTE_DTYPE": "float32",
        "EMBED_MODEL": MINI_EMBED,
        "RERANK_MODEL": MINI_EMBED,
        "DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("QMD_REMOTE_")} | mine
    log = folder / "serve.log"
    with log.open("wb") as sink:
        process = subprocess.Popen([PROGRAM, "serve"], env=env, stdout=sink, stderr=subprocess.STDOUT)
    try:
        until(lambda: "embed worker ready" in log.read_text(), 120)
        yield process, f"http://127.0.0.1:{port}", log
    finally:
        process.kill()
        process.wait()


def worker_of(process: subprocess.Popen[bytes]) -> int:
    """The worker's pid."""
    children = psutil.Process(process.pid).children()
    return next((one.pid for one in children if "qmd_remote.server.worker" in one.cmdline()), 0)


def test_requests_in_flight_survive_kill_9(program):
    """Embeddings and a rerank that a killed worker computes get the undisturbed answers, on the same connections."""
    process, url, log = program
    texts = ["the quick brown fox " * 40 + str(number) for number in range(24)]
    asked = [
        ("/embeddings", {"input": texts}),
        ("/v1/reranks", {"query": "a fox", "documents": texts, "return_documents": True}),
    ]
    options = {"headers": {"authorization": "Bearer k"}, "timeout": 120, "trust_env": False}
    with httpx.Client(base_url=url, **options) as client:
        calm = [client.post(path, json=body) for path, body in asked]
    events: list[str] = []

    def ask(path: str, body: dict[str, Any]) -> httpx.Response:
        with httpx.Client(base_url=url, **options) as client:
            answer = client.post(path, json=body, extensions={"trace": lambda event, _: events.append(event)})
            assert 200 == client.get("/livez").status_code  # on a new connection: that one has ended
            return answer

    before = worker_of(process)
    with ThreadPoolExecutor(2) as callers:
        answers = [callers.submit(ask, *one) for one in asked]
        until(lambda: kept_by(process.pid) == 2)
        os.kill(before, signal.SIGKILL)
        disturbed = [one.result() for one in answers]
    assert 2 == events.count("connection.connect_tcp.started")
    assert "the worker died over 2 requests; they are sent again" in log.read_text()
    assert before != worker_of(process)
    assert [200, 200] == [one.status_code for one in disturbed]
    assert ["close", "close"] == [one.headers["connection"] for one in disturbed]
    first, second = ([item["embedding"] for item in one.json()["data"]] for one in (calm[0], disturbed[0]))
    assert np.allclose(first, second, atol=1e-6)
    ranked = [{item["index"]: item["score"] for item in one.json()["results"]} for one in (calm[1], disturbed[1])]
    assert list(range(24)) == sorted(ranked[1])
    assert np.allclose([ranked[0][n] for n in range(24)], [ranked[1][n] for n in range(24)], atol=1e-6)
    until(lambda: kept_by(process.pid) == 0)


def test_generation_in_flight_survives_kill_9(program, engine):
    """Whoever waits for an answer to begin gets it, on the same connection; one that has begun is cut, not begun anew.

    A chat, one that is to be streamed, and an expansion wait; of another stream something is out.
    """
    process, url, _ = program
    waiting = [ASKED, {**ASKED, "stream": True}, chat_body("own/llm", "renew my passport")]
    begun = {**ASKED, "stream": True, "user": "begun"}
    came: list[bytes] = []

    def answer(handler: Any, raw: bytes) -> None:
        if handler.command == "GET":
            return good(handler, raw)
        came.append(raw)
        if b"begun" in raw:
            begin_stream(handler, delta("green"))
        return engine.until_hung_up(handler) if len(came) <= 1 + len(waiting) else good(handler, raw)

    engine.answer = answer
    options = {"headers": {"authorization": "Bearer k"}, "timeout": 120, "trust_env": False}
    before = worker_of(process)
    with (
        ThreadPoolExecutor(len(waiting)) as callers,
        httpx.Client(base_url=url, **options) as client,
        client.stream("POST", "/v1/chat/completions", json=begun) as stream,
    ):
        events = stream.iter_raw()
        assert delta("green") == next(events)
        asked = [callers.submit(httpx.post, f"{url}/v1/v1/chat/completions", json=body, **options) for body in waiting]
        until(lambda: len(came) == 1 + len(waiting), LIMIT_S)
        os.kill(before, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            next(events)
        answers = [one.result() for one in asked]
    assert [(200, "close")] * 3 == [(one.status_code, one.headers["connection"]) for one in answers]
    assert "green tea" == answers[0].json()["choices"][0]["message"]["content"]
    assert answers[1].text.endswith("data: [DONE]\n\n")
    assert "lex: renew my passport" in answers[2].text
    assert sorted(came[1:4]) == sorted(came[4:])
    assert before != worker_of(process)
    until(lambda: kept_by(process.pid) == 0)


def test_a_kept_connection_serves_on(program):
    """Many requests on one connection, with a keeping each, get their answers in order, and nothing is left kept."""
    process, url, _ = program
    with httpx.Client(base_url=url, headers={"authorization": "Bearer k"}, timeout=120, trust_env=False) as client:
        for number in range(20):
            documents = ["tea"] * (number + 1)
            answer = client.post("/rerank", json={"query": "green tea", "documents": documents})
            assert number + 1 == len(answer.json()["results"])
    until(lambda: kept_by(process.pid) == 0)
