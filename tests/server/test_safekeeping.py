"""What a worker hands over to its parent while it works on a request, and that its death costs no caller an answer."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.middleware import Middleware

from qmd_remote.server import safekeeping
from qmd_remote.server.app import create_app
from qmd_remote.server.orphans import BEGINNING, GONE, KEEP, MESSAGE
from qmd_remote.server.safekeeping import Safe, Safekeeping
from qmd_remote.settings import Settings
from tests.server.conftest import FakeEngine
from tests.server.generation_service import ASKED, good
from tests.server.tiny_models import until

LIMIT_S = 30
TOKEN = "t0ken"
SHORT = b'POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{"input": "a"}'
PROGRAM = Path(sys.executable).with_name("qmd-remote")


class Stage:
    """A server in a thread, with a stand-in engine and a parent that is the test itself."""

    def __init__(self, key: str = "", generation: str = "") -> None:
        self.engine = FakeEngine()
        self.parent, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent.settimeout(LIMIT_S)
        self.safe = Safe(end, TOKEN)
        behind = {"generation_engine": "external" if generation else "off", "generation_url": generation}
        app = create_app(Settings(ready_wait_s=LIMIT_S, api_key=key, **behind), engine=self.engine)
        app.user_middleware.append(Middleware(Safekeeping, safe=self.safe))
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        config.load()
        config.http_protocol_class = safekeeping.introducing(config.http_protocol_class)
        self.server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.address[1]}", timeout=LIMIT_S, trust_env=False, headers=headers
        )
        self.callers = ThreadPoolExecutor(4)

    def post(self, path: str = "/v1/embeddings", **options: Any) -> Future[httpx.Response]:
        """A request, on its way."""
        return self.callers.submit(self.http.post, path, **({"json": {"input": "a text"}} | options))

    def url(self, path: str) -> str:
        """The address of a path."""
        return str(self.http.base_url.join(path))

    def raw(self, sent: bytes) -> bytes:
        """Everything that is answered on a new connection."""
        with socket.create_connection(self.address, LIMIT_S) as caller:
            caller.sendall(sent)
            answer = b""
            while part := caller.recv(65536):
                answer += part
        return answer

    def told(self) -> tuple[bytes, int, list[int]]:
        """The next message: what, number, descriptors."""
        said, descriptors, _, _ = socket.recv_fds(self.parent, 64, 4)
        kind, number = MESSAGE.unpack(said)
        return kind, number, descriptors

    def nothing_told(self) -> bool:
        """Whether no message has come."""
        self.parent.setblocking(False)
        with suppress(BlockingIOError):
            return not self.parent.recv(64)
        self.parent.settimeout(LIMIT_S)
        return True

    def close(self) -> None:
        """End it; nothing is held then."""
        self.engine.gate.set()
        self.callers.shutdown()
        self.http.close()
        self.server.should_exit = True
        self.thread.join(LIMIT_S)
        assert (0, 0) == (self.safe.connections, self.safe.bytes)
        self.parent.close()


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    """Start servers: `stage(key="", generation="")`."""
    started: list[Stage] = []

    def start(**options: str) -> Stage:
        started.append(Stage(**options))
        return started[-1]

    yield start
    for one in started:
        one.close()


class Kept:
    """A connection as the parent has it: a socket, and the file for its requests."""

    def __init__(self, message: tuple[bytes, int, list[int]]) -> None:
        said, self.number, (connection, self.file) = message
        assert KEEP == said
        self.socket = socket.socket(fileno=connection)

    def request(self) -> bytes:
        """What the file holds of a request; empty as long as that is not whole."""
        found = os.pread(self.file, 10**8, 0)
        return found if found.startswith(BEGINNING) else b""

    def whole(self) -> bytes:
        """The request, as soon as it is whole."""
        until(self.request, LIMIT_S)
        return self.request()

    def close(self) -> None:
        """Let go of it."""
        self.socket.close()
        os.close(self.file)


@pytest.fixture
def kept() -> Iterator[Callable[[Stage], Kept]]:
    """Take the next connection that a stage gives to its parent."""
    with ExitStack() as stack:

        def take(stage: Stage) -> Kept:
            found = Kept(stage.told())
            stack.callback(found.close)
            return found

        yield take


def test_a_request_lies_with_the_parent_until_its_answer_begins(stage, kept):
    """The parent has the whole request and its connection while the engine works, and no request when it answers."""
    one = stage(key="k")
    one.engine.gate.clear()
    body = b'{"input": "' + b"x" * 300_000 + b'"}'
    answer = one.post("/embeddings", content=body, headers={"content-type": "application/json"})
    place = kept(one)
    head, _, rest = place.whole().partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert (b"POST /v1/embeddings HTTP/1.1", body) == (lines[0], rest)
    for line in (
        b"authorization: Bearer k",
        b"content-type: application/json",
        b"connection: close",
        b"x-qmd-remote-resent: t0ken",
    ):
        assert line in lines
    assert len(body) == int(lines[-1].removeprefix(b"content-length: "))
    assert one.address == place.socket.getsockname()
    one.engine.gate.set()
    assert 200 == answer.result().status_code
    assert b"" == place.request()


def test_the_file_is_empty_before_the_first_byte_of_an_answer(stage, kept, monkeypatch):
    """An answer of which a byte is out is never given again."""
    one = stage()
    one.engine.gate.clear()
    seen: list[bytes] = []
    cycle = sys.modules[one.server.config.http_protocol_class.__mro__[1].__module__].RequestResponseCycle
    send = cycle.send

    async def watched(self: Any, message: Any) -> None:
        seen.append(place.request())
        await send(self, message)

    monkeypatch.setattr(cycle, "send", watched)
    answer = one.post()
    place = kept(one)
    place.whole()
    one.engine.gate.set()
    assert 200 == answer.result().status_code
    assert [b"", b""] == seen


def test_one_place_serves_all_requests_of_a_connection(stage, kept):
    """A short request after a long one is kept as it is; the parent hears of the connection's end, and of no more."""
    one = stage()
    assert 200 == one.post(json={"input": "x" * 100_000}).result().status_code
    place = kept(one)
    one.engine.gate.clear()
    answer = one.post("/v2/rerank", json={"query": "q", "documents": ["d"]})
    assert place.whole().endswith(b'\r\n\r\n{"query":"q","documents":["d"]}')
    assert one.nothing_told()
    one.engine.gate.set()
    assert 200 == answer.result().status_code
    one.http.close()
    assert (GONE, place.number, []) == one.told()


def test_what_is_kept_is_a_request_that_gets_the_same_answer(stage, kept):
    """Sent as it is kept, it is answered as the first time, on a connection that ends; and it is not kept again."""
    one = stage(key="k")
    one.engine.gate.clear()
    first = one.post("/v2/rerank", json={"query": "q", "documents": ["0.1", "0.9"], "top_n": 1})
    request = kept(one).whole()
    one.engine.gate.set()
    assert 200 == first.result().status_code
    assert one.raw(request).endswith(b"\r\n\r\n" + first.result().content)
    assert one.nothing_told()


def test_a_wrong_token_changes_nothing(stage, kept):
    """A caller that claims to be sent again is kept as all others."""
    one = stage()
    one.engine.gate.clear()
    answer = one.post(headers={"x-qmd-remote-resent": "guess"})
    assert b"guess" not in kept(one).whole()
    one.engine.gate.set()
    assert 200 == answer.result().status_code


def test_strangers_and_other_endpoints_are_not_kept(stage):
    """Without the key, by another method or at another path nothing is handed over."""
    one = stage(key="k")
    assert 401 == one.post(headers={"authorization": "Bearer wrong"}).result().status_code
    assert 405 == one.http.get("/v1/embeddings").status_code
    assert 200 == one.http.get("/v1/models").status_code
    assert 404 == one.post("/v1/responses").result().status_code
    assert one.nothing_told()


@pytest.mark.parametrize("stream", [False, True])
def test_generation_lies_with_the_parent_until_its_answer_begins(stage, kept, service, stream):
    """As it came, with the headers that are the service's; of a stream of which a byte is out nothing is kept."""

    def slowly(handler: Any, body: bytes) -> None:
        service.go_on.wait(LIMIT_S)
        good(handler, body)

    service.answer = slowly
    one = stage(key="k", generation=service.url)
    body = json.dumps({**ASKED, "stream": stream}).encode()
    headers = {"x-request-id": "r1", "accept-encoding": "gzip", "accept": "text/odd", "cookie": "c"}
    answer = one.post("/chat/completions", content=body, headers=headers)
    place = kept(one)
    request = place.whole()
    head, _, rest = request.partition(b"\r\n\r\n")
    assert (b"POST /v1/chat/completions HTTP/1.1", body) == (head.partition(b"\r\n")[0], rest)
    for line in (b"x-request-id: r1", b"accept-encoding: gzip", b"accept: text/odd", b"authorization: Bearer k"):
        assert line in head.split(b"\r\n")
    assert b"cookie" not in head
    service.go_on.set()
    content = answer.result().content
    assert b"green" in content
    assert b"" == place.request()
    assert one.raw(request).startswith(b"HTTP/1.1 200 ")
    assert one.nothing_told()


@pytest.mark.parametrize(("path", "body"), [("/v2/embed", {"texts": ["a"]}), ("/api/embed", {"input": "a"})])
def test_other_forms_lie_with_the_parent_too(stage, kept, path, body):
    """Under their own path, so that the next worker answers in the same form."""
    one = stage()
    one.engine.gate.clear()
    answer = one.post(path, json=body)
    request = kept(one).whole()
    assert request.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    one.engine.gate.set()
    assert "embeddings" in answer.result().json()
    assert b'"embeddings":' in one.raw(request)


