"""Requests and responses: their form, their limits, and what to say when they are wrong.

The models are the OpenAPI description and the validation in one. Texts are never quoted in a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema, field_validator

from qmd_remote.errors import BadRequest, BodyTooLarge
from qmd_remote.server.body import parse_object
from qmd_remote.server.prompts import NAMES

MAX_TOKEN_ID = 2**31 - 1
MAX_NUMBERS = 2**26  # of an answer's vectors: 256 MB, and 0.8 GB of JSON

_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}, "minItems": 1}
_INPUT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}
_DOCUMENT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"text": {"type": "string"}, "file": {"type": "string"}},
            "required": ["text"],
        },
    ]
}
_DOCUMENTS = {"type": "array", "items": _DOCUMENT, "minItems": 1}


def parse_input(value: Any) -> list[str | list[int]]:
    """OpenAI's `input` (a text, texts, a token array, token arrays) as a list of texts or token arrays.

    Raises BadRequest, naming the first wrong item.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise BadRequest("'input' must be a string, a list of strings or a list of token arrays", param="input")
    if not value:
        raise BadRequest("'input' is an empty list: send at least one text", param="input")
    if isinstance(value[0], str):
        return _texts(value, "input")
    if isinstance(value[0], list):
        return [_tokens(item, f"input[{index}]") for index, item in enumerate(value)]
    if _is_number(value[0]):
        return [_tokens(value, "input")]
    raise BadRequest("'input[0]' must be a string or a token array", param="input[0]")


def _texts(items: list[Any], where: str) -> list[Any]:
    wrong = next((index for index, item in enumerate(items) if not isinstance(item, str)), None)
    if wrong is not None:
        param = f"{where}[{wrong}]"
        like = ", like the items before it" if wrong else ""
        raise BadRequest(f"'{param}' must be a string{like}", param=param)
    return items


def require_texts(value: Any, where: str) -> list[str]:
    """A list of texts, one at least. Raises BadRequest, naming the first wrong item of the field `where`."""
    if not isinstance(value, list):
        raise BadRequest(f"'{where}' must be a list of strings", param=where)
    if not value:
        raise BadRequest(f"'{where}' is an empty list: send at least one text", param=where)
    return _texts(value, where)


def _tokens(items: Any, where: str) -> list[int]:
    if not isinstance(items, list):
        raise BadRequest(f"'{where}' must be a token array, like the items before it", param=where)
    if not items:
        raise BadRequest(f"'{where}' is an empty token array: send at least one token, or \"\"", param=where)
    # token by token only to name the wrong one: that takes longer than reading the JSON
    if set(map(type, items)) != {int} or min(items) < 0 or max(items) > MAX_TOKEN_ID:
        wrong = next(index for index, item in enumerate(items) if not _is_token(item))
        param = f"{where}[{wrong}]"
        raise BadRequest(f"'{param}' must be a token id: a whole number from 0 to {MAX_TOKEN_ID}", param=param)
    return items


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKEN_ID  # a bool is an int to isinstance


class Documents(list[str]):
    """The texts of documents; `files` are the names of those that came with one, by their place."""

    def __init__(self, texts: Iterable[str], files: dict[int, str]) -> None:
        super().__init__(texts)
        self.files = files


def parse_documents(value: Any) -> Documents:
    """`documents` (texts, or objects with a `text`, maybe a `file`). Raises BadRequest, naming the first wrong item."""
    if not isinstance(value, list):
        raise BadRequest("'documents' must be a list of strings or of objects with 'text'", param="documents")
    if not value:
        raise BadRequest("'documents' is an empty list: send at least one document", param="documents")
    texts = [_document(item, f"documents[{index}]") for index, item in enumerate(value)]
    files = ((index, item.get("file")) for index, item in enumerate(value) if isinstance(item, dict))
    return Documents(texts, {index: file for index, file in files if isinstance(file, str)})


def _document(item: Any, where: str) -> str:
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        raise BadRequest(f"'{where}' must be a string or an object with 'text'", param=where)
    text = item.get("text")
    if not isinstance(text, str):
        state = "must be a string" if "text" in item else "is required"
        raise BadRequest(f"'{where}.text' {state}", param=f"{where}.text")
    return text


class Request(BaseModel):
    """What all requests have."""

    # Unknown fields are ignored: clients send the parameters of many servers.
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = Field(None, description="Any name: the server has one model for each endpoint.")


