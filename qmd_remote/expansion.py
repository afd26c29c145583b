"""Query expansion as QMD's client does it: the request it sends, and the rule by which it accepts an answer.

The rule, observed on the client: a line counts only if it begins exactly with `lex:`, `vec:` or `hyde:`, wherever it
stands, in a code fence too or after a closed `<think>` block. A numbered, bulleted, bold, indented or capitalised one
does not. A `vec` or `hyde` line must share a term of three letters or more with the query. An answer without any
line left is lost as a whole, and the client caches that loss for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["lex", "vec", "hyde"]

SYSTEM_PROMPT = (
    "You rewrite search queries for a collection of personal notes and documents. Answer with plain lines only, each "
    "of which begins with one of three labels and holds one rewrite. Write one to three lines that begin with `lex:` "
    "and give a few keywords or synonyms for a keyword index. Write one to three lines that begin with `vec:` and ask "
    "the same thing in other words, as a full sentence for semantic search. Write at most one line that begins with "
    "`hyde:` and states, in one or two sentences, what a good answer in the notes could say. Keep names and terms of "
    "the query. No numbering, no bullets, no other text."
)
NO_THINK = "/no_think "
SAMPLING = {"max_tokens": 400, "temperature": 0.7, "top_p": 0.8, "top_k": 20}

_LINE = re.compile(r"(lex|vec|hyde):(.*)")
_NEAR_MISS = re.compile(r"(?i)[\s\-*•>#`_\d.)(]*(lex|vec|hyde)[\s*`_]*:")
_CLOSED_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_TERM = re.compile(r"\w{3,}")


@dataclass(frozen=True)
class Line:
    """One rewrite of the query."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Expansion:
    """What the client makes of an answer.

    `lines` are the rewrites it uses; `dropped` are the lines that look like rewrites and are lost; `reason` says why
    an answer that is not accepted is not.
    """

    lines: tuple[Line, ...]
    dropped: tuple[str, ...]
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the client uses the answer; otherwise it falls back, and caches that."""
        return bool(self.lines)


def chat_body(model: str, query: str) -> dict[str, Any]:
    """The body of the chat request that QMD sends for a query."""
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": f"{NO_THINK}{query}"}]
    return {"model": model, "messages": messages, **SAMPLING}


def parse(answer: str, query: str) -> Expansion:
    """Apply the client's rule to an answer."""
    spoken, open_thinking, _ = _CLOSED_THINKING.sub("\n", answer).partition("<think>")
    terms = query_terms(query)
    lines: list[Line] = []
    dropped: list[str] = []
    for raw in spoken.split("\n"):
        line = _read(raw.removesuffix("\r"), terms)
        if line:
            lines.append(line)
        elif _NEAR_MISS.match(raw):
            dropped.append(raw.rstrip())
    reason = "" if lines else _why_not(answer, dropped, thinking=bool(open_thinking))
    return Expansion(tuple(lines), tuple(dropped), reason)


def query_terms(query: str) -> frozenset[str]:
    """The words of a query, in lower case, that a `vec` or `hyde` line can share with it."""
    return frozenset(_TERM.findall(query.lower()))


def _read(raw: str, terms: frozenset[str]) -> Line | None:
    match = _LINE.fullmatch(raw)
    text = match[2].strip() if match else ""
    if match is None or not text:
        return None
    if match[1] == "lex":
        return Line("lex", text)
    # A query without a single term, of two letters say, cannot be asked for one.
    lowered = text.lower()
    if terms and not any(term in lowered for term in terms):
        return None
    return Line("vec" if match[1] == "vec" else "hyde", text)


def _why_not(answer: str, dropped: list[str], *, thinking: bool) -> str:
    if not answer.strip():
        return "the answer is empty"
    if thinking:
        return "the answer ends inside an open <think> block"
    if any(_LINE.fullmatch(line) for line in dropped):
        return "its lines are empty, or share no term with the query"
    if dropped:
        return "its lines begin with a number, a bullet, bold type, a space or capitals, not with lex:, vec: or hyde:"
    return "no line begins with lex:, vec: or hyde:"
