"""HTTP to the two services: clients like QMD's, exchanges with an end, and what a failure means in words."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from qmd_remote import __version__
from qmd_remote.errors import ConfigError
from qmd_remote.settings import is_loopback

CONNECT_S = 5.0
REQUEST_S = 120.0
MAX_ANSWER_BYTES = 64 * 2**20

_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
_BROKEN_OFF = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED}
_OTHER_SERVICE = "check host and port: unless you changed them, the embed server has port 8001 and generation 8000"


@dataclass(frozen=True)
class Cause:
    """Why a request failed: a stable code, the same in words, and the next step.

    `hopeless` says that no other request to this service can do better.
    """

    code: str
    message: str
    fix: str
    hopeless: bool = False

    def __str__(self) -> str:
        return self.message


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
        """The body as JSON. Raises ValueError for anything else, NaN and Infinity included: they are not JSON."""
        return json.loads(self.content.decode("utf-8"), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def make_client(base_url: str, key: str = "", *, limit_s: float = REQUEST_S) -> httpx.Client:
    """A keep-alive client for one service that sends `key`, if there is one, and follows no redirects.

    `limit_s` bounds each wait, CONNECT_S the one for a connection. Proxies named in the environment are not used for
    this machine. Raises ConfigError for a key that no header can hold.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "the API key holds spaces, control characters or letters outside ASCII",
            hint="set the variable or the file to the key alone",
            code="key.invalid",
        )
    headers = {"User-Agent": f"qmd-remote/{__version__}", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.Client(
        base_url=base_url,
        headers=headers,
        timeout=httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s)),
        trust_env=not is_loopback(urlsplit(base_url).hostname or ""),
    )


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


