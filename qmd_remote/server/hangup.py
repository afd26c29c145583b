"""Work that ends when nobody waits for its answer any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

Answer = TypeVar("Answer")


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of `work`, which is cancelled, with ClientDisconnect raised, when the client hangs up first.

    The request's body must have been read: what comes after it is the hang-up. The work runs in the caller's task: a
    second task for each request, beside the one that watches, costs a short query more than its reading does.
    """
    task = asyncio.current_task()
    assert task is not None
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        task.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await work
    except BaseException:  # whatever the work makes of its cancellation, nobody is there to be told
        if hung_up and not task.uncancel():
            raise ClientDisconnect from None
        raise  # an error of its own, or somebody else has cancelled the request, too
    finally:
        watching.cancel()
