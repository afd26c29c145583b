"""`test` against good and bad services on real sockets."""

from __future__ import annotations

import pytest

from qmd_remote.client.checks import ModelNames, Report, Target, run_checks
from qmd_remote.client.report import CheckResult
from qmd_remote.errors import ConfigError

NAMES = ModelNames(embed="my/embed", generate="my/generate", rerank="my/rerank")
ROWS = [
    "health",
    "one text",
    "batch",
    "half an emoji",
    "long Chinese text",
    "rerank",
    "key",
    "completion",
    "chat",
    "expansion",
]


def row(report: Report, name: str) -> CheckResult:
    """The row of that name."""
    return next(row for row in report.rows if row.name == name)


def statuses(report: Report) -> dict[str, str]:
    """The status of every row."""
    return {row.name: row.status for row in report.rows}


def test_a_good_service_passes_every_row(serve):
    """All rows are ok, but for the key's, which is skipped where no key is set."""
    seen: list[CheckResult] = []
    stub = serve()
    report = run_checks(Target(stub.url, stub.url, models=NAMES), on_result=seen.append)

    assert {name: "skip" if name == "key" else "ok" for name in ROWS} == statuses(report)
    assert seen == list(report.rows)
    assert not report.failed
    assert report.first_cause is None
    assert report.total_s > 0
    assert "64 dimensions" in row(report, "one text").received
    assert "no key" in row(report, "key").received
    assert all(one.latency_ms is not None for one in report.rows if one.name not in {"key", "expansion"})


def test_the_bodies_are_those_that_qmd_sends(serve, check):
    """Nothing but QMD's fields is sent, with the names configured."""
    stub = serve()
    check(stub)

    for body in stub.bodies("/v1/embeddings"):
        assert {"model", "input"} == set(body)
        assert body["model"] == "my/embed"
    single, batch, emoji, chinese = (body["input"] for body in stub.bodies("/v1/embeddings"))
    assert isinstance(single, str)
    assert [32, 2, 1] == [len(batch), len(emoji), len(chinese)]
    assert len(chinese[0]) == 2700
    [reranked] = stub.bodies("/v1/rerank")
    assert {"model", "query", "documents"} == set(reranked)
    assert [3600] * 40 == [len(text) for text in reranked["documents"]]
    [asked] = stub.bodies("/v1/chat/completions")
    assert {"model", "messages", "max_tokens", "temperature", "top_p", "top_k"} == set(asked)
    assert ["system", "user"] == [message["role"] for message in asked["messages"]]
    assert asked["messages"][1]["content"].startswith("/no_think ")


def test_the_surrogate_travels_as_an_escape(serve, check):
    """The lone surrogate goes over the wire as JavaScript writes it, other letters as UTF-8."""
    stub = serve()
    check(stub)

    raws = [raw for path, raw, _ in stub.requests if path == "/v1/embeddings"]
    assert b"here \\ud83d" in raws[2]
    assert "图书馆".encode() in raws[3]


def test_the_key_is_sent_and_its_absence_is_turned_away(serve, check):
    """With the right key all is well, and the row without the key sees its 401."""
    stub = serve(key="k-1")
    report = check(stub, key="k-1")

    assert dict.fromkeys(ROWS, "ok") == statuses(report)
    assert "401" in row(report, "key").received
    sent = [headers.get("authorization") for path, _, headers in stub.requests if path == "/v1/embeddings"]
    assert ["Bearer k-1"] * 4 + [None] == sent


def test_a_server_that_needs_no_key_is_pointed_out(serve, check):
    """A key in the client and none on the server works, and is a warning."""
    report = check(serve(), key="k-1")

    assert row(report, "key").status == "warn"
    assert not report.failed


