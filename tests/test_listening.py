"""The listening socket while no child serves it: who waits, who is turned away, and which addresses can be had."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from collections.abc import Iterator

import pytest

from qmd_remote import reception
from qmd_remote.errors import ConfigError, PrerequisiteError
from qmd_remote.reception import turn_away
from qmd_remote.supervision import listen

LIMIT_S = 10


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket as the supervisor holds it."""
    with listen("127.0.0.1", 0) as server:
        yield server


async def call(server: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and send a request."""
    reader, writer = await asyncio.open_connection(*server.getsockname()[:2])
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000)
    return reader, writer


def test_who_waited_long_enough_is_turned_away_in_openai_s_shape(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
):
    """After the patience callers get a 503 that OpenAI's clients understand, with the seconds until the restart."""
    monkeypatch.setattr(reception, "CALLER_PATIENCE_S", 0.05)

    async def scene() -> bytes:
        reader, writer = await call(listener)  # before the patience ends
        turning = asyncio.ensure_future(turn_away(listener, 200.05, "the embed server"))
        async with asyncio.timeout(LIMIT_S):
            answer = await reader.read()
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)
        writer.close()
        return answer

    head, _, body = asyncio.run(scene()).decode().partition("\r\n\r\n")
    lines = head.lower().split("\r\n")
    assert "http/1.1 503 service unavailable" == lines[0]
    headers = dict(line.split(": ") for line in lines[1:])
    assert ("application/json", "close", str(len(body))) == (
        headers["content-type"],
        headers["connection"],
        headers["content-length"],
    )
    assert 190 < int(headers["retry-after"]) <= 200
    error = json.loads(body)["error"]
    assert ("service_unavailable", "restarting", None) == (error["type"], error["code"], error["param"])
    assert "the embed server crashed and is restarted in" in error["message"]


def queued(server: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    return bool(select.select([server], [], [], 0.5)[0])


def test_nobody_is_turned_away_in_a_back_off_shorter_than_the_patience(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
):
    """A caller that waits through a short back-off still waits at its end, for the next child to take it."""
    monkeypatch.setattr(reception, "CALLER_PATIENCE_S", 60)

    async def scene() -> None:
        _, writer = await call(listener)
        await turn_away(listener, 0.05, "the embed server")
        assert queued(listener)
        writer.close()

    asyncio.run(scene())


def test_after_the_back_off_new_callers_wait_for_the_next_child(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
):
    """When turning away ends, the socket is as it was: as many callers as before may queue, and none is answered."""
    monkeypatch.setattr(reception, "CALLER_PATIENCE_S", 0.01)

    async def scene() -> None:
        turning = asyncio.ensure_future(turn_away(listener, 100, "the embed server"))
        reader, writer = await call(listener)
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read()  # turned away
        writer.close()
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)

    asyncio.run(scene())
    callers = [socket.socket() for _ in range(300)]
    try:
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        assert 300 == len(select.select([], callers, [], 0.5)[1])
    finally:
        for caller in callers:
            caller.close()


@pytest.mark.parametrize("ticks", range(4))
def test_a_caller_that_comes_as_the_back_off_ends_is_not_lost(
    ticks: int, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
):
    """Whoever connects in the very moment in which turning away ends is answered, or waits for the next child."""
    monkeypatch.setattr(reception, "CALLER_PATIENCE_S", 0.01)

    async def scene() -> bool:
        turning = asyncio.ensure_future(turn_away(listener, 100, "the embed server"))
        reader, writer = await call(listener)
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read()  # it turns away by now
        writer.close()
        with socket.create_connection(listener.getsockname()) as caller:
            caller.setblocking(False)
            for _ in range(ticks):
                await asyncio.sleep(0)
            turning.cancel()
            await asyncio.gather(turning, return_exceptions=True)
            if queued(listener):
                return True
            async with asyncio.timeout(LIMIT_S):
                return (await asyncio.get_running_loop().sock_recv(caller, 100)).startswith(b"HTTP/1.1 503 ")

    assert asyncio.run(scene())


# listening


def test_a_taken_port_names_its_holder():
    """Who meets a taken port reads which program holds it, and what to do."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PrerequisiteError) as caught:
            listen("127.0.0.1", port, holder=lambda number: f"nginx (pid {number})")
    assert ("port.taken", f"port {port} is taken by nginx (pid {port})") == (caught.value.code, caught.value.message)
    assert "--port" in caught.value.hint


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "two..dots", "x" * 70])
def test_an_address_that_is_not_ours_is_an_error_of_configuration(host: str):
    """An address of another machine and a name that cannot exist are told apart from a taken port."""
    with pytest.raises(ConfigError) as caught:
        listen(host, 0)
    assert ("bind.address", True) == (caught.value.code, host in caught.value.message)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "0.0.0.0"])
def test_the_usual_addresses_can_be_listened_on(host: str):
    """Names, IPv4 and IPv6, with and without brackets, end in a socket that takes callers and does not block us."""
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with listen(host, 0) as server:
        assert not server.getblocking()
        socket.create_connection(("::1" if ":" in host else server.getsockname()[0], server.getsockname()[1])).close()
