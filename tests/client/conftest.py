"""A stand-in for both services on a real socket, good unless a test tells it otherwise."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qmd_remote.client.checks import ModelNames, Report, Target, run_checks

NAMES = ModelNames(embed="my/embed", generate="my/generate", rerank="my/rerank")
DIMENSION = 64
EXPANSION = "lex: passport renewal\nvec: what is needed to renew a passport\nhyde: A passport is renewed at the office."

Handler = Callable[[Any, Any], Any]


def embed_text(text: str) -> list[float]:
    """A unit vector that counts the words of a text."""
    counts = [1e-3] * DIMENSION
    for word in re.findall(r"\w+", text.lower()):
        counts[sum(word.encode("utf-8", "surrogatepass")) % DIMENSION] += 1
    length = math.sqrt(sum(x * x for x in counts))
    return [x / length for x in counts]


def embeddings(body: Any, _: Any) -> Any:
    """One vector for each text."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    return {"data": [{"index": index, "embedding": embed_text(text)} for index, text in enumerate(texts)]}


def rerank(body: Any, _: Any) -> Any:
    """The share of the query's words that a document holds, best first."""
    query = set(re.findall(r"\w+", body["query"].lower()))
    scores = [len(query & set(re.findall(r"\w+", text.lower()))) / len(query) for text in body["documents"]]
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    return {"results": sorted(results, key=lambda one: -one["relevance_score"])}


def chat(body: Any, _: Any) -> Any:
    """An expansion that QMD can use."""
    return {"choices": [{"message": {"role": "assistant", "content": EXPANSION}, "finish_reason": "stop"}]}


GOOD: dict[str, Handler] = {
    "/health": lambda *_: {"status": "ok", "models": {"embed": "real/embed", "rerank": "real/rerank"}, "device": "cpu"},
    "/v1/models": lambda *_: {"data": [{"id": "real/embed"}, {"id": "real/rerank"}]},
    "/v1/embeddings": embeddings,
    "/v1/rerank": rerank,
    "/v1/completions": lambda *_: {"choices": [{"text": " the garden"}]},
    "/v1/chat/completions": chat,
}


class Stub:
    """A running service. `answers` holds a function (body, headers) → content for each path.

    The content may be a dict (JSON), bytes (as they are, as HTML if they look like it), or (status, content);
    `requests` collects (path, raw body, headers).
    """

    def __init__(self, answers: dict[str, Handler], key: str) -> None:
        self.answers = answers
        self.key = key
        self.requests: list[tuple[str, bytes, dict[str, str]]] = []
        self.headers: dict[str, str] = {}  # of every answer, besides the usual ones
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def bodies(self, path: str) -> list[Any]:
        return [json.loads(raw) for where, raw, _ in self.requests if where == path]

    def _answer(self, path: str, raw: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        self.requests.append((path, raw, headers))
        if self.key and path != "/health" and headers.get("authorization") != f"Bearer {self.key}":
            return 401, b'{"error": {"message": "no key, or a wrong one", "code": "invalid_api_key"}}'
        handler = self.answers.get(path)
        if handler is None:
            return 404, b'{"detail": "Not Found"}'
        content = handler(json.loads(raw) if raw else None, headers)
        status, content = content if isinstance(content, tuple) else (200, content)
        return status, content if isinstance(content, bytes) else json.dumps(content).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class OneRequest(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet: two would wait for each other's acknowledgement

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, content = stub._answer(self.path, raw, headers)
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if content[:1] == b"<" else "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in stub.headers.items():
                    self.send_header(name, value)
                if 300 <= status < 400:
                    self.send_header("Location", "https://elsewhere.invalid/base?token=secret")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return OneRequest


@pytest.fixture
def serve() -> Iterator[Callable[..., Stub]]:
    """Start stand-ins: `serve(key="", **answers)`, where a name like v1_rerank stands for /v1/rerank."""
    with ExitStack() as stack:

        def start(key: str = "", **answers: Handler | None) -> Stub:
            changed = {"/" + name.replace("_", "/"): handler for name, handler in answers.items()}
            chosen = {path: handler for path, handler in {**GOOD, **changed}.items() if handler}
            stub = Stub(chosen, key)
            stack.callback(stub.close)
            return stub

        yield start


@pytest.fixture
def check() -> Callable[..., Report]:
    """Check one service, a stand-in or a URL, as both; `check(stub, key=…, limit_s=…)` changes the target."""

    def run(service: Stub | str, *, limit_s: float = 20.0, **changes: Any) -> Report:
        url = service.url if isinstance(service, Stub) else service
        target = {"embed_url": url, "generation_url": url, "models": NAMES, **changes}
        return run_checks(Target(**target), limit_s=limit_s)

    return run


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def talks_nonsense() -> Iterator[Callable[[bytes], str]]:
    """Start a server that sends these bytes to whoever connects, and hangs up."""
    with ExitStack() as stack:

        def start(said: bytes) -> str:
            listener = stack.enter_context(closing(socket.socket()))
            listener.bind(("127.0.0.1", 0))
            listener.listen(16)

            def talk() -> None:
                while True:
                    try:
                        with closing(listener.accept()[0]) as connection:
                            connection.recv(65536)
                            connection.sendall(said)
                    except OSError:
                        return

            threading.Thread(target=talk, daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield start
