"""How the embed server ends: running requests finish, new ones are refused, and nobody meets a reset."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.middleware import Middleware

from qmd_remote.errors import Unavailable
from qmd_remote.server.app import create_app
from qmd_remote.server.draining import Draining, DrainingServer, Gate
from qmd_remote.settings import Settings
from tests.server.conftest import FakeEngine
from tests.server.tiny_models import save_encoder, until

LIMIT_S = 30
PROGRAM = Path(sys.executable).with_name("qmd-remote")


class ClosableEngine(FakeEngine):
    """A stand-in whose work and whose loading end with `close`, as the engine's do."""

    def close(self) -> None:
        super().close()
        self.gate.set()
        self.settled.set()

    async def _work(self) -> None:
        await super()._work()
        if self.closed:
            raise Unavailable("the server is shutting down", code="shutting_down")


class Stage:
    """A server in a thread, that is told to stop as a signal would."""

    def __init__(self, engine: FakeEngine, limit_s: float) -> None:
        self.engine, self.gate = engine, Gate()
        app = create_app(Settings(ready_wait_s=LIMIT_S), engine=engine)
        app.user_middleware.append(Middleware(Draining, gate=self.gate))
        config = uvicorn.Config(app, log_config=None, access_log=False)
        self.server = DrainingServer(config, self.gate, engine, limit_s=limit_s)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.address[1]}", timeout=LIMIT_S, trust_env=False)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        self.callers = ThreadPoolExecutor(8)
        assert 200 == self.http.get("/livez").status_code

    def embed(self, text: str = "a") -> Future[httpx.Response]:
        """A request on a connection of its own, that runs when this returns."""
        before = self.gate.running
        answer = self.callers.submit(
            httpx.post, self.url("/v1/embeddings"), json={"input": text}, timeout=LIMIT_S, trust_env=False
        )
        until(lambda: self.gate.running > before or answer.done())
        return answer

    def url(self, path: str) -> str:
        return str(self.http.base_url.join(path))

    def stop(self) -> None:
        """What SIGTERM does; returns when new requests are refused."""
        self.server.handle_exit(signal.SIGTERM, None)
        until(lambda: self.gate.closed)

    def raw(self, sent: bytes) -> bytes:
        """Everything that is answered on a new connection."""
        with socket.create_connection(self.address, LIMIT_S) as caller:
            caller.sendall(sent)
            answer = b""
            while part := caller.recv(65536):
                answer += part
        return answer

    def ended(self) -> bool:
        """Whether the server ended within the limit."""
        self.thread.join(LIMIT_S)
        return not self.thread.is_alive()


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    """Start servers: `stage(engine?, limit_s=…)`."""
    started: list[Stage] = []

    def start(engine: FakeEngine | None = None, *, limit_s: float = 600) -> Stage:
        started.append(Stage(engine or ClosableEngine(), limit_s))
        return started[-1]

    yield start
    for one in started:
        one.engine.close()
        one.server.should_exit = True
        assert one.ended()
        one.callers.shutdown()
        one.http.close()


def refused(answer: httpx.Response) -> bool:
    """Whether this is the refusal of a server that ends, in OpenAI's shape, on a connection that ends too."""
    error = answer.json()["error"]
    assert (503, "service_unavailable", "shutting_down") == (answer.status_code, error["type"], error["code"])
    assert int(answer.headers["retry-after"]) > 0
    return answer.headers["connection"] == "close"


def test_running_requests_finish_and_new_ones_are_refused(stage):
    """After SIGTERM: 200 for what runs, 503 for what comes, on new and on kept connections; then the server ends."""
    one = stage()
    one.engine.gate.clear()
    running = one.embed()
    one.stop()
    assert refused(one.http.post("/v1/embeddings", json={"input": "kept connection"}))
    assert refused(one.embed("new connection").result(LIMIT_S))
    assert refused(httpx.get(one.url("/v1/models"), trust_env=False))
    assert not running.done()
    one.engine.gate.set()
    answer = running.result(LIMIT_S)
    assert (200, "close") == (answer.status_code, answer.headers["connection"])
    assert one.ended()
    assert not one.server.cut_short
    assert one.engine.closed


def test_health_says_stopping_and_livez_stays_alive(stage):
    """While it drains, /health is 503 "stopping" and /livez is 200."""
    one = stage()
    one.engine.gate.clear()
    running = one.embed()
    one.stop()
    health, alive = (httpx.get(one.url(path), trust_env=False) for path in ("/health", "/livez"))
    assert (503, {"status": "stopping"}) == (health.status_code, health.json())
    assert (200, {"status": "alive"}) == (alive.status_code, alive.json())
    one.engine.gate.set()
    assert 200 == running.result(LIMIT_S).status_code


def test_a_server_with_nothing_to_do_ends_at_once(stage):
    """Idle connections hold nothing up, whatever the limit is."""
    one = stage()
    one.stop()
    assert one.ended()


def test_a_second_signal_changes_nothing(stage):
    """SIGTERM and Ctrl-C while it drains leave the running request its time."""
    one = stage()
    one.engine.gate.clear()
    running = one.embed()
    one.stop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
        one.server.handle_exit(number, None)
    assert refused(one.embed().result(LIMIT_S))
    one.engine.gate.set()
    assert 200 == running.result(LIMIT_S).status_code


def test_at_the_limit_running_requests_get_a_503(stage):
    """What is not done in time is ended, and told so."""
    one = stage(limit_s=0.1)
    one.engine.gate.clear()
    running = one.embed()
    one.stop()
    answer = running.result(LIMIT_S)
    assert (503, "shutting_down") == (answer.status_code, answer.json()["error"]["code"])
    assert one.ended()
    assert one.server.cut_short


