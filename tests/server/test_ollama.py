"""Ollama's API over real sockets: how its requests are put to an engine, and how what that says comes back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from qmd_remote.expansion_repair import OUTCOME_HEADER
from qmd_remote.server.gateway import CHAT, COMPLETIONS
from tests.server.expansion_engine import GOOD, MESSY, QUERY, Engine, refuse_all
from tests.server.generation_service import (
    PATIENCE_S,
    begin_stream,
    behind,
    delta,
    error_of,
    event,
    say,
)
from tests.server.scrape import scrape

GENERATE, EMBED = "/api/generate", "/api/embed"
TEA = {"model": "qwen3:0.6b", "prompt": "tea?"}
AT_ONCE = {**TEA, "stream": False}
EXPANSION = {"model": "qwen3:0.6b", "prompt": f"/no_think Expand this search query: {QUERY}", "stream": False}


def asked_of(service):
    """The path of the last request to the engine, and its body."""
    return service.requests[-1].path, json.loads(service.requests[-1].body)


def lines_of(answer):
    """The lines of a stream."""
    assert (200, "application/x-ndjson") == (answer.status_code, answer.headers["content-type"])
    return [json.loads(line) for line in answer.content.splitlines()]


def streams(*events):
    """An engine that says these, and ends its stream as it should."""

    def answer(handler, _):
        if handler.path == "/v1/models":
            return say(handler, 200, b'{"data": [{"id": "own/llm"}]}')
        begin_stream(handler, events[0])
        for one in (*events[1:], b""):
            event(handler, one)
        return None

    return answer


def one_of(**choice):
    """An event with one choice, and what it says."""
    return b"data: " + json.dumps({"model": "own/llm", "choices": [choice]}).encode() + b"\r\n\r\n"


def test_a_prompt_becomes_a_chat_with_the_engines_own_model(door, service):
    """Whatever name Ollama has for it; the answer names the one that did the work, and tells nanoseconds."""
    answer = door.http.post(GENERATE, json=AT_ONCE, headers={"X-Request-Id": "r1", "Authorization": "Bearer x"})
    found = answer.json()
    assert ("own/llm", "green tea", True, "stop") == tuple(
        found[name] for name in ("model", "response", "done", "done_reason")
    )
    assert 0 < found["total_duration"] < 1e9 * PATIENCE_S
    assert "eval_count" not in found
    messages = [{"role": "user", "content": "tea?"}]
    assert (CHAT, {"model": "some/other", "messages": messages, "stream": False}) == asked_of(service)
    sent = service.requests[-1].headers
    assert ("r1", "application/json") == (sent["x-request-id"], sent["content-type"])
    assert "authorization" not in sent


def test_everything_that_has_a_counterpart_is_put_in_its_words(door, service):
    """Instructions, sampling, thinking and the form of the answer; what means "no limit" is left out."""
    options = {"temperature": 0, "top_p": 0.9, "top_k": 20, "num_predict": 9, "seed": 4, "stop": "x", "num_ctx": 4096}
    body = {**AT_ONCE, "model": "own/llm", "system": "Be brief.", "think": False, "format": "json", "options": options}
    assert 200 == door.http.post(GENERATE, json=body).status_code
    _, sent = asked_of(service)
    assert {
        "model": "own/llm",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "tea?"}],
        "temperature": 0.0,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 9,
        "seed": 4,
        "stop": ["x"],
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": False,
    } == sent
    body = {**AT_ONCE, "think": "high", "format": {"type": "object"}, "options": {"top_k": 0, "num_predict": -1}}
    assert 200 == door.http.post(GENERATE, json=body).status_code
    _, sent = asked_of(service)
    assert {"model", "messages", "response_format", "chat_template_kwargs", "stream"} == set(sent)
    assert {"type": "object"} == sent["response_format"]["json_schema"]["schema"]
    assert sent["chat_template_kwargs"]["enable_thinking"]


def test_a_raw_prompt_becomes_a_completion(door, service):
    """Without a template, without instructions."""
    engine = Engine(service, "green")
    answer = door.http.post(GENERATE, json={**AT_ONCE, "raw": True, "system": "Be brief.", "think": True})
    assert ("green", "length", 7, 9) == tuple(
        answer.json()[name] for name in ("response", "done_reason", "prompt_eval_count", "eval_count")
    )
    assert COMPLETIONS == service.requests[-1].path
    assert {"model": "own/llm", "prompt": "tea?", "stream": False} == engine.asked[-1]


def test_large_texts_pass_whole(door, service):
    """A prompt and an answer that are written in threads, for their size."""
    engine = Engine(service, "green " * 60_000)
    answer = door.http.post(GENERATE, json={**AT_ONCE, "prompt": "tea? " * 60_000})
    assert engine.text == answer.json()["response"]
    assert "tea? " * 60_000 == engine.asked[-1]["messages"][0]["content"]


def test_a_stream_comes_line_by_line(door, service):
    """The first line is there before the engine has said the second thing; the last one has the end and the counts."""

    def answer(handler, _):
        if handler.path == "/v1/models":
            return say(handler, 200, b'{"data": []}')
        begin_stream(handler, delta("green"))
        service.go_on.wait(PATIENCE_S)
        usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
        for one in (delta(" tea"), one_of(index=0, delta={}, finish_reason="length"), usage, b"data: [DONE]\n\n", b""):
            event(handler, one)
        return None

    service.answer = answer
    with door.http.stream("POST", GENERATE, json=TEA) as streamed:
        assert "application/x-ndjson" == streamed.headers["content-type"]
        came = streamed.iter_lines()
        first = json.loads(next(came))
        service.go_on.set()
        rest = [json.loads(line) for line in came]
    assert ("green", False) == (first["response"], first["done"])
    assert [(" tea", False), ("", True)] == [(line["response"], line["done"]) for line in rest]
    assert ("length", 3, 2) == tuple(rest[-1][name] for name in ("done_reason", "prompt_eval_count", "eval_count"))
    assert asked_of(service)[1]["stream"]


def test_events_cut_anywhere_are_put_together(door, service):
    """A network cuts where it likes; thoughts that an engine tells apart stay apart."""
    whole = one_of(delta={"reasoning_content": "Hm\u2028"}) + one_of(delta={"content": "tea"}) + b"data: [DONE]\n\n"
    service.answer = streams(*(whole[at : at + 7] for at in range(0, len(whole), 7)))
    found = [(line["response"], line.get("thinking")) for line in lines_of(door.http.post(GENERATE, json=TEA))]
    assert [("", "Hm\u2028"), ("tea", None), ("", None)] == found


def test_an_engine_that_does_not_stream_is_told_as_lines(door, service):
    """Its one answer becomes a line, and the end another."""
    Engine(service, "green")
    found = [(line["response"], line["done"]) for line in lines_of(door.http.post(GENERATE, json=TEA))]
    assert [("green", False), ("", True)] == found


@pytest.mark.parametrize(
    "last", [b": nothing\n\n", b'data: {"error": {"message": "no"}}\n\n', b"data: {\n\n", b"data: " + b"x" * 2**21]
)
def test_a_stream_that_breaks_off_is_not_made_whole(door, service, last):
    """Ended without an end, in an error, in what is no JSON, or in an event without an end: the connection is cut."""
    service.answer = streams(delta("green"), last)
    with door.http.stream("POST", GENERATE, json=TEA) as answer, pytest.raises(httpx.RemoteProtocolError):
        came = next(lines := answer.iter_lines())
        assert [] == list(lines)
    assert "green" == json.loads(came)["response"]


def test_an_answer_that_is_none_is_an_error(door, service):
    """A 502 with its code, whatever was asked for; the engine's own errors stay its own."""
    for stream in (True, False):
        service.answer = lambda handler, _: say(handler, 200, b'{"choices": []}')
        error_of(door.http.post(GENERATE, json={**TEA, "stream": stream}), 502, "generation_failed")
        service.answer = refuse_all(422)
        answer = door.http.post(GENERATE, json={**TEA, "stream": stream})
        assert (422, b'{"error": {"message": "no"}}') == (answer.status_code, answer.content)


