"""Asking running services for their models' names and their need for a key."""

from __future__ import annotations

import pytest

from qmd_remote.client.discovery import fetch_models
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.errors import ConfigError

NOTHING = (ModelNames(), None)
OURS = {
    "embed": {"id": "one/embed", "qmd_remote_role": "embed"},
    "rerank": {"id": "one/rerank", "qmd_remote_role": "rerank"},
    "generate": {"id": "own/llm", "qmd_remote_role": "generate"},
    "more": {"id": "some/other", "qmd_remote_role": "generate"},
}


def found(*args, **options):
    """Names and need for a key."""
    told = fetch_models(*args, **options)
    return told.models, told.needs_key


def test_names_come_from_health_and_the_model_list(serve):
    """/health names the embed server's models, /v1/models the generation service's."""
    generation = serve(v1_models=lambda *_: {"data": [{"id": "own/llm"}, {"id": "other"}]})

    assert (ModelNames("real/embed", "own/llm", "real/rerank"), False) == found(serve().url, generation.url)


def test_a_server_with_a_key_is_recognised(serve):
    """Without the key the names stay hidden, and it is known that one is needed; with it the names come."""
    stub = serve(key="k", health=lambda *_: {"status": "ok"})

    assert (ModelNames(), True) == found(stub.url, None)
    assert (ModelNames("real/embed", None, "real/rerank"), True) == found(stub.url, None, "k")


def test_one_model_for_both_is_named_twice(serve):
    """A list with one name stands for the embedder and the reranker."""
    stub = serve(health=None, v1_models=lambda *_: {"data": [{"id": "one"}]})

    assert (ModelNames("one", None, "one"), False) == found(stub.url, None)


def test_one_url_for_all_tells_each_models_role(serve):
    """In our own server's list the generation model comes after the others, and is known by its role."""
    stub = serve(v1_models=lambda *_: {"data": [OURS["embed"], OURS["rerank"], OURS["generate"], OURS["more"]]})

    assert (ModelNames("real/embed", "own/llm", "real/rerank"), False) == found(stub.url, stub.url)
    assert (ModelNames("real/embed", "own/llm", "real/rerank"), False) == found(serve().url, stub.url)


def test_our_own_list_alone_tells_all_names(serve):
    """Where /health hides the models, roles keep the generation model from being taken for a reranker."""
    listed = [OURS["embed"], OURS["generate"]]
    stub = serve(health=lambda *_: {"status": "ok"}, v1_models=lambda *_: {"data": listed})

    assert (ModelNames("one/embed", "own/llm", "one/embed"), False) == found(stub.url, stub.url)


def test_our_own_server_without_generation_names_no_model_for_it(serve):
    """Its first model embeds: it is not the one to chat with."""
    stub = serve(v1_models=lambda *_: {"data": [OURS["embed"], OURS["rerank"]]})

    assert ModelNames("real/embed", None, "real/rerank") == fetch_models(stub.url, stub.url).models


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        {"data": "x"},
        {"data": [{"id": 3}, "x"]},
        [],
        (500, {}),
        {"models": ["a"]},
        b"\xff",
    ],
)
def test_other_services_tell_nothing(serve, answer):
    """Whatever else answers on the port, no name is made of it and nothing fails."""
    stub = serve(health=lambda *_: answer, v1_models=lambda *_: answer)

    assert ModelNames() == fetch_models(stub.url, stub.url).models


@pytest.mark.parametrize("url", ["http://nonexistent.invalid", "box:8001", "http://[::1", "http://x:99999", ""])
def test_what_does_not_answer_is_not_known(url, closed_port):
    """A closed port, a name that does not resolve and a text that is no URL give None."""
    assert NOTHING == found(url, f"http://127.0.0.1:{closed_port}")


def test_services_that_never_answer_are_given_up(silent):
    """The wait has an end, and nothing is known then."""
    assert NOTHING == found(silent, silent, timeout=0.3)


def test_a_key_that_no_header_can_hold_is_refused(serve):
    """The key is checked before anything is asked."""
    with pytest.raises(ConfigError):
        fetch_models(serve().url, None, "schlüssel")
