"""Query expansions through the embed server's door, over real sockets, with engines good and bad behind it."""

from __future__ import annotations

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer

import httpx
import openai
import pytest

from qmd_remote.expansion import chat_body, parse
from qmd_remote.expansion_repair import OUTCOME_HEADER as HEADER
from qmd_remote.server import expander, gateway
from qmd_remote.server.constraint import REGEX, best_way
from qmd_remote.server.gateway import CHAT, COMPLETIONS
from tests.server.expansion_engine import BODY, GOOD, MESSY, PROMPT, QUERY, SAFE, Engine, broken, refuse_all, text_of
from tests.server.generation_service import ASKED, PATIENCE_S, behind, error_of, say
from tests.server.scrape import scrape


@pytest.fixture
def hurried(monkeypatch):
    """Little patience, but for more than one attempt on a busy machine, and short pauses."""
    monkeypatch.setattr(expander, "PATIENCE_S", 1.5)
    monkeypatch.setattr(expander, "LONGEST_PAUSE_S", 0.1)


@pytest.mark.parametrize(("path", "body"), [(CHAT, BODY), (COMPLETIONS, PROMPT)])
def test_a_clean_answer_passes_byte_for_byte(door, service, path, body):
    """The engine is held to the form, and what it says then is the client's as it is."""
    engine = Engine(service)
    answer = door.http.post(path, json=body, headers={"X-Request-Id": "r1"})
    assert (GOOD, "clean") == text_of(answer)
    assert engine.said(path == CHAT) == answer.content
    assert {"regex": REGEX} == engine.asked[0]["structured_outputs"]
    assert body["max_tokens"] == engine.asked[0]["max_tokens"]
    assert "/no_think" not in json.dumps(engine.asked[0])
    assert "r1" == service.requests[-1].headers["x-request-id"]


def test_a_messy_answer_is_repaired_and_keeps_the_rest(door, service):
    """Id, usage, the reason of its end and unknown fields stay."""
    engine = Engine(service, MESSY)
    answer = door.http.post(CHAT, json=BODY)
    assert (GOOD, "repaired") == text_of(answer)
    wanted = json.loads(engine.said(True))
    wanted["choices"][0]["message"]["content"] = GOOD
    assert wanted == answer.json()
    assert parse(GOOD, QUERY).accepted


def test_an_answer_of_no_use_becomes_the_query(door, service):
    """Whatever the engine says, the client gets lines that it accepts."""
    engine = Engine(service)
    for engine.text in ("", None, 3, "I am a language model.", "<think>Hmm"):
        assert (SAFE, "safe") == text_of(door.http.post(CHAT, json=BODY))
        assert (SAFE, "safe") == text_of(door.http.post(COMPLETIONS, json=PROMPT))


def test_an_answer_without_end_becomes_the_query_at_once(door, service, monkeypatch):
    """Nobody holds megabytes of it in memory, and it is not asked for again: it would hardly be shorter."""
    monkeypatch.setattr(gateway, "MAX_SAID_BYTES", 2**16)
    engine = Engine(service, f"{GOOD}\n{'on and on ' * 10_000}")
    assert (SAFE, "safe") == text_of(door.http.post(CHAT, json=BODY))
    assert 1 == len(engine.asked)
    engine.text = f"{GOOD}\n{'on and on ' * 1000}"
    assert (GOOD, "repaired") == text_of(door.http.post(CHAT, json=BODY))


def test_all_that_became_of_expansions_is_counted(serve, service):
    """/metrics tells how many were clean, repaired and safe; health that repairing is on."""
    server = behind(serve, service.url)
    engine = Engine(service)
    for engine.text in (GOOD, MESSY, MESSY, "", "", ""):
        server.http.post(CHAT, json=BODY)
    counts = scrape(server.http)
    found = [counts("expansions_total", outcome=outcome) for outcome in ("clean", "repaired", "safe")]
    assert [1, 2, 3] == found
    assert "on" == server.http.get("/health").json()["generation"]["expansions"]


@pytest.mark.parametrize(
    "body",
    [
        ASKED,
        {**BODY, "n": 2},
        {**BODY, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {**BODY, "response_format": {"type": "json_object"}},
        {**BODY, "messages": [*BODY["messages"], {"role": "assistant", "content": "lex: a"}]},
    ],
)
def test_all_other_traffic_passes_unchanged(door, service, body):
    """Not a byte of it is touched, in either direction."""
    service.answer = lambda handler, raw: say(handler, 200, raw[::-1])
    raw = json.dumps(body, indent=2).encode()
    answer = door.http.post(CHAT, content=raw)
    assert (raw, raw[::-1]) == (service.requests[0].body, answer.content)
    assert HEADER not in answer.headers
    assert 1 == len(service.requests)


def test_switched_off_nothing_is_touched(serve, service):
    """An expansion then is like all other traffic, and health says so."""
    server = behind(serve, service.url, repair_expansions=False)
    service.answer = lambda handler, raw: say(handler, 200, raw[::-1])
    raw = json.dumps(BODY).encode()
    assert raw[::-1] == server.http.post(CHAT, content=raw).content
    assert "off" == server.http.get("/health").json()["generation"]["expansions"]


def test_an_engine_without_structured_outputs_is_asked_in_its_own_way(door, service):
    """One that refuses each addition gets the plain request, and from then on gets it at once."""
    engine = Engine(service, refuses={"structured_outputs", "guided_regex", "chat_template_kwargs"})
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json=BODY))
    forms = [{"structured_outputs", "guided_regex", "chat_template_kwargs"} & set(body) for body in engine.asked]
    assert [
        {"structured_outputs", "chat_template_kwargs"},
        {"guided_regex", "chat_template_kwargs"},
        {"chat_template_kwargs"},
        set(),
    ] == forms
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json=BODY))
    assert 5 == len(engine.asked)
    assert 1 == sum(one.path == "/version" for one in service.requests)


