"""Requests in the words of an engine."""

from __future__ import annotations

import json

import pytest

from qmd_remote.launch import dialect


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"top_k": 1}'),
        ("/v1/completions", b'{"top_p": 1}'),
        ("/v1/completions", b"[1]"),
        ("/v1/completions", b'"top_k"'),
        ("/v1/completions", b"not json"),
        ("/v1/completions", b"\xff\xfe"),
        ("/v1/completions", b"[" * 100_000),
        ("/v1/completions", b""),
    ],
)
def test_what_an_engine_knows_stays_byte_for_byte(path: str, body: bytes):
    """Other paths, other shapes and requests without an unknown field are not touched."""
    assert body == dialect.for_transformers(path, body)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/chat/completions?a=b"])
def test_fields_that_transformers_refuses_are_left_out(path: str):
    """`top_k`, which QMD sends with every expansion, is dropped; every other field keeps its value."""
    fields = {"model": "m", "messages": [{"role": "user", "content": "ä\ud83d"}], "temperature": 0.7, "max_tokens": 400}
    body = json.dumps({**fields, "top_k": 20}).encode()
    assert fields == json.loads(dialect.for_transformers(path, body))


def test_every_other_engine_gets_what_was_sent():
    """A program without an entry of its own gets the body unchanged."""
    assert "vllm" not in dialect.ADAPT
    assert b'{"top_k": 1}' == dialect.unchanged("/v1/completions", b'{"top_k": 1}')
