"""How the door of the generation engine ends, and what it counts."""

from __future__ import annotations

import asyncio
from typing import Any

from qmd_remote.launch import relay
from tests.launch.stage import Stage, echo, play, read_request, refusal, request, response, said


def server_of(stage: Stage) -> relay.Relay:
    """The relay of a stage."""
    assert stage.relay is not None
    return stage.relay


async def status(stage: Stage) -> dict[str, Any]:
    """What the relay tells of itself."""
    answer = await stage.ask(b"GET /qmd-remote/status HTTP/1.1\r\nhost: x\r\n\r\n")
    return said(answer)


class Held:
    """An engine that answers when it is told to."""

    def __init__(self) -> None:
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        self.begun.set()
        await self.gate.wait()
        writer.write(response(b"{}"))


def test_running_requests_finish_and_new_ones_are_refused():
    """While it drains, what runs is answered by the engine, and what comes gets a 503 in OpenAI's shape."""

    async def scene(stage: Stage) -> None:
        engine = Held()
        await stage.up(engine)
        running = asyncio.ensure_future(stage.ask(request()))
        await engine.begun.wait()
        draining = asyncio.ensure_future(server_of(stage).drain(600))
        await asyncio.sleep(0)
        answer = await stage.ask(request())
        error = refusal(answer, 503)
        assert ("service_unavailable", "shutting_down") == (error["type"], error["code"])
        assert b"retry-after: " in answer.lower()
        assert not draining.done()
        engine.gate.set()
        assert (await running).startswith(b"HTTP/1.1 200 ")
        await draining

    play(scene)


def test_at_the_limit_running_requests_get_a_503():
    """What the engine has not begun to answer in time is refused, and the engine sees its caller leave."""

    async def scene(stage: Stage) -> None:
        left = asyncio.Event()

        async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # to the end of the connection
            left.set()

        await stage.up(hangs)
        running = asyncio.ensure_future(stage.ask(request()))
        while not server_of(stage).running:  # noqa: ASYNC110 - a counter sets no event
            await asyncio.sleep(0.01)
        await server_of(stage).drain(0)
        assert "shutting_down" == refusal(await running, 503)["code"]
        await left.wait()

    play(scene)


def test_who_waits_for_an_engine_that_is_down_is_not_waited_for():
    """A stop while the engine is down ends the waiting at once: it will not come back."""

    async def scene(stage: Stage) -> None:
        waiting = asyncio.ensure_future(stage.ask(request()))
        while not server_of(stage).running:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        await server_of(stage).drain(600)
        assert "shutting_down" == refusal(await waiting, 503)["code"]

    play(scene)


def test_who_is_in_the_queue_at_the_end_is_refused():
    """A connection that nobody had accepted when the relay closed is answered, and not reset."""

    async def scene(stage: Stage) -> None:
        server_of(stage).reception.close()
        waiting = asyncio.ensure_future(stage.ask(request()))
        while not waiting.done() and not stage.waits():  # noqa: ASYNC110 - the kernel's queue sets no event
            await asyncio.sleep(0.01)
        await server_of(stage).close()
        assert "shutting_down" == refusal(await waiting, 503)["code"]

    play(scene)


def test_the_relay_tells_what_it_counted():
    """Requests, errors, what runs and the engine's restarts, by the relay itself, also while the engine is down."""

    async def scene(stage: Stage) -> None:
        stage.restarts = 3
        assert {"running": 0, "requests": 0, "errors": 0, "restarts": 3} == await status(stage)
        await stage.up(echo)
        await stage.ask(request())
        await stage.ask(b"nonsense\r\n\r\n")  # no request
        await stage.down()

        async def ill(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n")

        await stage.up(ill)
        await stage.ask(request())
        await stage.down()
        engine = Held()
        await stage.up(engine)
        running = asyncio.ensure_future(stage.ask(request()))
        await engine.begun.wait()
        assert {"running": 1, "requests": 3, "errors": 1, "restarts": 3} == await status(stage)
        engine.gate.set()
        await running
        assert 0 == (await status(stage))["running"]

    play(scene)


def test_an_engine_that_dies_over_a_request_is_an_error():
    """A request that no engine answered is counted once, however often it was tried."""

    async def scene(stage: Stage) -> None:
        async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.transport.abort()

        await stage.up(dies)
        await stage.ask(request())
        counted = await status(stage)
        assert (1, 1) == (counted["requests"], counted["errors"])

    play(scene)


def test_the_status_stays_while_it_drains():
    """`status` can be asked until the end."""

    async def scene(stage: Stage) -> None:
        await server_of(stage).drain(600)
        assert 0 == (await status(stage))["running"]

    play(scene)
