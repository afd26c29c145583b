"""What the launch tests share: a home of their own, log excerpts, and a service whose answers a test chooses."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

LOGS = Path(__file__).parent.parent / "logs"
MARK = "QMD_REMOTE_TEST_FOLDER"  # in the environment of whatever a test starts


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """All state of qmd-remote in a folder of the test's own; whatever a test leaves running there is ended."""
    folder = tmp_path / "home"
    monkeypatch.setenv("QMD_REMOTE_HOME", str(folder))
    monkeypatch.setenv(MARK, str(tmp_path))
    for name in ("QMD_REMOTE_API_KEY", "QMD_REMOTE_API_KEY_FILE", "QMD_REMOTE_PRESET"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    for process in living_in(tmp_path):
        process.kill()
        process.wait(10)


def living_in(folder: Path) -> list[psutil.Process]:
    """The processes, this one aside, that a test with this folder started, directly or not."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def still_running(tmp_path: Path) -> Callable[[], list[str]]:
    """Which processes of this test live (and are no zombies), as their command lines."""

    def look() -> list[str]:
        lines = []
        for process in living_in(tmp_path):
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    lines.append(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
        return lines

    return look


@pytest.fixture
def excerpt() -> Callable[[str], str]:
    """A log excerpt by its name, without the comment that tells where it comes from."""

    def read(name: str) -> str:
        text = (LOGS / f"{name}.log").read_bytes().decode()
        assert text.startswith(("# captured: ", "# written from "))
        return text.split("\n", 1)[1]

    return read


def eventually(condition: Callable[[], object], *, within_s: float = 20) -> None:
    """Poll until `condition` holds; fail when it does not within the time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., None]:
    """Poll until a condition holds."""
    return eventually


class Scripted:
    """An HTTP service on loopback: it answers `status` and `body` to everything, and notes paths and keys."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.seen: list[str] = []
        self.keys: list[str | None] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.seen.append(self.path)
                service.keys.append(self.headers["authorization"])
                self.send_response(service.status)
                self.send_header("content-length", str(len(service.body)))
                self.end_headers()
                self.wfile.write(service.body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A service whose answers the test chooses."""
    service = Scripted()
    yield service
    service.close()
