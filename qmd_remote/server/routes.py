"""The server's own endpoints: embeddings in OpenAI's form, rankings, models, health and metrics."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qmd_remote import __version__
from qmd_remote.server import handling, schemas
from qmd_remote.server.engine import Engine, Scores
from qmd_remote.server.exchange import exchange_of
from qmd_remote.server.hangup import while_connected
from qmd_remote.server.metrics import Metrics
from qmd_remote.server.responses import embeddings_response, json_response, rerank_response

RESULT_BYTES = 96  # about what a score takes in an answer, without its text

router = APIRouter(route_class=handling.Plain)


@router.post(
    "/v1/embeddings",
    summary="Embed texts",
    responses=handling.answers(schemas.EmbeddingsResponse, 400, 413, 503),
    openapi_extra=handling.takes(schemas.EmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """One unit vector for each input, as in OpenAI's API."""
    settings, engine = handling.parts(request)
    asked = await handling.read(request, schemas.EmbeddingsRequest)
    role = asked.prompt_name or asked.input_type
    found = await handling.embedded(request, asked.input, role, dimensions=asked.dimensions)
    as_base64 = asked.encoding_format == "base64"
    name = handling.named(settings, asked, engine.embed_id)
    answer = partial(embeddings_response, found, name, dimensions=asked.dimensions, as_base64=as_base64)
    size = found.vectors.nbytes * 4 // 3 if as_base64 else found.vectors.nbytes * 3
    return await handling.answered(request, found, answer, size, engine.embed_id)


@router.post(
    "/v1/rerank",
    summary="Score documents against a query",
    responses=handling.answers(schemas.RerankResponse, 400, 413, 503),
    openapi_extra=handling.takes(schemas.RerankRequest),
)
async def rerank(request: Request) -> Response:
    """One score in [0, 1] for each document, best first, as in Jina's and Cohere's APIs."""
    settings, engine = handling.parts(request)
    asked = await handling.read(request, schemas.RerankRequest)
    exchange_of(request.scope).texts = len(asked.documents)

    async def score() -> Scores:
        await engine.ready(settings.ready_wait_s)
        return await engine.rerank(asked.query, asked.documents)

    found = await while_connected(request, score())
    documents, files = (asked.documents if asked.return_documents else None), asked.documents.files
    name = handling.named(settings, asked, engine.rerank_id)
    answer = partial(rerank_response, found, name, top_n=asked.top_n, documents=documents, files=files)
    size = found.scores.size * RESULT_BYTES + sum(map(len, documents or ())) + sum(map(len, files.values()))
    return await handling.answered(request, found, answer, size, engine.rerank_id)


@router.get("/v1/models", summary="The models served", responses=handling.answers(schemas.ModelList))
async def models(request: Request) -> Response:
    """The real ids of the models, whatever names clients send; one with two roles stands there once, with its first.

    The generation service's come last, its own first; none of them when it does not answer.
    """
    _, engine = handling.parts(request)
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
    _, engine = handling.parts(request)
    report = _report(engine, time.monotonic() - request.app.state.started, handling.metrics_of(request))
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
    render = partial(handling.metrics_of(request).render, request.headers.get("accept", ""), used)
    text, content_type = await handling.in_thread(render)
    return Response(text, media_type=content_type)
