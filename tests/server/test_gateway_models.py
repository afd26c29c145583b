"""What the embed server says of the generation service behind it, and clients that know this server alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from qmd_remote.client.discovery import fetch_models
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.server import gateway
from tests.server.generation_service import KEY, PATIENCE_S, behind, good, say


def test_the_list_of_models_tells_their_roles(serve, service):
    """The embed server's models first, then the service's; the one that runs here is the first of those."""
    port = int(service.place.rpartition(":")[2])
    server = serve(generation_engine="process", generation_port=port, generation_model="own/llm")
    data = server.http.get("/v1/models").json()["data"]
    assert [
        ("fake/embedder", "embed", "qmd-remote"),
        ("fake/reranker", "rerank", "qmd-remote"),
        ("own/llm", "generate", "generation"),
        ("some/other", "generate", "generation"),
    ] == [(model["id"], model["qmd_remote_role"], model["owned_by"]) for model in data]
    assert server.http.get("/v1/models").json()["data"] == data
    assert 1 == len(service.requests)


def test_a_list_that_was_not_had_is_asked_for_again(door, service):
    """A service that comes up later is listed from then on."""
    service.answer = lambda handler, _: say(handler, 503, b"{}")
    assert ["fake/embedder", "fake/reranker"] == listed(door)
    service.answer = good
    assert ["fake/embedder", "fake/reranker", "some/other", "own/llm"] == listed(door)


def listed(server):
    """The ids in the server's list."""
    answer = server.http.get("/v1/models")
    assert answer.status_code == 200
    return [model["id"] for model in answer.json()["data"]]


def test_a_list_that_is_none_changes_nothing(door, service):
    """Whatever the service says of its models, this server's own are listed."""
    odd = [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data": 3}',
        b'{"data": [3, {"id": null}, {"id": ""}]}',
        b"[" * 9000,
        b"\xff",
    ]
    for said in (*odd, b" " * (gateway.MAX_LIST_BYTES + 1)):
        service.answer = lambda handler, _, said=said: say(handler, 200, said)
        assert ["fake/embedder", "fake/reranker"] == listed(door)
    assert len(odd) + 1 == len(service.requests)


def test_a_silent_service_does_not_hold_up_the_list(door, service, monkeypatch):
    """The list comes without it, and all who wait for it ask once."""
    monkeypatch.setattr(gateway, "MODELS_S", 0.5)
    service.answer = service.until_hung_up
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: listed(door), range(4)))
    assert [["fake/embedder", "fake/reranker"]] * 4 == answers
    assert service.hung_up.wait(PATIENCE_S)


def test_health_tells_whether_there_is_generation(serve, service):
    """On or off, and the model where it is known; a stranger is told nothing of it."""
    assert {"model": None, "state": "off"} == serve().http.get("/health").json()["generation"]
    ours = serve(generation_engine="process", generation_model="own/llm")
    assert {"model": "own/llm", "state": "on", "expansions": "on"} == ours.http.get("/health").json()["generation"]
    theirs = behind(serve, service.url)
    assert {"model": None, "state": "on", "expansions": "on"} == theirs.http.get("/health").json()["generation"]
    theirs.http.get("/v1/models")
    assert {"model": "some/other", "state": "on", "expansions": "on"} == theirs.http.get("/health").json()["generation"]
    assert {"embed", "rerank"} == set(theirs.http.get("/health").json()["models"])
    assert "generation" not in serve(api_key=KEY).http.get("/health").json()


def test_one_url_gives_all_three_names(serve, service):
    """A client that knows this server alone learns each endpoint's model."""
    host, port = behind(serve, service.url, api_key=KEY).address
    url = f"http://{host}:{port}"
    told = fetch_models(url, url, KEY)
    assert (ModelNames("fake/embedder", "some/other", "fake/reranker"), True) == (told.models, told.needs_key)


def test_the_openai_sdk_chats_through_the_door(serve, service):
    """The SDK gets its answer whole and streamed, its errors as its own kinds, and the model's name from the list."""
    host, port = behind(serve, service.url, api_key=KEY).address
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key=KEY, max_retries=0) as client:
        model = next(one.id for one in client.models.list() if one.qmd_remote_role == "generate")
        messages = [{"role": "user", "content": "tea?"}]
        answer = client.chat.completions.create(model=model, messages=messages)
        assert "green tea" == answer.choices[0].message.content
        pieces = client.chat.completions.create(model=model, messages=messages, stream=True)
        assert ["green", " tea"] == [piece.choices[0].delta.content for piece in pieces]
        service.answer = lambda handler, _: say(handler, 404, b'{"error": {"message": "no such model"}}')
        with pytest.raises(openai.NotFoundError, match="no such model"):
            client.chat.completions.create(model="x", messages=messages)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").chat.completions.create(model=model, messages=messages)
    assert {"some/other"} == {json.loads(asked.body)["model"] for asked in service.requests if asked.body} - {"x"}