@pytest.mark.parametrize("key", ["", "wrong"])
def test_a_missing_or_wrong_key_is_the_first_cause(serve, key, check):
    """After the first 401 nothing more is sent, and the fix names the options."""
    stub = serve(key="right")
    report = check(stub, key=key)

    assert report.first_cause.code == "unauthorized"
    assert ("none was sent" in str(report.first_cause)) == (key == "")
    assert "--api-key-env" in report.first_cause.fix
    assert row(report, "batch").status == "skip"
    assert [path for path, _, _ in stub.requests].count("/v1/embeddings") == 1


def test_a_refused_connection_skips_the_rest_of_that_service_only(serve, closed_port, check):
    """An embed server that is down costs one request, and generation is checked all the same."""
    report = check(serve(), embed_url=f"http://127.0.0.1:{closed_port}")

    assert report.first_cause.code == "refused"
    assert row(report, "health").cause == "refused"
    assert {"skip"} == {row(report, name).status for name in ROWS[1:7]}
    assert "refused" in row(report, "batch").received
    assert {"ok"} == {row(report, name).status for name in ROWS[7:]}


def test_a_server_that_never_answers_costs_two_waits_at_most(serve, silent, check):
    """After the first time-out of QMD's own requests the rest is skipped."""
    report = check(serve(), embed_url=silent, limit_s=0.3)

    assert row(report, "health").status == "warn"
    assert row(report, "one text").cause == "timeout"
    assert "0.3 s" in str(report.first_cause)
    assert {"skip"} == {row(report, name).status for name in ROWS[2:7]}


def test_a_name_that_does_not_resolve_is_a_dns_failure(serve, check):
    """The host is named."""
    report = check(serve(), generation_url="http://nonexistent.invalid:8000")

    assert report.first_cause.code == "dns"
    assert "nonexistent.invalid" in str(report.first_cause)


def test_https_to_a_plain_port_is_a_tls_failure(serve, check):
    """The fix says to write http."""
    stub = serve()
    report = check(stub, embed_url=stub.url.replace("http:", "https:"))

    assert report.first_cause.code == "tls"
    assert stub.url in report.first_cause.fix


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "wrong_service"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "wrong_service"),
        (b"", "disconnected"),
    ],
)
def test_what_does_not_speak_http_is_recognised(talks_nonsense, said, code, check):
    """Another protocol on the port, or a connection closed at once, has a name of its own."""
    assert code == check(talks_nonsense(said)).first_cause.code


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"<!doctype html><title>Grafana</title>"), "web page"),
        ((404, b"<html>nginx</html>"), "web page"),
        ((404, {"detail": "Not Found"}), "has no /v1/embeddings"),
        ((405, {"detail": "Method Not Allowed"}), "has no /v1/embeddings"),
        ({"hello": "world"}, "not as QMD needs it"),
        ([1, 2], "not as QMD needs it"),
        (b"OK", "not as QMD needs it"),
        (b"\xff\xfe", "not as QMD needs it"),
    ],
)
def test_another_service_on_the_port_is_recognised(serve, answer, words, check):
    """A page, a 404 or JSON of another kind is called what it is."""
    report = check(serve(v1_embeddings=lambda *_: answer))

    assert report.first_cause.code == "wrong_service"
    assert words in str(report.first_cause)
    assert report.first_cause.fix


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((500, {"error": {"message": "boom\x1b[1m"}}), "server_error", "500: boom"),
        ((502, b""), "server_error", "502"),
        ((503, {"error": {"message": "loading"}}), "unavailable", "503: loading"),
        ((429, {"error": "slow down"}), "rate_limited", "slow down"),
        ((413, {"message": "too big"}), "too_large", "too big"),
        ((400, {"error": {"message": "no such field"}}), "refused_request", "no such field"),
        ((403, {"detail": "go away"}), "forbidden", "go away"),
        ((302, b""), "redirect", "https://elsewhere.invalid/base"),
        ((404, {"error": {"message": "The model `x` does not exist."}}), "unknown_model", "does not exist"),
    ],
)
def test_every_error_status_has_its_cause(serve, answer, code, words, check):
    """The status and the server's own words are passed on, without control characters or secrets."""
    report = check(serve(v1_chat_completions=lambda *_: answer))

    assert code == report.first_cause.code
    assert words in str(report.first_cause)
    assert "\x1b" not in str(report.first_cause)
    assert "secret" not in str(report.first_cause)
    assert row(report, "chat").status == "fail"
    assert row(report, "expansion").status == "skip"


