"""Ollama's requests and answers: their form, and how a generation engine is asked and told of in it. Pure but for time.

An engine behind the gateway speaks OpenAI's API: a request is put to it as a chat, or as a completion where it is raw.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from qmd_remote.errors import BadRequest
from qmd_remote.expansion_request import Shape
from qmd_remote.server import schemas
from qmd_remote.server.responses import nanoseconds_since

NUMBER = 2**31 - 1
SEED = 2**63 - 1  # larger ones are no JSON to many readers
# what changes the meaning of a prompt, and has no counterpart; empty ones change nothing
NOT_SERVED = ("suffix", "images", "template", "context")

_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_STOP = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
_THINK = {"anyOf": [{"type": "boolean"}, {"enum": ["low", "medium", "high"]}, {"type": "null"}]}
_FORMAT = {"anyOf": [{"enum": ["json", ""]}, {"type": "object"}, {"type": "null"}]}
_IGNORED = {"description": "Ignored."}


def _input(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else schemas.require_texts(value, "input")


def _stop(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if value is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise BadRequest("'options.stop' must be a string or a list of strings", param="options.stop")
    return texts or []


def _think(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool) and value not in ("low", "medium", "high"):
        raise BadRequest("'think' must be true, false, 'low', 'medium' or 'high'", param="think")
    return None if value is None else bool(value)


def _format(value: Any) -> Any:
    if value not in (None, "", "json") and not isinstance(value, dict):
        raise BadRequest("'format' must be 'json' or a JSON schema", param="format")
    return value


class EmbedRequest(schemas.Request):
    """Ollama's embed request."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "any name", "input": ["first text", "second"]}]}
    )

    input: Annotated[Any, PlainValidator(_input), WithJsonSchema(_TEXTS)] = Field(description="A text, or texts.")
    truncate: bool | None = Field(
        None, description="False refuses texts that are longer than the model reads; else they lose their end."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep the first so many values of each vector, and bring it back to length 1."
    )
    options: Annotated[Any, WithJsonSchema(_IGNORED)] = None
    keep_alive: Annotated[Any, WithJsonSchema(_IGNORED)] = None


class EmbedResponse(BaseModel):
    """Ollama's embed response; durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int = Field(description="Tokens that the model read.")


class Options(BaseModel):
    """Those of Ollama's options that an engine behind the gateway knows, too."""

    model_config = ConfigDict(extra="ignore", strict=True)

    temperature: float | None = Field(None, allow_inf_nan=False)
    top_p: float | None = Field(None, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-NUMBER, le=NUMBER, description="Below 1: no limit.")
    num_predict: int | None = Field(None, ge=-NUMBER, le=NUMBER, description="Tokens at most; below 1: no limit.")
    seed: int | None = Field(None, ge=-SEED, le=SEED)
    stop: Annotated[Any, PlainValidator(_stop), WithJsonSchema(_STOP)] = None

    def sampling(self) -> dict[str, Any]:
        """The same in OpenAI's words, and vLLM's; what means "as the model has it" is left out."""
        limits = {"top_k": self.top_k, "max_tokens": self.num_predict}
        found = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop or None,
            **{name: value for name, value in limits.items() if value is not None and value > 0},
        }
        return {name: value for name, value in found.items() if value is not None}


