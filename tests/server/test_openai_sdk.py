"""The OpenAI Python SDK as a client."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest

from qmd_remote.presets import MINI_EMBED

TEXTS = ["the sea", "a river", "", "水と空"]


@pytest.fixture
def client(mini_url):
    """The SDK, pointed at the server as its users do."""
    with openai.OpenAI(base_url=f"{mini_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_floats_and_base64_are_the_same_vectors(client):
    """The SDK's own default (base64), base64 asked for and floats agree bit for bit."""

    def vectors(**fields):
        data = client.embeddings.create(model="any", input=TEXTS, **fields).data
        assert [item.index for item in data] == [0, 1, 2, 3]
        return [item.embedding for item in data]

    default = np.array(vectors(), dtype=np.float32)
    floats = np.array(vectors(encoding_format="float"), dtype=np.float32)
    # asked for by name, base64 comes out of the SDK undecoded
    coded = np.array([np.frombuffer(base64.b64decode(text), "<f4") for text in vectors(encoding_format="base64")])
    assert default.shape == (4, 384)
    assert np.array_equal(default, floats)
    assert np.array_equal(default, coded)


def test_usage(client):
    """The SDK reads the usage it knows, and keeps what it does not."""
    usage = client.embeddings.create(model="any", input=["the sea", "word " * 5000]).usage
    assert (260, 260, {"truncated": 1}) == (usage.prompt_tokens, usage.total_tokens, usage.model_extra)


def test_dimensions(client):
    """The SDK's dimensions are the vectors' length."""
    answer = client.embeddings.create(model="any", input="the sea", dimensions=32)
    assert len(answer.data[0].embedding) == 32


def test_models(client):
    """The SDK lists the real model."""
    assert [model.id for model in client.models.list()] == [MINI_EMBED]


def test_a_wrong_request_is_the_sdks_own_error(client):
    """The SDK reads param and code out of the answer."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="any", input=[])
    assert (refused.value.param, refused.value.code) == ("input", "invalid_value")


def test_a_wrong_key_is_the_sdks_own_error(serve):
    """A 401 is an AuthenticationError, and the right key works."""
    host, port = serve(api_key="right").address
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        answer = client.with_options(api_key="right").embeddings.create(model="any", input="a")
    assert len(answer.data[0].embedding) == 8
