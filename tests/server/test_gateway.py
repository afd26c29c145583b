"""Generation through the embed server's door, over real sockets, with a service behind it that does what it is told."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import openai
import pytest

from qmd_remote.client.discovery import fetch_models
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.errors import ConfigError
from qmd_remote.server import gateway
from qmd_remote.settings import Settings

CHAT, COMPLETIONS = gateway.CHAT, gateway.COMPLETIONS
PATIENCE_S = 30
KEY = "the-key"
SECRET = "pa55word"
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


def say(
    handler: BaseHTTPRequestHandler, status: int, content: bytes, length: int | None = None, **headers: str
) -> None:
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


@pytest.fixture
def service() -> Iterator[Service]:
    """A service of the test's own."""
    with closing(Service()) as service:
        yield service


@pytest.fixture
def door(serve, service) -> SimpleNamespace:
    """The embed server before that service."""
    return behind(serve, service.url)


def behind(serve, url, **settings):
    """An embed server before the service at `url`."""
    return serve(generation_engine="external", generation_url=url, **settings)


def error_of(answer, status, code):
    """The message of an error in OpenAI's shape, with this status and code."""
    assert (status, code) == (answer.status_code, answer.json()["error"]["code"])
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]["message"]


def hang_up(connection):
    """Close a connection the rude way, with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def send_chat(address, body=b"{}"):
    """A connection over which a chat request has been sent."""
    connection = socket.create_connection(address, timeout=PATIENCE_S)
    connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
    return connection


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"a" :\t"\\ud83d"}\n', b"\x00\xff\r\n\r\n", "né☃".encode(), b"x" * 300_000]
)
def test_bytes_pass_unchanged(door, service, path, raw):
    """Whatever the bodies hold, the service gets these bytes, and the client gets the service's."""
    service.answer = lambda handler, body: say(handler, 200, body[::-1], content_type="text/odd; x=y")
    answer = door.http.post(path, content=raw, headers={"Content-Type": "text/strange"})
    assert (200, raw[::-1], "text/odd; x=y") == (answer.status_code, answer.content, answer.headers["content-type"])
    (asked,) = service.requests
    assert ("POST", path, raw, "text/strange") == (asked.method, asked.path, asked.body, asked.headers["content-type"])


def test_a_body_without_a_length_passes(door, service):
    """A chunked request reaches the service whole, with its length."""
    assert door.http.post(CHAT, content=iter([b'{"a":', b"1}"])).status_code == 200
    assert (b'{"a":1}', "7") == (service.requests[0].body, service.requests[0].headers["content-length"])
    assert "transfer-encoding" not in service.requests[0].headers


def test_no_key_reaches_the_service(serve, service):
    """Of a request's headers only those go on that the service needs: no key, no cookie, nothing of the connection."""
    server = behind(serve, service.url, api_key=KEY)
    sent = {
        "Authorization": f"Bearer {KEY}",
        "Cookie": KEY,
        "X-Api-Key": KEY,
        "Proxy-Authorization": KEY,
        "Connection": "X-Mine",
        "X-Mine": KEY,
        "X-Request-Id": "r1",
    }
    assert server.http.post(CHAT, json=ASKED, headers=sent).status_code == 200
    headers = service.requests[0].headers
    assert KEY not in str(headers)
    assert set(headers) <= {"host", "accept", "accept-encoding", "content-type", "content-length", "x-request-id"}
    assert ("r1", service.place) == (headers["x-request-id"], headers["host"])


def test_without_the_key_nothing_is_passed_on(serve, service):
    """Generation has the server's key before it, streamed or not."""
    server = behind(serve, service.url, api_key=KEY)
    for path in (CHAT, COMPLETIONS):
        error_of(server.http.post(path, json=ASKED), 401, "invalid_api_key")
    assert [] == service.requests