class EmbeddingsRequest(Request):
    """OpenAI's embeddings request."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "any name", "input": ["first text", "second text"]}]}
    )

    input: Annotated[Any, PlainValidator(parse_input), WithJsonSchema(_INPUT)] = Field(
        description="A text, texts, a token array, or token arrays."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 stands for the little-endian float32 values."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep the first so many values of each vector, and bring it back to length 1."
    )
    input_type: str | None = Field(
        None,
        json_schema_extra={"enum": [*NAMES, None]},
        description="What texts without a prefix are: query, document, passage, search_query or search_document.",
    )
    prompt_name: str | None = Field(
        None, description="The prompt for texts without a prefix, by name: query, document, or one of the model's own."
    )
    user: str | None = Field(None, description="Ignored.")

    @field_validator("input_type")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in NAMES:
            raise BadRequest(f"'input_type' must be one of: {', '.join(NAMES)}", param="input_type")
        return value


class RerankRequest(Request):
    """Jina's and Cohere's rerank request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "capital of France", "documents": ["Paris is a city.", "Bread."], "top_n": 1}]
        }
    )

    query: str = Field(description="The text that the documents are scored against.")
    documents: Annotated[Any, PlainValidator(parse_documents), WithJsonSchema(_DOCUMENTS)] = Field(
        description="Texts, or objects with a text, and with the name of a file if their results are to have it."
    )
    top_n: int | None = Field(None, ge=1, description="Answer only the best so many; more than there are means all.")
    return_documents: bool | None = Field(None, description="Put each document's text into its result.")


RequestModel = TypeVar("RequestModel", bound=Request)


def parse(kind: type[RequestModel], raw: bytes) -> RequestModel:
    """The request in a body. Raises BadRequest, naming the first wrong field and what it should be."""
    try:
        return kind.model_validate(parse_object(raw))
    except ValidationError as error:
        raise _explain(error.errors(include_url=False, include_input=False)[0]) from None


_SENTENCES = {
    "missing": "is required",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def _explain(problem: Any) -> BadRequest:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])[1:]
    sentence = _SENTENCES.get(problem["type"], "has a wrong value").format(**problem.get("ctx", {}))
    return BadRequest(f"'{field}' {sentence}", param=field)


def require_dimensions(asked: int | None, dimension: int | None, field: str = "dimensions") -> None:
    """Raise BadRequest when more dimensions are asked for, in `field`, than the model has."""
    if asked is not None and dimension is not None and asked > dimension:
        raise BadRequest(f"'{field}' must be at most {dimension}, the model's own dimension", param=field)


def require_size(texts: int, dimension: int | None) -> None:
    """Raise BodyTooLarge when the answer would take more memory than a request may: MAX_NUMBERS in all."""
    if dimension and texts * dimension > MAX_NUMBERS:
        raise BodyTooLarge(
            f"{texts} vectors are too much for one answer: send at most {MAX_NUMBERS // dimension} texts"
        )


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int
    truncated: int = Field(description="How many texts, or pairs of texts, were cut to the model's length.")


class Embedding(BaseModel):
    """One vector, of length 1."""

    object: Literal["embedding"]
    index: int = Field(description="Position of the input.")
    embedding: list[float] | str


class EmbeddingsResponse(BaseModel):
    """OpenAI's embeddings response; `model` is the model that made the vectors, or the requested name if so set."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class DocumentText(BaseModel):
    """A document, as it was scored."""

    text: str


class RerankResult(BaseModel):
    """One document's score."""

    index: int = Field(description="Position of the document.")
    relevance_score: float = Field(ge=0, le=1)
    score: float = Field(ge=0, le=1, description="The same, for clients that read it by this name.")
    file: str | None = Field(None, description="That of the document, where it had one.")
    document: DocumentText | None = Field(None, description="With return_documents only.")


class RerankResponse(BaseModel):
    """The documents, best first; equal scores keep the order of the request."""

    object: Literal["list"]
    results: list[RerankResult]
    model: str
    usage: Usage


class Model(BaseModel):
    """A model that this server has loaded, or loads, or that the generation service behind it lists."""

    id: str
    object: Literal["model"]
    created: int = Field(description="When the server started, in seconds since 1970.")
    owned_by: str
    qmd_remote_role: Literal["embed", "rerank", "generate"] = Field(
        description="Its endpoint; an embedding model that reranks as well is listed once, as embed."
    )


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"]
    data: list[Model]


class Status(BaseModel):
    """The state of the server; requests without the server's key see `status` alone."""

    model_config = ConfigDict(extra="allow")

    status: Literal["ok", "loading", "stopping", "failed", "alive"]


class ErrorDetail(BaseModel):
    """What is wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail
