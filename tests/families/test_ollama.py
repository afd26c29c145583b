"""The client of Ollama's API (QMD's pull request 769): bare URLs, `/api/embed`, `/api/generate`, and `score`."""

from __future__ import annotations

import json
import math

import pytest

from qmd_remote.expansion import parse
from tests.families import sayings as say
from tests.families.conftest import LLM
from tests.families.replay import Step, nearest, ok, ranking_by_score, refused, replay

MODEL = "nomic-embed-text:latest"
WRITER = "qwen3:0.6b"
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "num_predict": 400}
EXPANSION = {"model": WRITER, "system": say.INSTRUCTIONS, "prompt": f"/no_think {say.QUERY}", "options": SAMPLING}


def embeddings(answer):
    """One vector of length 1 for each text, in order, under the model's name that was sent, and nanoseconds."""
    ok(answer)
    texts, rows = answer.sent["input"], answer.json["embeddings"]
    assert (1 if isinstance(texts, str) else len(texts)) == len(rows)
    assert 1 == len({len(row) for row in rows})
    assert all(math.isclose(1, math.hypot(*row), rel_tol=1e-3) for row in rows)
    assert answer.sent["model"] == answer.json["model"]
    assert all(type(answer.json[name]) is int for name in ("total_duration", "load_duration", "prompt_eval_count"))
    assert 0 < answer.json["total_duration"]


def told(answer):
    """The text of an answer that is whole, or of a stream's lines, of which the last one is done, and no other."""
    assert 200 == answer.status, answer.content
    lines = [json.loads(line) for line in answer.content.splitlines()]
    kind = "application/x-ndjson" if answer.sent.get("stream", True) else "application/json"
    assert kind == answer.headers["content-type"]
    assert [False] * (len(lines) - 1) + [True] == [line["done"] for line in lines]
    assert {answer.sent["model"]} == {line["model"] for line in lines}
    assert all(line["created_at"].endswith("Z") for line in lines)
    assert "stop" == lines[-1]["done_reason"]
    return "".join(line["response"] for line in lines)


def expanded(answer):
    """Lines that the client takes as an expansion, and nothing that it would lose."""
    found = parse(told(answer), say.QUERY)
    assert (True, ()) == (found.accepted, found.dropped), found.reason


def items(answer):
    """The vectors as items of OpenAI's form."""
    return [{"embedding": row} for row in answer.json["embeddings"]]


def test_index_and_query(mini_box):
    """Notes, a query and its expansion; the note that answers the query is the nearest."""
    texts = [say.titled(note) for note in say.NOTES]
    stored, asked, _ = replay(
        mini_box,
        Step("/api/embed", {"model": MODEL, "input": texts, "truncate": True, "keep_alive": "5m"}, [embeddings]),
        Step("/api/embed", {"model": MODEL, "input": say.asked(say.QUERY)}, [embeddings]),
        Step("/api/generate", {**EXPANSION, "stream": False}, [ok, expanded]),
    )
    assert say.ANSWER == nearest(items(asked)[0], items(stored))


def test_full_sizes(box):
    """A batch of whole chunks, and one of them with half an emoji at its end."""
    chunks = [say.chunk(number) for number in range(say.BATCH)]
    chunks[3] = chunks[3][:-1] + "\ud83d"
    replay(box, Step("/api/embed", {"model": MODEL, "input": chunks}, [embeddings]))


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"stream": False}, {"think": False, "keep_alive": -1}])
@pytest.mark.parametrize("form", [{}, {"system": None, "prompt": f"/no_think Expand this search query: {say.QUERY}"}])
def test_an_expansion_in_every_form(box, more, form):
    """Streamed or not, with instructions or without: no line of the engine's own reaches it unrepaired."""
    replay(box, Step("/api/generate", {**EXPANSION, **form, **more}, [expanded]))


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_of_another_kind(box, generation, stream):
    """It is put to the service's own model as a chat, and what that says comes back as it is."""
    body = {"model": WRITER, "prompt": "Tea or coffee?", "stream": stream, "options": SAMPLING}
    (answer,) = replay(box, Step("/api/generate", body))
    assert told(answer).startswith("Sure!\n1. **Lex:**")
    assert LLM == json.loads(generation.requests[-1].body)["model"]
    last = json.loads(answer.content.splitlines()[-1])
    assert (7, 9) == (last["prompt_eval_count"], last["eval_count"])


def test_rankings_by_score(box):
    """`score` is the same number as `relevance_score`."""
    body = {"model": "m", "query": say.QUERY, "documents": say.candidates()}
    (answer,) = replay(box, Step("/rerank", body, [ranking_by_score]))
    assert all(result["score"] == result["relevance_score"] for result in answer.json["results"])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/embed", {"model": MODEL}, "input"),
        ("/api/embed", {"model": MODEL, "input": []}, "input"),
        ("/api/embed", {"model": MODEL, "input": ["a", 1]}, "input[1]"),
        ("/api/embed", {"model": MODEL, "input": "a", "dimensions": 10_000}, "dimensions"),
        ("/api/embed", {"model": MODEL, "input": "word " * 9000, "truncate": False}, "truncate"),
        ("/api/generate", {"model": WRITER}, "prompt"),
        ("/api/generate", {"model": WRITER, "prompt": "a", "options": {"top_k": "many"}}, "options.top_k"),
        ("/api/generate", {"model": WRITER, "prompt": "a", "images": ["aGk="]}, "images"),
    ],
)
def test_errors(box, path, body, field):
    """Errors have OpenAI's shape here, too, and name the field; without the key there is nothing."""
    (answer,) = replay(box, Step(path, body, [refused(400)]))
    assert field == answer.json["error"]["param"]
    replay(box, Step(path, body, [refused(401, "invalid_api_key")]), key="")