def test_at_the_limit_a_request_that_has_not_come_whole_gets_a_503(stage):
    """One that the engine knows nothing of, since its body is still on its way, is told too, and holds nobody up."""
    one = stage(limit_s=0.1)
    with socket.create_connection(one.address, LIMIT_S) as caller:
        caller.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        until(lambda: one.gate.running == 1)
        one.stop()
        assert caller.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert one.ended()


def test_who_waits_for_models_that_load_is_not_waited_for(stage):
    """A stop while the models load ends the loading, and those who wait for it get their 503 long before the limit."""
    one = stage(ClosableEngine("loading"))
    waiting = one.embed()
    until(one.engine.waiting.is_set)
    one.stop()
    assert 503 == waiting.result(LIMIT_S).status_code
    assert one.ended()


def test_a_large_request_reads_its_refusal(stage):
    """A body that nobody wants is taken in before the connection closes: a reset would eat the answer."""
    one = stage()
    one.engine.gate.clear()
    running = one.embed()
    one.stop()
    size = 5_000_000
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size
    assert one.raw(head + b"x" * size).startswith(b"HTTP/1.1 503 ")
    one.engine.gate.set()
    assert 200 == running.result(LIMIT_S).status_code


def test_who_asks_before_sending_is_refused_without_sending(stage):
    """`Expect: 100-continue` is answered with the 503, not with a call for the body."""
    one = stage()
    one.engine.gate.clear()
    one.embed()
    one.stop()
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
    assert one.raw(head).startswith(b"HTTP/1.1 503 ")
    one.engine.gate.set()


def test_a_slow_reader_gets_its_whole_answer(stage):
    """An answer that is larger than every buffer arrives whole, though the server has nothing else to wait for."""
    one = stage()
    texts = [str(number) for number in range(60_000)]
    body = b'{"input": [%s]}' % b",".join(b'"%s"' % text.encode() for text in texts)
    one.engine.gate.clear()
    with socket.create_connection(one.address, LIMIT_S) as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        caller.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        until(one.engine.entered.is_set)
        one.stop()
        one.engine.gate.set()
        answer = caller.recv(4096)
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        until(lambda: one.server.should_exit)
        while part := caller.recv(1 << 20):
            answer += part
    assert length == len(answer.partition(b"\r\n\r\n")[2])
    assert length > 5_000_000


# the real program


class Program:
    """`qmd-remote serve` with small models."""

    def __init__(self, folder: Path, port: int, **settings: str) -> None:
        mine = {
            "QMD_REMOTE_HOME": str(folder / "home"),
            "QMD_REMOTE_PORT": str(port),
            "EMBED_MODEL": str(folder / "model"),
            "RERANK_MODEL": str(folder / "model"),
            "DEVICE": "cpu",
            "MAX_BATCH_SIZE": "1",
            "HF_HUB_OFFLINE": "1",
            **settings,
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("QMD_REMOTE_")}
        self.log, self.url = folder / "serve.log", f"http://127.0.0.1:{port}"
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [PROGRAM, "serve"], env=clean | mine, stdout=sink, stderr=subprocess.STDOUT, process_group=0
            )

    def health(self) -> dict[str, Any]:
        """What /health says; empty while nobody answers."""
        with suppress(httpx.TransportError):
            return dict(httpx.get(f"{self.url}/health", timeout=LIMIT_S, trust_env=False).json())
        return {}

    def embed(self, texts: list[str]) -> httpx.Response:
        """The answer to a request."""
        return httpx.post(f"{self.url}/v1/embeddings", json={"input": texts}, timeout=120, trust_env=False)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start the program on a free port."""
    save_encoder(tmp_path / "model", "bert")
    started: list[Program] = []

    def start(**settings: str) -> Program:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        started.append(Program(tmp_path, port, **settings))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_sigterm_to_the_program_lets_a_slow_request_finish(program):
    """`qmd-remote serve`, SIGTERM twice amid a long request: 200 for that, 503 for a new one, exit code 0."""
    one = program()
    until(lambda: one.health().get("status") == "ok", 120)
    with ThreadPoolExecutor(1) as callers:
        slow = callers.submit(one.embed, ["the quick brown fox " * 40] * 400)
        until(lambda: one.health().get("queued", 0) > 0)
        for _ in range(2):
            one.process.terminate()
        until(lambda: one.health().get("status") == "stopping")
        assert refused(one.embed(["late"]))
        answer = slow.result()
    assert (200, 400) == (answer.status_code, len(answer.json()["data"]))
    assert 0 == one.process.wait(LIMIT_S), one.log.read_text()


def test_the_program_ends_what_does_not_finish_in_time(program):
    """With a limit of no time at all the long request gets a 503, and the exit code is 0 all the same."""
    one = program(QMD_REMOTE_SHUTDOWN_LIMIT_S="0")
    until(lambda: one.health().get("status") == "ok", 120)
    with ThreadPoolExecutor(1) as callers:
        slow = callers.submit(one.embed, ["the quick brown fox " * 40] * 400)
        until(lambda: one.health().get("queued", 0) > 0)
        one.process.terminate()
        answer = slow.result()
    assert (503, "shutting_down") == (answer.status_code, answer.json()["error"]["code"])
    assert 0 == one.process.wait(LIMIT_S), one.log.read_text()


def test_a_caller_in_the_queue_of_a_program_that_ends_is_answered(program):
    """Who connects before the worker is there, and meets a stop instead of it, reads a 503 and not a reset."""
    one = program()
    until(lambda: "embed worker started" in one.log.read_text())
    with socket.create_connection(("127.0.0.1", int(one.url.rpartition(":")[2])), LIMIT_S) as caller:
        caller.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        one.process.send_signal(signal.SIGINT)
        assert caller.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert 0 == one.process.wait(LIMIT_S), one.log.read_text()
