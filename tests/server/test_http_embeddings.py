"""/v1/embeddings with MiniLM over a socket."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qmd_remote.presets import MINI_EMBED

DIMENSION = 384


def vectors_of(answer) -> np.ndarray:
    """The vectors of an answer [n, dimension], which must be complete, in order, finite and of length 1."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    assert {item["object"] for item in data} == {"embedding"}
    rows = np.array([item["embedding"] for item in data], dtype=np.float32)
    assert np.isfinite(rows).all()
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    return rows


def embed(client, texts, **fields) -> np.ndarray:
    """The vectors of `texts`."""
    return vectors_of(client.post("/v1/embeddings", json={"input": texts, **fields}))


def test_one_string_gives_one_vector(mini):
    """The shape of the answer is OpenAI's, and usage counts real tokens."""
    answer = mini.post("/v1/embeddings", json={"model": "m", "input": "hello world"})
    assert vectors_of(answer).shape == (1, DIMENSION)
    body = answer.json()
    assert body["object"] == "list"
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4, "truncated": 0}  # [CLS] hello world [SEP]


def test_usage_counts_the_texts_that_were_cut(mini):
    """Texts longer than the model takes are counted, and the tokens are those that remain of them."""
    usage = mini.post("/v1/embeddings", json={"input": ["word " * 5000, "short", "word " * 5000]}).json()["usage"]
    assert {"prompt_tokens": 515, "total_tokens": 515, "truncated": 2} == usage  # 256 + 3 + 256


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_a_large_answer_holds_what_small_ones_hold(serve, encoding):
    """Answers and bodies that are made in a thread, for their size, are the same as those on the event loop."""
    server = serve()
    texts = [f"text {number} " + "x" * 100 for number in range(7000)]
    whole = server.http.post("/v1/embeddings", json={"input": texts, "encoding_format": encoding}).json()["data"]
    small = [
        entry["embedding"]
        for start in range(0, 7000, 1000)
        for entry in server.http.post(
            "/v1/embeddings", json={"input": texts[start : start + 1000], "encoding_format": encoding}
        ).json()["data"]
    ]
    assert list(range(7000)) == [entry["index"] for entry in whole]
    assert small == [entry["embedding"] for entry in whole]


def test_a_list_gives_a_vector_each_in_order(mini):
    """Each text's vector is the one it gets alone, whatever lengths stand beside it."""
    texts = ["hello", "a much longer text about the sea " * 20, "", "rivers flow", "hello"]
    together = embed(mini, texts)
    alone = np.vstack([embed(mini, text) for text in texts])
    assert np.allclose(together, alone, atol=1e-5)


def test_meaning_is_near(mini):
    """Real weights: a paraphrase is nearer than another subject."""
    cat, kitten, tax = embed(mini, ["a cat sleeps", "the kitten is asleep", "quarterly tax return"])
    assert cat @ kitten > cat @ tax + 0.2


@pytest.mark.parametrize(
    "name", [None, "", "embeddinggemma", "hf:ggml-org/embeddinggemma-300M-GGUF/x.gguf", "gpt-4\x00\ud800"]
)
def test_any_model_name_is_served(mini, name):
    """The requested name changes nothing; the answer names the real model."""
    raw = json.dumps({"input": "hello", "model": name})
    answer = mini.post("/v1/embeddings", content=raw)
    assert np.allclose(vectors_of(answer), embed(mini, "hello"), atol=1e-6)
    assert answer.json()["model"] == MINI_EMBED


def test_base64_is_the_same_vector(mini):
    """Little-endian float32, bit for bit what the floats say."""
    texts = ["hello", "world"]
    answer = mini.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).json()
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in answer["data"]]
    assert np.array_equal(decoded, embed(mini, texts, encoding_format="float"))


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_dimensions_cut_and_renormalise(mini, encoding):
    """The first values of the whole vector, brought back to length 1."""
    whole = embed(mini, ["hello", "world"])
    answer = mini.post(
        "/v1/embeddings", json={"input": ["hello", "world"], "dimensions": 64, "encoding_format": encoding}
    ).json()
    if encoding == "base64":
        cut = np.array([np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in answer["data"]])
    else:
        cut = np.array([item["embedding"] for item in answer["data"]])
    expected = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    assert np.allclose(expected, cut, atol=1e-6)


def test_dimensions_end_at_the_models_own(mini):
    """All of them are allowed, one more is a 400."""
    assert embed(mini, "hello", dimensions=DIMENSION).shape == (1, DIMENSION)
    answer = mini.post("/v1/embeddings", json={"input": "hello", "dimensions": DIMENSION + 1})
    assert answer.status_code == 400
    assert str(DIMENSION) in answer.json()["error"]["message"]


def test_a_token_array_is_the_text_it_stands_for(mini):
    """Both forms, one array and several, with the special tokens left to the client."""
    hello_world = [101, 7592, 2088, 102]
    expected = embed(mini, "hello world")
    assert np.allclose(embed(mini, hello_world), expected, atol=1e-5)
    assert np.allclose(embed(mini, [hello_world, hello_world]), np.vstack([expected, expected]), atol=1e-5)


def test_a_token_the_model_does_not_have_is_a_400(mini):
    """A wrong id is the client's error, and the server goes on."""
    answer = mini.post("/v1/embeddings", json={"input": [[101, 7592], [2_000_000_000]]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("input")
    assert embed(mini, "hello").shape == (1, DIMENSION)


def test_broken_texts_do_not_fail_the_others(mini):
    """Of 32 texts one holds half an emoji and one a NUL: all 32 embed, the 30 as they do alone."""
    texts = [f"chunk number {n}" for n in range(32)]
    whole = embed(mini, texts)
    broken = [*texts[:7], "half an emoji \ud83d", *texts[8:20], "a NUL \x00 inside", *texts[21:]]
    answer = mini.post("/v1/embeddings", content=json.dumps({"input": broken}))
    rows = vectors_of(answer)
    good = [n for n in range(32) if n not in (7, 20)]
    assert np.allclose(rows[good], whole[good], atol=1e-5)
    assert np.allclose(rows[7], embed(mini, "half an emoji \ufffd")[0], atol=1e-5)


def test_more_texts_than_a_batch_are_split_inside(mini):
    """The size of a request is no reason to refuse it."""
    assert embed(mini, ["short"] * 200).shape == (200, DIMENSION)


def test_health_answers_while_a_long_request_runs(mini):
    """Twenty answers of /health, one after another, come before that of the request sent first."""
    texts = ["all work and no play makes a long request " * 25] * 48
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(embed, mini, texts)
        answers = [mini.get("/health").json()["status"] for _ in range(20)]
        assert not long.done()
        assert answers == ["ok"] * 20
        assert long.result().shape == (48, DIMENSION)