@pytest.mark.parametrize(
    ("version", "way"),
    [
        ("0.32.0", "structured_outputs"),
        ("0.11.1+abc.nv25.12", "structured_outputs"),
        ("v1.0", "structured_outputs"),
        ("dev", "structured_outputs"),
        ("0.10.2", "guided_regex"),
        ("0.8.5.post1", "guided_regex"),
        ("", "thinking_off"),
    ],
)
def test_the_engines_version_tells_the_way(version, way):
    """vLLM passes over what it does not know, so that trying tells nothing."""
    assert way == best_way(version)


def test_an_older_vllm_gets_its_own_field(door, service):
    """The name that the regex had before."""
    engine = Engine(service, version="0.9.2")
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json=BODY))
    assert REGEX == engine.asked[0]["guided_regex"]
    assert "structured_outputs" not in engine.asked[0]


def test_an_engine_without_a_version_gets_no_regex(door, service):
    """transformers serve, for one: only thinking is turned off."""
    engine = Engine(service, version="")
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json=BODY))
    assert {*BODY, "chat_template_kwargs"} == set(engine.asked[0])


def test_the_form_allows_what_clients_accept_and_nothing_else():
    """Two to eight lines, one vec at least, wherever it stands."""
    lex, vec, hyde = "lex: a", "vec: b", "hyde: c d"
    for lines in (
        [lex, vec],
        [vec, vec],
        [lex] * 7 + [vec],
        [vec] + [hyde] * 7,
        [hyde, vec, lex],
        [lex, hyde, vec, vec],
    ):
        assert re.fullmatch(REGEX, "\n".join(lines)), lines
    for lines in (
        [vec],
        [lex, lex],
        [lex] * 8,
        [vec] * 9,
        [lex] * 8 + [vec],
        [vec, ""],
        ["vec: ", lex],
        [" vec: b", lex],
        [],
    ):
        assert not re.fullmatch(REGEX, "\n".join(lines)), lines


def test_a_request_that_the_engine_refuses_for_reasons_of_its_own_becomes_safe(door, service):
    """A prompt that is too long stays too long; the engine is not thought to lack anything for it."""
    engine = Engine(service)
    engine.before = [refuse_all(400)] * 4
    answer = door.http.post(CHAT, json=BODY)
    assert (SAFE, "safe") == text_of(answer)
    assert {"id", "object", "created", "model", "choices", "usage"} == set(answer.json())
    assert not {"structured_outputs", "guided_regex", "chat_template_kwargs"} & set(engine.asked[3])
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json=BODY))
    assert "structured_outputs" in engine.asked[4]


def test_a_name_that_the_engine_does_not_know_becomes_its_own(door, service):
    """Clients send the names of local models; what is served is what there is."""
    engine = Engine(service)
    for name in ("hf:tobil/qmd-query-expansion-1.7B-gguf/x.gguf", "", None, 3):
        assert (GOOD, "clean") == text_of(door.http.post(CHAT, json={**BODY, "model": name}))
        assert "own/llm" == engine.asked[-1]["model"]


@pytest.mark.parametrize("lost", [lambda service: service.until_hung_up, lambda _: refuse_all(503)])
def test_the_engines_name_is_remembered(door, service, monkeypatch, lost):
    """Where its list of models does not come, the last one holds: a wrong name would be refused."""
    monkeypatch.setattr(gateway, "MODELS_KEPT_S", 0)
    monkeypatch.setattr(gateway, "MODELS_S", 0.3)
    engine = Engine(service)
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json={**BODY, "model": "wrong"}))
    service.answer = lambda handler, raw: (lost(service) if "models" in handler.path else engine.answer)(handler, raw)
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json={**BODY, "model": "wrong"}))
    assert ["own/llm"] * 2 == [body["model"] for body in engine.asked]


@pytest.mark.parametrize(
    "how", [broken, refuse_all(500), refuse_all(503), refuse_all(429), lambda h, _: say(h, 200, b"{")]
)
def test_a_hiccup_costs_nothing(door, service, how):
    """An engine that leaves, fails or stammers is asked again, and the client does not hear of it."""
    engine = Engine(service, MESSY)
    engine.before = [how, how]
    assert (GOOD, "repaired") == text_of(door.http.post(CHAT, json=BODY))
    assert 3 == len(engine.asked)


