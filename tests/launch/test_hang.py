"""An engine that says it is well and completes nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qmd_remote.launch import hang


class Engine(ThreadingHTTPServer):
    """Its answers are set by the test: `completes` is a status, or None for never; `moves` lets its counter move."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.completes: int | None = 200
        self.healthy = 200
        self.metrics = True
        self.moves = False
        self.tokens = 0
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.server.tokens += self.server.moves
            text = f'vllm:generation_tokens_total{{model_name="m"}} {self.server.tokens}.0\n'
            self._say(200 if self.server.metrics else 404, text)
        else:
            self._say(self.server.healthy, "")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert "m" == asked["model"]
        if self.server.completes is None:
            self.server.ended.wait(30)
        else:
            self._say(self.server.completes, "{}")

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that works."""
    with Engine() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.fixture
def hung(engine: Engine) -> Callable[[], bool]:
    """Ask whether it hangs, with a limit of a fifth of a second."""
    return lambda: asyncio.run(hang.is_hung(engine.url, "m", 0.2))


@pytest.mark.parametrize("status", [200, 400, 404, 500, 503])
def test_any_answer_is_a_sign_of_life(engine: Engine, hung: Callable[[], bool], status: int):
    """An engine that refuses the probe does not hang."""
    engine.completes = status
    assert hung() is False


@pytest.mark.parametrize("metrics", [True, False])
def test_silence_of_a_healthy_engine_is_a_hang(engine: Engine, hung: Callable[[], bool], metrics: bool):
    """200 on /health and no completion, whether its counters stand still or cannot be seen."""
    engine.completes, engine.metrics = None, metrics
    assert hung() is True


def test_a_busy_engine_does_not_hang(engine: Engine, hung: Callable[[], bool]):
    """A probe that waits behind long work is no hang while the count of tokens grows."""
    engine.completes, engine.moves = None, True
    assert hung() is False


def test_an_engine_that_knows_that_it_is_ill_is_left_to_its_container(engine: Engine, hung: Callable[[], bool]):
    """One whose health check fails is about to end by itself."""
    engine.completes, engine.healthy = None, 503
    assert hung() is False


def test_an_engine_that_is_gone_does_not_hang():
    """What cannot be reached has ended, and is restarted by others."""
    assert asyncio.run(hang.is_hung("http://127.0.0.1:9", "m", 0.2)) is False
