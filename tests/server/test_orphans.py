"""Requests whose worker died, over real sockets: sent again, refused, or dropped with their caller."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.server import gateway, orphans
from qmd_remote.server.orphans import GONE, KEEP, MESSAGE, Orphans
from qmd_remote.settings import Settings
from qmd_remote.supervision import listen

LIMIT_S = 20
REQUEST = b"POST /v1/rerank HTTP/1.1\r\ncontent-length: 4\r\n\r\nwork"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nresult"


class Scene:
    """What a parent keeps, a worker of the test's making, and callers."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.orphans = Orphans(listener)
        self.orphans.open()
        self.worker = socket.socket(fileno=os.dup(self.orphans.fd))
        self.files: list[int] = []
        self.number = 0

    def keep(self, request: bytes = REQUEST) -> socket.socket:
        """A request that the worker works on; gives its caller."""
        caller, connection = socket.socketpair()
        file = os.memfd_create("request")
        os.write(file, request)
        socket.send_fds(self.worker, [MESSAGE.pack(KEEP, self.number)], [connection.fileno(), file])
        connection.close()  # the worker dies: what is left is the parent's
        self.files.append(file)
        self.number += 1
        caller.setblocking(False)
        return caller

    async def accept(self) -> tuple[socket.socket, bytes]:
        """The next worker takes a connection; gives what was asked on it."""
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(self.listener)
        connection.setblocking(False)
        asked = b""
        while not asked.endswith(b"work"):
            asked += await loop.sock_recv(connection, 65536)
        return connection, asked

    async def nobody_comes(self) -> bool:
        """Whether no request is sent again while all that there is to do is done."""
        for _ in range(20):
            await asyncio.sleep(0)
        self.listener.setblocking(False)
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return True
        return False


async def everything(caller: socket.socket) -> bytes:
    """All that a caller is sent, to the end of its connection."""
    loop = asyncio.get_running_loop()
    answer = b""
    while part := await loop.sock_recv(caller, 65536):
        answer += part
    return answer


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def staged() -> AsyncIterator[Scene]:
    """A scene, after which no descriptor is left open."""
    before = open_files()
    async with asyncio.timeout(LIMIT_S):
        with listen("127.0.0.1", 0) as listener:
            scene = Scene(listener)
            try:
                yield scene
            finally:
                await scene.orphans.close()
                scene.worker.close()
                for file in scene.files:
                    os.close(file)
    assert before == open_files()


def play(scene: Callable[[Scene], Any]) -> None:
    """Run a scene."""

    async def run() -> None:
        async with staged() as stage:
            await scene(stage)

    # the selector's own descriptors are opened before the count
    asyncio.run(run())


def problem(answer: bytes) -> tuple[bytes, str]:
    """(status line, code) of a refusal that says when to come again."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nretry-after: " in head
    error = json.loads(body)["error"]
    assert "service_unavailable" == error["type"]
    return head.partition(b"\r\n")[0], error["code"]


def test_requests_of_a_dead_worker_are_answered_by_the_next(caplog):
    """Each goes out again as it came, and each caller gets its own answer, and then the end of its connection."""

    async def scene(stage: Scene) -> None:
        callers = [stage.keep(b"POST /%d HTTP/1.1\r\n\r\nwork" % number) for number in range(3)]
        stage.orphans.adopt()
        for _ in callers:
            connection, asked = await stage.accept()
            connection.sendall(b"answer to " + asked[6:7])
            connection.close()
        for number, caller in enumerate(callers):
            with caller:
                assert b"answer to %d" % number == await everything(caller)

    play(scene)
    assert "the worker died over 3 requests; they are sent again" in caplog.messages


def test_what_is_answered_is_not_sent_again():
    """Connections end that were told to, whose file is empty, or whose request has not come whole: nothing is sent."""

    async def scene(stage: Scene) -> None:
        told, emptied, begun = stage.keep(), stage.keep(), stage.keep(b"\0" * 40 + b"work")
        stage.worker.send(MESSAGE.pack(GONE, 0))
        os.ftruncate(stage.files[1], 0)
        stage.orphans.adopt()
        for caller in (told, emptied, begun):
            with caller:
                assert b"" == await everything(caller)
        assert await stage.nobody_comes()

    play(scene)


def test_a_connection_that_has_ended_is_let_go_while_the_worker_lives():
    """The parent closes its copy of the connection, so that the worker's close reaches the caller."""

    async def scene(stage: Scene) -> None:
        with stage.keep() as caller:
            stage.worker.send(MESSAGE.pack(GONE, 0))
            assert b"" == await everything(caller)

    play(scene)


