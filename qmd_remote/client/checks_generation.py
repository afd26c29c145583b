"""The checks of the generation service: completions, chat, and whether QMD can use an expansion."""

from __future__ import annotations

from collections import Counter
from typing import Any

from qmd_remote import expansion
from qmd_remote.client import probe_texts
from qmd_remote.client.http import Answer
from qmd_remote.client.service import Service, Verdict, wrong
from qmd_remote.expansion_repair import OUTCOME_HEADER, REPAIRED, SAFE

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


class GenerationChecks:
    """The rows of the generation service. One chat request, exactly QMD's, serves both the chat and the expansion."""

    def __init__(self, service: Service, model: str, *, constrained: bool | None) -> None:
        self.service = service
        self.model = model
        self.constrained = constrained
        self.said = ""
        self.outcome = ""  # of an answer that the server has looked over

    def run(self, *, quick: bool) -> None:
        """Run every check, or with `quick` only a short completion."""
        check = self.service.check
        check("completion", f"POST {COMPLETIONS}", "a prompt, at most 8 tokens", self.completion)
        if quick:
            return
        tokens = expansion.SAMPLING["max_tokens"]
        chat = check("chat", f"POST {CHAT}", f"QMD's expansion request, at most {tokens} tokens", self.chat)
        if chat.status == "fail" and not self.service.skipped:
            check(
                "expansion", f"POST {CHAT}", "the same request", lambda: Verdict("skip", "there is no answer to judge")
            )
            return
        check("expansion", f"POST {CHAT}", "the same request", self.expansion)

    def completion(self) -> Verdict:
        """A plain completion, which only some clients use: without it QMD's main client still works."""
        answer = self.service.ask(COMPLETIONS, {"model": self.model, "prompt": "Notes about", "max_tokens": 8})
        if answer.status in {404, 405}:
            cause = self.service.refusal(answer).cause
            if cause.code == "wrong_service" and not cause.hopeless:
                return Verdict("warn", f"{answer.status}: no such path", "only some QMD clients need it")
        choice = self._choice(answer)
        text = choice.get("text")
        if not isinstance(text, str):
            raise wrong("the answer has no `choices[0].text`")
        return Verdict("ok", f"{len(text)} characters")

    def chat(self) -> Verdict:
        """QMD's own request. Raises CheckFailed for an error or an answer without a text."""
        answer = self.service.ask(CHAT, expansion.chat_body(self.model, probe_texts.QUERY))
        choice = self._choice(answer)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str) or not text.strip():
            fix = "a model that thinks first needs its thinking switched off, or a smaller thinking part"
            raise wrong("the answer has no text in `choices[0].message.content`", fix)
        self.said, self.outcome = text, answer.headers.get(OUTCOME_HEADER, "")
        return Verdict("ok", f"{len(text)} characters, ended by {choice.get('finish_reason')}")

    def expansion(self) -> Verdict:
        """The answer by the client's own rule. An answer it cannot use costs quality, so it is a warning."""
        found = expansion.parse(self.said, probe_texts.QUERY)
        if not found.accepted:
            return Verdict("warn", f"QMD cannot use the answer: {found.reason}", self._why_unusable())
        kinds = Counter(line.kind for line in found.lines)
        received = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        if self.outcome == SAFE:
            words = "the query's own words: what the model wrote was of no use"
            return Verdict("warn", words, "QMD searches as without expansion; choose a larger generation model")
        lost = f"; {len(found.dropped)} lines lost" if found.dropped else ""
        repaired = "; the server repaired the model's answer" if self.outcome == REPAIRED else ""
        return Verdict("ok", f"{received}{lost}{repaired}")

    def _why_unusable(self) -> str:
        if self.constrained is False:
            return (
                "this engine cannot constrain its decoding, and small models miss the form: use vLLM, or a larger one"
            )
        if self.constrained:
            return "this engine can constrain its decoding: let it, or choose a larger model"
        return "if this engine cannot constrain its decoding, a small model may miss the form: choose a larger one"

    def _choice(self, answer: Answer) -> dict[str, Any]:
        data = self.service.json(answer)
        choices = data.get("choices") if isinstance(data, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self.service.refusal(answer)
        return choices[0]