def test_without_generation_there_is_none(serve):
    """503, as for a chat."""
    error_of(serve().http.post(GENERATE, json=TEA), 503, "generation_off")


def test_an_expansion_is_repaired_and_counted(serve, service):
    """As one in OpenAI's form is: held to its form, with the engine's own model, and told what became of it."""
    server = behind(serve, service.url)
    engine = Engine(service, MESSY)
    options = {"temperature": 0.7, "num_predict": 300}
    body = {**EXPANSION, "options": options, "think": True, "keep_alive": 60}
    answer = server.http.post(GENERATE, json=body, headers={"X-Request-Id": "r1"})
    assert (GOOD, "repaired") == (answer.json()["response"], answer.headers[OUTCOME_HEADER])
    assert ("length", 7, 9) == tuple(answer.json()[name] for name in ("done_reason", "prompt_eval_count", "eval_count"))
    (asked,) = engine.asked
    assert ("own/llm", 0.7, 300) == (asked["model"], asked["temperature"], asked["max_tokens"])
    assert {"enable_thinking": False} == asked["chat_template_kwargs"]
    assert "structured_outputs" in asked
    counts = scrape(server.http)
    assert 1 == counts("expansions_total", outcome="repaired")
    assert 1 == counts("requests_total", endpoint=GENERATE, status="200")
    first, last = lines_of(server.http.post(GENERATE, json={**EXPANSION, "stream": True}))
    assert (GOOD, False, "", True) == (first["response"], first["done"], last["response"], last["done"])


