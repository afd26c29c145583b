"""A generation service to stand behind the embed server, which does what a test tells it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

PATIENCE_S = 30
KEY = "the-key"
ASKED = {"model": "own/llm", "messages": [{"role": "user", "content": "tea?"}]}


class Service:
    """A generation service. `answer(handler, body)` writes its answers; `requests` holds what came.

    `hung_up` is set when the other side closed a connection over which an answer was still to be sent.
    """

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler, bytes], None] = good
        self.requests: list[SimpleNamespace] = []
        self.came = threading.Event()
        self.go_on = threading.Event()
        self.hung_up = threading.Event()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.httpd.daemon_threads = True
        self.place = f"127.0.0.1:{self.httpd.server_port}"
        self.url = f"http://{self.place}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self.httpd.shutdown()
        self.httpd.server_close()

    def until_hung_up(self, handler: BaseHTTPRequestHandler, _: bytes = b"") -> None:
        """Say nothing until the other side has gone."""
        handler.connection.settimeout(PATIENCE_S)
        try:
            gone = not handler.connection.recv(1)
        except ConnectionError:
            gone = True
        except TimeoutError:
            gone = False
        if gone:
            self.hung_up.set()
        handler.close_connection = True

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class OneRequest(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.requests.append(
                    SimpleNamespace(method=self.command, path=self.path, headers=headers, body=body)
                )
                service.came.set()
                service.answer(self, body)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return OneRequest


def say(handler: BaseHTTPRequestHandler, status: int, content: bytes, *, length: int | None = None, **headers) -> None:
    """One answer, which announces another `length` where that is given."""
    handler.send_response(status)
    for name, value in {"content_type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)
    if length is not None:
        handler.close_connection = True


def begin_stream(handler: BaseHTTPRequestHandler, first: bytes) -> None:
    """The head of a stream, and its first event."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    event(handler, first)


def event(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """One chunk; an empty one ends the stream."""
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))


def delta(text: str) -> bytes:
    """A piece of an answer, as OpenAI streams it."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    said = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "own/llm", "choices": [choice]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def good(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """What a good service says."""
    if handler.path == "/v1/models":
        say(handler, 200, json.dumps({"data": [{"id": "some/other"}, {"id": "own/llm"}]}).encode())
    elif b'"stream":true' in body.replace(b" ", b""):
        begin_stream(handler, delta("green"))
        event(handler, delta(" tea"))
        event(handler, b"data: [DONE]\n\n")
        event(handler, b"")
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": "green tea"}, "finish_reason": "stop"}
        said = {"id": "1", "object": "chat.completion", "created": 0, "model": "own/llm", "choices": [choice]}
        say(handler, 200, json.dumps(said).encode())


def behind(serve, url, **settings):
    """An embed server before the service at `url`."""
    return serve(generation_engine="external", generation_url=url, **settings)


def error_of(answer, status, code):
    """The message of an error in OpenAI's shape, with this status and code."""
    assert (status, code) == (answer.status_code, answer.json()["error"]["code"])
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]["message"]


def send_chat(address, body=b"{}"):
    """A connection over which a chat request has been sent."""
    connection = socket.create_connection(address, timeout=PATIENCE_S)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    return connection
