"""Query expansions through the gateway: asked for so that they come out right, repaired, and never lost in between.

QMD's clients keep what they make of an answer for ever, of one that they cannot read, too. So an engine that is away
is waited for, then the client is told to come again (503); what an engine says becomes an expansion in any case.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from qmd_remote.errors import ApiError, BadRequest, Unavailable
from qmd_remote.expansion_repair import OUTCOME_HEADER, SAFE, Outcome, repair, safe
from qmd_remote.expansion_request import LABELS, Shape, query_of
from qmd_remote.server import completion
from qmd_remote.server.body import parse_object
from qmd_remote.server.constraint import Learnt, put
from qmd_remote.server.gateway import CHAT, STREAM, Gateway, Headers, Said, TooLong

MAX_REQUEST_BYTES = 65536  # clients' own are a few kilobytes; larger ones are not looked into

# a new attempt begins no later: clients that wait 30 s for an answer are the rule among the impatient, and the engine
# needs some of that
PATIENCE_S = 20.0
LIMIT_S = 110.0  # for all attempts, the last one's answer included: the main client gives a request 120 s
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
RETRY_S = 5

REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
BABBLE = Said(HTTPStatus.OK, [], b"")  # an answer too long to be read; another one would hardly be shorter
HOPELESS = frozenset({"generation_off", "generation_busy"})  # which waiting here does not mend


@dataclass(frozen=True)
class Asked:
    """A request for an expansion."""

    path: str
    request: dict[str, Any]
    query: str
    headers: Headers

    @property
    def shape(self) -> Shape:
        """Whether it is a chat, or a text to be completed."""
        return "chat" if self.path == CHAT else "text"


@dataclass(frozen=True)
class Expansion:
    """What a request for an expansion is answered: `found` has OpenAI's form, and a text that the clients accept."""

    found: dict[str, Any]
    said: Said
    outcome: Outcome

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer, in whatever form it goes out."""
        theirs = [(name, value) for name, value in self.said.headers if name == b"x-request-id"]
        return {OUTCOME_HEADER: str(self.outcome), **{name.decode(): value.decode("latin-1") for name, value in theirs}}


class Expander:
    """Answers requests for expansions; `count` is told what became of each. Where it is not `on` it recognises none."""

    def __init__(self, gateway: Gateway, count: Callable[[Outcome], None], *, on: bool) -> None:
        self._gateway = gateway
        self._count = count
        self._on = on
        self._learnt = Learnt(gateway.version)

    def recognised(self, path: str, headers: Headers, body: bytes) -> Asked | None:
        """The request as one for an expansion; None for all other traffic."""
        if not self._on or not _worth_a_look(headers, body):
            return None
        try:
            request = parse_object(body)
            orjson.dumps(request)  # it must be one that can be put again
        except (BadRequest, TypeError):
            return None
        shape: Shape = "chat" if path == CHAT else "text"
        query = query_of(shape, request)
        return Asked(path, request, query, _sent_on(headers)) if query else None

    async def answer(self, asked: Asked) -> Response:
        """The expansion in OpenAI's form, as a stream where that was asked for. Raises as `expand`."""
        return _response(asked, await self.expand(asked))

    async def expand(self, asked: Asked) -> Expansion:
        """An expansion that the clients accept. Raises ApiError: 503 when the engine is away, or refuses everything."""
        try:
            async with asyncio.timeout(LIMIT_S):
                said = await self._patiently(asked)
        except TimeoutError:
            message = f"the generation service made no expansion within {LIMIT_S:.0f} s: send this again"
            raise Unavailable(message, code="generation_timeout", retry_after=RETRY_S) from None
        if said is BABBLE or said.status in REFUSED:  # for good, so that there is nothing to wait for
            text, outcome = safe(asked.query), SAFE
            found = completion.made_up(asked.shape, await self._model(asked), text)
        else:
            found = completion.read(asked.shape, said.content)
            text, outcome = repair(completion.text_of(asked.shape, found), asked.query)
        self._count(outcome)
        return Expansion(completion.with_text(asked.shape, found, text), said, outcome)

    async def _patiently(self, asked: Asked) -> Said:
        """The engine's answer, good or a refusal, from as many attempts as it takes. Raises ApiError."""
        last = time.monotonic() + PATIENCE_S
        for pause in _pauses():
            try:
                return await self._attempt(asked)
            except ApiError as error:
                if error.code in HOPELESS:
                    raise
                if time.monotonic() + pause > last or not _passes(error):
                    raise Unavailable(error.message, code=error.code, retry_after=RETRY_S) from None
            self._learnt.forget()
            await asyncio.sleep(pause)
        raise AssertionError("pauses do not end")

    async def _attempt(self, asked: Asked) -> Said:
        """One answer: 200 with a text, or a refusal of the plainest request. Raises ApiError for all others."""
        model = await self._model(asked)
        sent, said = b"", None
        for way in await self._learnt.ways():
            body = orjson.dumps(put(way, asked.shape, asked.request, model))
            if body == sent:
                continue
            try:
                sent, said = body, await self._gateway.said(asked.path, asked.headers, body)
            except TooLong:
                return BABBLE
            if said.status == HTTPStatus.OK:
                completion.read(asked.shape, said.content)
                self._learnt.took(way)
            if said.status not in REFUSED:
                break
        assert said is not None, "there is always a way"
        if said.status == HTTPStatus.OK or said.status in REFUSED:
            return said
        raise _failed(said.status)

    async def _model(self, asked: Asked) -> str:
        name = asked.request.get("model")
        return await self._gateway.model_for(name if isinstance(name, str) else "")


def _worth_a_look(headers: Headers, body: bytes) -> bool:
    """Whether a body is worth the time to read it; most of what is no expansion ends here."""
    if len(body) > MAX_REQUEST_BYTES or any(name == b"content-encoding" for name, _ in headers):
        return False
    return b"no_think" in body or all(label.encode() in body for label in LABELS)


def _sent_on(headers: Headers) -> Headers:
    """What the engine is told besides the body, which is ours, and comes back for us: not compressed, no stream."""
    kept = [(name, value) for name, value in headers if name == b"x-request-id"]
    return [*kept, (b"content-type", b"application/json")]


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE_S)


def _passes(error: ApiError) -> bool:
    return error.code != "generation_refused"


def _failed(status: int) -> ApiError:
    later = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in LATER
    see = "on its machine, see `qmd-remote status` and `qmd-remote logs generation`"
    return ApiError(
        f"the generation service answered {status} to an expansion: {see}",
        code="generation_failed" if later else "generation_refused",
    )


def _response(asked: Asked, made: Expansion) -> Response:
    if asked.request.get("stream"):
        events = completion.streamed(asked.shape, made.found, asked.request)
        return Response(events, headers=made.headers, media_type=STREAM)
    content = made.said.content if made.outcome == "clean" else orjson.dumps(made.found)
    return Response(content, headers=made.headers, media_type="application/json")