class GenerateRequest(schemas.Request):
    """Ollama's generate request."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "any name", "prompt": "Tea or coffee?", "stream": False}]}
    )

    prompt: str
    system: str | None = Field(None, description="Instructions; a raw prompt has none.")
    stream: bool | None = Field(None, description="False: one answer. Else lines of JSON, as they come.")
    raw: bool | None = Field(None, description="Take the prompt as it is, without the model's chat template.")
    think: Annotated[Any, PlainValidator(_think), WithJsonSchema(_THINK)] = Field(
        None, description="Whether a model that can think shall; how much is its own affair."
    )
    format: Annotated[Any, PlainValidator(_format), WithJsonSchema(_FORMAT)] = Field(
        None, description="json, or a JSON schema for the answer."
    )
    # its schema stands in its place: a request's description has no room for definitions
    options: Annotated[Options | None, WithJsonSchema({"anyOf": [Options.model_json_schema(), {"type": "null"}]})] = (
        None
    )
    keep_alive: Annotated[Any, WithJsonSchema(_IGNORED)] = None
    suffix: Annotated[Any, WithJsonSchema({"description": "Not served."})] = None
    images: Annotated[Any, WithJsonSchema({"description": "Not served."})] = None
    template: Annotated[Any, WithJsonSchema({"description": "Not served."})] = None
    context: Annotated[Any, WithJsonSchema({"description": "Not served."})] = None

    @property
    def shape(self) -> Shape:
        """Whether an engine is asked for a chat, or to complete a text."""
        return "text" if self.raw else "chat"

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream: Ollama's default."""
        return self.stream is not False

    def put(self) -> dict[str, Any]:
        """The request for an engine, but for `stream` and `think`, with which it is no expansion to look at.

        Raises BadRequest for what has no counterpart.
        """
        for name in NOT_SERVED:
            if getattr(self, name):
                raise BadRequest(f"'{name}' is not served: put all into 'prompt' and 'system'", param=name)
        body: dict[str, Any] = {"model": self.model or "", **(self.options.sampling() if self.options else {})}
        if self.format:
            schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.format}}
            body["response_format"] = {"type": "json_object"} if self.format == "json" else schema
        if self.raw:
            return {**body, "prompt": self.prompt}
        told = [{"role": "system", "content": self.system}] if self.system else []
        return {**body, "messages": [*told, {"role": "user", "content": self.prompt}]}


class GenerateResponse(BaseModel):
    """Ollama's generate response, whole; of a stream each line is one, and only the last is `done`."""

    model: str
    created_at: str
    response: str
    thinking: str | None = None
    done: bool
    done_reason: Literal["stop", "length"] | None = None
    total_duration: int | None = Field(None, description="Nanoseconds.")
    load_duration: int | None = None
    prompt_eval_count: int | None = Field(None, description="Tokens of the prompt, where the engine tells.")
    eval_count: int | None = Field(None, description="Tokens of the answer, where the engine tells.")


@dataclass(frozen=True)
class Teller:
    """Tells in Ollama's form what an engine said to a request that `began` then, by time.perf_counter.

    `model` is the name that was sent to the engine; `shown`, where there is one, stands in the answer in any case.
    """

    asked: GenerateRequest
    model: str
    shown: str | None
    began: float

    def whole(self, found: dict[str, Any]) -> bytes:
        """An engine's answer, which completion.read has let pass: an object, or the lines of a stream."""
        choice = found["choices"][0]
        text, thinking = said(choice)
        reason = choice.get("finish_reason")
        if self.asked.streamed:
            return self.piece(found, text, thinking) + self.end(found, reason)
        return orjson.dumps({**self._piece(found, text, thinking), **self._end(found, reason)})

    def piece(self, found: dict[str, Any], text: str, thinking: str = "") -> bytes:
        """A line of a stream, with a part of the text."""
        return orjson.dumps(self._piece(found, text, thinking)) + b"\n"

    def end(self, found: dict[str, Any], reason: Any) -> bytes:
        """The last line of a stream."""
        return orjson.dumps({**self._piece(found, ""), **self._end(found, reason)}) + b"\n"

    def _piece(self, found: dict[str, Any], text: str, thinking: str = "") -> dict[str, Any]:
        real = found.get("model")
        model = self.shown or (real if isinstance(real, str) and real else self.model)
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        thought = {"thinking": thinking} if thinking else {}
        return {"model": model, "created_at": now, "response": text, **thought, "done": False}

    def _end(self, found: dict[str, Any], reason: Any) -> dict[str, Any]:
        usage = found.get("usage")
        told = usage if isinstance(usage, dict) else {}
        counts = {"prompt_eval_count": told.get("prompt_tokens"), "eval_count": told.get("completion_tokens")}
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": nanoseconds_since(self.began),
            "load_duration": 0,
            **{name: count for name, count in counts.items() if isinstance(count, int)},
        }


def said(choice: dict[str, Any]) -> tuple[str, str]:
    """The text of a choice, whole or a stream's, and what the model thought before, where that is told apart."""
    place = next((choice[name] for name in ("message", "delta") if isinstance(choice.get(name), dict)), choice)
    names = ("content", "reasoning_content", "reasoning") if place is not choice else ("text",)
    text, *thoughts = (value if isinstance(value := place.get(name), str) else "" for name in names)
    return text, next(filter(None, thoughts), "")
