"""Room for requests: first come, first served, and a typed error without it."""

from __future__ import annotations

import asyncio

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.server.admission import Admission

LIMIT_S = 30


def test_a_full_room_refuses_after_the_wait():
    """Without room in time a request gets 503 "overloaded" with a Retry-After."""

    async def story() -> ApiError:
        room = Admission(capacity=4, wait_s=0.05)
        async with room.hold(3):
            try:
                async with room.hold(2):
                    raise AssertionError("there was no room")
            except Unavailable as error:
                return error

    error = asyncio.run(story())
    assert (error.code, error.retry_after) == ("overloaded", 1)


def test_a_request_larger_than_the_room_enters_an_empty_one():
    """A request that could never fit is admitted when nothing else is inside."""

    async def story() -> None:
        room = Admission(capacity=4, wait_s=LIMIT_S)
        async with room.hold(100):
            pass
        async with room.hold(4):
            later = asyncio.create_task(_enter(room, 100, []))
            await asyncio.sleep(0)
            assert not later.done()
        await asyncio.wait_for(later, LIMIT_S)

    asyncio.run(story())


async def _enter(room: Admission, texts: int, order: list[int]) -> None:
    async with room.hold(texts):
        order.append(texts)
        await asyncio.sleep(0)


def test_room_is_given_in_order_of_arrival():
    """A small request does not slip past a larger one that came before it, so that none starves."""

    async def story() -> list[int]:
        room, order = Admission(capacity=4, wait_s=LIMIT_S), []
        async with room.hold(3):
            waiting = [asyncio.create_task(_enter(room, texts, order)) for texts in (4, 1, 2)]
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*waiting), LIMIT_S)
        return order

    assert asyncio.run(story()) == [4, 1, 2]


def test_cancelled_waiters_leave_no_trace():
    """A caller who gives up while waiting takes no room, and those behind it move up."""

    async def story() -> None:
        room = Admission(capacity=4, wait_s=LIMIT_S)
        async with room.hold(3):
            gone = asyncio.create_task(_enter(room, 4, []))
            await asyncio.sleep(0)
            behind = asyncio.create_task(_enter(room, 1, []))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait_for(behind, LIMIT_S)
            assert gone.cancelled()
        async with room.hold(4):
            assert behind.done()

    asyncio.run(story())


def test_giving_up_in_the_moment_of_admission_gives_the_room_back():
    """A caller cancelled after it was admitted, but before it could run, holds no room."""

    async def story() -> None:
        room = Admission(capacity=4, wait_s=LIMIT_S)
        async with room.hold(3):
            gone = asyncio.create_task(_enter(room, 4, []))
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert gone.cancelled()
        await asyncio.wait_for(_enter(room, 4, []), LIMIT_S / 2)

    asyncio.run(story())
