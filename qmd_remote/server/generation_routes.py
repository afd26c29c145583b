"""The two endpoints of generation: expansions go to the expander, all else as it is to the service and back.

A stream that breaks off at its source breaks off here, too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qmd_remote.errors import ApiError
from qmd_remote.server import schemas
from qmd_remote.server.body import read_body
from qmd_remote.server.exchange import exchange_of
from qmd_remote.server.gateway import (
    CHAT,
    COMPLETIONS,
    STREAM,
    TO_CLIENT,
    TO_SERVICE,
    Gateway,
    Headers,
    chosen,
    whole,
)
from qmd_remote.server.hangup import while_connected

log = logging.getLogger(__name__)

_OBJECT = re.compile(rb"[ \t\r\n]*\{")
MAX_ANSWER_BYTES = 64 * 2**20  # of one that is not streamed: it is held here until it is whole


class PassedOn(Response):
    """The generation service's answer to one request. The service is asked when this is sent."""

    def __init__(self, gateway: Gateway, path: str, headers: Headers, body: bytes) -> None:
        super().__init__()
        self._gateway = gateway
        self._asked = (path, headers, body)
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask and answer, for as long as the client is there. Raises ApiError before the answer's first byte only."""
        try:
            await while_connected(Request(scope, receive), self._relay(scope, receive, send))
        except ClientDisconnect:
            if not self._started:
                raise

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._gateway.asked(*self._asked) as answer:
            if answer.headers.get("content-type", "").startswith(STREAM):
                await self._stream(answer, scope, send)
                return
            response = await self.at_once(answer, await whole(answer, MAX_ANSWER_BYTES))
        self._started = True
        await response(scope, receive, send)

    async def at_once(self, answer: httpx.Response, content: bytes) -> Response:
        """What the client gets for an answer that is no stream, read as a whole."""
        response = Response(content, answer.status_code)
        response.raw_headers += chosen(answer.headers.raw, TO_CLIENT)
        return response

    def stream_headers(self, answer: httpx.Response) -> Headers:
        """The headers of an answer that is a stream."""
        return chosen(answer.headers.raw, TO_CLIENT)

    def stream(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """What the client gets of a stream, piece by piece. Raises httpx.HTTPError or ApiError where it breaks off."""
        return answer.aiter_raw()

    async def _stream(self, answer: httpx.Response, scope: Scope, send: Send) -> None:
        self._started = True
        headers = self.stream_headers(answer)
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        try:
            async for chunk in self.stream(answer):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (httpx.HTTPError, ApiError) as error:
            log.warning("the generation service broke off in mid-stream: %s", type(error).__name__)
            exchange_of(scope).error = "generation_failed"
            return  # without the last message the server cuts the connection: nobody takes this for a whole answer
        await send({"type": "http.response.body", "body": b"", "more_body": False})


router = APIRouter()

ERRORS = {
    401: "no key, or a wrong one",
    413: "the body is too large",
    502: "the generation service cannot be reached, refuses this server, or broke off",
    503: "generation is off, or busy",
    504: "the generation service said nothing",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The generation service's answer.", "content": {"application/json": {}, STREAM: {}}},
    **{status: {"model": schemas.ErrorResponse, "description": about} for status, about in ERRORS.items()},
}


def _takes(example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object", "examples": [example]}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    CHAT,
    summary="Chat, by the generation service",
    responses=_RESPONSES,
    openapi_extra=_takes({"model": "MODEL", "messages": [{"role": "user", "content": "Tea or coffee?"}]}),
)
async def chat(request: Request) -> Response:
    """Passed on unchanged, as is the answer, streamed or not; `model` is a name that /v1/models lists."""
    return await _pass_on(request, CHAT)


@router.post(
    COMPLETIONS,
    summary="Complete a text, by the generation service",
    responses=_RESPONSES,
    openapi_extra=_takes({"model": "MODEL", "prompt": "Notes about", "max_tokens": 16}),
)
async def completions(request: Request) -> Response:
    """Passed on unchanged, as is the answer, streamed or not; `model` is a name that /v1/models lists."""
    return await _pass_on(request, COMPLETIONS)


async def _pass_on(request: Request, path: str) -> Response:
    body = await read_body(request, request.app.state.settings.max_body_mb)
    headers = _as_json(chosen(request.headers.raw, TO_SERVICE), body)
    if asked := request.app.state.expander.recognised(path, headers, body):
        expanded: Response = await while_connected(request, request.app.state.expander.answer(asked))
        return expanded
    return PassedOn(request.app.state.gateway, path, headers, body)


def _as_json(headers: Headers, body: bytes) -> Headers:
    """The headers with JSON's content type for what looks like an object: engines refuse it under another one.

    Clients leave it out or send a form's, as curl does, and embeddings take that. The first byte has to do, since a
    body may be too large to be read here.
    """
    there = dict(headers)
    kind = there.get(b"content-type", b"").partition(b";")[0].strip().lower()
    is_json = kind == b"application/json" or kind.endswith(b"+json")
    if is_json or b"content-encoding" in there or not _OBJECT.match(body):
        return headers
    return [
        *((name, value) for name, value in headers if name != b"content-type"),
        (b"content-type", b"application/json"),
    ]
