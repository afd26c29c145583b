"""The HTTP client's limits, and the causes that need more than a stand-in service."""

from __future__ import annotations

import errno
import ssl
from types import SimpleNamespace

import httpx
import psutil
import pytest

from qmd_remote import services
from qmd_remote.client import http
from qmd_remote.client.causes import classify, shown
from qmd_remote.client.http import exchange, make_client
from qmd_remote.errors import ConfigError
from qmd_remote.services import Record
from tests import certificate


def failure(url: str, limit_s: float = 5.0) -> httpx.HTTPError:
    """The error of one GET."""
    with make_client(url) as client, pytest.raises(httpx.HTTPError) as caught:
        exchange(client, "/", limit_s=limit_s)
    return caught.value


def test_a_certificate_that_nobody_signed_is_a_tls_failure(serve, tmp_path):
    """The cause says that the certificate is not accepted, and the fix names both variables."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate.write(tmp_path))
    stub = serve()
    stub.httpd.socket = context.wrap_socket(stub.httpd.socket, server_side=True)
    url = stub.url.replace("http:", "https:")
    cause = classify(failure(url), url)

    assert cause.code == "tls"
    assert "certificate" in cause.message
    assert "NODE_EXTRA_CA_CERTS" in cause.fix


def test_proxies_of_the_environment_are_not_used_for_this_machine(serve, closed_port, monkeypatch):
    """A proxy that is set for the whole machine does not come between it and its own services."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with make_client(serve().url) as client:
        assert exchange(client, "/health").status == 200


def test_an_answer_that_drips_is_cut_off(talks_nonsense, monkeypatch):
    """The limit holds for the whole answer, not only for each piece of it."""
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    url = talks_nonsense(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwxyz")

    assert classify(failure(url), url, limit_s=5).code == "timeout"


def test_an_endless_answer_is_cut(talks_nonsense, monkeypatch):
    """Another service may stream without end; what is kept of it has a limit."""
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 10)
    url = talks_nonsense(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000)
    with make_client(url) as client:
        answer = exchange(client, "/")

    assert 10 < len(answer.content) < 100_000


def test_no_redirect_is_followed(serve):
    """A redirect is an answer: the key goes to nobody else."""
    with make_client(serve(health=lambda *_: (302, b"")).url, "k") as client:
        assert exchange(client, "/health").status == 302


def test_connections_are_kept(serve):
    """Requests one after another share a connection, as QMD's do."""
    stub = serve()
    accepted = []
    process = stub.httpd.process_request
    stub.httpd.process_request = lambda *args: (accepted.append(1), process(*args))
    with make_client(stub.url) as client:
        for _ in range(3):
            exchange(client, "/health")

    assert [1] == accepted


@pytest.mark.parametrize("key", ["a b", "a\n", "schlüssel", "a\x7f"])
def test_a_key_that_no_header_can_hold_is_a_configuration_error(key):
    """The message does not repeat the key."""
    with pytest.raises(ConfigError) as caught:
        make_client("http://127.0.0.1", key)

    assert key not in caught.value.message


def test_certificates_that_cannot_be_read_are_named(monkeypatch, tmp_path):
    """A wrong SSL_CERT_FILE is an error of its own, not a traceback."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    http._trusted.cache_clear()
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        make_client("http://127.0.0.1")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (httpx.ConnectTimeout("x"), "timeout"),
        (httpx.PoolTimeout("x"), "timeout"),
        (httpx.WriteError("x"), "disconnected"),
        (httpx.ProxyError("x"), "proxy"),
        (httpx.DecodingError("x"), "network"),
    ],
)
def test_rarer_errors_have_causes_too(error, code):
    """What is hard to bring about is told apart by its kind."""
    cause = classify(error, "http://box:8001")

    assert code == cause.code
    assert cause.fix
    assert str(cause) == cause.message


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.ECONNREFUSED, "refused"),
        (errno.ECONNRESET, "disconnected"),
    ],
)
def test_the_systems_own_number_decides(number, code):
    """The number is found however deep the library has wrapped it."""
    error = httpx.ConnectError("x")
    error.__cause__ = RuntimeError("y")
    error.__cause__.__context__ = OSError(number, "z")

    assert code == classify(error, "http://box:8001").code


def test_a_url_for_messages_holds_no_secret():
    """User name, password, query and fragment are left out."""
    assert shown("https://me:secret@box:1/p?key=secret#secret") == "https://box:1/p"


@pytest.mark.parametrize(
    ("announced", "trusted"), [("its own", True), ("another port", False), ("no certificate", False), ("", False)]
)
def test_this_machines_own_server_is_trusted_by_its_certificate(announced, trusted, serve, tmp_path, monkeypatch):
    """A server that runs here is trusted by exactly the certificate it was started with, and nobody else by it."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path / "home"))
    paths = certificate.write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)
    stub = serve()
    stub.httpd.socket = context.wrap_socket(stub.httpd.socket, server_side=True)
    url = stub.url.replace("http:", "https:")
    if announced:
        me = psutil.Process()
        there = "https://127.0.0.1:1" if announced == "another port" else url
        known = "" if announced == "no certificate" else str(paths[0])
        services.write(Record(services.EMBED, me.pid, me.create_time(), there, tls_cert=known))
    if trusted:
        with make_client(url) as client:
            assert 200 == exchange(client, "/health").status
    else:
        assert "tls" == classify(failure(url), url).code
