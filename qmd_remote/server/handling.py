"""What the handlers of embedding and ranking share, whatever the form of their requests and answers.

Handlers take the raw request: reading, checking and answering large bodies happens in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from qmd_remote.errors import BadRequest
from qmd_remote.server import schemas
from qmd_remote.server.body import read_body
from qmd_remote.server.engine import Embeddings, Engine, Scores
from qmd_remote.server.exchange import exchange_of
from qmd_remote.server.hangup import while_connected
from qmd_remote.server.metrics import Metrics
from qmd_remote.settings import Settings

T = TypeVar("T")

# Bodies and answers of this size are read and written on the event loop. That takes it well under a millisecond, and a
# thread would not free it: for that long, the interpreter lets no other thread in, and the way there and back is extra.
INLINE_BYTES = 262_144
MODEL_HEADER = "x-qmd-remote-model"


class Plain(APIRoute):
    """A route whose handler takes the request and gives the response: nothing for the framework to solve or check."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler as it is."""
        return self.endpoint


def answers(kind: type[BaseModel], *errors: int) -> dict[int | str, dict[str, Any]]:
    """A route's answers, for its description: `kind`, and OpenAI's error object with these statuses and 401."""
    good: dict[int | str, dict[str, Any]] = {200: {"model": kind}}
    return good | {status: {"model": schemas.ErrorResponse} for status in (*errors, 401)}


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """A route's request, for its description."""
    content = {"application/json": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


async def read(request: Request, kind: type[schemas.RequestModel]) -> schemas.RequestModel:
    """The request in the body. Raises as read_body and schemas.parse do."""
    with metrics_of(request).stage("read"):
        raw = await read_body(request, request.app.state.settings.max_body_mb)
        parse = partial(schemas.parse, kind, raw)
        return parse() if len(raw) <= INLINE_BYTES else await in_thread(parse)


async def embedded(
    request: Request,
    inputs: Sequence[str | Sequence[int]],
    prompt_name: str | None = None,
    *,
    dimensions: int | None = None,
    dimensions_field: str = "dimensions",
    may_cut: bool = True,
) -> Embeddings:
    """A vector for each input, of the model's own dimension, for as long as the client is there.

    `dimensions` is checked only; `dimensions_field` is its name in the request. Raises ApiError: as Engine.embed and
    Engine.ready, 400 for more dimensions than there are, and for a text that had to be cut where none `may_cut`, 413
    for more vectors than an answer holds. Raises ClientDisconnect.
    """
    settings, engine = parts(request)
    exchange_of(request.scope).texts = len(inputs)

    async def embed() -> Embeddings:
        await engine.ready(settings.ready_wait_s)
        schemas.require_dimensions(dimensions, engine.dimension, dimensions_field)
        schemas.require_size(len(inputs), engine.dimension)
        return await engine.embed(inputs, prompt_name)

    found = await while_connected(request, embed())
    if found.truncated and not may_cut:
        message = f"{found.truncated} of the texts are longer than the model reads: send shorter ones, or have them cut"
        raise BadRequest(message, param="truncate")
    return found


def named(settings: Settings, asked: schemas.Request, real: str) -> str:
    """What stands as `model` in the answer."""
    return asked.model if settings.echo_model and asked.model is not None else real


async def answered(
    request: Request, found: Embeddings | Scores, answer: Callable[[], Response], size: int, model: str
) -> Response:
    """What `answer` makes of `found`: about `size` bytes, with the real name of its `model` in a header."""
    exchange = exchange_of(request.scope)
    exchange.tokens, exchange.truncated = found.tokens, found.truncated
    with metrics_of(request).stage("serialise"):
        response = answer() if size <= INLINE_BYTES else await in_thread(answer)
    response.headers[MODEL_HEADER] = quote(model, safe="/:@ ")
    return response


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, away from the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


def metrics_of(request: Request) -> Metrics:
    """The server's numbers."""
    found: Metrics = request.app.state.metrics
    return found


def parts(request: Request) -> tuple[Settings, Engine]:
    """The server's settings and its engine."""
    return request.app.state.settings, request.app.state.engine
