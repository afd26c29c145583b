"""The client's rule for expansions: which lines of an answer it uses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd_remote.expansion import Line, chat_body, parse, query_terms

QUERY = "renew my passport"


def used(answer: str, query: str = QUERY) -> list[tuple[str, str]]:
    """The lines that the client uses."""
    return [(line.kind, line.text) for line in parse(answer, query).lines]


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ("lex: travel papers", [("lex", "travel papers")]),
        ("lex:papers\nvec:  a Passport renewal \nhyde: PASSPORTS are …", None),
        ("Sure!\n```\nlex: a\n```\nBye", [("lex", "a")]),
        ("```text\r\nlex: a\r\nvec: renew it\r\n```\r\n", [("lex", "a"), ("vec", "renew it")]),
        ("<think>\nlex: no\n</think>\nlex: yes", [("lex", "yes")]),
        ("<think></think>lex: yes", [("lex", "yes")]),
        ("<think>a</think>\nlex: b\n<think>lex: c\n</think>", [("lex", "b")]),
        ("lex: a: b", [("lex", "a: b")]),
        ("vec: renewal", [("vec", "renewal")]),
        ("lex: a\nvec: nothing shared", [("lex", "a")]),
        ("lex: a\n- lex: b", [("lex", "a")]),
    ],
)
def test_lines_that_begin_with_a_label_are_used(answer, lines):
    """Wherever such a line stands, it is used, with its text trimmed."""
    wanted = lines or [("lex", "papers"), ("vec", "a Passport renewal"), ("hyde", "PASSPORTS are …")]

    assert wanted == used(answer)
    assert parse(answer, QUERY).accepted
    assert parse(answer, QUERY).reason == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("1. lex: a\n2. vec: passport", "number"),
        ("- lex: a", "bullet"),
        ("**lex:** a", "bold"),
        ("**lex**: a", "bold"),
        ("Lex: a", "capitals"),
        ("LEX: a", "capitals"),
        (" lex: a", "space"),
        ("lex : a", "space"),
        ("lex:", "are empty"),
        ("lex: ", "are empty"),
        ("vec: holiday plans", "share no term"),
        ("hyde: to be or not to be", "share no term"),
        ("<think>lex: a", "open <think>"),
        ("passport renewal", "no line begins"),
        ("keywords: a", "no line begins"),
        ("lexical: a", "no line begins"),
    ],
)
def test_an_answer_without_such_a_line_is_lost_with_a_reason(answer, reason):
    """Numbers, bullets, bold type, capitals and spaces before the label lose the answer, and the reason says so."""
    found = parse(answer, QUERY)

    assert not found.accepted
    assert reason in found.reason


def test_lines_that_look_like_rewrites_and_are_lost_are_told():
    """What the client throws away of an answer that it uses is listed."""
    found = parse("lex: a\n* vec: passport\nvec: something else\nA remark.\n", QUERY)

    assert (Line("lex", "a"),) == found.lines
    assert ("* vec: passport", "vec: something else") == found.dropped


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("How do I renew?", {"how", "renew"}),
        ("C++ & Go", set()),
        ("a-bc def_g 123", {"def_g", "123"}),
        ("東京駅 ÄRGER", {"東京駅", "ärger"}),
    ],
)
def test_terms_are_words_of_three_letters(query, terms):
    """Shorter words cannot be asked for, in any script."""
    assert terms == query_terms(query)


def test_a_query_without_terms_drops_nothing():
    """A query of short words alone accepts every line."""
    assert [("vec", "anything")] == used("vec: anything", "go 1")


def test_the_request_is_qmds():
    """The fields, the sampling and the user's message are those that the client sends."""
    body = chat_body("some/model", "notes on ünïcode")

    assert {"model", "messages", "max_tokens", "temperature", "top_p", "top_k"} == set(body)
    assert ("some/model", 400, 0.7, 0.8, 20) == (
        body["model"],
        body["max_tokens"],
        body["temperature"],
        body["top_p"],
        body["top_k"],
    )
    system, user = body["messages"]
    assert ("system", "user") == (system["role"], user["role"])
    assert "/no_think notes on ünïcode" == user["content"]
    assert 550 <= len(system["content"]) <= 650
    assert all(label in system["content"] for label in ("lex:", "vec:", "hyde:"))


NOISE = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30).filter(
    lambda line: not line.startswith(("lex:", "vec:", "hyde:")) and "<think>" not in line
)


@settings(deadline=None)
@given(
    st.lists(NOISE),
    st.lists(st.tuples(st.sampled_from(["lex", "vec", "hyde"]), st.text("abc xyz:", min_size=1, max_size=20))),
    st.randoms(),
)
def test_good_lines_survive_any_noise_in_their_order(noise, good, rng):
    """Whatever stands between them, lines in the form that share a term are used as they are, in order."""
    lines = [("good", f"{kind}: passport {text}") for kind, text in good]
    for one in noise:
        lines.insert(rng.randint(0, len(lines)), ("noise", one))
    answer = "\n".join(line for _, line in lines)

    assert [(kind, f"passport {text}".strip()) for kind, text in good] == used(answer)


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_answer_is_judged(answer, query):
    """No answer makes the parser fail; what it uses is trimmed text, and a lost answer has a reason."""
    found = parse(answer, query)

    assert found.accepted == bool(found.lines) == (found.reason == "")
    assert all(line.text and line.text == line.text.strip() for line in found.lines)
    assert all(f"{line.kind}:" in answer for line in found.lines)
