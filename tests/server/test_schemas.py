"""Bodies and fields: pure functions, values in, values or a BadRequest out."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qmd_remote.errors import BadRequest
from qmd_remote.server.body import parse_object
from qmd_remote.server.schemas import EmbeddingsRequest, RerankRequest, parse, require_dimensions
from qmd_remote.server.text import scrub

any_text = st.text(st.characters(exclude_categories=()))  # surrogates too
usable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
unusable = st.sampled_from("\x00\ud800\udbff\udc00\udfff")


@given(any_text)
def test_scrubbed_text_can_be_encoded_and_holds_no_nul(text):
    """Whatever comes in, what goes to the tokenizer encodes in UTF-8 and has no NUL."""
    assert b"\x00" not in scrub(text).encode()


@given(any_text)
def test_scrub_is_idempotent(text):
    """A scrubbed text is left alone."""
    assert scrub(text) == scrub(scrub(text))


@given(st.lists(st.one_of(usable_text, unusable)))
def test_scrub_touches_nothing_else(parts):
    """Only NUL and lone surrogates change, one character for one."""
    expected = "".join("\ufffd" if part in [*"\x00\ud800\udbff\udc00\udfff"] else part for part in parts)
    assume(not re.search("[\ud800-\udbff][\udc00-\udfff]", "".join(parts)))
    assert expected == scrub("".join(parts))


def test_two_halves_of_a_character_become_it_again():
    """Surrogates that stand side by side, as old encoders write them, are one character."""
    assert "a\U0001f600b" == scrub("a\ud83d\ude00b")


@given(st.dictionaries(any_text, st.lists(any_text)))
def test_any_json_string_is_read(value):
    """Python's own writer emits lone surrogates as escapes: the body is read, and scrubbed all through."""
    expected = {scrub(name): [scrub(text) for text in texts] for name, texts in value.items()}
    assert expected == parse_object(json.dumps(value).encode())


