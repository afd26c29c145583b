"""Packages that other clients are made with: openai, cohere and langchain-openai, as their users call them."""

from __future__ import annotations

import base64

import cohere
import numpy as np
import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings

from qmd_remote.presets import MINI_EMBED
from tests.families import sayings as say
from tests.families.replay import KEY
from tests.server.tiny_models import mini_folder

MODEL = "text-embedding-3-small"
LARGE = 60_000  # ids from here on are in OpenAI's vocabularies, and not in MiniLM's


@pytest.fixture
def sdk(mini_box):
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{mini_box}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def cohere_sdk(mini_box):
    """Cohere's client: it adds /v2 to its URL itself."""
    return cohere.ClientV2(api_key=KEY, base_url=mini_box)


def langchain(url, **fields):
    """LangChain's embeddings."""
    fields = {"model": MODEL, "api_key": KEY, "max_retries": 0, **fields}
    return OpenAIEmbeddings(base_url=f"{url}/v1", **fields)


def of_bytes(first):
    """An encoding with a token for each byte, from this id on: OpenAI's own would have to be downloaded."""
    ranks = {bytes([value]): first + value for value in range(256)}
    return tiktoken.Encoding(f"bytes from {first}", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={})


@pytest.fixture
def tokens(monkeypatch):
    """Let LangChain find that encoding for every model: `tokens(first id)`."""

    def put(first):
        monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: of_bytes(first))

    return put


def best(query, rows):
    """The row that is most like the query."""
    return max(range(len(rows)), key=lambda index: sum(map(float.__mul__, query, rows[index])))


def test_openai_embeddings(sdk):
    """A batch in the SDK's own encoding finds the right note, under the name that was asked for."""
    stored = sdk.embeddings.create(model=MODEL, input=list(say.NOTES))
    (asked,) = sdk.embeddings.create(model=MODEL, input=say.QUERY).data
    assert say.ANSWER == best(asked.embedding, [item.embedding for item in stored.data])
    assert (MODEL, "list", 4) == (stored.model, stored.object, len(stored.data))


def test_openai_chat_and_models(sdk):
    """Generation and the list of models come through the same door."""
    assert [MINI_EMBED, "own/llm"] == [model.id for model in sdk.models.list()]
    said = sdk.chat.completions.create(model="own/llm", messages=[{"role": "user", "content": "tea?"}])
    assert said.choices[0].message.content


def test_openai_errors(sdk):
    """Its own exceptions, with what the server says is wrong."""
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model=MODEL, input="a", dimensions=100_000)
    assert "dimensions" == refused.value.param
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="another").models.list()


def test_cohere_rerank(cohere_sdk):
    """All candidates, or the best of them, as the SDK's own objects."""
    documents = say.few()
    everyone = cohere_sdk.rerank(model="rerank-v3.5", query=say.QUERY, documents=documents).results
    assert list(range(len(documents))) == sorted(result.index for result in everyone)
    assert all(0 <= result.relevance_score <= 1 for result in everyone)
    (one,) = cohere_sdk.rerank(
        model="rerank-v3.5", query=say.QUERY, documents=documents, top_n=1, max_tokens_per_doc=512
    ).results
    assert say.ANSWER == one.index


@pytest.mark.parametrize("kind", ["float", "base64"])
def test_cohere_embed(cohere_sdk, kind):
    """The SDK's own objects, in either form of a vector, and the right note is the nearest."""

    def rows(texts, input_type):
        found = cohere_sdk.embed(model="embed-v4.0", texts=texts, input_type=input_type, embedding_types=[kind])
        assert (texts, "2") == (found.texts, found.meta.api_version.version)
        if kind == "float":
            assert found.embeddings.base64 is None
            return found.embeddings.float_
        return [np.frombuffer(base64.b64decode(text), dtype="<f4").tolist() for text in found.embeddings.base64]

    stored = rows(list(say.NOTES), "search_document")
    assert [384] * len(say.NOTES) == list(map(len, stored))
    (asked,) = rows([say.QUERY], "search_query")
    assert say.ANSWER == best(asked, stored)


def test_cohere_errors(mini_box, cohere_sdk):
    """Its own exceptions for a wrong key, for no documents, and for vectors in a form that there is not."""
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2(api_key="another", base_url=mini_box).rerank(model="m", query="q", documents=["a"])
    with pytest.raises(cohere.BadRequestError) as refused:
        cohere_sdk.rerank(model="m", query="q", documents=[])
    assert "documents" == refused.value.body["error"]["param"]
    with pytest.raises(cohere.BadRequestError) as refused:
        cohere_sdk.embed(model="m", texts=["a"], input_type="search_query", embedding_types=["int8"])
    assert "embedding_types[0]" == refused.value.body["error"]["param"]


@pytest.mark.parametrize(
    "fields",
    [
        {"check_embedding_ctx_length": False},
        {"tiktoken_enabled": False, "tiktoken_model_name": str(mini_folder())},
    ],
    ids=["texts as they are", "cut by the model's own tokenizer"],
)
def test_langchain_texts(mini_box, fields):
    """Texts reach the model as texts, an empty one too, and the right note is found."""
    client = langchain(mini_box, **fields)
    rows = client.embed_documents([*say.NOTES, ""])
    assert [384] * 5 == list(map(len, rows))
    assert say.ANSWER == best(client.embed_query(say.QUERY), rows[:-1])


def test_langchain_token_arrays(mini_box, tokens):
    """Its default sends token arrays, long texts in pieces; each text gets a vector."""
    tokens(1000)
    client = langchain(mini_box, embedding_ctx_length=100, chunk_size=2)
    rows = client.embed_documents(["short", say.chunk(1, 450), "", "last"])
    assert [384] * 4 == list(map(len, rows))
    assert rows[0] == pytest.approx(client.embed_query("short"), abs=1e-5)


def test_langchain_tokens_of_another_vocabulary(mini_box, tokens):
    """Tokens that the model does not have are refused, not turned into other words."""
    tokens(LARGE)
    with pytest.raises(openai.BadRequestError) as refused:
        langchain(mini_box).embed_query("short")
    assert "input" == refused.value.param
