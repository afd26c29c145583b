"""Whatever a model says becomes an expansion that QMD's clients accept, and what is one already stays."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd_remote.expansion import parse
from qmd_remote.expansion_repair import MAX_LINES, MAX_READ, MAX_READ_LINES, MIN_LINES, is_clean, repair, safe

QUERY = "renew my passport"
SAFE = "lex: renew my passport\nvec: renew my passport"


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("1. lex: a\n2. vec: a passport", "lex: a\nvec: a passport"),
        ("1) lex: a\n(2) vec: a passport", "lex: a\nvec: a passport"),
        ("- lex: a\n* vec: a passport\n• hyde: passport", "lex: a\nvec: a passport\nhyde: passport"),
        ("**lex:** a\n**vec**: a passport", "lex: a\nvec: a passport"),
        ("**lex: a**\n__vec: a passport__", "lex: a\nvec: a passport"),
        ("`lex:` a\n`vec: a passport`", "lex: a\nvec: a passport"),
        ('"lex: a"\n"vec: a passport",', "lex: a\nvec: a passport"),
        ('"lex": "a",\n"vec": "a passport"', "lex: a\nvec: a passport"),
        ("“lex: a”\n‘vec: a passport’", "lex: a\nvec: a passport"),
        ('- lex: "a b"\n- vec: a "passport"', 'lex: a b\nvec: a "passport"'),
        ('lex: "a b"\n- vec: a passport', 'lex: "a b"\nvec: a passport'),
        ("Lex: a\nVEC: a passport\nHyDE: passport", "lex: a\nvec: a passport\nhyde: passport"),
        (" lex: a\n\tvec: a passport", "lex: a\nvec: a passport"),
        ("lex : a\nvec\uff1a a passport", "lex: a\nvec: a passport"),
        ("lex 1: a\nvec (1): a passport", "lex: a\nvec: a passport"),
        ("> lex: a\n> vec: a passport", "lex: a\nvec: a passport"),
        ("### lex:\n- a\n- b\n\n### vec:\n1. a passport\n\nBye", "lex: a\nlex: b\nvec: a passport"),
        ("```\nlex: a\nvec: a passport\n```", "lex: a\nvec: a passport"),
        ("Sure:\nlex: a\r\nvec: a passport\r\nBye!", "lex: a\nvec: a passport"),
        ("<think>lex: no</think>\nlex: a\nvec: a passport", "lex: a\nvec: a passport"),
        ("lex: no\n</think>\nlex: a\nvec: a passport", "lex: a\nvec: a passport"),
        ("lex: a\nvec: a passport\n<think>lex: no", "lex: a\nvec: a passport"),
        ("<think>\nlex: a\nvec: a passport", "lex: a\nvec: a passport"),
        ("lex: a\nlex: A\nvec: a passport\nlex:  a", "lex: a\nvec: a passport"),
        ("lex:\nvec: a passport", "lex: renew my passport\nvec: a passport"),
        ("lex: a", "lex: a\nvec: renew my passport"),
        ("hyde: passports last ten years", "hyde: passports last ten years\nvec: renew my passport"),
        ("vec: travel papers", "lex: renew my passport\nvec: renew my passport: travel papers"),
        ("lex: a\nlex: b\nlex: c\nlex: d\nlex: e\nlex: f\nlex: g\nlex: h\nvec: passport", None),
        ("\n".join(f"vec: passport {n}" for n in range(12)), "\n".join(f"vec: passport {n}" for n in range(8))),
    ],
)
def test_what_small_models_write_is_put_right(answer, wanted):
    """Each way of missing the form gives the lines that were meant."""
    if wanted is None:
        wanted = "\n".join([*(f"lex: {letter}" for letter in "abcdefg"), "vec: passport"])

    assert (wanted, "repaired") == repair(answer, QUERY)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n\n",
        "I cannot help with that.",
        "<think>\nThe user wants",
        "lex:\nvec:\nhyde:",
        "lex: …\nvec: ---",
        "lexical: a",
    ],
)
def test_of_an_answer_without_anything_to_use_the_query_is_left(answer):
    """The query itself, once for each kind of search."""
    assert (SAFE, "safe") == repair(answer, QUERY)


@pytest.mark.parametrize(
    "answer",
    [
        "lex: a\nvec: a passport",
        "lex:a\nvec:passport\n",
        'vec: "my" passport?\n\nhyde: Passports *are* renewed: here.\n',
        "\n".join(f"vec: passport {n}" for n in range(8)),
    ],
)
def test_what_is_fine_stays_byte_for_byte(answer):
    """An answer that is accepted as a whole is not touched."""
    assert (answer, "clean") == repair(answer, QUERY)


def test_a_query_of_several_lines_becomes_one():
    """A safe expansion has one line of each kind, and can hold nothing that reads as thinking."""
    assert "lex: a b think> c\nvec: a b think> c" == safe(" a\nb\r\n<<think>\u2028c ")


def test_a_line_that_shares_nothing_with_a_long_query_gets_a_word_of_it():
    """Not the whole of it: the line's own words would drown in it."""
    assert "vec: passports: travel papers" in repair("- vec: travel papers", "to renew passports " * 20)[0]


