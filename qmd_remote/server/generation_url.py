"""Where the generation service is: its URL in the settings, its credentials, and paths below it."""

from __future__ import annotations

from collections.abc import Generator

import httpx

from qmd_remote.errors import ConfigError


class Bearer(httpx.Auth):
    """The key as clients send it."""

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {key}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add it."""
        request.headers["authorization"] = self._header
        yield request


def place(url: str) -> tuple[httpx.URL | None, httpx.Auth | None]:
    """The service's URL without its credentials, which would come into logs, and those; None for an empty text."""
    if not url:
        return None, None
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL:
        found = httpx.URL("")
    if found.scheme not in {"http", "https"} or not found.host:
        raise ConfigError(
            "the generation service's URL is none",
            hint="set QMD_REMOTE_GENERATION_URL to one like http://HOST:8000",
            code="generation_url.invalid",
        )
    auth = httpx.BasicAuth(found.username, found.password) if found.userinfo else None
    return found.copy_with(userinfo=b"", query=None, fragment=None), auth


def under(base: httpx.URL, path: str) -> bytes:
    """`path` below the base's own path; a base that ends in /v1, as other clients want theirs, means the same."""
    return base.raw_path.rstrip(b"/").removesuffix(b"/v1") + path.encode()
