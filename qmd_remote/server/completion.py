"""Answers of a generation engine in OpenAI's form: read, with another text, made up, as a stream; what it lists."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import orjson

from qmd_remote.errors import ApiError, BadRequest
from qmd_remote.expansion_request import Shape
from qmd_remote.server.body import parse_object

_OBJECT = {"chat": "chat.completion", "text": "text_completion"}
_KEPT = ("id", "created", "model", "system_fingerprint")  # of an answer, in each event of a stream
_ID = {"chat": "chatcmpl", "text": "cmpl"}


class Malformed(ApiError):
    """The service's answer has not OpenAI's form."""

    status = 502
    code = "generation_failed"


def read(shape: Shape, content: bytes) -> dict[str, Any]:
    """An answer's body. Raises Malformed when it is none of this shape."""
    try:
        found = parse_object(content)
        orjson.dumps(found)  # it must be one that can be written again
    except (BadRequest, TypeError):
        raise _malformed() from None
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _malformed()
    if shape == "chat" and not isinstance(choices[0].get("message"), dict):
        raise _malformed()
    return found


def text_of(shape: Shape, found: dict[str, Any]) -> str:
    """What the model said; empty where that is no text."""
    choice = found["choices"][0]
    text = choice["message"].get("content") if shape == "chat" else choice.get("text")
    return text if isinstance(text, str) else ""


def with_text(shape: Shape, found: dict[str, Any], text: str) -> dict[str, Any]:
    """The same answer with another text; usage, id, the reason of its end and all else stay."""
    choice = found["choices"][0]
    said = {"message": {**choice["message"], "content": text}} if shape == "chat" else {"text": text}
    return {**found, "choices": [{**choice, **said}, *found["choices"][1:]]}


def made_up(shape: Shape, model: str, text: str) -> dict[str, Any]:
    """An answer for which no model has computed."""
    said = {"message": {"role": "assistant", "content": text}} if shape == "chat" else {"text": text, "logprobs": None}
    return {
        "id": f"{_ID[shape]}-{uuid.uuid4().hex}",
        "object": _OBJECT[shape],
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, **said, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def streamed(shape: Shape, found: dict[str, Any], request: dict[str, Any]) -> bytes:
    """The answer as the events of a stream, all at once, with the usage if `request` wants it there."""
    return b"".join(b"data: %b\n\n" % event for event in _events(shape, found, request))


def _events(shape: Shape, found: dict[str, Any], request: dict[str, Any]) -> Iterator[bytes]:
    choice = found["choices"][0]
    text = text_of(shape, found)
    head: dict[str, Any] = {name: found[name] for name in _KEPT if name in found}
    head["object"] = "chat.completion.chunk" if shape == "chat" else _OBJECT["text"]
    begun = {"delta": {"role": "assistant", "content": text}} if shape == "chat" else {"text": text}
    ended: dict[str, Any] = {"delta": {}} if shape == "chat" else {"text": ""}
    for said, reason in ((begun, None), (ended, choice.get("finish_reason") or "stop")):
        yield orjson.dumps({**head, "choices": [{"index": 0, **said, "finish_reason": reason}]})
    options = request.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        yield orjson.dumps({**head, "choices": [], "usage": found.get("usage")})
    yield b"[DONE]"


def event(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """An event of an engine's stream, and its first choice, empty where it has none. Raises Malformed for an error."""
    try:
        found = parse_object(data)
    except BadRequest:
        raise _malformed() from None
    choices = found.get("choices")
    if not isinstance(choices, list) or found.get("error"):
        raise _malformed()
    return found, choices[0] if choices and isinstance(choices[0], dict) else {}


def names_of(content: bytes) -> list[str]:
    """The ids in a list of models. Raises ValueError for what is no JSON."""
    said = orjson.loads(content)
    data = said.get("data") if isinstance(said, dict) else None
    found = [item.get("id") for item in data if isinstance(item, dict)] if isinstance(data, list) else []
    return [name for name in found if isinstance(name, str) and name]


def version_of(content: bytes) -> str:
    """The version that an engine names; empty where it names none."""
    try:
        said = orjson.loads(content)
    except ValueError:
        return ""
    version = said.get("version") if isinstance(said, dict) else None
    return version if isinstance(version, str) else ""


def _malformed() -> Malformed:
    message = "the generation service's answer has not OpenAI's form: see `qmd-remote logs generation` on its machine"
    return Malformed(message)
