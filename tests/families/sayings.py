"""What the clients' requests hold: wrong names of models, prefixes, notes of every size."""

from __future__ import annotations

from typing import Any

GGUF = "hf:ggml-org/embeddinggemma-300M-GGUF/embeddinggemma-300M-Q8_0.gguf"
GEMMA = "embeddinggemma"
RERANKER = "ExpedientFalcon/qwen3-reranker:0.6b-q8_0"
EXPANDER = "hf:tobil/qmd-query-expansion-1.7B-gguf/qmd-query-expansion-1.7B-q4_k_m.gguf"

QUERY = "renew my passport"
VARIANTS = ("passport renewal office", "how to renew a passport", "A passport is renewed at the town hall.")
PASSPORT = "The passport office renews passports on weekdays; bring the old passport and two photographs."
NOTES = (
    "Sourdough needs a warm kitchen and a patient baker.",
    PASSPORT,
    "The bicycle's rear brake squeals; new pads are in the drawer.",
    "Tomatoes go out after the last frost, basil two weeks later.",
)
ANSWER = 1  # NOTES[ANSWER] is what QUERY asks for

CHUNK = 2720  # characters of a chunk
CJK_CHUNK = 2700  # characters, of three bytes each
PASSAGE = 3600  # characters of a document to be ranked
BATCH = 32
CANDIDATES = 40

INSTRUCTIONS = (
    "You help a search engine for markdown notes. For the query you are given, write other ways to look for the same "
    "thing, one a line. A line begins with lex: when it holds keywords for full-text search, with vec: when it asks "
    "the question in natural language for semantic search, and with hyde: when it is a short passage that a matching "
    "note might hold. Write up to three lex: lines, up to three vec: lines and one hyde: line. Use words of the query "
    "where they matter, and keep names as they are. Do not number the lines, do not explain them, do not repeat the "
    "query as it is. The query is expanded only; never answer it."
)


def chunk(number: int, length: int = CHUNK) -> str:
    """A note's part of exactly this many characters; no two are the same."""
    sentence = f"Part {number} of the log: {NOTES[number % len(NOTES)]} "
    return (sentence * (length // len(sentence) + 1))[:length]


def titled(text: str, title: str = "none") -> str:
    """A document as clients prepare it for EmbeddingGemma."""
    return f"title: {title} | text: {text}"


def asked(query: str) -> str:
    """A query as clients prepare it for EmbeddingGemma."""
    return f"task: search result | query: {query}"


def instructed(query: str) -> str:
    """A query as clients prepare it for Qwen3's embedding models."""
    return f"Instruct: Retrieve relevant documents for the given query\nQuery: {query}"


def candidates(count: int = CANDIDATES, length: int = PASSAGE) -> list[str]:
    """Documents to be ranked, of this many characters, of which the one at ANSWER is about QUERY."""
    others = [note for note in NOTES if note is not PASSPORT]
    texts = [f"{_turned(others[number % len(others)], number)} " * 80 for number in range(count)]
    texts[ANSWER] = f"{PASSPORT} " * 80
    return [f"{number}. {text}"[:length] for number, text in enumerate(texts)]


def _turned(note: str, by: int) -> str:
    """The note, begun at another word: to a small tokenizer, copies that differ in their number can be the same."""
    words = note.split()
    at = by % len(words)
    return " ".join(words[at:] + words[:at])


def few() -> list[str]:
    """Candidates short and few enough for a real model to read while a test waits."""
    return candidates(8, 160)


def chat(model: str, user: str, **more: Any) -> dict[str, Any]:
    """A request for an expansion."""
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": user}]
    return {"model": model, "messages": messages, **more}