@pytest.mark.parametrize(
    ("query", "answer", "wanted"),
    [
        ("CI", "vec: build servers\nlex: jobs", "vec: CI: build servers\nlex: jobs"),
        ("go vs rs", "vec: two languages\nhyde: Go is older.", "vec: go vs rs: two languages\nhyde: Go is older."),
        ("a b " * 30, "vec: xyz\nhyde: xyz", "vec: a: xyz\nhyde: a: xyz"),
    ],
)
def test_of_a_query_of_short_words_these_are_asked_for(query, answer, wanted):
    """A client that counts shorter terms keeps the line, as does one that asks such a query for none."""
    assert (wanted, "repaired") == repair(answer, query)
    assert (wanted, "clean") == repair(wanted, query)


def test_a_query_without_a_word_asks_for_none():
    """Of signs alone there is nothing to share."""
    assert ("lex: a\nvec: b", "clean") == repair("lex: a\nvec: b", "++")


def test_many_blocks_that_nothing_closes_are_read_in_time():
    """Reading takes time in proportion to the answer: this one would take hours otherwise."""
    assert (SAFE, "safe") == repair("<think>" * 300_000, QUERY)


def test_work_for_an_answer_has_a_limit():
    """Other requests wait for it: five thousand lines against as many words are read in less than a second."""
    query = " ".join(f"word{n:04}" for n in range(5000))
    for form in ("vec: something else {}", "- vec: something else {}", "vec: {:09999}"):
        began = time.process_time()
        _, outcome = repair("\n".join(map(form.format, range(5000))), query)
        assert time.process_time() - began < 1
        assert "repaired" == outcome


@pytest.mark.parametrize("noise", ["a\n" * MAX_READ_LINES, "a" * MAX_READ + "\n", "\n" * MAX_READ])
def test_of_a_long_answer_the_beginning_counts(noise):
    """Not what comes after that much else; but a model that thinks at length is heard out."""
    assert (SAFE, "safe") == repair(f"{noise}lex: a\nvec: a passport", QUERY)
    wanted = "lex: a\nvec: a passport"
    assert (wanted, "repaired") == repair(f"{wanted}\n{noise}", QUERY)
    assert (wanted, "repaired") == repair(f"<think>{noise * 9}</think>{wanted}", QUERY)


labels = st.sampled_from(
    ["lex:", "vec:", "hyde:", "Lex :", "**vec:**", "1. hyde:", "<think>", "</think>", "```", "\n", "- "]
)
answers = st.lists(labels | st.text(max_size=12) | st.sampled_from(["passport", "\r\n", " "]), max_size=30).map("".join)
queries = st.one_of(
    st.text(min_size=1), st.sampled_from([QUERY, "ΟΔΟΣ ΑΘΗΝΑΣ", "İstanbul", "C++", "CI İΣ", "a b " * 30, "<<think>>"])
).filter(str.strip)


@settings(max_examples=600)
@given(answer=st.one_of(answers, st.text()), query=queries)
def test_any_answer_becomes_one_that_is_accepted_as_a_whole(answer, query):
    """Two to eight lines, a vec among them, none dropped; repairing that again changes nothing."""
    text, outcome = repair(answer, query)
    found = parse(text, query)

    assert MIN_LINES <= len(found.lines) <= MAX_LINES
    assert "vec" in {line.kind for line in found.lines}
    assert () == found.dropped
    assert (text, "clean") == repair(text, query)
    assert (outcome == "clean") == is_clean(answer, query)
    assert outcome != "clean" or text == answer


words = st.text("abcdefgh ıßé:", min_size=1, max_size=20).filter(lambda text: text.strip())


@given(lexical=st.lists(words, max_size=6, unique_by=lambda text: " ".join(text.casefold().split())))
def test_clean_answers_pass_whatever_their_words(lexical):
    """Any words behind exact labels are kept as they are."""
    answer = "\n".join([*(f"lex: {text}" for text in lexical), "vec: a passport", "hyde: the passport"])

    assert (answer, "clean") == repair(answer, QUERY)