def test_a_pair_of_surrogate_escapes_is_one_character():
    """An emoji written as two escapes is no lone surrogate."""
    assert parse_object(rb'{"input": "\ud83d\ude00\ud83d"}') == {"input": "😀\ufffd"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  \n",
        b"{",
        b'{"input": "secret',
        b"\xff\xfe\xfa",
        b'{"input": "\xff secret"}',
        b'{"input": NaN}',
        b'{"input": Infinity}',
        b"[]",
        b'"secret"',
        b"null",
        b'{"input": ' + b"[" * 100_000,
        b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"input": NaN, "n": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_what_is_no_json_object_is_refused(raw):
    """A wrong body is the client's error, described without a word of it."""
    with pytest.raises(BadRequest) as refused:
        parse_object(raw)
    assert (refused.value.code, refused.value.param) == ("invalid_json", None)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", ["text"]),
        ("", [""]),
        (["a", ""], ["a", ""]),
        ([101, 102], [[101, 102]]),
        ([[101], [7, 8]], [[101], [7, 8]]),
        ("a\x00\ud800", ["a\ufffd\ufffd"]),
    ],
)
def test_the_four_forms_of_input(value, expected):
    """A text, texts, a token array and token arrays all become a list of inputs."""
    assert expected == parse(EmbeddingsRequest, json.dumps({"input": value}).encode()).input


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "'input' is required"),
        ({"input": None}, "input", "'input' must be a string, a list of strings or a list of token arrays"),
        ({"input": 5}, "input", "'input' must be a string, a list of strings or a list of token arrays"),
        ({"input": {"text": "a"}}, "input", "'input' must be a string, a list of strings or a list of token arrays"),
        ({"input": []}, "input", "'input' is an empty list: send at least one text"),
        ({"input": ["a", "b", "c", 4]}, "input[3]", "'input[3]' must be a string, like the items before it"),
        ({"input": ["a", None]}, "input[1]", "'input[1]' must be a string, like the items before it"),
        ({"input": [None]}, "input[0]", "'input[0]' must be a string or a token array"),
        ({"input": [True]}, "input[0]", "'input[0]' must be a string or a token array"),
        ({"input": [1, "a"]}, "input[1]", "'input[1]' must be a token id: a whole number from 0 to 2147483647"),
        ({"input": [1, True]}, "input[1]", "'input[1]' must be a token id: a whole number from 0 to 2147483647"),
        ({"input": [-1]}, "input[0]", "'input[0]' must be a token id: a whole number from 0 to 2147483647"),
        ({"input": [1.5]}, "input[0]", "'input[0]' must be a token id: a whole number from 0 to 2147483647"),
        ({"input": [2**70]}, "input[0]", "'input[0]' must be a token id: a whole number from 0 to 2147483647"),
        ({"input": [[]]}, "input[0]", "'input[0]' is an empty token array: send at least one token, or \"\""),
        ({"input": [[1], "a"]}, "input[1]", "'input[1]' must be a token array, like the items before it"),
        (
            {"input": [[1], [[2]]]},
            "input[1][0]",
            "'input[1][0]' must be a token id: a whole number from 0 to 2147483647",
        ),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'encoding_format' must be 'float' or 'base64'"),
        ({"input": "a", "dimensions": 0}, "dimensions", "'dimensions' must be at least 1"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "'dimensions' must be a whole number"),
        ({"input": "a", "dimensions": True}, "dimensions", "'dimensions' must be a whole number"),
        ({"input": "a", "model": 3}, "model", "'model' must be a string"),
        ({"input": "a", "user": []}, "user", "'user' must be a string"),
    ],
    ids=repr,
)
def test_a_wrong_embeddings_request_gets_one_clear_sentence(body, param, said):
    """The first wrong field is named, with what it should be."""
    with pytest.raises(BadRequest) as refused:
        parse(EmbeddingsRequest, json.dumps(body).encode())
    assert (param, said) == (refused.value.param, refused.value.message)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"documents": ["a"]}, "query", "'query' is required"),
        ({"query": ["q"], "documents": ["a"]}, "query", "'query' must be a string"),
        ({"query": "q"}, "documents", "'documents' is required"),
        (
            {"query": "q", "documents": "a"},
            "documents",
            "'documents' must be a list of strings or of objects with 'text'",
        ),
        ({"query": "q", "documents": []}, "documents", "'documents' is an empty list: send at least one document"),
        (
            {"query": "q", "documents": ["a", 2]},
            "documents[1]",
            "'documents[1]' must be a string or an object with 'text'",
        ),
        ({"query": "q", "documents": [{}]}, "documents[0].text", "'documents[0].text' is required"),
        ({"query": "q", "documents": [{"text": 1}]}, "documents[0].text", "'documents[0].text' must be a string"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n", "'top_n' must be at least 1"),
        ({"query": "q", "documents": ["a"], "top_n": 1.5}, "top_n", "'top_n' must be a whole number"),
        (
            {"query": "q", "documents": ["a"], "return_documents": "yes"},
            "return_documents",
            "'return_documents' must be true or false",
        ),
    ],
    ids=repr,
)
def test_a_wrong_rerank_request_gets_one_clear_sentence(body, param, said):
    """The first wrong field is named, with what it should be."""
    with pytest.raises(BadRequest) as refused:
        parse(RerankRequest, json.dumps(body).encode())
    assert (param, said) == (refused.value.param, refused.value.message)


def test_optional_fields_may_be_null_and_unknown_ones_are_ignored():
    """Clients that send every field of every server are served."""
    body = {"input": "a", "model": None, "encoding_format": None, "dimensions": None, "user": None, "truncate": "END"}
    assert parse(EmbeddingsRequest, json.dumps(body).encode()).input == ["a"]
    body = {"query": "q", "documents": ["a"], "model": None, "top_n": None, "return_documents": None, "rank_fields": []}
    assert parse(RerankRequest, json.dumps(body).encode()).documents == ["a"]


def test_documents_may_be_objects():
    """Objects give their text, whatever else they hold."""
    body = {"query": "q", "documents": ["a", {"text": "b", "id": 7}]}
    assert parse(RerankRequest, json.dumps(body).encode()).documents == ["a", "b"]


def test_more_dimensions_than_the_model_has_are_refused():
    """The message tells how many there are."""
    require_dimensions(384, 384)
    with pytest.raises(BadRequest, match="'dimensions' must be at most 384"):
        require_dimensions(385, 384)
