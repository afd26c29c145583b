"""The application: settings → engine, routes, key, error shape.

Also served by `uvicorn --factory qmd_remote.server.app:create_app`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from qmd_remote import __version__
from qmd_remote import settings as settings_module
from qmd_remote.errors import ApiError, NotFound
from qmd_remote.reach import require_safe_bind
from qmd_remote.server import cohere_routes, gateway, generation_routes, ollama_routes
from qmd_remote.server.access_log import AccessLog
from qmd_remote.server.aliases import Aliases
from qmd_remote.server.auth import KeyAuth
from qmd_remote.server.engine import Engine
from qmd_remote.server.exchange import CLIENT_CLOSED_REQUEST, Watch, Watcher
from qmd_remote.server.expander import Expander
from qmd_remote.server.memory import Gauge
from qmd_remote.server.metrics import Metrics
from qmd_remote.server.responses import error_response
from qmd_remote.server.routes import router
from qmd_remote.settings import Settings


def create_app(settings: Settings | None = None, *, engine: Engine | None = None) -> FastAPI:
    """The embed/rerank server. Its models start to load when it starts to serve; `app.state.engine` holds them.

    `settings` default to the environment's. Raises ConfigError or UsageError for settings that are wrong.
    """
    if settings is None:
        settings = settings_module.resolve()
        require_safe_bind(settings)
    metrics = Metrics()
    watchers: list[Watcher] = [metrics, AccessLog()] if settings.access_log else [metrics]
    app = _Watched(
        watchers,
        title="qmd-remote",
        summary="Embeddings and reranking for QMD.",
        version=__version__,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.engine = Engine(settings, observer=metrics) if engine is None else engine
    app.state.metrics, app.state.gauge = metrics, Gauge()
    metrics.follow(app.state.engine)
    app.state.gateway = gateway.Gateway(settings)
    app.state.expander = Expander(app.state.gateway, metrics.expanded, on=settings.repair_expansions)
    app.include_router(router)
    app.include_router(generation_routes.router)
    app.include_router(cohere_routes.router)
    app.include_router(ollama_routes.router)
    app.add_middleware(KeyAuth, key=settings.key)
    app.add_middleware(Aliases)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _hung_up)
    app.add_exception_handler(Exception, _bug)
    return app


class _Watched(FastAPI):
    """An app that is watched from outside of all middleware: answers to bugs, which the framework makes, count too."""

    def __init__(self, watchers: Sequence[Watcher], **options: Any) -> None:
        super().__init__(**options)
        self._watchers = watchers

    def build_middleware_stack(self) -> ASGIApp:
        """The framework's own, watched."""
        return Watch(super().build_middleware_stack(), self._watchers)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.created = int(time.time())
    app.state.started = time.monotonic()
    app.state.engine.start()
    async with app.state.gateway:
        yield
    await to_thread.run_sync(app.state.engine.close)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(NotFound(f"there is no {request.url.path} here: this server has {_paths(request.app)}"))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        problem = ApiError(f"{request.url.path} takes {allowed}, not {request.method}", code="method_not_allowed")
    else:
        problem = ApiError(error.detail, code="http_error")
    problem.status = error.status_code
    problem.type = "invalid_request_error"
    return error_response(problem, error.headers)


def _paths(app: FastAPI) -> str:
    return ", ".join(f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item)


async def _hung_up(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _bug(request: Request, error: Exception) -> Response:
    # The server logs the traceback; it could hold texts of users, so that the client sees none of it.
    return error_response(ApiError("the server failed on this request: its log tells why"))
