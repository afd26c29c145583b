"""What QMD will make of single values in the `remote:` block: its URLs, its key, its names. Pure."""

from __future__ import annotations

import difflib
import ipaddress
import re
import shlex
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from qmd_remote.client.causes import shown
from qmd_remote.client.http import require_sendable
from qmd_remote.client.qmd_config import normalise_url
from qmd_remote.client.remote_block import expand, is_literal, references
from qmd_remote.client.yaml_document import Node
from qmd_remote.errors import ConfigError, UsageError

KEYS = ("url", "embed_url", "generation_url", "api_key", "models")
MODEL_KEYS = ("embed", "generate", "rerank")
EXAMPLE = "http://HOST:PORT"

_ALSO_CALLED = {
    "base_url": "url",
    "rerank_url": "embed_url",
    "embeddings_url": "embed_url",
    "generate_url": "generation_url",
    "expand_url": "generation_url",
    "key": "api_key",
    "token": "api_key",
    "model": "models",
    "embeddings": "embed",
    "expand": "generate",
    "generation": "generate",
}
_OPEN_KEY = 0o077  # the mode bits by which others than the owner can use a file
_PRIVATE_NAME = re.compile(r"[^.]+|.*\.(local|localhost|lan|home|internal|intranet|home\.arpa|ts\.net)", re.IGNORECASE)
_LIKE_REFERENCE = re.compile(r"\$(?:[A-Za-z_]\w*|[({].*)|%\w+%|\{\{?.*")
_SPEAKABLE = re.compile(r"[\w.-]{1,40}|<<")

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """Something in the file, or about it, that is not as it should be.

    An "error" makes QMD fail or use its local models, a "warning" may, "info" does not. `code` is stable, `line`
    counts from 1, `fix` is a command or the exact edit.
    """

    severity: Severity
    code: str
    message: str
    fix: str
    line: int | None = None


def url_findings(key: str, node: Node, line: int) -> Iterator[Finding]:
    """At most one error: why QMD's requests to this URL must fail."""
    if node.what != "text":
        message = f"`{key}` is a {node.what} to QMD, not a text"
        yield Finding("error", "url.not_text", message, f"write on line {line}: {key}: {EXAMPLE}", line)
        return
    found = _url_problem(key, node.value)
    if found:
        code, message, value = found
        yield Finding("error", f"url.{code}", message, f"write on line {line}: {key}: {value}", line)


def _url_problem(key: str, url: str) -> tuple[str, str, str] | None:
    """(code, message, what to write instead), which never repeat what may be a password."""
    if "${" in url:
        return "variable", f"`{key}` holds ${{…}}, which QMD fills in for api_key only", EXAMPLE
    if url != url.strip():
        return "spaces", f"`{key}` begins or ends with spaces, and QMD sends them", _corrected(url) or EXAMPLE
    try:
        wanted = normalise_url(url)
    except UsageError as error:
        return _unusable(key, url, error.message)
    if urlsplit(url).path.rstrip("/").endswith("/v1"):
        asks = f"{shown(url.rstrip('/'))}/v1/embeddings" if key != "generation_url" else f"{shown(url)}/v1/…"
        return "v1", f"`{key}` ends in /v1, and QMD adds its own: it asks for {asks}", wanted
    return None


def _unusable(key: str, url: str, why: str) -> tuple[str, str, str]:
    if "@" in url:
        bare = _corrected(re.sub(r"(?<=//).*@", "", url)) or EXAMPLE
        message = f"`{key}` carries a user name or a password, and requests to such a URL are refused by the runtime"
        return "credentials", message, f'{bare}, and the key as api_key: "${{QMD_REMOTE_API_KEY}}"'
    if not re.match(r"https?://", url, re.IGNORECASE):
        corrected = None if "://" in url else _corrected(f"http://{url}")
        return "no_scheme", f"`{key}` does not begin with http:// or https://", corrected or EXAMPLE
    return "unusable", f"`{key}`: {why}", EXAMPLE


