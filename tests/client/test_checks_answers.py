"""Answers that QMD could not use, each found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qmd_remote.client.checks import CheckResult, Report


def row(report: Report, name: str) -> CheckResult:
    """The row of that name."""
    return next(row for row in report.rows if row.name == name)


def entries(count: int) -> list[dict[str, Any]]:
    """Good entries, all of one vector."""
    return [{"index": index, "embedding": [1.0, 0.0]} for index in range(count)]


def embedded(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[..., Any]:
    """An embeddings handler that is good but for `change`, made to batches of 32 only."""

    def handler(body: Any, _: Any) -> Any:
        count = 1 if isinstance(body["input"], str) else len(body["input"])
        data = entries(count)
        return {"data": (change(data) or data) if count == 32 else data}

    return handler


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:31], "31 vectors"),
        (lambda data: data[3].pop("index") and None, "`index` is null"),
        (lambda data: data[3].update(index=4), "`index` 3 is missing"),
        (lambda data: data[3].update(index=32), "`index` is 32"),
        (lambda data: data[3].update(index="3"), '`index` is "3"'),
        (lambda data: data[3].update(index=True), "`index` is true"),
        (lambda data: [1] * 32, "`index` is null"),
        (lambda data: data[3].update(embedding=[1.0, 0.0, 0.0]), "different dimensions: 2, 3"),
        (lambda data: [one | {"embedding": [1.0, 0, 0]} for one in data], "3 numbers a vector, and 2 for a single"),
        (lambda data: data[3].update(embedding=[0.5, 0.0]), "length 0.5000"),
        (lambda data: data[3].update(embedding=[None, 1.0]), "text 3 holds null"),
        (lambda data: data[3].update(embedding=["1.0", 0.0]), 'holds "1.0"'),
        (lambda data: data[3].update(embedding=[True, 0.0]), "holds true"),
        (lambda data: data[3].update(embedding=[10**400, 0.0]), "no finite number"),
        (lambda data: data[3].update(embedding=[float("nan"), 0.0]), "holds NaN, which is not JSON"),
        (lambda data: data[3].update(embedding=[]), "no list of numbers"),
        (lambda data: data[3].update(embedding="AACAPwAAAAA="), "base64"),
        (lambda data: [one | {"embedding": [0.0, 1.0]} for one in data], "another vector in a batch"),
    ],
)
def test_a_batch_that_would_corrupt_the_index_fails(serve, change, words, check):
    """Each way in which 32 vectors can be wrong is found and named, and the next rows still run."""
    report = check(serve(v1_embeddings=embedded(change)))

    assert row(report, "batch").status == "fail"
    assert words in row(report, "batch").received
    assert row(report, "batch").cause == report.first_cause.code == "bad_answer"
    assert row(report, "batch").fix
    assert row(report, "rerank").status == "ok"


def test_a_number_too_large_for_a_float_is_not_finite(serve, check):
    """1e999 is valid JSON and no finite number."""
    body = json.dumps({"data": entries(1)}).replace("1.0", "1e999").encode()
    report = check(serve(v1_embeddings=lambda *_: body))

    assert "holds Infinity, no finite number" in row(report, "one text").received


def test_a_batch_out_of_order_is_a_warning(serve, check):
    """QMD goes by `index`; other clients trust the order."""
    report = check(serve(v1_embeddings=embedded(lambda data: data[::-1])))

    assert row(report, "batch").status == "warn"
    assert "out of order" in row(report, "batch").received


def test_a_server_that_dies_of_a_surrogate_fails_that_row_only(serve, check):
    """A 500 for the cut emoji does not hide what comes after it."""

    def fragile(body: Any, headers: Any) -> Any:
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return 500, {"error": {"message": "surrogates not allowed"}}
        count = 1 if isinstance(body["input"], str) else len(body["input"])
        return {"data": entries(count)}

    report = check(serve(v1_embeddings=fragile))

    assert {"half an emoji"} == {one.name for one in report.rows if one.status == "fail"}


def test_a_server_without_reranking_fails_that_row_only(serve, check):
    """An embedder alone is recognised by its 404, or by an answer of another form."""
    for answer in (None, lambda *_: {"scores": [1, 2]}):
        report = check(serve(v1_rerank=answer))

        assert [("rerank", "wrong_service")] == [(one.name, one.cause) for one in report.rows if one.status == "fail"]


def test_a_server_that_fails_on_strangers_fails_the_key_row(serve, check):
    """Whatever is neither a welcome nor a refusal is shown as it is."""

    def handler(body: Any, headers: Any) -> Any:
        return embeddings(body, headers) if "authorization" in headers else (500, {"detail": "oops"})

    embeddings = serve().answers["/v1/embeddings"]
    report = check(serve(v1_embeddings=handler), key="k")

    assert row(report, "key").cause == "server_error"


def scored(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[..., Any]:
    """A rerank handler that is good but for `change`."""

    def handler(body: Any, _: Any) -> Any:
        results = [
            {"index": index, "relevance_score": 0.9 if index == 23 else 0.1 + index / 1000} for index in range(40)
        ]
        return {"results": change(results) or results}

    return handler


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda results: results[:20], "20 scores came back for 40"),
        (lambda results: results[3].update(index=4), "`index` 3 is missing"),
        (lambda results: results[3].update(index=-1), "`index` is -1"),
        (lambda results: results[3].update(relevance_score=-2.5), "-2.500, outside [0, 1]"),
        (lambda results: results[3].update(relevance_score=1.01), "1.010, outside [0, 1]"),
        (lambda results: results[3].update(relevance_score=None), "null, no finite number"),
        (lambda results: results[3].update(relevance_score=float("nan")), "NaN"),
        (lambda results: results[3].pop("relevance_score") and None, "null, no finite number"),
        (lambda results: [one | {"relevance_score": 0.5} for one in results], "every document has the score 0.5"),
    ],
)
def test_scores_that_would_poison_the_cache_fail(serve, change, words, check):
    """Each way in which 40 scores can be wrong is found and named."""
    report = check(serve(v1_rerank=scored(change)))

    assert row(report, "rerank").status == "fail"
    assert words in row(report, "rerank").received
    assert row(report, "rerank").fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda results: results[23].update(relevance_score=0.11), "only relevant one is number"),
        (
            lambda results: [one | {"relevance_score": 0.5 + one["relevance_score"] / 5} for one in results],
            "second sigmoid",
        ),
    ],
)
def test_a_poor_ranking_is_a_warning(serve, change, words, check):
    """A planted document that is not first, and scores squeezed into 0.5–0.73, are pointed out."""
    report = check(serve(v1_rerank=scored(change)))

    assert row(report, "rerank").status == "warn"
    assert words in row(report, "rerank").received + row(report, "rerank").fix


def test_results_may_come_in_any_order(serve, check):
    """QMD goes by `index`, so the order of the results is free."""
    assert row(check(serve(v1_rerank=scored(lambda results: results[::-1]))), "rerank").status == "ok"


def said(content: Any) -> Callable[..., Any]:
    """A chat handler that answers this text."""
    return lambda *_: {"choices": [{"message": {"content": content}, "finish_reason": "length"}]}


@pytest.mark.parametrize(
    ("constrained", "words"), [(False, "cannot constrain"), (True, "can constrain"), (None, "if this")]
)
def test_an_expansion_that_qmd_cannot_use_is_a_warning_with_the_reason(serve, constrained, words, check):
    """Words that miss the form cost quality only, and the reason depends on the engine."""
    report = check(serve(v1_chat_completions=said("1. lex: a\nSure!")), generation_constrained=constrained)

    assert row(report, "chat").status == "ok"
    assert row(report, "expansion").status == "warn"
    assert words in row(report, "expansion").fix
    assert not report.failed


@pytest.mark.parametrize("content", [None, "", "  \n", 5])
def test_a_chat_answer_without_text_fails(serve, content, check):
    """An empty answer is no answer."""
    report = check(serve(v1_chat_completions=said(content)))

    assert row(report, "chat").cause == "bad_answer"
    assert row(report, "expansion").status == "skip"


def test_lost_lines_of_an_expansion_are_counted(serve, check):
    """An answer of which QMD uses a part is ok, and the loss is told."""
    report = check(serve(v1_chat_completions=said("lex: a\n- vec: passport\nvec: nothing shared")))

    assert "1 lex; 2 lines lost" == row(report, "expansion").received


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [("clean", "ok", "1 lex"), ("repaired", "ok", "repaired the model's answer"), ("safe", "warn", "of no use")],
)
def test_what_the_server_did_to_an_expansion_is_told(serve, check, outcome, status, words):
    """A server that looks expansions over says what came of it; one that stands for a useless answer is a warning."""
    stub = serve(v1_chat_completions=said("lex: passport"))
    stub.headers["X-Qmd-Remote-Expansion"] = outcome
    found = row(check(stub), "expansion")

    assert status == found.status
    assert words in found.received


def test_a_generation_service_without_completions_is_a_warning(serve, check):
    """Only some clients use /v1/completions."""
    report = check(serve(v1_completions=None))

    assert row(report, "completion").status == "warn"
    assert not report.failed


@pytest.mark.parametrize("answer", [{"choices": [{"text": None}]}, {"choices": []}, {"choices": [3]}, {}])
def test_a_completion_of_another_form_fails(serve, answer, check):
    """A service that answers in another form is named as such."""
    assert row(check(serve(v1_completions=lambda *_: answer)), "completion").status == "fail"
