"""A request body: bounded bytes → a JSON object whose texts any tokenizer and any encoder takes."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson
from starlette.requests import Request

from qmd_remote.errors import BadRequest, BodyTooLarge
from qmd_remote.server.text import scrub

MB = 10**6


async def read_body(request: Request, max_mb: float) -> bytes:
    """The whole body, at most `max_mb` · 10⁶ bytes.

    Raises BodyTooLarge, from the announced length where there is one, else as soon as too much has come;
    starlette.requests.ClientDisconnect when the client hangs up before the end.
    """
    limit = int(max_mb * MB)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(max_mb)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(max_mb)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_mb: float) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than the {max_mb:g} MB this server takes: send fewer texts a request, "
        "or start the server with a larger QMD_REMOTE_MAX_BODY_MB"
    )


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, with every text in it scrubbed. Raises BadRequest when it holds none."""
    if not raw.strip():
        raise BadRequest("the body is empty: send a JSON object", code="invalid_json")
    try:
        value = _loads(raw)
    except RecursionError:
        raise BadRequest("the body is nested too deeply: send a flat JSON object", code="invalid_json") from None
    except ValueError as error:
        # A decoder's message may quote the body, its position never does.
        where = f" (character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(
            f"the body is not valid JSON{where}: send a JSON object in UTF-8", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise BadRequest('the body must be a JSON object, like {"input": "text"}', code="invalid_json")
    return value


def _loads(raw: bytes) -> Any:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        # Emoji cut in two by a client arrive as lone surrogates: JSON's grammar allows them, orjson does not.
        return _scrub_all(json.loads(raw, parse_constant=_refuse))
    return _scrub_all(value) if _has_nul(value) else value


def _has_nul(value: Any) -> bool:
    """Whether a text in `value` holds NUL; many times faster than a search for its escape in the body."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(map(_has_nul, value)) or any(map(_has_nul, value.values()))
    if isinstance(value, list):
        # what begins with a number is a token array, or wrong: no need to look at thousands of tokens
        return bool(value) and not isinstance(value[0], int) and any(map(_has_nul, value))
    return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _scrub_all(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [_scrub_all(item) for item in value]
    if isinstance(value, dict):
        return {scrub(name): _scrub_all(item) for name, item in value.items()}
    return value