def _corrected(url: str) -> str | None:
    try:
        return normalise_url(url)
    except UsageError:
        return None


def key_findings(node: Node, line: int, env: Mapping[str, str], path: Path, mode: int | None) -> Iterator[Finding]:
    """What is wrong with `api_key`; no text here repeats a literal key."""
    if node.what == "nothing" or (node.what == "text" and not node.value):
        fix = f'write on line {line}: api_key: "${{QMD_REMOTE_API_KEY}}", or remove the line'
        yield Finding("warning", "key.empty", "`api_key` is empty, so QMD sends no key", fix, line)
        return
    if node.what != "text":
        message = f"`api_key` is a {node.what} to QMD, not a text"
        yield Finding("error", "key.not_text", message, f"put the value on line {line} in double quotes", line)
        return
    literal = is_literal(node.value)
    for name in dict.fromkeys(references(node.value)):
        if not env.get(name):
            message = f"`api_key` refers to {name}, which has no value here; without one QMD sends no key"
            yield Finding("warning", "key.unset", message, f"export {name}=… where QMD runs", line)
    if literal and _LIKE_REFERENCE.fullmatch(node.value):
        message = "`api_key` looks like a variable, but QMD fills in ${NAME} only and sends this text as the key"
        yield Finding("error", "key.not_expanded", message, f'write on line {line}: api_key: "${{NAME}}"', line)
        return
    yield from _sendable(node.value, line, env)
    if literal and mode is not None and mode & _OPEN_KEY:
        message = f"`api_key` holds the key itself, and others can read the file (mode {mode:04o})"
        yield Finding("warning", "key.readable", message, f"chmod 600 {shlex.quote(str(path))}", line)


def _sendable(raw: str, line: int, env: Mapping[str, str]) -> Iterator[Finding]:
    try:
        require_sendable(expand(raw, dict(env)))
    except ConfigError as error:
        names = references(raw)
        fix = f"export {names[0]}=… again, with the key alone" if names else f"write the key alone on line {line}"
        yield Finding("error", "key.not_sendable", error.message, fix, line)


def cleartext(key: str, url: str, line: int) -> Iterator[Finding]:
    """A warning where a key would cross networks of others without encryption."""
    host = urlsplit(url).hostname or ""
    if url.lower().startswith("http://") and _is_public(host):
        message = f"the key travels to {shown(url)} in clear, for everybody on the way to read"
        port = urlsplit(url).port or 80
        tunnel = f"ssh -N -L {port}:127.0.0.1:{port} {host}, with {key}: http://127.0.0.1:{port}"
        yield Finding("warning", "url.cleartext", message, f"serve https there, or use a tunnel: {tunnel}", line)


def _is_public(host: str) -> bool:
    """Whether an address lies outside private networks; a name counts by its last parts, since nothing is resolved."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return not _PRIVATE_NAME.fullmatch(host.rstrip("."))


def nearest(name: str, known: tuple[str, ...]) -> str | None:
    """The known key that was probably meant: embedUrl → embed_url, apikey → api_key."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_")
    if _ALSO_CALLED.get(plain) in known:
        return _ALSO_CALLED[plain]
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.7)), None)


def unknown_key(where: str, key: Node, line: int, known: tuple[str, ...], there: Container[str]) -> Finding:
    """The warning about a key that QMD does not read; `there` are its neighbours."""
    # a text in an odd place may be a secret
    name = key.value if _SPEAKABLE.fullmatch(key.value) else "…"
    meant = nearest(key.value, known)
    fix = f"rename it to {meant}" if meant else f"remove it; QMD knows {', '.join(known)}"
    if meant and meant in there:
        fix = f"remove it, since {meant} is there too"
    return Finding("warning", "key.unknown", f"QMD knows no key `{where}.{name}`", f"on line {line}: {fix}", line)
