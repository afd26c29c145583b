"""The checks of the embed server: embeddings, reranking, health and the need for a key."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx

from qmd_remote.client import probe_texts
from qmd_remote.client.causes import Cause
from qmd_remote.client.http import Answer
from qmd_remote.client.service import OVERFLOW, CheckFailed, Service, Verdict, wrong

EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
HEALTH_S = 10.0
UNIT_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-6
SAME_TEXT_COSINE = 0.99

Vector = list[float]

_ONE_SIGMOID = "the server must apply exactly one sigmoid to the reranker's logits"


def check_health(service: Service) -> Verdict:
    """GET /health, which no request of QMD's depends on: only a server that reports a failure fails here."""
    try:
        answer = service.ask("/health", limit_s=HEALTH_S)
    except CheckFailed as failure:
        if isinstance(failure.__cause__, httpx.ReadTimeout):
            return Verdict("warn", failure.cause.message, failure.cause.fix)
        raise
    return judge_health(answer)


def judge_health(answer: Answer) -> Verdict:
    """What /health says, in one line. Raises CheckFailed when it says that the server cannot serve."""
    try:
        said = answer.json()
    except ValueError:
        said = None
    status = said.get("status") if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(status, str):
        return Verdict("warn", f"{answer.status}, not in the form of qmd-remote; QMD does not ask for it")
    if status == "loading":
        phase = said.get("phase") or "models"
        return Verdict("warn", f"loading: {phase}", "wait until it is ready: qmd-remote status")
    if answer.status >= 400:
        error = said.get("error")
        message = error.get("message") if isinstance(error, dict) else ""
        fix = error.get("hint") if isinstance(error, dict) else ""
        text = f"the server reports: {message or status}"
        raise CheckFailed(Cause("unhealthy", text, fix or "see its log: qmd-remote logs", hopeless=True))
    models = said.get("models")
    named = (
        [f"{role} {name}" for role, name in models.items() if isinstance(name, str)] if isinstance(models, dict) else []
    )
    device = [f"on {said['device']}"] if isinstance(said.get("device"), str) else []
    return Verdict("ok", " · ".join([status, *named, *device]))


class EmbedChecks:
    """The rows of the embed server. The vector of the single text is what the later ones are compared with."""

    def __init__(self, service: Service, embed_model: str, rerank_model: str) -> None:
        self.service = service
        self.embed_model = embed_model
        self.rerank_model = rerank_model
        self.single: Vector = []

    def run(self, *, quick: bool) -> None:
        """Run every check, or with `quick` those that take little: health, one text, three documents."""
        check = self.service.check
        check("health", "GET /health", "no body", lambda: check_health(self.service))
        check("one text", f"POST {EMBEDDINGS}", "1 string, to find the dimension", self.one_text)
        if quick:
            check("rerank", f"POST {RERANK}", "3 documents of 200 characters", lambda: self.rerank(3, 200))
            return
        check("batch", f"POST {EMBEDDINGS}", "32 texts of 600 characters", self.batch)
        check("half an emoji", f"POST {EMBEDDINGS}", "2 texts, one with the lone surrogate \\ud83d", self.cut_emoji)
        count, characters = probe_texts.RERANK_DOCUMENTS, probe_texts.RERANK_CHARACTERS
        sent = f"1 text of {probe_texts.CHINESE_CHARACTERS} Chinese characters"
        check("long Chinese text", f"POST {EMBEDDINGS}", sent, self.chinese)
        sent = f"{count} documents of {characters} characters"
        check("rerank", f"POST {RERANK}", sent, lambda: self.rerank(count, characters))
        check("key", f"POST {EMBEDDINGS}", "1 string without the key", self.key)

    def embed(self, texts: str | list[str]) -> tuple[list[Vector], bool]:
        """The vectors of texts by index, and whether they came in that order."""
        answer = self.service.ask(EMBEDDINGS, {"model": self.embed_model, "input": texts})
        data = self.service.json(answer)
        if not isinstance(data, dict) or not isinstance(data.get("data"), list):
            raise self.service.refusal(answer)
        vectors, in_order = read_embeddings(data["data"], 1 if isinstance(texts, str) else len(texts))
        if self.single and len(vectors[0]) != len(self.single):
            raise wrong(f"{len(vectors[0])} numbers a vector, and {len(self.single)} for a single text")
        return vectors, in_order

    def one_text(self) -> Verdict:
        """The request with which QMD finds the dimension."""
        [vector], _ = self.embed(probe_texts.chunks()[-1])
        self.single = vector
        return Verdict("ok", f"{len(vector)} dimensions, length {_length(vector):.4f}")

    def batch(self) -> Verdict:
        """A full batch of QMD's: every index once, and each vector under the index of its text."""
        texts = probe_texts.chunks()
        vectors, in_order = self.embed(texts)
        if self.single and _cosine(vectors[-1], self.single) < SAME_TEXT_COSINE:
            raise wrong(
                "the same text has another vector in a batch than alone: `index` does not fit, or padding counts"
            )
        if not in_order:
            fix = "some clients trust the order and ignore `index`: answer in the order of the input"
            return Verdict("warn", f"{len(vectors)} vectors, every index once, but out of order", fix)
        return Verdict("ok", f"{len(vectors)} vectors of {len(vectors[0])}, every index once")

    def cut_emoji(self) -> Verdict:
        """A text that is no valid Unicode must not cost its whole batch."""
        vectors, _ = self.embed(probe_texts.cut_emoji())
        return Verdict("ok", f"{len(vectors)} vectors")

    def chinese(self) -> Verdict:
        """A chunk of QMD's longest kind, counted in tokens."""
        vectors, _ = self.embed([probe_texts.chinese()])
        return Verdict("ok", f"{len(vectors)} vector of {len(vectors[0])}")

    def rerank(self, count: int, characters: int) -> Verdict:
        """One query against many documents, of which one answers it."""
        documents, planted = probe_texts.rerank_documents(count, characters)
        body = {"model": self.rerank_model, "query": probe_texts.QUERY, "documents": documents}
        answer = self.service.ask(RERANK, body)
        data = self.service.json(answer)
        if not isinstance(data, dict) or not isinstance(data.get("results"), list):
            raise self.service.refusal(answer)
        return judge_scores(read_scores(data["results"], count), planted)

    def key(self) -> Verdict:
        """A request without the key must be turned away."""
        if not self.service.key:
            return Verdict("skip", "no key is set")
        body = {"model": self.embed_model, "input": "Who is there?"}
        answer = self.service.ask(EMBEDDINGS, body, with_key=False)
        if answer.status in {401, 403}:
            return Verdict("ok", f"{answer.status}, as it should be")
        if answer.status == 200:
            fix = "start the server with this key, or take the key out of the client"
            return Verdict("warn", "200: the server serves everybody, without a key", fix)
        raise self.service.refusal(answer)


