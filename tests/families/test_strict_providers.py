"""Clients that check every field (QMD's pull request 902, the fork of wei840222): `provider: openai` and an endpoint.

An answer whose `model` is another, without `object` or with one score outside [0, 1] is refused as a whole.
"""

from __future__ import annotations

import pytest

from tests.families import sayings as say
from tests.families.replay import (
    Step,
    first_is,
    objects,
    ranking,
    refused,
    replay,
    same_model,
    vectors,
    whole_usage,
)

STRICT = [same_model, objects, whole_usage]
RANKED = {"model": "bge-reranker-v2-m3", "query": say.QUERY, "documents": say.candidates()}


@pytest.mark.parametrize("name", ["text-embedding-3-small", "qwen3-embedding:0.6b", "ein Modell/名前", ""])
def test_vectors(box, name):
    """`model` comes back as it was sent, whatever it is; `object` and usage are OpenAI's."""
    replay(f"{box}/v1", Step("/embeddings", {"model": name, "input": list(say.NOTES)}, [vectors, *STRICT]))


def test_rankings(box):
    """All forty, in [0, 1], under the requested name."""
    replay(f"{box}/v1", Step("/rerank", RANKED, [ranking, *STRICT]))


def test_a_query_finds(mini_box):
    """The note that answers the query is ranked first."""
    body = {**RANKED, "documents": say.few()}
    replay(f"{mini_box}/v1", Step("/rerank", body, [ranking, first_is(say.ANSWER), *STRICT]))


def test_equal_documents(mini_box):
    """Rounding lifts no score above 1: the query itself among the documents."""
    body = {**RANKED, "documents": [say.QUERY] * 20 + [""]}
    replay(f"{mini_box}/v1", Step("/rerank", body, [ranking]))


def test_without_the_setting_the_real_name_is_told(small_door, tiny_model):
    """Its refusal of all answers is avoided by the setting alone: by default `model` is the real one."""
    (answer,) = replay(small_door(), Step("/v1/embeddings", {"model": "any", "input": "a"}, [vectors, objects]))
    real = answer.headers["x-qmd-remote-model"]
    assert real == answer.json["model"] != "any"
    assert tiny_model.endswith(real.rpartition("/")[2])


def test_errors(box):
    """A wrong key, a model's name that is none, and no documents."""
    base = f"{box}/v1"
    replay(base, Step("/rerank", RANKED, [refused(401, "invalid_api_key")]), key="another")
    for field, value in (("model", 7), ("documents", []), ("query", None)):
        (answer,) = replay(base, Step("/rerank", {**RANKED, field: value}, [refused(400)]))
        assert field == answer.json["error"]["param"]
