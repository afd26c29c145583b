"""Other paths to the same endpoints: clients join a base URL and a path in ways of their own."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

_VERSIONS = ("/v1", "/v2")
_ENDPOINTS = frozenset({"/embeddings", "/rerank", "/models", "/chat/completions", "/completions"})
_OTHER_FORMATS = frozenset({"/v2/embed", "/api/embed", "/api/generate"})  # Cohere's, and Ollama's: one path each
_SYNONYMS = {"/reranks": "/rerank"}


def canonical(path: str) -> str:
    """The path of the endpoint that `path` means: without a version, with one too many, or by another name.

    /v2 is Cohere's: of its endpoints reranking alone has the form of ours. Any other path stays as it is.
    """
    rest = path.removesuffix("/")
    if rest in _OTHER_FORMATS:
        return rest
    version = next((name for name in _VERSIONS if rest.startswith(f"{name}/")), "")
    rest = rest.removeprefix(version)
    if version == "/v1":  # a base URL that ends in /v1, and a client that adds it
        rest = rest.removeprefix("/v1")
    rest = _SYNONYMS.get(rest, rest)
    return f"/v1{rest}" if rest in _ENDPOINTS and (version != "/v2" or rest == "/rerank") else path


class Aliases:
    """ASGI middleware that leads other paths to their endpoints."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, under the endpoint's own path."""
        if scope["type"] == "http":
            scope["path"] = canonical(scope["path"])  # in place: who watches the request reads its route from here
        await self.app(scope, receive, send)