def read_embeddings(items: list[Any], count: int) -> tuple[list[Vector], bool]:
    """The vectors by index, and whether they came in that order; of a single text the index does not matter.

    Raises CheckFailed for whatever corrupts QMD's table: a missing index, other things than numbers, NaN, another
    length than 1.
    """
    if len(items) != count:
        raise wrong(f"{len(items)} vectors came back for {count} texts")
    entries = [item if isinstance(item, dict) else {} for item in items]
    indices: list[Any] = [entry.get("index") for entry in entries] if count > 1 else [0]
    _require_every_index(indices, count)
    vectors: list[Vector] = [[] for _ in range(count)]
    for index, entry in zip(indices, entries, strict=True):
        vectors[index] = _read_vector(entry.get("embedding"), index)
    lengths = {len(vector) for vector in vectors}
    if len(lengths) > 1:
        raise wrong(f"the vectors have different dimensions: {', '.join(map(str, sorted(lengths)))}")
    return vectors, indices == sorted(indices)


def read_scores(items: list[Any], count: int) -> list[float]:
    """The scores by index. Raises CheckFailed unless there is one in [0, 1] for every document."""
    entries = [item if isinstance(item, dict) else {} for item in items]
    if len(entries) != count:
        raise wrong(f"{len(entries)} scores came back for {count} documents")
    indices: list[Any] = [entry.get("index") for entry in entries]
    _require_every_index(indices, count)
    scores = [0.0] * count
    for index, entry in zip(indices, entries, strict=True):
        scores[index] = _read_score(entry.get("relevance_score"), index)
    if count > 1 and len(set(scores)) == 1:
        raise wrong(f"every document has the score {scores[0]:g}", "this model does not rank: choose a reranker")
    return scores


def judge_scores(scores: list[float], planted: int) -> Verdict:
    """Whether scores in [0, 1] also rank: the planted document first, and spread over the range."""
    low, high = min(scores), max(scores)
    received = f"{len(scores)} scores from {low:.3f} to {high:.3f}"
    if scores[planted] < high:
        place = sum(score > scores[planted] for score in scores) + 1
        return Verdict("warn", f"{received}, but the only relevant one is number {place}", "try another reranker")
    if low >= 0.5 and high <= 1 / (1 + math.exp(-1)):
        fix = f"they look squeezed by a second sigmoid: {_ONE_SIGMOID}"
        return Verdict("warn", received, fix)
    return Verdict("ok", f"{received}, the relevant one first")


def _require_every_index(indices: list[Any], count: int) -> None:
    bad = [index for index in indices if type(index) is not int or not 0 <= index < count]
    if bad:
        raise wrong(f"`index` is {_short(bad[0])} where a number from 0 to {count - 1} belongs")
    if missing := sorted(set(range(count)) - set(indices)):
        raise wrong(f"`index` {missing[0]} is missing, and another comes twice")


def _read_vector(value: Any, index: int) -> Vector:
    if isinstance(value, str):
        raise wrong("the vectors are base64, which nobody asked for", "answer floats unless base64 is asked for")
    if not isinstance(value, list) or not value:
        raise wrong(f"`embedding` of text {index} is no list of numbers")
    vector = [number for item in value if (number := _number(item)) is not None]
    if len(vector) < len(value):
        bad = next(item for item in value if _number(item) is None)
        raise wrong(f"the vector of text {index} holds {_short(bad)}, no finite number: QMD stores a zero", OVERFLOW)
    if abs(_length(vector) - 1) > UNIT_TOLERANCE:
        fix = "the server must normalise its vectors: QMD compares them as unit vectors"
        raise wrong(f"the vector of text {index} has the length {_length(vector):.4f}, not 1", fix)
    return vector


def _read_score(value: Any, index: int) -> float:
    score = _number(value)
    if score is None:
        raise wrong(f"the score of document {index} is {_short(value)}, no finite number", OVERFLOW)
    if not -SCORE_TOLERANCE <= score <= 1 + SCORE_TOLERANCE:
        fix = f"{_ONE_SIGMOID}: QMD drops what is below 0"
        raise wrong(f"the score of document {index} is {score:.3f}, outside [0, 1]", fix)
    return score


def _number(value: Any) -> float | None:
    """A finite JSON number as a float; None for anything else."""
    if type(value) not in {int, float}:
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    return json.dumps(value)[:40]


def _length(vector: Vector) -> float:
    return math.sqrt(math.fsum(x * x for x in vector))


def _cosine(one: Vector, other: Vector) -> float:
    return math.fsum(x * y for x, y in zip(one, other, strict=True))