def test_a_request_that_kills_workers_is_given_up():
    """After two more workers have hung up over it, its caller reads a 503, and no third is asked."""

    async def scene(stage: Scene) -> None:
        with stage.keep() as caller:
            stage.orphans.adopt()
            for _ in range(orphans.RESENDS):
                connection, _ = await stage.accept()
                connection.close()
            assert (b"HTTP/1.1 503 Service Unavailable", "worker_died") == problem(await everything(caller))
        assert await stage.nobody_comes()

    play(scene)


def test_the_second_try_can_succeed():
    """One worker that dies again is followed by one that answers."""

    async def scene(stage: Scene) -> None:
        with stage.keep() as caller:
            stage.orphans.adopt()
            (await stage.accept())[0].close()
            connection, asked = await stage.accept()
            assert REQUEST == asked
            connection.sendall(ANSWER)
            connection.close()
            assert ANSWER == await everything(caller)

    play(scene)


def test_an_answer_that_breaks_off_is_not_begun_again():
    """When a worker dies amid an answer, the caller gets no other one behind it."""

    async def scene(stage: Scene) -> None:
        with stage.keep() as caller:
            stage.orphans.adopt()
            connection, _ = await stage.accept()
            connection.sendall(ANSWER[:-3])
            connection.close()
            assert ANSWER[:-3] == await everything(caller)
        assert await stage.nobody_comes()

    play(scene)


def test_when_no_worker_answers_in_time_the_caller_is_told(monkeypatch):
    """Nobody takes the request: a 503 before clients give up."""
    monkeypatch.setattr(orphans, "PATIENCE_S", 0.05)

    async def scene(stage: Scene) -> None:
        with stage.keep() as caller:
            stage.orphans.adopt()
            assert (b"HTTP/1.1 503 Service Unavailable", "restarting") == problem(await everything(caller))

    play(scene)


@pytest.mark.parametrize("path", [gateway.CHAT, gateway.COMPLETIONS])
def test_generation_may_take_longer(monkeypatch, path):
    """A worker that waits for a slow engine is not given up: it has a limit of its own, which is shorter."""
    monkeypatch.setattr(orphans, "PATIENCE_S", 0.05)
    assert orphans.GENERATION_PATIENCE_S > gateway.SILENCE_S + Settings().queue_wait_s

    async def scene(stage: Scene) -> None:
        with stage.keep(b"POST %b HTTP/1.1\r\ncontent-length: 4\r\n\r\nwork" % path.encode()) as caller:
            stage.orphans.adopt()
            connection, _ = await stage.accept()
            await asyncio.sleep(0.5)
            connection.sendall(ANSWER)
            connection.close()
            assert ANSWER == await everything(caller)

    play(scene)


def test_a_caller_that_hung_up_is_dropped():
    """Its request ends at the worker, too: the connection closes."""

    async def scene(stage: Scene) -> None:
        caller = stage.keep()
        stage.orphans.adopt()
        connection, _ = await stage.accept()
        caller.close()
        with connection:
            assert b"" == await asyncio.get_running_loop().sock_recv(connection, 1)

    play(scene)


def test_what_a_caller_sent_behind_its_request_does_not_eat_the_answer():
    """Unread bytes at close would reset the connection: the first request gets its answer, the second one none."""

    async def scene(stage: Scene) -> None:
        with stage.keep() as caller:
            caller.send(REQUEST)
            stage.orphans.adopt()
            connection, _ = await stage.accept()
            connection.sendall(ANSWER)
            connection.close()
            assert ANSWER == await everything(caller)

    play(scene)


def test_a_stop_refuses_all_who_have_no_answer():
    """Both a request that waits for the next worker and one whose worker was killed by the stop read a 503."""

    async def scene(stage: Scene) -> None:
        with stage.keep() as waiting, stage.keep() as killed:
            stage.worker.send(MESSAGE.pack(GONE, 1))
            stage.orphans.adopt()
            with stage.keep() as late:
                await stage.orphans.close()
                for caller in (waiting, late):
                    assert "shutting_down" == problem(await everything(caller))[1]
            assert b"" == await everything(killed)

    async def run() -> None:
        with listen("127.0.0.1", 0) as listener:
            stage = Scene(listener)
            await scene(stage)
            stage.worker.close()
            for file in stage.files:
                os.close(file)

    asyncio.run(asyncio.wait_for(run(), LIMIT_S))


def test_tls_and_other_systems_go_without(monkeypatch):
    """What cannot be carried over is not tried."""
    assert orphans.possible(tls=False)
    assert not orphans.possible(tls=True)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not orphans.possible(tls=False)
