"""The real app on real sockets: with MiniLM in a process of its own, and with a stand-in engine in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import hypothesis
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from qmd_remote.errors import QmdRemoteError, Unavailable
from qmd_remote.presets import MINI_EMBED
from qmd_remote.server.app import create_app
from qmd_remote.server.engine import Embeddings, Loading, Scores
from qmd_remote.settings import Settings
from tests.server.generation_service import Service, behind

START_LIMIT_S = 120

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("untimed")


class FakeEngine:
    """The engine's interface without models: vectors follow from the text, scores are the numbers in the documents.

    `gate` holds embed and rerank back until it is set; `entered` and `cancelled` tell what happened to them;
    `waiting` and `waiters` tell of requests that wait for the models.
    """

    embed_id = "fake/embedder"
    rerank_id = "fake/reranker"
    dimension: int | None = 8

    def __init__(self, state: str = "ready", failure: QmdRemoteError | None = None) -> None:
        self.state = state
        self.failure = failure
        self.loading = Loading("loading weights", 0.25)
        self.gate = threading.Event()
        self.gate.set()
        self.settled = threading.Event()
        if state != "loading":
            self.settled.set()
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.waiting = threading.Event()
        self.waiters = self.calls = 0
        self.started = self.closed = False
        self.bug: Exception | None = None

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.closed = True

    def facts(self) -> dict[str, object]:
        return {"device": "cpu", "cuda_available": False, "dimension": self.dimension, "dtype": "float32"}

    def settle(self, state: str) -> None:
        """End the loading."""
        self.state = state
        self.settled.set()

    async def ready(self, timeout: float) -> None:  # noqa: ASYNC109 - the engine's interface
        self.waiters += 1
        self.waiting.set()
        try:
            await asyncio.to_thread(self.settled.wait, timeout)
        finally:
            self.waiters -= 1
        if self.state != "ready":
            raise Unavailable("the models are still loading", code="loading", retry_after=5)

    async def embed(self, inputs: Sequence[str | Sequence[int]], prompt_name: str | None = None) -> Embeddings:
        await self._work()
        rows = np.stack([self._vector(str(item)) for item in inputs])
        return Embeddings(vectors=rows, tokens=sum(len(item) for item in inputs))

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        await self._work()
        scores = [float(text) if text.replace(".", "", 1).isdecimal() else 0.5 for text in documents]
        return Scores(scores=np.clip(np.array(scores), 0, 1), tokens=len(documents))

    async def _work(self) -> None:
        self.calls += 1
        self.entered.set()
        if self.bug is not None:
            raise self.bug
        try:
            await asyncio.to_thread(self.gate.wait)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    @staticmethod
    def _vector(text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        row = np.random.default_rng(seed).standard_normal(8)
        return (row / np.linalg.norm(row)).astype(np.float32)


@contextmanager
def _serving(app) -> Iterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))  # listens from here on: clients wait instead of being refused
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., SimpleNamespace]]:
    """`serve(engine?, **settings)` serves the app with a stand-in engine; gives `.http`, `.engine`, `.address`.

    Generation is off unless the settings say otherwise.
    """
    with ExitStack() as stack:

        def start(engine: FakeEngine | None = None, **settings) -> SimpleNamespace:
            engine = engine or FakeEngine()
            stack.callback(engine.gate.set)
            stack.callback(engine.settled.set)
            host, port = stack.enter_context(
                _serving(create_app(Settings(**{"generation_engine": "off", **settings}), engine=engine))
            )
            http = stack.enter_context(httpx.Client(base_url=f"http://{host}:{port}", timeout=30, trust_env=False))
            return SimpleNamespace(http=http, engine=engine, address=(host, port))

        yield start


@pytest.fixture(scope="module")
def serve_app() -> Iterator[Callable[..., SimpleNamespace]]:
    """`serve_app(app)` serves an app; gives `.http`, `.app`, `.address`."""
    with ExitStack() as stack:

        def start(app: FastAPI) -> SimpleNamespace:
            host, port = stack.enter_context(_serving(app))
            http = stack.enter_context(httpx.Client(base_url=f"http://{host}:{port}", timeout=120, trust_env=False))
            return SimpleNamespace(http=http, app=app, address=(host, port))

        yield start


@pytest.fixture
def service() -> Iterator[Service]:
    """A generation service of the test's own."""
    with closing(Service()) as service:
        yield service


@pytest.fixture
def door(serve, service) -> SimpleNamespace:
    """The embed server before `service`."""
    return behind(serve, service.url)


@pytest.fixture(scope="session")
def fake_engine() -> type[FakeEngine]:
    """The stand-in engine's class."""
    return FakeEngine


@pytest.fixture(scope="session")
def mini_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with MiniLM as embedder and reranker, started as a user would with plain uvicorn."""
    home = tmp_path_factory.mktemp("mini")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "qmd_remote.server.app:create_app", "--port", str(port)]
    mine = {
        "EMBED_MODEL": MINI_EMBED,
        "RERANK_MODEL": MINI_EMBED,
        "DEVICE": "cpu",
        "QMD_REMOTE_BACKEND": "torch",
        "QMD_REMOTE_DTYPE": "float32",
        "QMD_REMOTE_HOME": str(home),
        "QMD_REMOTE_READY_WAIT_S": "120",
        "QMD_REMOTE_GENERATION": "off",
        "HF_HUB_OFFLINE": "1",
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("QMD_REMOTE_")} | mine
    log = home / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=env, stdout=sink, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    answer = None
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            answer = httpx.get(f"{url}/health", timeout=30, trust_env=False)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return
        if answer is not None and answer.json().get("status") != "loading":
            break
        time.sleep(0.1)
    pytest.fail(f"not ready: {answer and answer.text}\n{log.read_text()}")


@pytest.fixture
def mini(mini_url: str) -> Iterator[httpx.Client]:
    """A client of the server with MiniLM."""
    with httpx.Client(base_url=mini_url, timeout=120, trust_env=False) as client:
        yield client
