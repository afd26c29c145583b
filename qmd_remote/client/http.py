"""HTTP to the two services: clients like QMD's, and exchanges that end."""

from __future__ import annotations

import json
import ssl
import time
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from qmd_remote import __version__
from qmd_remote.errors import ConfigError
from qmd_remote.reach import is_loopback, trusting

CONNECT_S = 5.0
REQUEST_S = 120.0
MAX_ANSWER_BYTES = 64 * 2**20


class NotFinite(ValueError):
    """NaN or Infinity stands in an answer. Python writes and reads them, but they are not JSON."""


@dataclass(frozen=True)
class Answer:
    """A whole response. `seconds` is the time from sending the request to the last byte."""

    path: str
    status: int
    headers: httpx.Headers
    content: bytes
    seconds: float

    @property
    def is_html(self) -> bool:
        """Whether this is a page for people."""
        return "html" in self.headers.get("content-type", "") or self.content.lstrip()[:1] == b"<"

    def json(self) -> Any:
        """The body as JSON. Raises ValueError for anything else, and its kind NotFinite for a bare NaN or Infinity."""
        return json.loads(self.content.decode("utf-8"), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise NotFinite(name)


def require_sendable(key: str) -> None:
    """Raise ConfigError for a key that no header can hold."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "the API key holds spaces, control characters or letters outside ASCII",
            hint="set the variable or the file to the key alone",
            code="key.invalid",
        )


def make_client(base_url: str, key: str = "", *, limit_s: float = REQUEST_S, names: bool = False) -> httpx.Client:
    """A keep-alive client for one service that sends `key`, if there is one, and follows no redirects.

    `limit_s` bounds each wait, CONNECT_S the one for a connection. Proxies named in the environment are not used for
    this machine, whose own server is trusted by the certificate that it was started with (`names`: only under the names
    in it, as QMD does). Raises ConfigError for a key
    that no header can hold.
    """
    require_sendable(key)
    headers = {"User-Agent": f"qmd-remote/{__version__}", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.Client(
        base_url=base_url,
        headers=headers,
        timeout=httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s)),
        trust_env=not is_loopback(urlsplit(base_url).hostname or ""),
        verify=_own_certificate(base_url, names=names) or _trusted(),
    )


def _own_certificate(base_url: str, *, names: bool) -> ssl.SSLContext | None:
    """Trust in exactly the certificate of the server that runs here, where it is meant: none names loopback."""
    parts = urlsplit(base_url)
    if parts.scheme != "https" or not is_loopback(parts.hostname or ""):
        return None
    from qmd_remote import services

    ours = services.find(services.EMBED)
    if ours is None or not ours.tls_cert or urlsplit(ours.url).port != parts.port:
        return None
    return trusting(ours.tls_cert, names=names)


@cache
def _trusted() -> ssl.SSLContext:
    # Reading the authorities takes 30 ms, so once is enough; SSL_CERT_FILE counts for this machine too.
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise ConfigError(
            f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read: {error.strerror}",
            hint="correct the variable, or unset it",
            code="certificates.unreadable",
        ) from error


def exchange(client: httpx.Client, path: str, body: bytes | None = None, *, limit_s: float = REQUEST_S) -> Answer:
    """POST `body` as JSON, or GET without one, and read the whole answer within `limit_s` seconds.

    Raises httpx.HTTPError. An answer longer than MAX_ANSWER_BYTES is cut there: it is no answer to QMD's requests.
    """
    began = time.monotonic()
    timeout = httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s))
    headers = {"Content-Type": "application/json"} if body is not None else {}
    method = "GET" if body is None else "POST"
    content = bytearray()
    with client.stream(method, path, content=body, headers=headers, timeout=timeout) as response:
        # httpx bounds each read; a server that drips would hold us for ever.
        for chunk in response.iter_bytes():
            content += chunk
            if time.monotonic() - began > limit_s:
                raise httpx.ReadTimeout(f"the answer took more than {limit_s:g} s", request=response.request)
            if len(content) > MAX_ANSWER_BYTES:
                break
    return Answer(path, response.status_code, response.headers, bytes(content), time.monotonic() - began)