def test_headers_of_the_services_connection_stay_behind(door, service):
    """The client gets what concerns the answer: no cookie, and nothing of the connection behind the door."""
    headers = {"set_cookie": "a=b", "keep_alive": "timeout=1", "server": "engine", "retry_after": "7"}
    service.answer = lambda handler, _: say(handler, 429, b'{"error": "later"}', **headers)
    answer = door.http.post(CHAT, json=ASKED)
    assert (429, b'{"error": "later"}', "7") == (answer.status_code, answer.content, answer.headers["retry-after"])
    assert {"set-cookie", "keep-alive", "server"}.isdisjoint(answer.headers)
    assert 1 == len(answer.headers.get_list("content-length"))


def test_compression_is_the_clients_choice(door, service):
    """The service may compress for a client that asks for it, and is asked for nothing by one that does not."""
    packed = gzip.compress(b'{"a": 1}')
    service.answer = lambda handler, _: say(handler, 200, packed, content_encoding="gzip")
    assert {"a": 1} == door.http.post(CHAT, json=ASKED, headers={"Accept-Encoding": "gzip"}).json()
    with closing(send_chat(door.address)) as connection:
        assert connection.recv(1)
    assert "accept-encoding" not in service.requests[1].headers


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, 503])
def test_the_services_own_errors_pass(door, service, status):
    """What the service says is wrong reaches the client as it is."""
    said = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": status}}).encode()
    service.answer = lambda handler, _: say(handler, status, said)
    answer = door.http.post(COMPLETIONS, json=ASKED)
    assert (status, said) == (answer.status_code, answer.content)


def test_a_stream_arrives_as_it_is_made(door, service):
    """The client has the first event while the service still holds the second back."""

    def slowly(handler, _):
        begin_stream(handler, delta("one"))
        if service.go_on.wait(PATIENCE_S):
            event(handler, delta("two"))
            event(handler, b"")

    service.answer = slowly
    with door.http.stream("POST", CHAT, json={**ASKED, "stream": True}) as answer:
        assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
        events = answer.iter_raw()
        assert delta("one") == next(events)
        assert not service.go_on.is_set()
        service.go_on.set()
        assert delta("two") == b"".join(events)


