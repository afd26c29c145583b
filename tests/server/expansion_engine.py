"""A stand-in generation engine for query expansions: its manners, what it refuses, what it says."""

from __future__ import annotations

import json

from qmd_remote.expansion import chat_body
from qmd_remote.expansion_repair import OUTCOME_HEADER as HEADER
from tests.server.generation_service import say

QUERY = "renew my passport"
BODY = chat_body("own/llm", QUERY)
GOOD = "lex: travel papers\nvec: how to renew a passport"
MESSY = "Sure!\n1. **Lex:** travel papers\n2. vec: how to renew a passport"
SAFE = f"lex: {QUERY}\nvec: {QUERY}"
PROMPT = {"model": "own/llm", "prompt": f"/no_think Expand this search query: {QUERY}", "max_tokens": 300}


class Engine:
    """A generation engine's manners: its version, what it refuses, what it says; `asked` are the bodies that came."""

    def __init__(self, service, text=GOOD, *, version="0.32.0", refuses=()):
        self.text, self.version, self.refuses = text, version, refuses
        self.asked = []
        self.before = []  # answers to give first, in this order
        service.answer = self.answer

    def answer(self, handler, raw):
        if handler.path == "/version":
            return say(handler, 200 if self.version else 404, json.dumps({"version": self.version}).encode())
        if handler.path == "/v1/models":
            return say(handler, 200, json.dumps({"data": [{"id": "own/llm"}]}).encode())
        body = json.loads(raw)
        self.asked.append(body)
        if self.before:
            return self.before.pop(0)(handler, raw)
        if set(self.refuses) & set(body):
            return say(handler, 422, b'{"detail": "Unexpected fields in the request"}')
        return say(handler, 200, self.said("messages" in body))

    def said(self, is_chat):
        said = {"message": {"role": "assistant", "content": self.text}} if is_chat else {"text": self.text}
        choice = {"index": 0, **said, "finish_reason": "length"}
        usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
        # spaces that no other writer leaves: a clean answer's bytes are kept
        return json.dumps({"id": "c1", "created": 5, "choices": [choice], "usage": usage, "x": 1}, indent=3).encode()


def text_of(answer):
    """What an answer says, and its header."""
    assert 200 == answer.status_code, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"], answer.headers[HEADER]


def refuse_all(status, **headers):
    """An engine that answers with nothing but this status."""
    return lambda handler, _: say(handler, status, b'{"error": {"message": "no"}}', **headers)


def broken(handler, _):
    """An engine that leaves."""
    handler.close_connection = True
