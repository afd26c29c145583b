"""Answers: arrays and errors as JSON bytes."""

from __future__ import annotations

import time
import uuid
from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qmd_remote.errors import ApiError, Unauthorized, Unavailable
from qmd_remote.server.exchange import exchange_of

if TYPE_CHECKING:
    from qmd_remote.server.engine import Embeddings, Scores

RETRY_AFTER_S = 1  # of a 503 that does not say how long it lasts


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as a JSON answer."""
    return _raw_json(orjson.dumps(content), status, headers)


def _raw_json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """An error in OpenAI's shape, with the headers its status calls for besides `headers`."""
    more = dict(headers or {})
    if isinstance(error, Unauthorized):
        more["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        more["Retry-After"] = str(RETRY_AFTER_S if error.retry_after is None else error.retry_after)
    return _ErrorResponse(error, more)


class _ErrorResponse(Response):
    """Leaves its code in the request's record when it is sent, wherever that happens."""

    def __init__(self, error: ApiError, headers: Mapping[str, str]) -> None:
        body = orjson.dumps(error.body())
        super().__init__(body, status_code=error.status, headers=headers, media_type="application/json")
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).error = self._code
        await super().__call__(scope, receive, send)


def embeddings_response(found: Embeddings, model: str, *, dimensions: int | None, as_base64: bool) -> Response:
    """The answer of /v1/embeddings: one unit vector an input, cut to `dimensions` first where that is given."""
    rows = shorten(found.vectors, dimensions)
    vectors = _base64_rows(rows) if as_base64 else _float_rows(rows)
    rest = orjson.dumps({"model": model, "usage": _usage(found)})
    return _raw_json(b"".join([*_data(vectors), b"}],", rest[1:]]))


def _data(vectors: Iterable[bytes]) -> Iterator[bytes]:
    """The answer up to its last vector, in pieces that are joined once: these are the bytes there are most of."""
    before = b'{"object":"list","data":['
    for index, vector in enumerate(vectors):
        yield b'%b{"object":"embedding","index":%d,"embedding":' % (before, index)
        yield vector
        before = b"},"


def cohere_response(
    found: Embeddings, texts: Sequence[str], *, dimensions: int | None, kinds: Sequence[str]
) -> Response:
    """The answer of /v2/embed: the vectors once for each of `kinds` (float, base64), in the order of `texts`."""
    rows = shorten(found.vectors, dimensions)
    pieces = [b'{"id":"%b","embeddings":{' % str(uuid.uuid4()).encode()]
    for place, kind in enumerate(dict.fromkeys(kinds)):
        pieces.append(b'%b"%b":' % (b"," if place else b"", kind.encode()))
        pieces += _array(_base64_rows(rows) if kind == "base64" else _float_rows(rows))
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": found.tokens}}
    rest = orjson.dumps({"texts": texts, "meta": meta, "response_type": "embeddings_by_type"})
    return _raw_json(b"".join([*pieces, b"},", rest[1:]]))


def ollama_embed_response(found: Embeddings, model: str, *, dimensions: int | None, began: float) -> Response:
    """The answer of /api/embed, to a request that `began` then by time.perf_counter."""
    rows = _array(_float_rows(shorten(found.vectors, dimensions)))
    durations = {"total_duration": nanoseconds_since(began), "load_duration": 0}
    rest = orjson.dumps({"model": model, **durations, "prompt_eval_count": found.tokens})
    return _raw_json(b"".join([b'{"embeddings":', *rows, b",", rest[1:]]))


def nanoseconds_since(began: float) -> int:
    """Time since then, by time.perf_counter, as Ollama tells it."""
    return int((time.perf_counter() - began) * 1e9)


def _array(values: Iterable[bytes]) -> Iterator[bytes]:
    """A JSON array, in pieces."""
    before = b"["
    for value in values:
        yield before
        yield value
        before = b","
    yield b"]"


def shorten(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first `dimensions` columns of `vectors` [n, dimension], with unit rows again (a row of zeros stays one)."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.where(lengths > 0, lengths, 1), dtype=np.float32)


# Rows become JSON one by one, which costs no more than all in one call: orjson keeps the interpreter to itself while
# it works, and a call for a large answer would stop the event loop for as long.
def _float_rows(rows: np.ndarray) -> Iterator[bytes]:
    for row in np.ascontiguousarray(rows, dtype=np.float32):
        yield orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def _base64_rows(rows: np.ndarray) -> Iterator[bytes]:
    for row in np.ascontiguousarray(rows, dtype="<f4"):
        yield b'"%b"' % b2a_base64(row, newline=False)  # straight from the array's memory


def rerank_response(
    found: Scores, model: str, *, top_n: int | None, documents: Sequence[str] | None, files: Mapping[int, str]
) -> Response:
    """The answer of /v1/rerank: the best `top_n` first, equal scores in input order, with the texts if `documents`.

    `files` are the names that documents came with, by their place; some clients know them by nothing else.
    """
    order = np.argsort(-found.scores, kind="stable")[:top_n].tolist()
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score, "score": score}
        for index, score in zip(order, found.scores[order].tolist(), strict=True)
    ]
    if files:
        for result in results:
            if result["index"] in files:
                result["file"] = files[result["index"]]
    if documents is not None:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    return json_response({"object": "list", "results": results, "model": model, "usage": _usage(found)})


def _usage(found: Embeddings | Scores) -> dict[str, int]:
    return {"prompt_tokens": found.tokens, "total_tokens": found.tokens, "truncated": found.truncated}
