"""Who takes memory of the GPU first when both services are started at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from qmd_remote import services, turn
from qmd_remote.settings import Settings


class Generation(ThreadingHTTPServer):
    """A generation service that is ready after some health checks."""

    def __init__(self, checks: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.checks = checks
        self.settings = Settings(generation_engine="process", generation_port=self.server_port)


class Handler(BaseHTTPRequestHandler):
    server: Generation

    def do_GET(self) -> None:
        self.server.checks -= 1
        self.send_response(200 if self.server.checks < 0 else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def generation() -> Iterator[Callable[[int], Generation]]:
    """Start one; it is closed at the end."""
    started: list[Generation] = []

    def start(checks: int) -> Generation:
        server = Generation(checks)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` has asked for it."""
    monkeypatch.setattr(turn, "POLL_S", 0.01)
    monkeypatch.setenv(services.AFTER_GENERATION, "1")


def waited(settings: Settings) -> int:
    """How often it was said that generation is waited for."""
    phases: list[Any] = []
    turn.wait_for_generation(settings, lambda phase, _: phases.append(phase))
    assert {"waiting for generation to take its memory first"} >= set(phases)
    return len(phases)


def test_generation_that_starts_is_waited_for(cli_home, runs, generation):
    """Until its health check answers with 200, and no longer."""
    server = generation(3)
    runs(services.GENERATION, f"http://127.0.0.1:{server.server_port}")
    assert 3 == waited(server.settings)


def test_generation_that_ended_is_not(cli_home, generation):
    """One that failed to start takes no memory."""
    assert 0 == waited(generation(1000).settings)


def test_nobody_waits_for_ever(cli_home, runs, generation):
    """The limit of a start bounds it."""
    server = generation(100_000)
    runs(services.GENERATION, f"http://127.0.0.1:{server.server_port}")
    settings = Settings(generation_engine="process", generation_port=server.server_port, start_limit_s=0.1)
    assert 0 < waited(settings) < 1000


def test_who_was_not_asked_does_not_wait(cli_home, runs, generation, monkeypatch):
    """A worker that takes the place of one that crashed loads at once."""
    server = generation(1000)
    runs(services.GENERATION, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv(services.AFTER_GENERATION)
    assert 0 == waited(server.settings)
