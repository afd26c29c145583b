"""Replays what a client sends, over a real socket, and holds each answer to what that client does with it.

A client's sequence is a table: a `Step` is one request, and `needs` are the functions that judge its answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from qmd_remote.expansion import parse

PATIENCE_S = 120
KEY = "families-key"
SURROGATE = re.compile("[\ud800-\udfff]")

# what Node's fetch sends besides
FETCH = {
    "accept": "*/*",
    "accept-language": "*",
    "sec-fetch-mode": "cors",
    "user-agent": "node",
    "accept-encoding": "gzip, deflate",
    "content-type": "application/json",
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back for `sent`, the body of the request."""

    sent: Any
    status: int
    headers: httpx.Headers
    content: bytes
    peer: Any

    @property
    def json(self) -> Any:
        """The body, read as strictly as a client reads it: NaN and Infinity are no JSON."""
        return json.loads(self.content, parse_constant=_no_number)


Need = Callable[[Answer], None]


@dataclass(frozen=True)
class Step:
    """One request, and what the client needs of its answer. A body that is bytes goes out as it is."""

    path: str
    body: Any = None
    needs: Sequence[Need] = ()
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


def replay(url: str, *steps: Step, key: str = KEY) -> list[Answer]:
    """Send the steps one after another over one connection, with `key` if there is one; the answers, all as needed."""
    headers = FETCH | ({"authorization": f"Bearer {key}"} if key else {})
    answers = []
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False) as client:
        for step in steps:
            content = step.body if isinstance(step.body, bytes) else stringified(step.body)
            said = client.request(step.method, step.path, content=content, headers=dict(step.headers))
            peer = said.extensions["network_stream"].get_extra_info("client_addr")
            answer = Answer(step.body, said.status_code, said.headers, said.content, peer)
            for need in step.needs:
                need(answer)
            answers.append(answer)
    return answers


def stringified(body: Any) -> bytes | None:
    """JSON as JavaScript writes it: no spaces, text as UTF-8, and of it a lone surrogate as its escape, \\ud83d."""
    if body is None:
        return None
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text).encode()


def _no_number(constant: str) -> None:
    raise AssertionError(f"{constant} in an answer")


def ok(answer: Answer) -> None:
    """A success, in JSON."""
    assert (200, "application/json") == (answer.status, answer.headers.get("content-type")), answer.content


def vectors(answer: Answer) -> None:
    """One vector for each text, in order, with its index; all of one length, of finite numbers, none of them zero."""
    ok(answer)
    data, texts = answer.json["data"], answer.sent["input"]
    assert list(range(1 if isinstance(texts, str) else len(texts))) == [item["index"] for item in data]
    rows = [item["embedding"] for item in data]
    assert 1 == len({len(row) for row in rows})
    assert all(isinstance(value, float | int) and math.isfinite(value) for row in rows for value in row)
    assert all(math.isclose(1, math.hypot(*row), rel_tol=1e-3) for row in rows)


def scores_by(name: str) -> Need:
    """Every document exactly once, each with a score in [0, 1] under `name`."""

    def need(answer: Answer) -> None:
        ok(answer)
        results, documents = answer.json["results"], answer.sent["documents"]
        wanted = min(answer.sent.get("top_n") or len(documents), len(documents))
        indices = [result["index"] for result in results]
        assert wanted == len(set(indices)) == len(indices)
        assert set(indices) <= set(range(len(documents)))
        assert all(0 <= result[name] <= 1 for result in results)
        assert len({result[name] for result in results}) > 1 or len(results) == 1, "all the same: nothing is ranked"

    return need


ranking = scores_by("relevance_score")
ranking_by_score = scores_by("score")


def first_is(index: int) -> Need:
    """The document that answers the query is the best one."""

    def need(answer: Answer) -> None:
        best = max(answer.json["results"], key=lambda result: result["relevance_score"])
        assert index == best["index"], answer.json["results"]

    return need


def similarity(one: Json, other: Json) -> float:
    """The cosine of two items of an answer's data."""
    return sum(map(float.__mul__, map(float, one["embedding"]), map(float, other["embedding"])))


def alike(one: Json, other: Json) -> bool:
    """Whether two items have the same vector, but for the last bits of a computation in another batch."""
    return similarity(one, other) > 1 - 1e-4


def nearest(query: Json, documents: Sequence[Json]) -> int:
    """The document whose vector is most like the query's."""
    return max(range(len(documents)), key=lambda index: similarity(query, documents[index]))


def without_texts(answer: Answer) -> None:
    """The documents do not come back."""
    assert not any("document" in result for result in answer.json["results"])


def same_model(answer: Answer) -> None:
    """`model` is the name in the request; the header tells the real one, which is another."""
    assert answer.sent["model"] == answer.json["model"]
    assert answer.headers["x-qmd-remote-model"] not in {"", answer.sent["model"]}


def objects(answer: Answer) -> None:
    """OpenAI's `object` fields."""
    assert "list" == answer.json["object"]
    assert all("embedding" == item["object"] for item in answer.json.get("data", ()))


def whole_usage(answer: Answer) -> None:
    """Tokens as integers, more than none."""
    usage = answer.json["usage"]
    assert all(type(usage[name]) is int and usage[name] > 0 for name in ("prompt_tokens", "total_tokens"))


def expands(query: str) -> Need:
    """Lines that the client takes as an expansion of `query`, and nothing that it would lose."""

    def need(answer: Answer) -> None:
        ok(answer)
        choice = answer.json["choices"][0]
        found = parse(choice["message"]["content"] if "message" in choice else choice["text"], query)
        assert found.accepted, found.reason
        assert () == found.dropped
        assert any(line.kind == "vec" for line in found.lines)

    return need


def refused(status: int, code: str = "") -> Need:
    """An error of this status in OpenAI's shape."""

    def need(answer: Answer) -> None:
        assert (status, "application/json") == (answer.status, answer.headers["content-type"]), answer.content
        assert {"error"} == set(answer.json)
        error = answer.json["error"]
        assert {"message", "type", "param", "code"} == set(error)
        assert isinstance(error["message"], str)
        assert error["message"]
        assert code in {"", error["code"]}

    return need


def lists(*names: str) -> Need:
    """OpenAI's list of models, with these among them."""

    def need(answer: Answer) -> None:
        ok(answer)
        assert "list" == answer.json["object"]
        assert set(names) <= {item["id"] for item in answer.json["data"]}

    return need
