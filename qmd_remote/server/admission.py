"""How many texts may be inside at once: requests beyond that wait for room, then are refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qmd_remote.errors import Unavailable


class Admission:
    """How many texts may be inside at once, first come, first served; for one event loop.

    A request larger than the whole capacity enters when nothing else is inside.
    """

    def __init__(self, capacity: int, wait_s: float) -> None:
        self._capacity = capacity
        self._wait_s = wait_s
        self._inside = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, texts: int) -> AsyncIterator[None]:
        """Be inside with so many texts while the block runs. Raises Unavailable when there is no room in time."""
        if self._waiting or not self._fits(texts):
            await self._wait(texts)
        else:
            self._inside += texts
        try:
            yield
        finally:
            self._inside -= texts
            self._admit()

    async def _wait(self, texts: int) -> None:
        turn = (texts, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn[1]
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # admitted at the very moment of giving up
                self._inside -= texts
            self._admit()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Unavailable(
                f"{self._inside} texts are waiting and there was no room for {texts} more within {self._wait_s:g} s",
                code="overloaded",
                retry_after=max(1, round(self._wait_s)),
            ) from None

    def _fits(self, texts: int) -> bool:
        return self._inside == 0 or self._inside + texts <= self._capacity

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            texts, turn = self._waiting.popleft()
            self._inside += texts
            if not turn.done():
                turn.set_result(None)
