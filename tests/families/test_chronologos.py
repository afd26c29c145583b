"""The client of the `remote:` block: its three commands, with the names and prefixes it sends whatever is served."""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import (
    Step,
    alike,
    expands,
    first_is,
    nearest,
    ranking,
    refused,
    replay,
    vectors,
)

SAMPLING = {"max_tokens": 400, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
CHAT = say.chat(say.EXPANDER, f"/no_think {say.QUERY}", **SAMPLING)
CUT_EMOJI = "a walk in the park \ud83d"
CJK = "東京は日本の首都です。" * 245


def embedding(texts, model=say.GGUF):
    """A request for vectors."""
    return {"model": model, "input": texts}


def index_of(count):
    """Bodies of `embed` for so many chunks: one string for the dimension, then batches."""
    chunks = [say.titled(say.chunk(number), f"Log {number}") for number in range(count)]
    batches = [chunks[start : start + say.BATCH] for start in range(0, count, say.BATCH)]
    return [embedding(say.titled("dimension")), *map(embedding, batches)]


def query_steps(documents, prefix=""):
    """What `query` sends."""
    texts = [say.asked(text) for text in (say.QUERY, *say.VARIANTS)]
    ranked = {"model": say.RERANKER, "query": say.QUERY, "documents": documents}
    return (
        Step(f"{prefix}/v1/chat/completions", CHAT, [expands(say.QUERY)]),
        Step(f"{prefix}/v1/embeddings", embedding([texts[0]]), [vectors]),
        Step(f"{prefix}/v1/embeddings", embedding(texts[1:]), [vectors]),
        Step(f"{prefix}/v1/rerank", ranked, [ranking]),
    )


def test_embed(box):
    """The dimension from one string, then all chunks in arrays of 32 and one smaller, over one connection."""
    steps = [Step("/v1/embeddings", body, [vectors]) for body in index_of(2 * say.BATCH + 5)]
    assert [1, 32, 32, 5] == [1 if isinstance(step.body["input"], str) else len(step.body["input"]) for step in steps]
    answers = replay(box, *steps)
    assert 1 == len({len(item["embedding"]) for answer in answers for item in answer.json["data"]})
    assert 1 == len({answer.peer for answer in answers})


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_query(box, prefix):
    """An expansion it can read, its vectors, and 40 candidates ranked; /v1 in the URL twice works as well."""
    replay(box, *query_steps(say.candidates(), prefix))


def test_query_finds(mini_box):
    """The note that answers the query is ranked first."""
    *_, ranked = replay(mini_box, *query_steps(say.few()))
    first_is(say.ANSWER)(ranked)


def test_vsearch(box):
    """A chat, then string after string, under another wrong name."""
    texts = [say.asked(text) for text in (say.QUERY, *say.VARIANTS)]
    steps = [Step("/v1/embeddings", embedding(text, say.GEMMA), [vectors]) for text in texts]
    replay(box, Step("/v1/chat/completions", CHAT, [expands(say.QUERY)]), *steps)


def test_with_a_qwen_name_configured(mini_box):
    """The prefixes of the other family of models."""
    name = "Qwen/Qwen3-Embedding-0.6B"
    documents = [f"Papers\n{note}" for note in say.NOTES]
    asked, stored = replay(
        mini_box,
        Step("/v1/embeddings", embedding([say.instructed(say.QUERY)], name), [vectors]),
        Step("/v1/embeddings", embedding(documents, name), [vectors]),
    )
    assert say.ANSWER == nearest(asked.json["data"][0], stored.json["data"])


def test_an_emoji_cut_in_two_costs_nothing(mini_box):
    """A batch with lone surrogates, empty and very long texts is answered whole, the others' vectors unchanged."""
    clean = [say.titled(note) for note in say.NOTES]
    odd = [say.titled(CUT_EMOJI), *clean, say.titled("\udc00"), say.titled(""), say.titled(CJK, "日本 \ud83d"), ""]
    mixed, alone = replay(
        mini_box,
        Step("/v1/embeddings", embedding(odd), [vectors]),
        Step("/v1/embeddings", embedding(clean), [vectors]),
    )
    for one, other in zip(mixed.json["data"][1:], alone.json["data"], strict=False):
        assert alike(one, other)


def test_candidates_cut_in_mid_emoji_are_all_ranked(box):
    """Nothing is left out, nothing fails: it would be kept as 0 for ever."""
    documents = [f"{text[:-1]}\ud83d" for text in say.candidates()]
    body = {"model": say.RERANKER, "query": f"{say.QUERY} \ud83d", "documents": documents}
    replay(box, Step("/v1/rerank", body, [ranking]))


def test_a_prefix_changes_nothing(mini_box):
    """Whichever tag a query bears, and none at all where the model has no prompts, its vector is the same."""
    texts = [say.asked(say.QUERY), say.instructed(say.QUERY), f"search_query: {say.QUERY}", say.QUERY]
    (answer,) = replay(mini_box, Step("/v1/embeddings", embedding(texts), [vectors]))
    first, *others = answer.json["data"]
    assert all(alike(first, other) for other in others)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", embedding("a")),
        ("/v1/rerank", {"model": say.RERANKER, "query": "q", "documents": ["a"]}),
        ("/v1/chat/completions", CHAT),
    ],
)
def test_a_wrong_key_is_final(box, path, body):
    """401 for a key that is not the server's and for none: it does not try again."""
    needs = [refused(401, "invalid_api_key")]
    replay(box, Step(path, body, needs), key="another")
    replay(box, Step(path, body, needs), key="")