def shown(url: str) -> str:
    """A URL fit for messages: without user name, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def classify(failure: Exception | Answer, url: str, *, with_key: bool = False) -> Cause:
    """What went wrong in an exchange with the service at `url`: an exception, or an answer that is no good."""
    if isinstance(failure, Answer):
        return _classify_answer(failure, shown(url), with_key=with_key)
    return _classify_error(failure, shown(url))


def _classify_error(error: Exception, url: str) -> Cause:
    chain = list(_chain(error))
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    host = urlsplit(url).hostname
    over_tls = url.startswith("https:") and isinstance(error, httpx.ConnectError) and numbers & _BROKEN_OFF
    if over_tls or any(isinstance(link, ssl.SSLError) for link in chain):
        return _tls(chain, url)
    if any(isinstance(link, socket.gaierror) for link in chain):
        fix = "check the spelling, or write the IP address"
        return Cause("dns", f"the name {host} cannot be resolved", fix, hopeless=True)
    if errno.ECONNREFUSED in numbers:
        fix = (
            "start the server (qmd-remote up), and check the port; another machine's server must listen on its address"
        )
        return Cause("refused", f"nothing listens at {url}: connection refused", fix, hopeless=True)
    if numbers & _NO_ROUTE:
        fix = "check the address, the network and the VPN"
        return Cause("unreachable", f"there is no route to {host}", fix, hopeless=True)
    if isinstance(error, httpx.TimeoutException) or errno.ETIMEDOUT in numbers:
        return _timeout(error, url)
    if isinstance(error, httpx.ProxyError):
        fix = f"add {host} to NO_PROXY"
        return Cause("proxy", f"the proxy in the way to {url} refuses: {error}", fix, hopeless=True)
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return Cause("wrong_service", f"what listens at {url} does not speak HTTP", _not_http(url), hopeless=True)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        fix = "the server may have crashed, or speak https only: see its log (qmd-remote logs)"
        return Cause("disconnected", f"{url} closed the connection without an answer", fix)
    return Cause(
        "network", f"the request to {url} failed: {type(error).__name__}", "check the URL and the server's log"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tls(chain: list[BaseException], url: str) -> Cause:
    certificate = next((link for link in chain if isinstance(link, ssl.SSLCertVerificationError)), None)
    if certificate:
        message = f"the certificate of {url} is not accepted: {certificate.verify_message}"
        fix = "trust its authority: SSL_CERT_FILE=FILE here, NODE_EXTRA_CA_CERTS=FILE for QMD"
        return Cause("tls", message, fix, hopeless=True)
    fix = f"if the server has no TLS, write http:{url.removeprefix('https:')}"
    return Cause("tls", f"no TLS connection to {url} comes about", fix, hopeless=True)


def _timeout(error: Exception, url: str) -> Cause:
    if isinstance(error, httpx.ConnectTimeout):
        fix = "check the address, and that no firewall drops packets to this port"
        return Cause("timeout", f"{url} does not take the connection in time", fix, hopeless=True)
    fix = "see what the server is doing: qmd-remote status, qmd-remote logs"
    return Cause("timeout", f"{url} does not answer in time", fix, hopeless=True)


def _not_http(url: str) -> str:
    return f"{_OTHER_SERVICE}; if it is a TLS port, write https:{url.removeprefix('http:')}"


def _classify_answer(answer: Answer, url: str, *, with_key: bool) -> Cause:
    status, said = answer.status, _said(answer)
    where = f"{url}{answer.path}"
    if status == 401:
        return _unauthorized(url, with_key=with_key)
    if status == 403:
        return Cause(
            "forbidden", f"{where} refuses: 403{said}", "check what stands in front of the server", hopeless=True
        )
    if 300 <= status < 400:
        location = shown(answer.headers.get("location", "")) or "another place"
        return Cause("redirect", f"{where} redirects to {location}", "write that URL instead", hopeless=True)
    if answer.is_html:
        return Cause("wrong_service", f"{where} answers with a web page ({status})", _OTHER_SERVICE, hopeless=True)
    if status == 404 and "model" in said.lower():
        return Cause("unknown_model", f"{where} does not know the model: 404{said}", "qmd-remote config write")
    if status in {404, 405}:
        fix = f"leave out the /v1: {url.removesuffix('/v1')}" if url.endswith("/v1") else _OTHER_SERVICE
        return Cause("wrong_service", f"the server at {url} has no {answer.path}: {status}{said}", fix)
    if status == 413:
        return Cause("too_large", f"{where} finds the request too large: 413{said}", "raise the server's body limit")
    if status == 429:
        return Cause(
            "rate_limited", f"{where} limits requests: 429{said}", "lift the limit: QMD never tries again on 429"
        )
    if status == 503:
        fix = "wait until its models are loaded: qmd-remote status"
        return Cause("unavailable", f"{where} is not ready: 503{said}", fix)
    if status >= 500:
        return Cause("server_error", f"{where} fails: {status}{said}", "see the server's log: qmd-remote logs")
    if status >= 400:
        return Cause("refused_request", f"{where} refuses QMD's request: {status}{said}", _OTHER_SERVICE)
    return Cause("wrong_service", f"{where} answers, but not as QMD needs it", _OTHER_SERVICE)


def _unauthorized(url: str, *, with_key: bool) -> Cause:
    if with_key:
        fix = "send the key the server was started with: --api-key-env NAME or --api-key-file FILE"
        return Cause("unauthorized", f"{url} does not accept the API key: 401", fix, hopeless=True)
    fix = "set QMD_REMOTE_API_KEY, or give --api-key-env NAME or --api-key-file FILE"
    return Cause("unauthorized", f"{url} needs an API key, and none was sent: 401", fix, hopeless=True)


def _said(answer: Answer) -> str:
    """What an error answer says of itself, in one short line that begins with a colon; empty if it says nothing."""
    try:
        body = answer.json()
    except ValueError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else None
    text = (
        next((error[key] for key in ("message", "detail") if error.get(key)), "") if isinstance(error, dict) else error
    )
    line = "".join(character if character.isprintable() else " " for character in text) if isinstance(text, str) else ""
    return f": {line[:200]}" if line else ""
