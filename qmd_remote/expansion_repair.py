"""An answer to an expansion → one that QMD's clients accept, by the rule in `expansion`. Pure and total."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from qmd_remote.expansion import Kind, Line, parse, query_terms

Outcome = Literal["clean", "repaired", "safe"]
CLEAN: Outcome = "clean"
REPAIRED: Outcome = "repaired"
SAFE: Outcome = "safe"
OUTCOMES = (CLEAN, REPAIRED, SAFE)
OUTCOME_HEADER = "x-qmd-remote-expansion"  # of an answer that was looked over; it holds one of them

MIN_LINES, MAX_LINES = 2, 8
# What is looked at: an answer is read while other requests wait. Real ones are below 2,000 characters.
MAX_READ = 32768  # characters
MAX_READ_LINES = 200
MAX_TERMS = 500  # of a query, the longest
MAX_ANCHOR = 80  # characters of a query that are put before a line; of a longer one it is a word

_SHORT_TERM = re.compile(r"\w+")
_KINDS: dict[str, Kind] = {"lex": "lex", "vec": "vec", "hyde": "hyde"}
_LABELLED = re.compile(
    r"(?P<before>[\W\d_]*)(?P<kind>lex|vec|hyde)(?P<after>[\W\d_]*?)[:\uff1a\ufe55\u2236](?P<text>.*)", re.I
)
_ITEM = re.compile(r"\s*(?:[-*+•‣·–—]|\(?\d+[.)])\s+(?P<text>\S.*)")
_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.I)
_THINK_OPEN = re.compile(r"<think(?:ing)?>", re.I)
_THINK_CLOSE = re.compile(r"</think(?:ing)?>", re.I)
_THINK_TAG = re.compile(r"<(?=[</]*think)", re.I)  # and what would become one without a "<" of its own
_QUOTES = "\"'“”„‘’‚«»"
_MARKUP = "*_` \t"


def repair(answer: str, query: str) -> tuple[str, Outcome]:
    """What the clients accept of `answer`: MIN_LINES to MAX_LINES lines, one `vec:` at least, and what was done.

    `query` has a character that is no space. An answer that is fine stays as it is, byte for byte; one of which
    nothing can be used becomes `safe(query)`. Of a long answer the first MAX_READ characters and MAX_READ_LINES lines
    count, those behind its last `</think>` where it has one.
    """
    if is_clean(answer, query):
        return answer, CLEAN
    lines = list(_acceptable(_read(_part(answer)), query))
    if not lines:
        return safe(query), SAFE
    return _written(_enough(lines, query)), REPAIRED


def safe(query: str) -> str:
    """An expansion that adds nothing and loses nothing: the query itself, for both kinds of search."""
    text = _flat(query)
    return _written([Line("lex", text), Line("vec", text)])


def is_clean(answer: str, query: str) -> bool:
    """Whether every client accepts the whole of `answer` as it is: nothing to drop, nothing twice, enough lines."""
    if len(answer) > MAX_READ:
        return False
    written = [line for line in answer.split("\n") if line.strip()]
    if not MIN_LINES <= len(written) <= MAX_LINES:
        return False
    if any(len(line.splitlines()) > 1 for line in written) or _THINK_OPEN.search(answer):
        return False
    terms = _terms(query)
    found = parse(answer, " ".join(terms))
    return (
        len(found.lines) == len(written)
        and all(_shares(line, terms) for line in found.lines)
        and any(line.kind == "vec" for line in found.lines)
        and len({_same(line) for line in found.lines}) == len(written)
    )


def _part(answer: str) -> str:
    if len(answer) <= MAX_READ:
        return answer
    start = max((found.start() for found in _THINK_CLOSE.finditer(answer)), default=0)
    return answer[start : start + MAX_READ]


def _read(answer: str) -> list[Line]:
    """The lines with a label, however it is written; those before an unclosed `<think>`, else those behind it."""
    last = max((found.end() for found in _THINK_CLOSE.finditer(answer)), default=0)
    # not in what follows: each of many blocks that nothing closes would be looked through to the end
    spoken = _THINK_CLOSE.split(_THINKING.sub("\n", answer[:last]))[-1] + answer[last:]
    said, *thought = _THINK_OPEN.split(spoken)
    return list(_labelled(said)) or list(_labelled("\n".join(thought)))


def _labelled(text: str) -> Iterator[Line]:
    heading: Kind | None = None  # a label alone on its line: the list below it is meant
    for raw in text.splitlines()[:MAX_READ_LINES]:
        found = _LABELLED.fullmatch(raw)
        item = None if found else _ITEM.fullmatch(raw)
        if found:
            kind, said = _KINDS[found["kind"].lower()], _unwrapped(found)
            heading = None if said else kind
            if said:
                yield Line(kind, said)
        elif heading and item:
            yield Line(heading, _flat(item["text"]))
        elif raw.strip():
            heading = None


def _unwrapped(found: re.Match[str]) -> str:
    """The text behind a label, without the quotes and the markup that were begun before it or put around it."""
    text = _flat(found["text"])
    if not found["before"] and not found["after"]:
        return text if text.strip(_MARKUP + _QUOTES) else ""
    text = text.strip(_MARKUP)
    if any(mark in _QUOTES for mark in found["before"]) and not (found["after"] and text[:1] in _QUOTES):
        text = text.rstrip(",")
        text = text[:-1] if text[-1:] in _QUOTES else text
    elif len(text) > 1 and text[0] in _QUOTES and text.rstrip(",")[-1] in _QUOTES:
        text = text.rstrip(",")[1:-1]
    return text.strip(_MARKUP)


def _acceptable(lines: Iterable[Line], query: str) -> Iterator[Line]:
    """Each line once, with a term of the query where the clients want one."""
    terms, seen = _terms(query), set()
    anchor = _anchor(query, terms)
    for line in lines:
        if not any(mark.isalnum() for mark in line.text):
            continue
        kept = line if _shares(line, terms) else Line(line.kind, f"{anchor}: {line.text}")
        if _same(kept) not in seen:
            seen.add(_same(kept))
            yield kept


def _enough(lines: list[Line], query: str) -> list[Line]:
    """At most MAX_LINES of them, with a `vec:`, and with the query itself where they are too few."""
    lexical, semantic = Line("lex", _flat(query)), Line("vec", _flat(query))
    vec = next((line for line in lines if line.kind == "vec"), semantic)
    kept = lines[:MAX_LINES]
    if vec not in kept:
        kept = [*lines[: MAX_LINES - 1], vec]
    return kept if len(kept) >= MIN_LINES else [lexical, *kept]


def _anchor(query: str, terms: Sequence[str]) -> str:
    """Words of the query for a line that has none."""
    flat = _flat(query)
    return flat if len(flat) <= MAX_ANCHOR or not terms else terms[0]


def _terms(query: str) -> list[str]:
    """The words one of which a `vec` or `hyde` line must hold, the longest first.

    Of a query of short words alone these count: a client that knows of no least length would drop all other lines.
    """
    terms = query_terms(query) or frozenset(_SHORT_TERM.findall(query.lower()))
    return sorted(terms, key=lambda term: (-len(term), term))[:MAX_TERMS]


def _shares(line: Line, terms: Sequence[str]) -> bool:
    text = line.text.lower()
    return line.kind == "lex" or not terms or any(term in text for term in terms)


def _flat(text: str) -> str:
    """On one line, without anything that begins a `<think>` block."""
    return " ".join(_THINK_TAG.sub("", text).split())


def _same(line: Line) -> tuple[Kind, str]:
    return line.kind, " ".join(line.text.casefold().split())


def _written(lines: Iterable[Line]) -> str:
    return "\n".join(f"{line.kind}: {line.text}" for line in lines)
