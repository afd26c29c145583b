"""The handlers. They take the raw request: reading, checking and answering large bodies happens in threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qmd_remote import __version__
from qmd_remote.server import schemas
from qmd_remote.server.body import read_body
from qmd_remote.server.engine import Embeddings, Engine, Scores
from qmd_remote.server.exchange import exchange_of
from qmd_remote.server.hangup import while_connected
from qmd_remote.server.metrics import Metrics
from qmd_remote.server.responses import embeddings_response, json_response, rerank_response
from qmd_remote.settings import Settings

T = TypeVar("T")

# Bodies and answers of this size are read and written on the event loop. That takes it well under a millisecond, and a
# thread would not free it: for that long, the interpreter lets no other thread in, and the way there and back is extra.
INLINE_BYTES = 262_144
RESULT_BYTES = 96  # about what a score takes in an answer, without its text
MODEL_HEADER = "x-qmd-remote-model"


class _Plain(APIRoute):
    """A route whose handler takes the request and gives the response: nothing for the framework to solve or check."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler as it is."""
        return self.endpoint


router = APIRouter(route_class=_Plain)


def _answers(kind: type[BaseModel], *errors: int) -> dict[int | str, dict[str, Any]]:
    answers: dict[int | str, dict[str, Any]] = {200: {"model": kind}}
    return answers | {status: {"model": schemas.ErrorResponse} for status in (*errors, 401)}


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/v1/embeddings",
    summary="Embed texts",
    responses=_answers(schemas.EmbeddingsResponse, 400, 413, 503),
    openapi_extra=_takes(schemas.EmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """One unit vector for each input, as in OpenAI's API."""
    settings, engine = _parts(request)
    asked = await _read(request, schemas.EmbeddingsRequest)
    exchange_of(request.scope).texts = len(asked.input)

    async def embed() -> Embeddings:
        await engine.ready(settings.ready_wait_s)
        schemas.require_dimensions(asked.dimensions, engine.dimension)
        schemas.require_size(len(asked.input), engine.dimension)
        return await engine.embed(asked.input, asked.prompt_name or asked.input_type)

    found = await while_connected(request, embed())
    as_base64 = asked.encoding_format == "base64"
    name = _named(settings, asked, engine.embed_id)
    answer = partial(embeddings_response, found, name, dimensions=asked.dimensions, as_base64=as_base64)
    size = found.vectors.nbytes * 4 // 3 if as_base64 else found.vectors.nbytes * 3
    return await _answer(request, found, answer, size, engine.embed_id)


@router.post(
    "/v1/rerank",
    summary="Score documents against a query",
    responses=_answers(schemas.RerankResponse, 400, 413, 503),
    openapi_extra=_takes(schemas.RerankRequest),
)
async def rerank(request: Request) -> Response:
    """One score in [0, 1] for each document, best first, as in Jina's and Cohere's APIs."""
    settings, engine = _parts(request)
    asked = await _read(request, schemas.RerankRequest)
    exchange_of(request.scope).texts = len(asked.documents)

    async def score() -> Scores:
        await engine.ready(settings.ready_wait_s)
        return await engine.rerank(asked.query, asked.documents)

    found = await while_connected(request, score())
    documents, files = (asked.documents if asked.return_documents else None), asked.documents.files
    name = _named(settings, asked, engine.rerank_id)
    answer = partial(rerank_response, found, name, top_n=asked.top_n, documents=documents, files=files)
    size = found.scores.size * RESULT_BYTES + sum(map(len, documents or ())) + sum(map(len, files.values()))
    return await _answer(request, found, answer, size, engine.rerank_id)


@router.get("/v1/models", summary="The models served", responses=_answers(schemas.ModelList))
async def models(request: Request) -> Response:
    """The real ids of the models, whatever names clients send; one with two roles stands there once, with its first.

    The generation service's come last, its own first; none of them when it does not answer.
    """
    _, engine = _parts(request)
    roles: dict[str, str] = {}
    for name, role in ((engine.embed_id, "embed"), (engine.rerank_id, "rerank")):
        roles.setdefault(name, role)
    for name in await request.app.state.gateway.models():
        roles.setdefault(name, "generate")
    created = request.app.state.created
    return json_response({"object": "list", "data": [_listed(name, role, created) for name, role in roles.items()]})


def _listed(name: str, role: str, created: int) -> dict[str, Any]:
    owner = "generation" if role == "generate" else "qmd-remote"
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "qmd_remote_role": role}