def test_a_stream_that_breaks_is_not_made_whole(door, service, caplog):
    """The client keeps what came, and sees that it is not all; nothing of a bug is logged."""

    def breaks(handler, _):
        begin_stream(handler, delta("one"))
        handler.close_connection = True

    service.answer = breaks
    came = []
    with (
        caplog.at_level(logging.WARNING),
        door.http.stream("POST", CHAT, json=ASKED) as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        came.extend(answer.iter_raw())
    assert [delta("one")] == came
    assert "broke off in mid-stream" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_an_answer_that_breaks_is_an_error(door, service):
    """Half an answer that is not streamed is a 502, not half an answer."""
    service.answer = lambda handler, _: say(handler, 200, b'{"choices": [', length=500)
    assert "qmd-remote logs generation" in error_of(door.http.post(CHAT, json=ASKED), 502, "generation_failed")
    service.answer = lambda handler, _: setattr(handler, "close_connection", True)
    error_of(door.http.post(CHAT, json=ASKED), 502, "generation_failed")
    service.answer = good
    assert door.http.post(CHAT, json=ASKED).status_code == 200


def test_an_answer_without_end_is_given_up(door, service, monkeypatch):
    """What is not streamed is held in memory, and has a limit there."""
    monkeypatch.setattr(gateway, "MAX_ANSWER_BYTES", 1 << 20)
    service.answer = lambda handler, _: say(handler, 200, b"x" * ((1 << 20) + 1))
    assert "1 MiB" in error_of(door.http.post(CHAT, json=ASKED), 502, "generation_failed")


@pytest.mark.parametrize("begun", [False, True])
def test_a_hang_up_reaches_the_service(door, service, caplog, begun):
    """The service need not compute for a client that has gone, before its answer's first byte or in mid-stream."""

    def wait(handler, _):
        if begun:
            begin_stream(handler, delta("one"))
        service.until_hung_up(handler)

    service.answer = wait
    connection = send_chat(door.address)
    assert service.came.wait(PATIENCE_S)
    if begun:
        assert connection.recv(1)
    assert not service.hung_up.is_set()
    with caplog.at_level(logging.WARNING):
        hang_up(connection)
        assert service.hung_up.wait(PATIENCE_S)
        service.answer = good
        assert door.http.post(CHAT, json=ASKED).status_code == 200
    assert [] == caplog.records


def test_no_service_is_told_with_the_next_command(serve):
    """A port at which nobody listens is a 502 that says where to look, and not where the service is."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    answer = serve(generation_engine="process", generation_port=port).http.post(CHAT, json=ASKED)
    message = error_of(answer, 502, "generation_unreachable")
    assert "qmd-remote status" in message
    assert "qmd-remote logs generation" in message
    assert str(port) not in answer.text


def test_silence_has_an_end(serve, service, monkeypatch):
    """A service that takes the request and never answers is a 504, and is hung up on."""
    monkeypatch.setattr(gateway, "SILENCE_S", 0.2)
    service.answer = service.until_hung_up
    answer = behind(serve, service.url).http.post(CHAT, json=ASKED)
    error_of(answer, 504, "generation_timeout")
    assert service.hung_up.wait(PATIENCE_S)


@pytest.mark.parametrize("settings", [{}, {"generation_engine": "external"}])
def test_generation_that_is_off_says_how_to_switch_it_on(serve, settings):
    """503, and the command."""
    answer = serve(**settings).http.post(COMPLETIONS, json=ASKED)
    assert "qmd-remote up --generation process" in error_of(answer, 503, "generation_off")
    assert "Retry-After" not in answer.headers


def test_too_many_at_once_are_sent_away(serve, service, monkeypatch):
    """Beyond the limit requests wait, then get a 503 that says when to come again; an end makes room for the next."""
    monkeypatch.setattr(gateway, "UNDER_WAY", 1)

    def wait(handler, body):
        service.go_on.wait(PATIENCE_S)
        good(handler, body)

    service.answer = wait
    server = behind(serve, service.url, queue_wait_s=0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.http.post, CHAT, json=ASKED)
        assert service.came.wait(PATIENCE_S)
        answer = server.http.post(CHAT, json=ASKED)
        error_of(answer, 503, "generation_busy")
        assert int(answer.headers["Retry-After"]) > 0
        service.go_on.set()
        assert first.result(PATIENCE_S).status_code == 200
    assert server.http.post(CHAT, json=ASKED).status_code == 200
    assert 2 == len(service.requests)


def test_waiting_for_room_is_served_in_the_end(serve, service, monkeypatch):
    """A request that waits gets its turn when the one before it has ended."""
    monkeypatch.setattr(gateway, "UNDER_WAY", 1)

    def wait(handler, body):
        service.go_on.wait(PATIENCE_S)
        good(handler, body)

    service.answer = wait
    server = behind(serve, service.url)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(server.http.post, CHAT, json=ASKED) for _ in range(2)]
        assert service.came.wait(PATIENCE_S)
        service.go_on.set()
        assert [200, 200] == [one.result(PATIENCE_S).status_code for one in both]


def test_a_body_over_the_limit_is_not_passed_on(serve, service):
    """The body limit holds for generation, whether the length is announced or not."""
    server = behind(serve, service.url, max_body_mb=0.01)
    error_of(server.http.post(CHAT, content=b"x" * 10_001), 413, "body_too_large")
    error_of(server.http.post(CHAT, content=iter([b"x" * 6000] * 2)), 413, "body_too_large")
    assert [] == service.requests
    assert server.http.post(CHAT, content=b"x" * 10_000).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", COMPLETIONS, 405),
        ("POST", "/v1/models", 405),
        ("POST", "/tokenize", 404),
        ("POST", "/v1/responses", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("GET", "/qmd-remote/status", 404),
        ("POST", "/v1/chat/completions/render", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/v1/x/..%2fcompletions", 404),
    ],
)
def test_nothing_else_of_the_service_can_be_reached(door, service, method, path, status):
    """Two paths, one method."""
    assert door.http.request(method, path, json=ASKED).status_code == status
    assert [] == service.requests


def test_a_query_string_stays_here(door, service):
    """What stands behind the path is not passed on."""
    assert door.http.post(f"{CHAT}?to=elsewhere", json=ASKED).status_code == 200
    assert CHAT == service.requests[0].path


def test_a_redirect_is_not_followed(door, service):
    """Nobody is sent elsewhere with a request: the address in the settings is to be corrected."""
    service.answer = lambda handler, _: say(handler, 307, b"", location=f"http://{service.place}/other")
    answer = door.http.post(CHAT, json=ASKED)
    assert "QMD_REMOTE_GENERATION_URL" in error_of(answer, 502, "generation_unreachable")
    assert service.place not in answer.text
    assert 1 == len(service.requests)


def test_credentials_in_the_services_url_are_used_and_never_shown(serve, service, caplog):
    """They reach the service as basic authentication, and neither a client nor the log."""
    with caplog.at_level(logging.INFO):
        server = behind(serve, f"http://me:{SECRET}@{service.place}/")
        assert server.http.post(CHAT, json=ASKED).status_code == 200
        assert httpx.BasicAuth("me", SECRET)._auth_header == service.requests[0].headers["authorization"]
        service.close()
        answers = [server.http.post(CHAT, json=ASKED), server.http.get("/health"), server.http.get("/v1/models")]
    assert [502, 200, 200] == [answer.status_code for answer in answers]
    assert SECRET not in "".join(answer.text for answer in answers) + caplog.text


@pytest.mark.parametrize(
    "url", [f"//{SECRET}@box", f"ftp://{SECRET}@box", f"http://{SECRET}@[::1", "box:8000", "http://"]
)
def test_a_url_that_is_none_ends_the_start(url):
    """The setting is named, its value is not: it may hold a password."""
    with pytest.raises(ConfigError) as refused:
        gateway.Gateway(Settings(generation_engine="external", generation_url=url))
    assert "QMD_REMOTE_GENERATION_URL" in refused.value.hint
    assert SECRET not in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    ("base", "below"), [("/v1", ""), ("/v1/", ""), ("/a%20b", "/a%20b"), ("/llm/v1?q=1#f", "/llm")]
)
def test_the_services_url_may_have_a_path(serve, service, base, below):
    """The paths lie below it; /v1 at its end, as other clients want it, is not doubled."""
    assert behind(serve, service.url + base).http.post(CHAT, json=ASKED).status_code == 200
    assert below + CHAT == service.requests[0].path


def test_no_proxy_leads_to_this_machine(serve, service, monkeypatch):
    """Proxies that the environment names are not asked for a service on loopback."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert behind(serve, service.url).http.post(CHAT, json=ASKED).status_code == 200


def test_the_list_of_models_tells_their_roles(serve, service):
    """The embed server's models first, then the service's; the one that runs here is the first of those."""
    port = int(service.place.rpartition(":")[2])
    server = serve(generation_engine="process", generation_port=port, generation_model="own/llm")
    data = server.http.get("/v1/models").json()["data"]
    assert [
        ("fake/embedder", "embed", "qmd-remote"),
        ("fake/reranker", "rerank", "qmd-remote"),
        ("own/llm", "generate", "generation"),
        ("some/other", "generate", "generation"),
    ] == [(model["id"], model["qmd_remote_role"], model["owned_by"]) for model in data]
    assert server.http.get("/v1/models").json()["data"] == data
    assert 1 == len(service.requests)


def test_a_list_that_was_not_had_is_asked_for_again(door, service):
    """A service that comes up later is listed from then on."""
    service.answer = lambda handler, _: say(handler, 503, b"{}")
    assert ["fake/embedder", "fake/reranker"] == listed(door)
    service.answer = good
    assert ["fake/embedder", "fake/reranker", "some/other", "own/llm"] == listed(door)


def listed(server):
    """The ids in the server's list."""
    answer = server.http.get("/v1/models")
    assert answer.status_code == 200
    return [model["id"] for model in answer.json()["data"]]


@pytest.mark.parametrize(
    "said",
    [b"", b"<html>", b"[]", b"{}", b'{"data": 3}', b'{"data": [3, {"id": null}, {"id": ""}]}', b"[" * 9000, b"\xff"]
    + [b" " * (gateway.MAX_LIST_BYTES + 1)],
)
def test_a_list_that_is_none_changes_nothing(door, service, said):
    """Whatever the service says of its models, this server's own are listed."""
    service.answer = lambda handler, _: say(handler, 200, said)
    assert ["fake/embedder", "fake/reranker"] == listed(door)


def test_a_silent_service_does_not_hold_up_the_list(door, service, monkeypatch):
    """The list comes without it, and all who wait for it ask once."""
    monkeypatch.setattr(gateway, "MODELS_S", 0.5)
    service.answer = service.until_hung_up
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: listed(door), range(4)))
    assert [["fake/embedder", "fake/reranker"]] * 4 == answers
    assert service.hung_up.wait(PATIENCE_S)


