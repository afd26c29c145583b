"""What a client of generation is told when the service behind the door fails, and what the service, when it leaves."""

from __future__ import annotations

import logging
import socket
import struct
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from qmd_remote.server import gateway, generation_routes
from qmd_remote.server.gateway import CHAT, COMPLETIONS
from tests.server.generation_service import (
    ASKED,
    PATIENCE_S,
    begin_stream,
    behind,
    delta,
    error_of,
    good,
    say,
    send_chat,
)


def hang_up(connection):
    """Close a connection the rude way, with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


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
    monkeypatch.setattr(generation_routes, "MAX_ANSWER_BYTES", 1 << 20)
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


def test_not_all_may_wait_for_room(serve, service, monkeypatch):
    """Each that waits holds its body: one too many is sent away at once, however long the others may wait."""
    monkeypatch.setattr(gateway, "UNDER_WAY", 1)
    monkeypatch.setattr(gateway, "WAITING", 1)

    def wait(handler, body):
        service.go_on.wait(PATIENCE_S)
        good(handler, body)

    service.answer = wait
    server = behind(serve, service.url, queue_wait_s=PATIENCE_S)
    with ThreadPoolExecutor(3) as pool:
        asked = {pool.submit(server.http.post, CHAT, json=ASKED)}
        assert service.came.wait(PATIENCE_S)
        asked |= {pool.submit(server.http.post, CHAT, json=ASKED) for _ in range(2)}
        done, others = futures.wait(asked, PATIENCE_S / 2, futures.FIRST_COMPLETED)
        assert 1 == len(done)
        error_of(done.pop().result(), 503, "generation_busy")
        service.go_on.set()
        assert [200, 200] == [one.result(PATIENCE_S).status_code for one in others]


def test_a_redirect_is_not_followed(door, service):
    """Nobody is sent elsewhere with a request: the address in the settings is to be corrected."""
    service.answer = lambda handler, _: say(handler, 307, b"", location=f"http://{service.place}/other")
    answer = door.http.post(CHAT, json=ASKED)
    assert "QMD_REMOTE_GENERATION_URL" in error_of(answer, 502, "generation_unreachable")
    assert service.place not in answer.text
    assert 1 == len(service.requests)


def test_a_connection_that_ends_unannounced_costs_no_request(serve, service):
    """A service that closes after each answer, without having said so, answers every request of many at once."""

    def once(handler, body):
        good(handler, body)
        handler.close_connection = True

    service.answer = once
    server = behind(serve, service.url)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.http.post(CHAT, json=ASKED).status_code, range(80)))
    assert [200] * 80 == answers
