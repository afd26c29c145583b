"""Generation through the embed server's door, over real sockets: what passes, and what does not."""

from __future__ import annotations

import gzip
import json
import logging
from contextlib import closing

import httpx
import pytest

from qmd_remote.errors import ConfigError
from qmd_remote.server import gateway
from qmd_remote.server.gateway import CHAT, COMPLETIONS
from qmd_remote.settings import Settings
from tests.server.generation_service import (
    ASKED,
    KEY,
    PATIENCE_S,
    begin_stream,
    behind,
    delta,
    error_of,
    event,
    say,
    send_chat,
)

SECRET = "pa55word"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_bytes_pass_unchanged(door, service, path):
    """Whatever the bodies hold, the service gets these bytes, and the client gets the service's."""
    service.answer = lambda handler, body: say(handler, 200, body[::-1], content_type="text/odd; x=y")
    for raw in (b"", b"[1]", b'"{}"', b"a=b&c={}", b"\x00\xff\r\n\r\n", "né☃".encode(), b"x" * 300_000):
        answer = door.http.post(path, content=raw, headers={"Content-Type": "text/strange"})
        assert (200, raw[::-1], "text/odd; x=y") == (answer.status_code, answer.content, answer.headers["content-type"])
        asked = service.requests.pop()
        assert ("POST", path, raw) == (asked.method, asked.path, asked.body)
        assert (str(len(raw)), "text/strange") == (asked.headers["content-length"], asked.headers["content-type"])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_object_is_sent_on_as_json(door, service, path):
    """Whatever a client calls it, the service gets the same bytes under a type that it takes; JSON's own types stay."""
    form = "application/x-www-form-urlencoded"
    for raw in (b'{"a" :\t"\\ud83d"}\n', b' \r\n\t{"a":1}', b'{"a": "' + b"x" * 300_000 + b'"}'):
        for given in (form, "text/plain; charset=utf-8", None):
            assert door.http.post(path, content=raw, headers={"Content-Type": given} if given else {}).is_success
            asked = service.requests.pop()
            assert (raw, "application/json") == (asked.body, asked.headers["content-type"])
    for given in ("Application/JSON; charset=utf-8", "application/problem+json"):
        assert door.http.post(path, content=b"{}", headers={"Content-Type": given}).is_success
        assert given == service.requests.pop().headers["content-type"]
    packed = {"Content-Type": form, "Content-Encoding": "identity"}
    assert door.http.post(path, content=b"{}", headers=packed).is_success
    assert form == service.requests.pop().headers["content-type"]


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
    theirs = {"accept", "accept-encoding", "content-type", "x-request-id"}
    assert theirs | {"host", "connection", "content-length"} == set(headers)
    assert ("r1", service.place, "close") == (headers["x-request-id"], headers["host"], headers["connection"])


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
    assert {"set-cookie", "keep-alive"}.isdisjoint(answer.headers)
    assert "engine" not in str(answer.headers)
    assert 1 == len(answer.headers.get_list("content-length"))


def test_compression_is_the_clients_choice(door, service):
    """The service may compress for a client that asks for it, and is asked for nothing by one that does not."""
    packed = gzip.compress(b'{"a": 1}')
    service.answer = lambda handler, _: say(handler, 200, packed, content_encoding="gzip")
    assert {"a": 1} == door.http.post(CHAT, json=ASKED, headers={"Accept-Encoding": "gzip"}).json()
    with closing(send_chat(door.address)) as connection:
        assert connection.recv(1)
    assert "accept-encoding" not in service.requests[1].headers


def test_the_services_own_errors_pass(door, service):
    """What the service says is wrong reaches the client as it is."""
    for status in (400, 402, 404, 422, 429, 500, 503):
        said = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": status}}).encode()
        service.answer = lambda handler, _, status=status, said=said: say(handler, status, said)
        answer = door.http.post(COMPLETIONS, json=ASKED)
        assert (status, said) == (answer.status_code, answer.content)


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_service_that_refuses_this_server_does_not_blame_the_client(serve, service, status):
    """A wrong key between the two is a 502 that says where to look: a 401 would mean the client's own key."""
    refusal = {"www_authenticate": "Bearer", "proxy_authenticate": "Basic"}
    service.answer = lambda handler, _: say(handler, status, b'{"error": "who are you?"}', **refusal)
    server = behind(serve, service.url, api_key=KEY)
    for body in (ASKED, {**ASKED, "stream": True}):
        answer = server.http.post(CHAT, json=body, headers={"Authorization": f"Bearer {KEY}"})
        message = error_of(answer, 502, "generation_refused")
        assert str(status) in message
        assert "QMD_REMOTE_GENERATION_URL" in message
        assert "qmd-remote up" in message
        assert {"www-authenticate", "proxy-authenticate"}.isdisjoint(answer.headers)


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


def test_a_body_over_the_limit_is_not_passed_on(serve, service):
    """The body limit holds for generation, whether the length is announced or not."""
    server = behind(serve, service.url, max_body_mb=0.01)
    error_of(server.http.post(CHAT, content=b"x" * 10_001), 413, "body_too_large")
    error_of(server.http.post(CHAT, content=iter([b"x" * 6000] * 2)), 413, "body_too_large")
    assert [] == service.requests
    assert server.http.post(CHAT, content=b"x" * 10_000).status_code == 200


def test_nothing_else_of_the_service_can_be_reached(door, service):
    """Two paths, one method."""
    for method, path, status in (
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
    ):
        assert (path, status) == (path, door.http.request(method, path, json=ASKED).status_code)
    assert [] == service.requests


def test_a_query_string_stays_here(door, service):
    """What stands behind the path is not passed on."""
    assert door.http.post(f"{CHAT}?to=elsewhere", json=ASKED).status_code == 200
    assert CHAT == service.requests[0].path


def test_credentials_in_the_services_url_are_used_and_never_shown(serve, service, caplog):
    """They reach the service as basic authentication, and neither a client nor the log."""
    with caplog.at_level(logging.INFO):
        server = behind(serve, f"http://me:{SECRET}@{service.place}/")
        assert server.http.post(CHAT, json=ASKED).status_code == 200
        assert httpx.BasicAuth("me", SECRET)._auth_header == service.requests[0].headers["authorization"]
        service.answer = lambda handler, _: setattr(handler, "close_connection", True)
        answers = [server.http.post(CHAT, json=ASKED)]
        service.close()
        answers += [server.http.post(CHAT, json=ASKED), server.http.get("/health"), server.http.get("/v1/models")]
    assert [502, 502, 200, 200] == [answer.status_code for answer in answers]
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
