"""Every way a request can be wrong, over a socket: always OpenAI's error object, never a traceback."""

from __future__ import annotations

import json
import logging
import socket
import struct
import time

import pytest

from qmd_remote.errors import BadRequest, Unavailable

LIMIT_MB = 0.01


@pytest.fixture(scope="module")
def server(serve):
    """A server that takes small bodies."""
    return serve(max_body_mb=LIMIT_MB)


def error_of(answer):
    """The error object of an answer, which must have OpenAI's four fields and no other."""
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 9000, b'{"input": ' + b"9" * 5000 + b"}"])
def test_a_wrong_body_is_a_400(server, path, raw):
    """Whatever the bytes are, the client is told, and the server goes on."""
    answer = server.http.post(path, content=raw)
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"


def test_a_wrong_field_is_a_400_that_names_it(server):
    """`param` points at the item, down to its place in the list."""
    answer = server.http.post("/v1/embeddings", json={"input": ["a", "b", "c", 4]})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "input[3]"
    answer = server.http.post("/v1/rerank", json={"query": "q", "documents": [{"title": "t"}]})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "documents[0].text"


def test_too_many_dimensions_are_a_400(server):
    """The model's own dimension is the limit, and is told."""
    answer = server.http.post("/v1/embeddings", json={"input": "a", "dimensions": 9})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == "dimensions"
    assert "at most 8" in error["message"]


def test_what_the_engine_refuses_reaches_the_client(serve, fake_engine):
    """An error of the engine that is meant for the client keeps its status and words."""
    engine = fake_engine()
    engine.bug = BadRequest("'input[0][1]' is no token of this model", param="input[0][1]")
    answer = serve(engine).http.post("/v1/embeddings", json={"input": [[1, 2]]})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "input[0][1]"


@pytest.mark.parametrize(("told", "expected"), [(30, "30"), (None, "1")])
def test_a_503_says_when_to_come_again(serve, fake_engine, told, expected):
    """Retry-After is the engine's, or a second where it does not know."""
    engine = fake_engine()
    engine.bug = Unavailable("the queue is full", code="overloaded", retry_after=told)
    answer = serve(engine).http.post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == expected
    assert error_of(answer)["code"] == "overloaded"


def test_the_content_type_is_not_insisted_on(server):
    """curl -d sends a form's content type with JSON inside."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.http.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers).status_code == 200


def test_an_announced_body_that_is_too_large_is_refused_unread(server):
    """The 413 comes from the announced length alone, and says the limit and the setting."""
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n")
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    error = json.loads(body)["error"]
    assert error["code"] == "body_too_large"
    assert "0.01 MB" in error["message"]
    assert "QMD_REMOTE_MAX_BODY_MB" in error["message"]


def test_a_chunked_body_that_grows_too_large_is_refused(server):
    """Without a length, the limit counts while the body comes in."""
    answer = server.http.post("/v1/rerank", content=(b" " * 1000 for _ in range(20)))
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"


def test_a_refused_body_leaves_the_connection_usable(server):
    """A client that sends all of a too large body still reads its 413, and its next request is served."""
    answer = server.http.post("/v1/embeddings", content=b"x" * 2_000_000)
    assert answer.status_code == 413
    assert server.http.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_a_body_at_the_limit_is_taken(server):
    """The limit itself is allowed."""
    raw = b'{"input": "a"}'
    assert server.http.post("/v1/embeddings", content=raw.ljust(10_000)).status_code == 200
    assert server.http.post("/v1/embeddings", content=raw.ljust(10_001)).status_code == 413


def test_an_unknown_path_is_a_404_that_names_the_paths(server):
    """A wrong base URL shows itself: the message lists what there is."""
    answer = server.http.post("/v1/v1/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 404
    error = error_of(answer)
    assert error["code"] == "not_found"
    for path in ("/v1/v1/v1/embeddings", "POST /v1/embeddings", "POST /v1/rerank", "GET /v1/models", "GET /health"):
        assert path in error["message"]


def test_a_wrong_method_is_a_405_that_names_the_right_one(server):
    """The Allow header and the message agree."""
    answer = server.http.get("/v1/embeddings")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert error_of(answer)["code"] == "method_not_allowed"
    assert "POST" in error_of(answer)["message"]


def test_head_has_no_body(server):
    """HEAD on an API path is a 405 like any other method, without a body as HTTP asks."""
    answer = server.http.head("/v1/rerank")
    assert answer.status_code == 405
    assert answer.content == b""


def test_a_trailing_slash_leads_to_the_path(server):
    """The redirect keeps method and body."""
    answer = server.http.post("/v1/embeddings/", json={"input": "a"}, follow_redirects=True)
    assert answer.status_code == 200


def test_a_bug_is_a_500_without_internals(serve, fake_engine, caplog):
    """The client learns nothing of the cause; the log has the traceback."""
    engine = fake_engine()
    engine.bug = ZeroDivisionError("the secret cause")
    with caplog.at_level(logging.ERROR):
        answer = serve(engine).http.post("/v1/embeddings", json={"input": "a"})
        deadline = time.monotonic() + 30  # the log is written after the answer
        while "the secret cause" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "the secret cause" in caplog.text


def hang_up(connection):
    """Close a connection the rude way, with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_client_that_leaves_in_its_body_is_no_news(serve, caplog):
    """Nothing is logged, and the next client is served."""
    server = serve()
    with caplog.at_level(logging.INFO):
        caplog.clear()
        for _ in range(3):
            connection = socket.create_connection(server.address, timeout=30)
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
            hang_up(connection)
        assert server.http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_work_nobody_waits_for_is_cancelled(serve, caplog):
    """A client that hangs up while its request waits takes its work with it, without a word in the log."""
    server = serve()
    server.engine.gate.clear()
    body = b'{"input": "a"}'
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert server.engine.entered.wait(30)
    assert not server.engine.cancelled.is_set()
    with caplog.at_level(logging.INFO):
        caplog.clear()
        hang_up(connection)
        assert server.engine.cancelled.wait(30)
        server.engine.gate.set()
        assert server.http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_a_request_that_waits_for_the_models_ends_with_its_client(serve, fake_engine):
    """Hanging up works while the models load, too: the request is never handed to the engine."""
    server = serve(fake_engine("loading"), ready_wait_s=600)
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(
        b'POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\n\r\n{"query": "q", "documents": ["a"]}'
    )
    assert server.engine.waiting.wait(30)
    hang_up(connection)
    deadline = time.monotonic() + 30
    while server.engine.waiters and time.monotonic() < deadline:
        time.sleep(0.01)
    server.engine.settle("ready")
    assert server.http.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 200
    assert server.engine.calls == 1
