"""What tests of the command line share: a home of their own, the real program, and a stand-in for both services."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from qmd_remote import services, settings
from qmd_remote.services import Record

PROGRAM = Path(sys.executable).with_name("qmd-remote")
EXPANSION = "lex: passport renewal\nvec: what is needed to renew a passport\nhyde: A passport is renewed at the office."
DIMENSION = 48


SHARING = ("docker", "families")  # folders whose files share what is slow to start


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run side by side: those of one file, and of a folder that shares its servers, stay together.

    Marks of groups would say it shorter; pytest-xdist 3.8.0 passes over them with pytest 9.2, without a word.
    """
    from xdist.scheduler import LoadScopeScheduling  # here: without xdist the tests run, too

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder.rpartition("/")[2] in SHARING else file

    return Together(config, log)


@pytest.fixture
def cli_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which all state and QMD's configuration lie; no setting comes from the caller's environment."""
    for field in settings.declared():
        monkeypatch.delenv(field.metadata["env"], raising=False)
    monkeypatch.delenv("QMD_REMOTE_DEBUG", raising=False)
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QMD_CONFIG_DIR", str(tmp_path / "qmd"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Done:
    """How a run of the program ended."""

    code: int
    stdout: str
    stderr: str

    def envelope(self) -> dict[str, Any]:
        """The one JSON envelope that is all of stdout, which must agree with the exit code."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, self.stdout + self.stderr
        said: dict[str, Any] = json.loads(lines[0])
        assert set(said) == {"schema", "command", "ok", "exit_code", "data", "error", "warnings"}
        assert (said["exit_code"], said["ok"]) == (self.code, self.code == 0)
        assert "Traceback" not in self.stderr
        return said


@pytest.fixture
def qmd_remote(cli_home: Path) -> Callable[..., Done]:
    """Run the real program: `qmd_remote("config", "path", NAME="value of a variable")`."""

    def run(*arguments: str | Path, **variables: str) -> Done:
        done = subprocess.run(
            [PROGRAM, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=cli_home,
            env={**os.environ, **variables},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def runs(cli_home: Path) -> Callable[..., Record]:
    """Make a service look as if it ran here: a record that names this process."""

    def announce(service: str, url: str, **changes: Any) -> Record:
        me = psutil.Process()
        record = Record(service, me.pid, me.create_time(), url, **changes)
        services.write(record)
        return record

    return announce


class StandIn:
    """Both services on one port. With a key it answers 401 without it, and hides its models, as ours does."""

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.keys_sent: list[str] = []
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Hang up."""
        self.httpd.shutdown()
        self.httpd.server_close()

    def answer(self, path: str, body: Any, authorization: str) -> tuple[int, Any]:
        """(status, content) for a request."""
        self.keys_sent.append(authorization.removeprefix("Bearer "))
        allowed = not self.key or authorization == f"Bearer {self.key}"
        if path == "/health":
            models = {"models": {"embed": "real/embed", "rerank": "real/rerank"}, "device": "cpu"} if allowed else {}
            return 200, {"status": "ok", **models}
        if not allowed:
            return 401, {"error": {"message": "no key, or a wrong one", "code": "invalid_api_key"}}
        if path == "/v1/models":
            return 200, {"data": [{"id": "real/first"}, {"id": "real/last"}]}
        if path == "/v1/embeddings":
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            return 200, {"data": [{"index": i, "embedding": _vector(text)} for i, text in enumerate(texts)]}
        if path == "/v1/rerank":
            return 200, {"results": _ranked(body["query"], body["documents"])}
        if path == "/v1/completions":
            return 200, {"choices": [{"text": " the garden"}]}
        if path == "/v1/chat/completions":
            return 200, {"choices": [{"message": {"content": EXPANSION}, "finish_reason": "stop"}]}
        return 404, {"detail": "Not Found"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class OneRequest(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet: two would wait for each other's acknowledgement

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                authorization = self.headers.get("authorization") or ""
                status, content = stand_in.answer(self.path, json.loads(raw) if raw else None, authorization)
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return OneRequest


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _vector(text: str) -> list[float]:
    counts = [1e-3] * DIMENSION
    for word in re.findall(r"\w+", text.lower()):
        counts[sum(word.encode("utf-8", "surrogatepass")) % DIMENSION] += 1
    length = sum(count * count for count in counts) ** 0.5
    return [count / length for count in counts]


def _ranked(query: str, documents: list[str]) -> list[dict[str, Any]]:
    wanted = _words(query)
    scores = [len(wanted & _words(text)) / len(wanted) for text in documents]
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    return sorted(results, key=lambda one: -one["relevance_score"])


@pytest.fixture
def stand_in() -> Iterator[Callable[..., StandIn]]:
    """Start stand-ins on loopback: `stand_in(key="")`."""
    with ExitStack() as stack:

        def start(key: str = "") -> StandIn:
            server = StandIn(key)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def nobody() -> str:
    """A URL at which nothing listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests that run the preset mini: its language model is converted once, as it is for a user."""
    return tmp_path_factory.mktemp("cache")