def test_a_caller_of_http_1_0_is_answered_in_its_own_way(stage, kept):
    """Sent again, its request gets no form of answer that it does not know."""
    one = stage()
    one.engine.gate.clear()
    with socket.create_connection(one.address, LIMIT_S) as caller:
        caller.sendall(SHORT.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert kept(one).whole().startswith(b"POST /v1/embeddings HTTP/1.0\r\n")
        one.engine.gate.set()
        assert caller.recv(9).startswith(b"HTTP/1.")


def test_a_refused_request_and_a_bug_end_the_keeping(stage, kept):
    """Whatever becomes of a request, it is not kept any longer."""
    one = stage()
    assert 400 == one.post(json={"input": 1}).result().status_code
    place = kept(one)
    assert b"" == place.request()
    one.engine.bug = RuntimeError("a bug")
    assert 500 == one.post().result().status_code
    assert b"" == place.request()


def test_who_hangs_up_is_let_go(stage, kept):
    """A caller that gives up is kept no longer: neither the request nor the connection."""
    one = stage()
    one.engine.gate.clear()
    with socket.create_connection(one.address, LIMIT_S) as caller:
        caller.sendall(SHORT)
        place = kept(one)
        place.whole()
    assert (GONE, place.number, []) == one.told()
    until(lambda: not place.request(), LIMIT_S)


def test_a_request_that_has_not_come_whole_does_not_count(stage, kept):
    """The body is in the file as it comes, but the file holds a request only when the last byte is there."""
    one = stage()
    one.engine.gate.clear()
    with socket.create_connection(one.address, LIMIT_S) as caller:
        caller.sendall(SHORT[:-1])
        place = kept(one)
        until(lambda: os.fstat(place.file).st_size, LIMIT_S)
        assert b"" == place.request()
        caller.sendall(SHORT[-1:])
        assert place.whole().endswith(b'\r\n\r\n{"input": "a"}')


def test_a_header_of_a_proxy_leads_to_no_other_connection(stage, kept):
    """The connection that is handed over is the caller's own, whatever address a header claims."""
    one = stage()
    with socket.create_connection(one.address, LIMIT_S) as other, socket.create_connection(one.address) as caller:
        host, port = other.getsockname()
        caller.sendall(SHORT.replace(b"host: x", b"host: x\r\nx-forwarded-for: %b:%d" % (host.encode(), port)))
        assert caller.getsockname() == kept(one).socket.getpeername()
        assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_what_there_is_no_room_for_is_answered_all_the_same(stage, kept, monkeypatch):
    """Neither many connections, nor large requests, nor a system without room for files fail anybody."""
    one = stage()
    monkeypatch.setattr(one.safe, "_most", 0)
    assert 200 == one.post().result().status_code
    monkeypatch.setattr(one.safe, "_most", 9)

    def no_room(_: str) -> int:
        raise OSError(24, "too many open files")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "memfd_create", no_room)
        assert 200 == one.post().result().status_code
    assert one.nothing_told()
    monkeypatch.setattr(safekeeping, "BYTES", 10)
    one.engine.gate.clear()
    one.engine.entered.clear()
    answer = one.post()
    until(one.engine.entered.is_set, LIMIT_S)
    assert b"" == kept(one).request()
    one.engine.gate.set()
    assert 200 == answer.result().status_code


def test_a_parent_that_does_not_read_holds_nobody_up(stage, kept):
    """Requests are answered while its queue is full; once it reads, it is told of each end that it does not know of."""
    one = stage()
    assert 200 == one.post().result().status_code
    filling = 999
    with suppress(BlockingIOError):
        while True:
            one.safe._end.send(MESSAGE.pack(GONE, filling))
    one.http.close()
    until(lambda: one.safe._untold, LIMIT_S)
    assert 200 == httpx.post(one.url("/v1/embeddings"), json={"input": "a"}, trust_env=False).status_code
    place, ended = kept(one), filling
    while ended == filling:
        said, ended, descriptors = one.told()
        assert (GONE, []) == (said, descriptors)
    assert place.number == ended
    assert one.nothing_told()


def test_a_request_behind_an_unread_answer_is_not_kept(stage, kept):
    """What is left of that answer would be lost with the worker, and another one be taken for its end."""
    one = stage()
    large = b'{"input": [%b]}' % b",".join(b'"%d"' % number for number in range(60_000))
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        caller.settimeout(LIMIT_S)
        caller.connect(one.address)
        caller.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(large) + large)
        answer = caller.recv(4096)
        one.engine.gate.clear()
        one.engine.entered.clear()
        caller.sendall(SHORT)
        until(one.engine.entered.is_set, LIMIT_S)
        assert b"" == kept(one).request()
        one.engine.gate.set()
        while answer.count(b"HTTP/1.1 200 OK") < 2:
            answer += caller.recv(1 << 20)