def test_an_expansion_with_a_form_of_its_own_is_none(door, service):
    """A client that asks for JSON gets what the engine makes of that."""
    engine = Engine(service, MESSY)
    answer = door.http.post(GENERATE, json={**EXPANSION, "format": "json"})
    assert MESSY == answer.json()["response"]
    assert OUTCOME_HEADER not in answer.headers
    assert {"type": "json_object"} == engine.asked[-1]["response_format"]


def test_a_client_that_hangs_up_ends_the_work(door, service):
    """The engine sees it, before its first word."""
    service.answer = service.until_hung_up
    with ThreadPoolExecutor(1) as callers:
        impatient = httpx.Client(base_url=door.http.base_url, timeout=0.5, trust_env=False)
        gone = callers.submit(impatient.post, GENERATE, json={**AT_ONCE, "model": ""})
        assert isinstance(gone.exception(PATIENCE_S), httpx.ReadTimeout)
        impatient.close()
    assert service.hung_up.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": 1}, "prompt"),
        ({"stream": "no"}, "stream"),
        ({"think": "a little"}, "think"),
        ({"think": ["high"]}, "think"),
        ({"format": "xml"}, "format"),
        ({"format": {"maximum": 10**30}}, "format"),
        ({"suffix": "end"}, "suffix"),
        ({"context": [1]}, "context"),
        ({"options": []}, "options"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"seed": 1.5}}, "options.seed"),
        ({"options": {"num_predict": 2**40}}, "options.num_predict"),
        ({"options": {"stop": [1]}}, "options.stop"),
    ],
)
def test_what_is_wrong_is_named(door, wrong, field):
    """400 with the place of it, of an option, too; the engine is not asked."""
    raw = json.dumps({**AT_ONCE, **wrong}).replace("tea?", "tea\\ud83d")  # which has the other decoder read it
    answer = door.http.post(GENERATE, content=raw.encode())
    assert (400, field) == (answer.status_code, answer.json()["error"]["param"])


def test_empty_fields_change_nothing(door, service):
    """Clients send all that they know, with nothing in it."""
    empty = {"suffix": "", "images": [], "context": None, "template": "", "format": "", "system": "", "options": {}}
    assert 200 == door.http.post(GENERATE, json={**AT_ONCE, **empty}).status_code
    assert {"model", "messages", "stream"} == set(asked_of(service)[1])


@pytest.mark.parametrize("count", [1, 3, 7000])
def test_vectors_are_those_of_the_other_form(serve, count):
    """Few or many, made on the event loop or in a thread; and the request counts under its own path."""
    server = serve()
    texts = [f"text {number}" for number in range(count)]
    sent = texts[0] if count == 1 else texts
    found = server.http.post(EMBED, json={"model": "m", "input": sent, "dimensions": 5}).json()
    wanted = server.http.post("/v1/embeddings", json={"input": texts, "dimensions": 5}).json()
    assert [item["embedding"] for item in wanted["data"]] == found["embeddings"]
    assert (wanted["model"], wanted["usage"]["prompt_tokens"]) == (found["model"], found["prompt_eval_count"])
    counts = scrape(server.http)
    assert [1, 1] == [counts("requests_total", endpoint=path, status="200") for path in (EMBED, "/v1/embeddings")]


def test_a_name_is_echoed_where_that_is_set(serve, service):
    """For both endpoints."""
    server = behind(serve, service.url, echo_model=True)
    for path, body in ((EMBED, {"model": "nomic:latest", "input": "a"}), (GENERATE, AT_ONCE), (GENERATE, EXPANSION)):
        assert body["model"] == server.http.post(path, json=body).json()["model"]
