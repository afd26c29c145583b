"""Requests over keep-alive connections, as thin as they can be: the client shares the cores with the servers."""

from __future__ import annotations

import base64
import http.client
import json
import math
import struct
import time
from typing import Any


class Failed(Exception):
    """A server did not answer, or not with 200; the text says how."""


class Client:
    """One connection to a server on loopback. `limit_s` bounds every wait for it."""

    def __init__(self, port: int, *, embeddings: str, rerank: str, limit_s: float = 300) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
        self._embeddings, self._rerank = embeddings, rerank

    def embed(self, texts: list[str]) -> tuple[float, bytes]:
        """(seconds from the request to the last byte of the answer, the answer)."""
        return self._post(self._embeddings, {"model": "embed", "input": texts})

    def rerank(self, query: str, documents: list[str]) -> tuple[float, bytes]:
        """As `embed`."""
        return self._post(self._rerank, {"model": "rerank", "query": query, "documents": documents})

    def get(self, path: str) -> Any:
        """A JSON answer, or None where it is none."""
        raw = self._exchange("GET", path, None)
        try:
            return json.loads(raw)
        except ValueError:
            return None

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _post(self, path: str, content: Any) -> tuple[float, bytes]:
        body = json.dumps(content).encode()
        began = time.perf_counter()
        raw = self._exchange("POST", path, body)
        return time.perf_counter() - began, raw

    def _exchange(self, method: str, path: str, body: bytes | None) -> bytes:
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            raw = response.read()
        except TimeoutError:
            self._connection.close()
            raise Failed(f"no answer from {path} within {self._connection.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Failed(f"{path}: {type(error).__name__}: {error}") from None
        if response.status != 200:
            raise Failed(f"{path} answered {response.status}: {raw[:200].decode(errors='replace')}")
        return raw


def vectors(raw: bytes) -> list[list[float]]:
    """The vectors of an embeddings answer, in the order of its inputs."""
    rows = sorted(json.loads(raw)["data"], key=lambda row: row["index"])
    return [_vector(row["embedding"]) for row in rows]


def logits(raw: bytes) -> list[float]:
    """The scores of a rerank answer before their sigmoid, in the order of the documents."""
    rows = sorted(json.loads(raw)["results"], key=lambda row: row["index"])
    return [_logit(float(row["relevance_score"])) for row in rows]


def _vector(value: Any) -> list[float]:
    if isinstance(value, str):
        raw = base64.b64decode(value)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return [float(number) for number in value]


def _logit(score: float) -> float:
    inside = min(max(score, 1e-12), 1 - 1e-12)
    return math.log(inside / (1 - inside))
