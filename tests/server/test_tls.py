"""HTTPS by certificate and key files: the program itself, and its parent while no worker is there."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from qmd_remote import reach, reception
from qmd_remote.errors import ConfigError
from qmd_remote.server import supervisor
from qmd_remote.settings import Settings
from qmd_remote.supervision import listen
from tests import certificate
from tests.server.tiny_models import save_encoder, until

LIMIT_S = 30
PROGRAM = Path(sys.executable).with_name("qmd-remote")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificate, the key and a small model lie."""
    made = tmp_path_factory.mktemp("tls")
    certificate.write(made)
    save_encoder(made / "model", "bert")
    return made


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    """The program's log."""
    return folder / "serve.log"


@pytest.fixture(scope="module")
def program(folder: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`qmd-remote serve` with TLS, once it says that it is ready; and its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    mine = {
        "QMD_REMOTE_HOME": str(folder / "home"),
        "QMD_REMOTE_PORT": str(port),
        "QMD_REMOTE_TLS_CERT": str(folder / "cert.pem"),
        "QMD_REMOTE_TLS_KEY": str(folder / "key.pem"),
        "EMBED_MODEL": str(folder / "model"),
        "RERANK_MODEL": str(folder / "model"),
        "DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QMD_REMOTE_")}
    with log.open("wb") as sink:
        process = subprocess.Popen([PROGRAM, "serve"], env=clean | mine, stdout=sink, stderr=subprocess.STDOUT)
    try:
        # its own probe speaks TLS and trusts the certificate, or this is never said
        until(lambda: "embed worker ready after" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        yield process, port
        process.terminate()
        assert 0 == process.wait(LIMIT_S), log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_server_speaks_https(host: str, program, folder: Path):
    """A client that trusts the certificate gets its vectors, by address and by name."""
    trusted = ssl.create_default_context(cafile=folder / "cert.pem")
    url = f"https://{host}:{program[1]}/v1/embeddings"
    answer = httpx.post(url, json={"input": "fox"}, verify=trusted, timeout=LIMIT_S, trust_env=False)
    assert (200, 1) == (answer.status_code, len(answer.json()["data"]))


def test_a_client_that_does_not_know_the_certificate_refuses_it(program):
    """Nothing is served to, or taken from, one who cannot verify the server."""
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://127.0.0.1:{program[1]}/livez", timeout=LIMIT_S, trust_env=False)


def test_plain_http_to_the_https_port_ends_at_once(program):
    """Who forgets the s is hung up on, and waits for no time-out."""
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://127.0.0.1:{program[1]}/livez", timeout=LIMIT_S, trust_env=False)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_before_1_2_is_refused(program):
    """An outdated protocol gets no connection."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", program[1]), LIMIT_S) as plain,
        pytest.raises(ssl.SSLError, match=r"EOF|ALERT"),
    ):
        old.wrap_socket(plain)


@pytest.mark.parametrize(
    ("cert", "key", "code"),
    [
        ("cert.pem", "", "tls.incomplete"),
        ("", "key.pem", "tls.incomplete"),
        ("nothing.pem", "key.pem", "tls.unusable"),
        ("key.pem", "cert.pem", "tls.unusable"),
    ],
)
def test_files_that_cannot_be_used_are_an_error_before_anything_starts(cert: str, key: str, code: str, folder: Path):
    """One of two files, one that is not there, the two mixed up: no port is opened, no worker started."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        settings = Settings(
            port=holder.getsockname()[1],  # taken: it would be complained of
            tls_cert=str(folder / cert) if cert else "",
            tls_key=str(folder / key) if key else "",
        )
        with pytest.raises(ConfigError) as caught:
            supervisor.serve(settings)
    assert code == caught.value.code


# the parent, while there is no worker


def serving(folder: Path) -> ssl.SSLContext:
    """What the parent encrypts with."""
    context = reach.server_tls(Settings(tls_cert=str(folder / "cert.pem"), tls_key=str(folder / "key.pem")))
    assert context is not None
    return context


async def asked(port: int, folder: Path) -> bytes:
    """The answer to a request by HTTPS."""
    context = reach.trusting(str(folder / "cert.pem"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    answer += await reader.readexactly(length)
    writer.close()
    return answer


def test_who_is_turned_away_during_a_back_off_reads_it_by_https(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The 503 of a long back-off is encrypted as every answer; who speaks no TLS is hung up on, and hurts nobody."""
    monkeypatch.setattr(reception, "CALLER_PATIENCE_S", 0.0)

    async def scene(listener: socket.socket) -> bytes:
        turning = asyncio.ensure_future(reception.turn_away(listener, 100, "the server", serving(folder)))
        port = listener.getsockname()[1]
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            with suppress(ConnectionError):
                assert b"HTTP" not in await reader.read()
            writer.close()
            answer = await asked(port, folder)
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)
        return answer

    with listen("127.0.0.1", 0) as listener:
        head, _, body = asyncio.run(scene(listener)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert "restarting" == json.loads(body)["error"]["code"]


def test_who_still_waits_at_the_end_reads_it_by_https(folder: Path):
    """Callers in the queue of a server that ends get their 503 encrypted too."""

    async def scene(listener: socket.socket) -> bytes:
        asking = asyncio.ensure_future(asked(listener.getsockname()[1], folder))
        await asyncio.to_thread(select.select, [listener], [], [], LIMIT_S)  # it is in the queue
        await reception.refuse_waiting(listener, "the server", serving(folder))
        return await asking

    with listen("127.0.0.1", 0) as listener:
        assert b'"shutting_down"' in asyncio.run(scene(listener))
