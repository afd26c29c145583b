"""What a failed exchange means: the cause under a stable name, in words, and the next step."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import httpx

from qmd_remote.client.http import CONNECT_S, REQUEST_S, Answer

_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
_BROKEN_OFF = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED}
_OTHER_SERVICE = "check host and port: unless you changed them, the embed server has port 8001 and generation 8000"
_TAKE_IT = "the server must take QMD's fields and model name: qmd-remote config write sets the name that a server knows"
_SEE_LOG = "see the server's log: qmd-remote logs"


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


# HTTP status → code, message about the URL, next step. Whatever else begins with 4 or 5 has a line of its own below.
_STATUS = {
    403: ("forbidden", "refuses", "check what stands in front of the server"),
    413: ("too_large", "finds the request too large", "raise the server's body limit"),
    429: ("rate_limited", "limits requests", "lift the limit: QMD does not try again after a 429"),
    503: ("unavailable", "is not ready", "wait until its models are loaded: qmd-remote status"),
}


def shown(url: str) -> str:
    """A URL fit for messages: without user name, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def classify(failure: Exception | Answer, url: str, *, with_key: bool = False, limit_s: float = REQUEST_S) -> Cause:
    """What went wrong in an exchange with the service at `url`: an exception, or an answer that is no good.

    `with_key` says whether a key was sent, `limit_s` how many seconds the exchange could take.
    """
    if isinstance(failure, Answer):
        return _classify_answer(failure, shown(url), with_key=with_key)
    return _classify_error(failure, shown(url), limit_s)


def _classify_error(error: Exception, url: str, limit_s: float) -> Cause:
    chain = list(_chain(error))
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    found = (
        _tls(error, chain, numbers, url)
        or _no_connection(chain, numbers, url, min(CONNECT_S, limit_s))
        or _no_answer(error, numbers, url, limit_s)
    )
    return found or Cause(
        "network", f"the request to {url} failed: {type(error).__name__}", f"check the URL; {_SEE_LOG}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _no_connection(chain: list[BaseException], numbers: set[int | None], url: str, limit_s: float) -> Cause | None:
    host = urlsplit(url).hostname
    if any(isinstance(link, socket.gaierror) for link in chain):
        fix = "check the spelling, or write the IP address"
        return Cause("dns", f"the name {host} cannot be resolved", fix, hopeless=True)
    if errno.ECONNREFUSED in numbers:
        fix = "start the server (qmd-remote up) and check the port; one on another machine must listen on its address"
        return Cause("refused", f"nothing listens at {url}: connection refused", fix, hopeless=True)
    if numbers & _NO_ROUTE:
        return Cause("unreachable", f"there is no route to {host}", "check the address and the network", hopeless=True)
    if isinstance(chain[0], httpx.ConnectTimeout) or errno.ETIMEDOUT in numbers:
        fix = "check the address, and that no firewall drops packets to this port"
        return Cause("timeout", f"{url} takes no connection within {limit_s:g} s", fix, hopeless=True)
    return None


def _no_answer(error: Exception, numbers: set[int | None], url: str, limit_s: float) -> Cause | None:
    if isinstance(error, httpx.TimeoutException):
        fix = "see what the server is doing: qmd-remote status, qmd-remote logs"
        return Cause("timeout", f"{url} does not answer within {limit_s:g} s", fix, hopeless=True)
    if isinstance(error, httpx.ProxyError):
        fix = f"add {urlsplit(url).hostname} to NO_PROXY"
        return Cause("proxy", f"the proxy in the way to {url} refuses", fix, hopeless=True)
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        fix = f"{_OTHER_SERVICE}; if it is a TLS port, write https:{url.removeprefix('http:')}"
        return Cause("wrong_service", f"what listens at {url} does not speak HTTP", fix, hopeless=True)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) or numbers & _BROKEN_OFF:
        fix = f"the server may have crashed, or speak https only; {_SEE_LOG}"
        return Cause("disconnected", f"{url} closed the connection without an answer", fix)
    return None


def _tls(error: Exception, chain: list[BaseException], numbers: set[int | None], url: str) -> Cause | None:
    certificate = next((link for link in chain if isinstance(link, ssl.SSLCertVerificationError)), None)
    if certificate:
        message = f"the certificate of {url} is not accepted: {certificate.verify_message}"
        fix = "trust its authority: SSL_CERT_FILE=FILE here, NODE_EXTRA_CA_CERTS=FILE for QMD"
        if "expired" in certificate.verify_message:
            fix = "renew it on the server, and then there: qmd-remote restart embed"
        elif "mismatch" in certificate.verify_message:
            fix = "use a name that stands in the certificate: qmd-remote config write --url https://NAME:PORT"
        return Cause("tls", message, fix, hopeless=True)
    broken_off = url.startswith("https:") and isinstance(error, httpx.ConnectError) and numbers & _BROKEN_OFF
    if broken_off or any(isinstance(link, ssl.SSLError) for link in chain):
        fix = f"if the server has no TLS, write http:{url.removeprefix('https:')}"
        return Cause("tls", f"no TLS connection to {url} comes about", fix, hopeless=True)
    return None


def _classify_answer(answer: Answer, url: str, *, with_key: bool) -> Cause:
    status, said = answer.status, _said(answer)
    where = f"{url}{answer.path}"
    if status == 401:
        return _unauthorized(url, with_key=with_key)
    if status in _STATUS:
        code, message, fix = _STATUS[status]
        return Cause(code, f"{where} {message}: {status}{said}", fix, hopeless=status == 403)
    if status >= 500 and status != 501:  # 501 is a file server's word for POST
        return Cause("server_error", f"{where} fails: {status}{said}", _SEE_LOG)
    if status >= 400 and status not in {404, 405, 501}:
        return Cause("refused_request", f"{where} refuses QMD's request: {status}{said}", _TAKE_IT)
    return _wrong_service(answer, url, said)


def _wrong_service(answer: Answer, url: str, said: str) -> Cause:
    status, where = answer.status, f"{url}{answer.path}"
    if 300 <= status < 400:
        location = shown(answer.headers.get("location", "")) or "another place"
        return Cause("redirect", f"{where} redirects to {location}", "write that URL instead", hopeless=True)
    if answer.is_html:
        return Cause("wrong_service", f"{where} answers with a web page ({status})", _OTHER_SERVICE, hopeless=True)
    if status == 404 and "model" in said.lower():
        return Cause("unknown_model", f"{where} does not know the model: 404{said}", "qmd-remote config write")
    if status >= 400:
        fix = f"leave out the /v1: {url.removesuffix('/v1')}" if url.endswith("/v1") else _OTHER_SERVICE
        return Cause("wrong_service", f"the server at {url} has no {answer.path}: {status}{said}", fix)
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
