"""Two endpoints of Ollama's API: embeddings by our own model, generation by the service behind the gateway.

A prompt that is a query expansion goes to the expander, as it does in OpenAI's form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qmd_remote.errors import BadRequest
from qmd_remote.server import completion, handling, schemas
from qmd_remote.server.exchange import exchange_of
from qmd_remote.server.gateway import CHAT, COMPLETIONS, MAX_SAID_BYTES, TO_CLIENT, Gateway, Headers, TooLong, chosen
from qmd_remote.server.generation_routes import ERRORS, PassedOn
from qmd_remote.server.hangup import while_connected
from qmd_remote.server.ollama_format import EmbedRequest, EmbedResponse, GenerateRequest, GenerateResponse, Teller, said
from qmd_remote.server.responses import ollama_embed_response

LINES = "application/x-ndjson"

_TO_SERVICE = frozenset({b"x-request-id"})  # the body is ours, and so is the answer: not compressed
_TO_CLIENT = TO_CLIENT - {b"content-type", b"content-encoding"}

router = APIRouter(route_class=handling.Plain)


@router.post(
    "/api/embed",
    summary="Embed texts, in Ollama's form",
    responses=handling.answers(EmbedResponse, 400, 413, 503),
    openapi_extra=handling.takes(EmbedRequest),
)
async def embed(request: Request) -> Response:
    """One unit vector for each text, as in Ollama's API."""
    settings, engine = handling.parts(request)
    asked = await handling.read(request, EmbedRequest)
    found = await handling.embedded(
        request, asked.input, dimensions=asked.dimensions, may_cut=asked.truncate is not False
    )
    name, began = handling.named(settings, asked, engine.embed_id), exchange_of(request.scope).began
    answer = partial(ollama_embed_response, found, name, dimensions=asked.dimensions, began=began)
    return await handling.answered(request, found, answer, found.vectors.nbytes * 3, engine.embed_id)


@router.post(
    "/api/generate",
    summary="Answer a prompt, by the generation service, in Ollama's form",
    responses={
        200: {"model": GenerateResponse, "content": {LINES: {}}},
        **{status: {"model": schemas.ErrorResponse, "description": about} for status, about in ERRORS.items()},
        400: {"model": schemas.ErrorResponse},
    },
    openapi_extra=handling.takes(GenerateRequest),
)
async def generate(request: Request) -> Response:
    """As in Ollama's API, a stream unless `stream` is false; a model that the service does not know is its own one."""
    settings, _ = handling.parts(request)
    gateway, expander = request.app.state.gateway, request.app.state.expander
    asked = await handling.read(request, GenerateRequest)
    shown = asked.model if settings.echo_model else None
    tell = partial(Teller, asked, shown=shown, began=exchange_of(request.scope).began)
    path = COMPLETIONS if asked.shape == "text" else CHAT
    headers = [*chosen(request.headers.raw, _TO_SERVICE), (b"content-type", b"application/json")]
    body = asked.put()
    if wanted := expander.recognised(path, headers, await _written(asked, body)):
        made = await while_connected(request, expander.expand(wanted))
        kind = LINES if asked.streamed else "application/json"
        return Response(tell(asked.model or "").whole(made.found), headers=made.headers, media_type=kind)
    body |= {"model": await gateway.model_for(asked.model or ""), "stream": asked.streamed}
    if asked.think is not None and asked.shape == "chat":
        body["chat_template_kwargs"] = {"enable_thinking": asked.think}
    return _Retold(gateway, path, headers, await _written(asked, body), tell(body["model"]))


async def _written(asked: GenerateRequest, body: dict[str, Any]) -> bytes:
    """The body for the service. Raises BadRequest for a `format` that cannot be written again."""
    try:
        if len(asked.prompt) + len(asked.system or "") <= handling.INLINE_BYTES:
            return orjson.dumps(body)
        return await handling.in_thread(partial(orjson.dumps, body))
    except TypeError:  # all else was held to small values
        raise BadRequest(
            "'format' is nested too deeply, or holds a number of too many digits", param="format"
        ) from None


class _Retold(PassedOn):
    """The service's answer in Ollama's form; its errors as they are."""

    def __init__(self, gateway: Gateway, path: str, headers: Headers, body: bytes, teller: Teller) -> None:
        super().__init__(gateway, path, headers, body)
        self._teller = teller

    async def at_once(self, answer: httpx.Response, content: bytes) -> Response:
        """Raises Malformed for a success that is no answer."""
        if not answer.is_success:
            return await super().at_once(answer, content)
        work = partial(self._told, content)
        told = work() if len(content) <= handling.INLINE_BYTES else await handling.in_thread(work)
        response = Response(told, answer.status_code)
        response.raw_headers += self._told_headers(answer, LINES if self._teller.asked.streamed else "application/json")
        return response

    def stream_headers(self, answer: httpx.Response) -> Headers:
        """A stream here is lines of JSON."""
        return self._told_headers(answer, LINES)

    async def stream(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """A line for each event that brings text, and one for the end. Raises also Malformed, TooLong."""
        last: dict[str, Any] = {}
        reason, usage = None, None
        async for event in _events(answer):
            if event == b"[DONE]":
                reason = reason or "stop"
                break
            last, choice = completion.event(event)
            text, thinking = said(choice)
            if text or thinking:
                yield self._teller.piece(last, text, thinking)
            reason, usage = choice.get("finish_reason") or reason, last.get("usage") or usage
        if reason is None:  # it broke off without a word: no end is made up
            raise completion.Malformed("the generation service's stream ended before its answer did")
        yield self._teller.end({**last, "usage": usage}, reason)

    def _told(self, content: bytes) -> bytes:
        return self._teller.whole(completion.read(self._teller.asked.shape, content))

    def _told_headers(self, answer: httpx.Response, kind: str) -> Headers:
        return [*chosen(answer.headers.raw, _TO_CLIENT), (b"content-type", kind.encode())]


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The data of a stream's events. Raises httpx.HTTPError where it breaks off, TooLong for one without an end."""
    rest = b""
    async for chunk in answer.aiter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
        if len(rest) > MAX_SAID_BYTES:
            raise TooLong("an event of the generation service's stream has no end")
