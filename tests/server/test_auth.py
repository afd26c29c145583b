"""The key: who passes, who does not, and what strangers see."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.errors import ConfigError
from qmd_remote.server.app import create_app
from qmd_remote.server.auth import has_key

KEY = "s3cret-kéy"  # not ASCII on purpose
SENT = KEY.encode()


@pytest.fixture(scope="module")
def guarded(serve):
    """A server with a key."""
    return serve(api_key=KEY)


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER"])
def test_the_key_opens(guarded, scheme):
    """The scheme's case does not matter, and the key may hold any character."""
    answer = guarded.http.get("/v1/models", headers={"Authorization": scheme + b" " + SENT})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer wrong",
        b"Bearer " + SENT + b"x",
        b"Basic " + SENT,
        SENT,
        b"Bearer \xff",
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/embeddings", "/docs", "/openapi.json", "/nowhere", "/health/"])
def test_everything_else_is_closed(guarded, path, header):
    """No key or a wrong one is a 401 in OpenAI's shape on every path but the two open ones."""
    answer = guarded.http.get(path, headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert "wrong" not in answer.text
    assert "s3cret" not in answer.text


def test_a_stranger_is_refused_before_the_body_is_read(guarded):
    """The 401 comes while the body is still to be sent."""
    with socket.create_connection(guarded.address, timeout=30) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


def test_strangers_see_only_the_status(guarded):
    """/health and /livez answer everybody; models, device and versions are for those with the key."""
    assert guarded.http.get("/health").json() == {"status": "ok"}
    assert guarded.http.get("/health", headers={"Authorization": "Bearer wrong"}).json() == {"status": "ok"}
    assert guarded.http.get("/livez").json() == {"status": "alive"}
    assert "models" in guarded.http.get("/health", headers={"Authorization": b"Bearer " + SENT}).json()


def test_strangers_see_the_status_code(serve, fake_engine):
    """A load balancer without the key still learns that the models load."""
    guarded = serve(fake_engine("loading"), api_key=KEY)
    answer = guarded.http.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})


def test_without_a_key_everybody_is_served(serve):
    """No key set means no check, whatever the client sends."""
    server = serve()
    assert server.http.get("/v1/models", headers={"Authorization": "Bearer anything"}).status_code == 200
    assert "models" in server.http.get("/health").json()


def test_the_key_is_read_from_its_file(serve, tmp_path):
    """A key file works like the variable."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    server = serve(api_key_file=str(file))
    assert server.http.get("/v1/models").status_code == 401
    assert server.http.get("/v1/models", headers={"Authorization": "Bearer from-file"}).status_code == 200


@given(st.binary(), st.binary(min_size=1))
def test_only_the_key_itself_passes(given_key, key):
    """For every pair of byte strings: equal passes (white space around it aside), anything else does not."""
    sent = [(b"host", b"x"), (b"authorization", b"Bearer " + given_key)]
    assert (given_key.strip() == key) == has_key(sent, key)


def test_the_factory_refuses_strangers_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An app made from the environment's settings has a key, or an address that only this machine reaches."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path))
    monkeypatch.setenv("QMD_REMOTE_HOST", "0.0.0.0")
    monkeypatch.delenv("QMD_REMOTE_API_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        create_app()
    assert "bind.no_key" == caught.value.code