def test_half_an_answer_is_asked_for_again(door, service):
    """A connection that ends in the midst of an answer is no answer."""
    engine = Engine(service)
    engine.before = [lambda handler, _: say(handler, 200, b'{"choices": [', length=500)]
    assert (GOOD, "clean") == text_of(door.http.post(CHAT, json=BODY))


def test_an_engine_that_comes_back_is_waited_for(serve, service, monkeypatch):
    """While nobody listens there, the request waits; when the engine is up, it is answered."""
    failed = threading.Event()
    forget = expander.Learnt.forget
    monkeypatch.setattr(expander.Learnt, "forget", lambda self: (failed.set(), forget(self))[1])
    Engine(service)
    place = service.httpd.server_address
    service.httpd.shutdown()
    service.httpd.server_close()
    server = behind(serve, service.url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.http.post, CHAT, json=BODY)
        assert failed.wait(PATIENCE_S)
        service.httpd = ThreadingHTTPServer(place, service._handler())
        threading.Thread(target=service.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        assert (GOOD, "clean") == text_of(waiting.result(PATIENCE_S))


def test_an_engine_that_stays_away_is_a_503(serve, hurried):
    """Not a safe expansion, which the client would keep for ever: a 503, which it tries again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    answer = serve(generation_engine="process", generation_port=port).http.post(CHAT, json=BODY)
    assert "qmd-remote status" in error_of(answer, 503, "generation_unreachable")
    assert int(answer.headers["Retry-After"]) > 0
    assert HEADER not in answer.headers


@pytest.mark.parametrize(("how", "code"), [(broken, "generation_failed"), (refuse_all(500), "generation_failed")])
def test_an_engine_that_always_fails_is_a_503(door, service, hurried, how, code):
    """After as many attempts as the client's patience has room for."""
    engine = Engine(service)
    engine.before = [how] * 100
    error_of(door.http.post(CHAT, json=BODY), 503, code)
    assert 1 < len(engine.asked) < 100


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_service_that_lets_nobody_in_is_a_503_at_once(door, service, status):
    """The clients take a 4xx for good and keep what they make of it; what is wrong here is not their request."""
    engine = Engine(service)
    engine.before = [refuse_all(status)]
    assert str(status) in error_of(door.http.post(CHAT, json=BODY), 503, "generation_refused")
    assert 1 == len(engine.asked)


def test_generation_that_is_off_is_said_at_once(serve):
    """Nothing is waited for, and nothing made up."""
    error_of(serve().http.post(CHAT, json=BODY), 503, "generation_off")


def test_silence_has_an_end(serve, service, monkeypatch):
    """An engine that takes the request and says nothing is a 503 before the client gives up, and is hung up on."""
    monkeypatch.setattr(expander, "LIMIT_S", 0.5)
    Engine(service).before = [service.until_hung_up]
    error_of(behind(serve, service.url).http.post(CHAT, json=BODY), 503, "generation_timeout")
    assert service.hung_up.wait(PATIENCE_S)


def test_a_hang_up_reaches_the_engine(door, service):
    """Nobody computes an expansion for a client that has gone."""
    Engine(service).before = [service.until_hung_up]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"http://127.0.0.1:{door.address[1]}{CHAT}", json=BODY, timeout=httpx.Timeout(30, read=0.5))
    assert service.hung_up.wait(PATIENCE_S)


def test_a_stream_is_one_of_the_repaired_text(door, service):
    """OpenAI's own library reads it, usage included; the engine was asked for a whole answer."""
    engine = Engine(service, MESSY)
    host, port = door.address
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="x", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="own/llm", messages=BODY["messages"], stream=True, stream_options={"include_usage": True}
            )
        )
        texts = list(client.completions.create(model="own/llm", prompt=PROMPT["prompt"], stream=True))
    assert GOOD == "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert ["assistant", None, "length", 16] == [
        chunks[0].choices[0].delta.role,
        chunks[0].choices[0].finish_reason,
        chunks[1].choices[0].finish_reason,
        chunks[2].usage.total_tokens,
    ]
    assert GOOD == "".join(chunk.choices[0].text for chunk in texts)
    assert not {"stream", "stream_options"} & {name for body in engine.asked for name in body}
    raw = door.http.post(CHAT, json={**BODY, "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert "repaired" == raw.headers[HEADER]
    assert raw.text.endswith("data: [DONE]\n\n")


def test_half_an_emoji_in_a_query_harms_nothing(door, service):
    """Clients cut them in two; JSON for the engine holds none."""
    engine = Engine(service, "")
    raw = json.dumps(chat_body("own/llm", "passport \ud83d")).encode()
    assert ("lex: passport \ufffd\nvec: passport \ufffd", "safe") == text_of(door.http.post(CHAT, content=raw))
    assert "passport \ufffd" == engine.asked[0]["messages"][-1]["content"]