def test_a_url_with_v1_at_its_end_is_tested_as_qmd_would_use_it(serve, check):
    """QMD would ask for /v1/v1/embeddings, so the check does, and says what to leave out."""
    stub = serve()
    report = check(stub, embed_url=f"{stub.url}/v1")

    assert stub.requests[1][0] == "/v1/v1/embeddings"
    assert f"leave out the /v1: {stub.url}" == report.first_cause.fix


@pytest.mark.parametrize("url", ["box:8001", "http://", "http://[::1", "ftp://box", "http://user:secret@box"])
def test_a_text_that_is_no_url_fails_without_a_request(serve, url, check):
    """What QMD's config calls a URL may be none; a password in it is not repeated."""
    report = check(serve(), embed_url=url, generation_url=url, models=ModelNames())

    assert report.first_cause.code == "bad_url"
    assert "secret" not in repr(report)


def test_a_service_that_is_not_there_is_skipped_with_its_reason(serve):
    """Rows of a service that is off say why, and fail nothing."""
    report = run_checks(Target(serve().url, None, generation_reason="generation is off", models=NAMES))

    assert {"generation is off"} == {row(report, name).received for name in ROWS[7:]}
    assert not report.failed


def test_a_key_that_no_header_can_hold_is_a_configuration_error(serve, check):
    """A key with a line end in it is named as the culprit, without being shown."""
    with pytest.raises(ConfigError) as caught:
        check(serve(), key="k\n1")

    assert "k\n1" not in caught.value.message


def test_generation_is_asked_for_its_own_model_name(serve, check):
    """Unlike the embed server, a generation service takes only its own name, so it is asked for it."""
    stub = serve(v1_models=lambda *_: {"data": [{"id": "own/name"}]})
    check(stub, models=ModelNames())

    assert stub.bodies("/v1/chat/completions")[0]["model"] == "own/name"


def test_quick_checks_send_little(serve):
    """`up` asks for one vector, three scores and eight tokens."""
    stub = serve()
    report = run_checks(Target(stub.url, stub.url, models=NAMES), quick=True)

    assert {"health": "ok", "one text": "ok", "rerank": "ok", "completion": "ok"} == statuses(report)
    assert len(stub.bodies("/v1/rerank")[0]["documents"]) == 3


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ((503, {"status": "loading", "phase": "downloading"}), "warn", "loading: downloading"),
        ((404, {"detail": "Not Found"}), "warn", "404"),
        ((200, b"<html>"), "warn", "not in the form"),
        ({"status": "ok"}, "ok", "ok"),
        (
            {"status": "ok", "models": {"embed": "a", "rerank": "b"}, "device": "cuda:0"},
            "ok",
            "ok · embed a · rerank b · on cuda:0",
        ),
        ((503, {"status": "failed", "error": {"message": "no such model", "hint": "set it"}}), "fail", "no such model"),
        ((503, {"status": "failed"}), "fail", "failed"),
    ],
)
def test_health_informs_and_fails_only_on_a_reported_failure(serve, answer, status, words, check):
    """QMD does not ask for /health, so another form of it is no failure."""
    report = check(serve(health=lambda *_: answer))

    assert status == row(report, "health").status
    assert words in row(report, "health").received
    assert ("skip" if status == "fail" else "ok") == row(report, "one text").status


def test_the_key_is_in_no_repr(serve):
    """Neither the target nor the report shows the key."""
    target = Target(serve().url, None, key="k-secret", models=NAMES)

    assert "k-secret" not in repr(target) + repr(run_checks(target))