@router.get(
    "/health",
    summary="Whether the models are ready, and what they run on",
    responses={200: {"model": schemas.Status}, 503: {"model": schemas.Status}},
)
async def health(request: Request) -> Response:
    """200 when ready; 503 while loading or failed, with the phase or the cause."""
    _, engine = _parts(request)
    report = _report(engine, time.monotonic() - request.app.state.started, _metrics(request))
    report["generation"] = request.app.state.gateway.facts()
    status = 200 if report["status"] == "ok" else 503
    if not request.state.authorized:
        return json_response({"status": report["status"]}, status)
    used = await request.app.state.gauge.read(report["device"]) if "device" in report else None
    return json_response(report if used is None else {**report, "memory_bytes": used.as_dict()}, status)


def _report(engine: Engine, uptime_s: float, metrics: Metrics) -> dict[str, Any]:
    common = {
        "models": {"embed": engine.embed_id, "rerank": engine.rerank_id},
        "uptime_s": round(uptime_s, 1),
        "version": __version__,
        "requests": {"total": metrics.total, "running": metrics.running, "errors": metrics.errors},
    }
    state = engine.state
    if state == "ready":
        return {"status": "ok", **common, **engine.facts()}
    if state == "failed" and engine.failure is not None:
        return {"status": "failed", "error": engine.failure.as_dict(), **common}
    loading = engine.loading
    return {"status": "loading", "phase": loading.phase, "progress": loading.progress, **common}


@router.get("/livez", summary="Whether the server answers", responses={200: {"model": schemas.Status}})
async def livez(request: Request) -> Response:
    """Always 200."""
    return json_response({"status": "alive"})


@router.get(
    "/metrics",
    summary="What happened so far, for Prometheus",
    response_class=PlainTextResponse,
    responses={401: {"model": schemas.ErrorResponse}},
)
async def metrics(request: Request) -> Response:
    """The text that Prometheus reads; docs/metrics.md describes it."""
    device = request.app.state.engine.facts().get("device")
    # here, not in the thread: a driver in trouble may never answer, and would hold one thread for each scrape
    used = await request.app.state.gauge.read(str(device)) if device else None
    render = partial(_metrics(request).render, request.headers.get("accept", ""), used)
    text, content_type = await _in_thread(render)
    return Response(text, media_type=content_type)


async def _read(request: Request, kind: type[schemas.RequestModel]) -> schemas.RequestModel:
    """The request in the body. Raises as read_body and schemas.parse do."""
    with _metrics(request).stage("read"):
        raw = await read_body(request, request.app.state.settings.max_body_mb)
        parse = partial(schemas.parse, kind, raw)
        return parse() if len(raw) <= INLINE_BYTES else await _in_thread(parse)


def _named(settings: Settings, asked: schemas.Request, real: str) -> str:
    """What stands as `model` in the answer."""
    return asked.model if settings.echo_model and asked.model is not None else real


async def _answer(
    request: Request, found: Embeddings | Scores, answer: Callable[[], Response], size: int, model: str
) -> Response:
    """What `answer` makes of `found`: about `size` bytes, with the real name of its `model` in a header."""
    exchange = exchange_of(request.scope)
    exchange.tokens, exchange.truncated = found.tokens, found.truncated
    with _metrics(request).stage("serialise"):
        response = answer() if size <= INLINE_BYTES else await _in_thread(answer)
    response.headers[MODEL_HEADER] = quote(model, safe="/:@ ")
    return response


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _metrics(request: Request) -> Metrics:
    found: Metrics = request.app.state.metrics
    return found


def _parts(request: Request) -> tuple[Settings, Engine]:
    return request.app.state.settings, request.app.state.engine
