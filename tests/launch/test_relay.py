"""The door of the generation engine: requests and answers, on real sockets, with a small engine behind it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import suppress

import pytest

from qmd_remote.launch import dialect
from tests.launch.stage import Stage, echo, play, read_request, refusal, request, response, said


def test_a_request_reaches_the_engine_and_its_answer_the_caller():
    """Method, path, body and the caller's own headers arrive; only those of the connection are the relay's."""

    async def scene(stage: Stage) -> None:
        await stage.up(echo)
        answer = await stage.ask(request(b'{"a": 1}', "/v1/completions?x=1", "Authorization: Bearer k", "X-Own: 1"))
        facts = said(answer)
        head = facts["head"].lower()
        assert head.startswith("post /v1/completions?x=1 http/1.1\r\n")
        assert '{"a": 1}' == facts["body"]
        for line in ("x-own: 1", "host: box:8000"):
            assert line in head.split("\r\n")
        assert "bearer k" not in head  # the key is not the engine's business

    play(scene)


@pytest.mark.parametrize("size", [0, 1, 65536, 3_000_000])
def test_bodies_of_any_size_arrive_whole(size: int):
    """A body is the same bytes on the other side, be it empty or larger than every buffer."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    async def scene(stage: Stage) -> None:
        await stage.up(echo)
        assert hashlib.sha256(body).hexdigest() == said(await stage.ask(request(body)))["digest"]

    play(scene)


def test_a_large_answer_arrives_whole():
    """An answer larger than every buffer is the same bytes at the caller."""
    body = bytes(range(256)) * 20_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response(body))
        await writer.drain()

    async def scene(stage: Stage) -> None:
        await stage.up(serve)
        assert response(body) == await stage.ask(request())

    play(scene)


def test_a_body_in_chunks_is_understood():
    """A request with Transfer-Encoding: chunked reaches the engine as the same body."""
    chunked = (
        b"POST /v1/completions HTTP/1.1\r\nhost: box\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    )

    async def scene(stage: Stage) -> None:
        await stage.up(echo)
        assert "hello world" == said(await stage.ask(chunked))["body"]

    play(scene)


def test_a_caller_that_asks_first_is_told_to_go_on():
    """`Expect: 100-continue`, which curl sends with larger bodies, is answered before the body is waited for."""

    async def scene(stage: Stage) -> None:
        await stage.up(echo)
        reader, writer = await stage.call()
        head, _, body = request(b"late", "/v1/completions", "Expect: 100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert b"HTTP/1.1 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        assert "late" == said(await reader.read())["body"]
        writer.close()

    play(scene)


def test_parts_of_an_answer_arrive_as_they_come():
    """A streamed answer is passed on part by part, not when it is complete."""

    async def scene(stage: Stage) -> None:
        seen = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst")
            await seen.wait()
            writer.write(b" second")

        await stage.up(serve)
        reader, writer = await stage.call()
        writer.write(request())
        await reader.readuntil(b"first")
        seen.set()
        assert b" second" == await reader.read()
        writer.close()

    play(scene)


def test_the_request_is_put_into_the_engine_s_words():
    """What the engine does not know is taken out on the way, and the length is that of what is sent."""

    async def scene(stage: Stage) -> None:
        await stage.up(echo)
        sent = json.dumps({"model": "m", "top_k": 20, "prompt": "p"}).encode()
        assert {"model": "m", "prompt": "p"} == json.loads(said(await stage.ask(request(sent)))["body"])

    play(scene, adapt=dialect.for_transformers)


# what is no request


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n" + b"x" * (17 << 20), 413),
    ],
    ids=["TLS", "no HTTP", "bad length", "endless head", "too large"],
)
def test_what_is_no_request_is_refused_and_not_passed_on(sent: bytes, status: int):
    """A wrong protocol, a head without end and a body without measure are answered by the door itself."""

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.call()
        sending = asyncio.ensure_future(_send(writer, sent))
        assert "invalid_request_error" == refusal(await reader.read(), status)["type"]
        writer.close()
        await sending

    play(scene)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send what the other side may not want to read to its end."""
    with suppress(ConnectionError):
        writer.write(data)
        await writer.drain()


def test_an_old_client_without_a_host_is_served():
    """A request of HTTP/1.0, as health checks of load balancers send them, reaches the engine."""

    async def scene(stage: Stage) -> None:
        await stage.up(echo)
        answer = await stage.ask(b"GET /health HTTP/1.0\r\n\r\n")
        assert said(answer)["head"].lower().startswith("get /health http/1.1")

    play(scene)


def test_a_connection_without_a_request_is_closed_quietly():
    """A caller that connects and goes away, as port scanners and health checks do, leaves no trace."""

    async def scene(stage: Stage) -> None:
        _, writer = await stage.call()
        writer.close()

    play(scene)