def test_health_tells_whether_there_is_generation(serve, service):
    """On or off, and the model where it is known; a stranger is told nothing of it."""
    assert {"model": None, "state": "off"} == serve().http.get("/health").json()["generation"]
    ours = serve(generation_engine="process", generation_model="own/llm")
    assert {"model": "own/llm", "state": "on"} == ours.http.get("/health").json()["generation"]
    theirs = behind(serve, service.url)
    assert {"model": None, "state": "on"} == theirs.http.get("/health").json()["generation"]
    theirs.http.get("/v1/models")
    assert {"model": "some/other", "state": "on"} == theirs.http.get("/health").json()["generation"]
    assert {"embed", "rerank"} == set(theirs.http.get("/health").json()["models"])
    assert "generation" not in serve(api_key=KEY).http.get("/health").json()


def test_one_url_gives_all_three_names(serve, service):
    """A client that knows this server alone learns each endpoint's model."""
    host, port = behind(serve, service.url, api_key=KEY).address
    url = f"http://{host}:{port}"
    told = fetch_models(url, url, KEY)
    assert (ModelNames("fake/embedder", "some/other", "fake/reranker"), True) == (told.models, told.needs_key)


def test_the_openai_sdk_chats_through_the_door(serve, service):
    """The SDK gets its answer whole and streamed, its errors as its own kinds, and the model's name from the list."""
    host, port = behind(serve, service.url, api_key=KEY).address
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key=KEY, max_retries=0) as client:
        model = [one.id for one in client.models.list() if one.qmd_remote_role == "generate"][0]
        messages = [{"role": "user", "content": "tea?"}]
        answer = client.chat.completions.create(model=model, messages=messages)
        assert "green tea" == answer.choices[0].message.content
        pieces = client.chat.completions.create(model=model, messages=messages, stream=True)
        assert ["green", " tea"] == [piece.choices[0].delta.content for piece in pieces]
        service.answer = lambda handler, _: say(handler, 404, b'{"error": {"message": "no such model"}}')
        with pytest.raises(openai.NotFoundError, match="no such model"):
            client.chat.completions.create(model="x", messages=messages)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").chat.completions.create(model=model, messages=messages)
    assert {"some/other"} == {json.loads(asked.body)["model"] for asked in service.requests if asked.body} - {"x"}


def test_the_connections_end_with_the_server(service, fake_engine):
    """What was open to the service is closed when the app ends."""
    from fastapi.testclient import TestClient

    from qmd_remote.server.app import create_app

    app = create_app(Settings(generation_engine="external", generation_url=service.url), engine=fake_engine())
    before = threading.active_count()
    with TestClient(app) as client:
        assert client.post(CHAT, json=ASKED).json()["choices"]
        assert threading.active_count() > before  # the service's thread waits for the next request on the connection
    deadline = time.monotonic() + PATIENCE_S
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert before >= threading.active_count()
