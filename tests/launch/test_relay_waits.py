"""The door of the generation engine while the engine comes and goes, and callers with it."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from contextlib import suppress

import pytest

from qmd_remote.launch import relay
from tests.launch.stage import LIMIT_S, Stage, echo, play, read_request, refusal, request, said


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_caller_waits_for_an_engine_that_is_down(size: int, monkeypatch: pytest.MonkeyPatch):
    """A request that comes while the engine is down is kept whole, and answered when the engine is up."""
    body = b"q" * size
    tried: list[object] = []
    connect = asyncio.open_connection

    async def noted(*place: object) -> object:
        tried.append(place[-1])
        return await connect(*place)

    monkeypatch.setattr(asyncio, "open_connection", noted)

    async def scene(stage: Stage) -> None:
        asking = asyncio.ensure_future(stage.ask(request(body)))
        while tried.count(stage.port) < 2:  # noqa: ASYNC110 - attempts set no event
            await asyncio.sleep(0.01)
        assert not asking.done()
        await stage.up(echo)
        assert hashlib.sha256(body).hexdigest() == said(await asking)["digest"]

    play(scene)


def test_who_waits_too_long_is_turned_away_in_openai_s_shape():
    """After the patience the caller gets a 503 that OpenAI's clients understand, with the time to come again."""

    async def scene(stage: Stage) -> None:
        answer = await stage.ask(request())
        error = refusal(answer, 503)
        assert ("service_unavailable", "restarting") == (error["type"], error["code"])
        assert "qmd-remote logs generation" in error["message"]
        assert b"retry-after: 10" in answer.lower()

    play(scene, patience_s=0.3)


@pytest.mark.parametrize("reset", [False, True])
def test_a_caller_that_hangs_up_while_it_waits_is_forgotten(reset: bool):
    """A caller that closes, or is cut off, while the engine is down costs nothing more: its task ends."""

    async def scene(stage: Stage) -> None:
        before = len(asyncio.all_tasks())
        _, writer = await stage.call()
        writer.write(request())
        while len(asyncio.all_tasks()) == before:  # noqa: ASYNC110 - tasks set no event
            await asyncio.sleep(0.01)
        await hang_up(writer, reset=reset)
        async with asyncio.timeout(LIMIT_S):
            while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert before == len(asyncio.all_tasks())

    play(scene)


async def hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close a connection, in an orderly way or by a reset."""
    if reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


@pytest.mark.parametrize("reset", [False, True])
def test_an_engine_does_not_work_for_nobody(reset: bool):
    """When the caller hangs up, the engine sees its own connection end, so that it can stop computing."""

    async def scene(stage: Stage) -> None:
        begun, gone = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            begun.set()
            with suppress(ConnectionError):
                await reader.read()
            gone.set()

        await stage.up(serve)
        _, writer = await stage.call()
        writer.write(request())
        await begun.wait()
        await hang_up(writer, reset=reset)
        await gone.wait()
        assert gone.is_set()

    play(scene)


def test_an_engine_that_dies_before_its_first_byte_gets_the_request_again():
    """A request whose engine crashed under it is sent to the next one: QMD would cache the failure for ever."""

    async def scene(stage: Stage) -> None:
        async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            await stage.down()
            writer.transport.abort()

        await stage.up(dies)
        asking = asyncio.ensure_future(stage.ask(request(b"again")))
        while stage.engine:  # noqa: ASYNC110 - the engine's end sets no event
            await asyncio.sleep(0.01)
        await stage.up(echo)
        assert "again" == said(await asking)["body"]

    play(scene)


def test_a_request_that_kills_two_engines_is_not_tried_a_third_time():
    """A second death under the same request may be its own doing: it is refused with a 503."""

    async def scene(stage: Stage) -> None:
        deaths = 0

        async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal deaths
            deaths += 1
            await read_request(reader)
            writer.transport.abort()

        await stage.up(dies)
        assert "restarting" == refusal(await stage.ask(request()), 503)["code"]
        assert 2 == deaths

    play(scene)


def test_an_engine_that_dies_in_mid_answer_ends_the_caller_s_connection():
    """After a part of the answer nothing is sent twice: the caller sees its connection end early."""

    async def scene(stage: Stage) -> None:
        requests, half_read = 0, asyncio.Event()

        async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests
            requests += 1
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            await writer.drain()
            await half_read.wait()
            writer.transport.abort()

        await stage.up(dies)
        reader, writer = await stage.call()
        writer.write(request())
        await reader.readuntil(b"half")
        half_read.set()
        assert b"" == await reader.read()
        writer.close()
        assert 1 == requests

    play(scene)


def test_a_silent_engine_is_given_up(monkeypatch: pytest.MonkeyPatch):
    """An engine that hangs without a byte of answer ends in a 503, not in a caller that waits for ever."""
    monkeypatch.setattr(relay, "SILENCE_S", 0.2)

    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scene(stage: Stage) -> None:
        await stage.up(hangs)
        assert "stalled" == refusal(await stage.ask(request()), 503)["code"]

    play(scene)
