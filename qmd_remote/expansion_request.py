"""Which requests for generation are query expansions of a QMD client, and how they are put to an engine. Pure.

Conservative: what is not surely an expansion, with a query that is surely read from it, is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from qmd_remote.expansion import NO_THINK, SYSTEM_PROMPT

Shape = Literal["chat", "text"]

LABELS = ("lex:", "vec:", "hyde:")
MAX_PROMPT = 8000  # characters, unless it is _SURE; the clients' own are below 2,000
MAX_QUERY = 4000  # of a request without NO_THINK; nobody types more into a search
NEAR = 1000  # characters around the labels within which instructions say what to do with them
MAX_CUE = 40  # characters of a line such as "Output:", with which a prompt asks for its answer

# what makes an answer take another form than lines of text; a request with one of them asks for that form
OTHER_FORMS = frozenset(
    {"tools", "functions", "response_format", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix"}
    | {"structured_outputs", "guided_regex", "guided_json", "guided_choice", "guided_grammar", "grammar", "regex"}
    | {"json_schema", "audio", "modalities", "continue_final_message", "return_token_ids", "use_beam_search"}
)
ONE_ANSWER = frozenset({"n", "best_of"})

_SURE = re.compile(r"\s*/no_think\s+Expand this search query:")
_EXPAND = re.compile(r"Expand this search query:\s*(\S.*)", re.DOTALL)
_QUERY_LINE = re.compile(r"(?i)(?:^|\b)query[ \t]*:[ \t]*(\S.*)$")
_NO_THINK = re.compile(r"/no_think\b[ \t]*")
_TURN_END = re.compile(r"<\|.*", re.DOTALL)
_LABEL = re.compile(r"\b(lex|vec|hyde):")
_VERB = (
    r"(?:output|answer|respond|reply|generate|write|rewrite|rephrase|return|produce|create|give|provide|expand|emit|"
    r"print|list|format|make|suggest|convert|transform|turn|split|use|begin|start|prefix|label)\b"
)
# Instructions ask for the lines, where a description of a program only tells of them: "emits", "its output". Single
# words, since clients phrase it in many ways and nothing here may take long: requests are looked at one by one.
_MODAL = r"must|should|shall|please|exactly|only|strictly|each|every|never|beginn\w*|begin|begins|start|starts|format"
_MORE_VERBS = (
    r"follow|following|include|contain|consist|combine|allowed|task|"
    r"gib|geben?|schreib\w*|erzeug\w*|erstell\w*|antwort\w*|formulier\w*"
)
_ASKS = re.compile(rf"(?i)\b(?:{_MODAL}|{_MORE_VERBS})\b|(?<!'s )(?<!its )(?<!the )\b{_VERB}")
_ASKS_BEHIND = re.compile(rf"(?i)\b(?:{_MODAL})\b")
_LABEL_LINE = re.compile(r"(?m)^[ \t\-*•>`\"'\d.)]{0,8}(lex|vec|hyde):")  # a form to be filled in
_ABOUT_A_QUERY = re.compile(r"(?i)quer(?:y|ies)\b|search|such|anfrage")
_ABOUT_OTHERS = re.compile(
    r"(?i)expan|rewrit|rephras|optimi[sz]|reformul|paraphras|variation|alternativ|synonym|generat|erweiter|umformul"
)
_CUE = re.compile(r"(?:<[|/]?\w[^<>]*>|\[/?INST\]|\b(?:assistant|model)\b|[-=#*_`\s])+")
_SAYS_HOW = re.compile(rf"(?i)\s*(?:(?:only|just|now|please)\s+)?{_VERB}.*\b(?:lines?|lex|expansions?|rewrites)\b")
# Qwen3's later ones, which do not think at all, read it as text
_KNOWS_NO_THINK = re.compile(r"(?i)qwen3[-_](?!.*2507)|qmd-query-expansion")


def query_of(shape: Shape, request: Mapping[str, Any]) -> str:
    """The query that a request asks to expand; empty where it is no expansion, or one of another form."""
    if any(request.get(name) for name in OTHER_FORMS) or any(request.get(name) not in (None, 1) for name in ONE_ANSWER):
        return ""
    if shape == "text":
        prompt = request.get("prompt")
        return _in_prompt(prompt) if isinstance(prompt, str) else ""
    turns = _turns(request.get("messages"))
    if not turns or len(turns) > 2 or turns[-1][0] != "user" or any(role not in _SYSTEM for role, _ in turns[:-1]):
        return ""
    return _in_prompt(turns[0][1]) if len(turns) == 1 else _in_turns(turns[0][1], turns[1][1])


def rewritten(shape: Shape, request: Mapping[str, Any], model: str, *, thinking_off: bool) -> dict[str, Any]:
    """The request as `model` should get it; its sampling stays. It is never a stream: a repair needs the whole answer.

    With `thinking_off` a chat's template is told not to let the model think, which templates that know of no thinking
    pass over. Without it, NO_THINK stays for the models that know it. A chat that names no labels is told of them.
    """
    kept = {name: value for name, value in request.items() if name not in {"stream", "stream_options"}}
    if model:
        kept["model"] = model
    strip = not _KNOWS_NO_THINK.search(model)
    if shape == "text":
        kept["prompt"] = _stripped(request["prompt"]) if strip else request["prompt"]
        return kept
    messages = [dict(turn) for turn in request["messages"]]
    if strip:
        messages[-1]["content"] = _stripped(messages[-1]["content"])
    if not _labelled("\n".join(turn["content"] for turn in messages)):
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, messages[-1]]
    if thinking_off:
        theirs = request.get("chat_template_kwargs")
        kept["chat_template_kwargs"] = {"enable_thinking": False, **(theirs if isinstance(theirs, dict) else {})}
    return {**kept, "messages": messages}


_SYSTEM = frozenset({"system", "developer"})


def _turns(messages: Any) -> list[tuple[str, str]]:
    """(role, text) of each message; none where one of them is more than that."""
    if not isinstance(messages, list) or len(messages) > 2:
        return []
    found = []
    for message in messages:
        if not isinstance(message, dict) or set(message) - {"role", "content"}:
            return []
        role, text = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(text, str):
            return []
        found.append((role, text))
    return found


def _in_turns(system: str, user: str) -> str:
    """A chat with instructions: these name the labels, or the user's part is what the clients of one family send."""
    unthinking = "/no_think" in user
    text = _stripped(user).strip()
    wanted = _EXPAND.match(text)
    if len(system) > MAX_PROMPT or not (_labelled(system) or (unthinking and wanted)):
        return ""
    if wanted:
        return wanted[1].strip()
    if unthinking:
        return _unlabelled(text)
    # a person may ask a model about QMD with its documentation as instructions: that tells of expansions, asks for none
    if not (_ABOUT_A_QUERY.search(system) and _ABOUT_OTHERS.search(system) and _orders(system)):
        return ""
    return _unlabelled(text) if len(text) <= MAX_QUERY else ""


def _unlabelled(text: str) -> str:
    """The query in a user's part, which may be named so."""
    label = _QUERY_LINE.match(text)
    return (label[1] if label else text).strip()


def _in_prompt(prompt: str) -> str:
    """One text that holds the instructions, if there are any, and the query."""
    if len(prompt) > MAX_PROMPT and not _SURE.match(prompt):
        return ""
    wanted = _EXPAND.search(prompt)
    if wanted and "/no_think" in prompt and not _labelled(prompt):
        return _before_turn_end(wanted[1])
    if not _labelled(prompt):
        return ""
    if "/no_think" in prompt and not wanted and prompt.count("/no_think") == 1:
        return _before_turn_end(prompt.partition("/no_think")[2])
    return _before_turn_end(_on_a_line(prompt, sure="/no_think" in prompt))


def _on_a_line(prompt: str, *, sure: bool) -> str:
    """The query of the last line that has one; where it is not `sure`, of a prompt that asks for its expansion."""
    lines = prompt.splitlines()
    found = [(number, at[1]) for number, at in enumerate(map(_QUERY_LINE.search, lines)) if at]
    if not found or not (sure or (_orders(prompt) and _is_last(lines, found[-1][0]))):
        return ""
    return found[-1][1]


def _orders(text: str) -> bool:
    """Whether a text that names labels asks its reader for such lines, and does not only speak of them."""
    labels = list(_LABEL.finditer(text))
    if not labels:
        return False
    first, last = labels[0].start(), labels[-1].end()
    if len({found[1] for found in _LABEL_LINE.finditer(text)}) > 1:
        return True
    return bool(_ASKS.search(text, max(0, first - NEAR), first) or _ASKS_BEHIND.search(text, first, last + NEAR))


def _is_last(lines: list[str], number: int) -> bool:
    """Whether the query in this line is what a prompt comes to: only cues for the answer follow, or the form of it.

    Where something else follows, a question about it say, the query is an example.
    """
    behind = [line for line in lines[number + 1 :] if line.strip()]
    if all(_is_cue(line) or _SAYS_HOW.match(line) for line in behind):
        return True
    return _is_cue(behind[-1]) and not _LABEL.search("\n".join(lines[:number]))


def _is_cue(line: str) -> bool:
    """A line that asks for the answer, or a mark of a chat's template."""
    return bool(line.rstrip().endswith(":") and len(line) <= MAX_CUE) or bool(_CUE.fullmatch(line))


def _before_turn_end(text: str) -> str:
    """What stands before the mark by which chat templates end a turn, or before an empty line."""
    return re.split(r"\n\s*\n", _TURN_END.sub("", text).strip())[0].strip().strip('"')


def _labelled(text: str) -> bool:
    return len(LABELS) == len({found[1] for found in _LABEL.finditer(text)})


def _stripped(text: str) -> str:
    """Without NO_THINK, wherever it stands."""
    word = NO_THINK.strip()
    if word not in text:
        return text
    return _NO_THINK.sub("", text.rstrip().removesuffix(word).rstrip() if text.rstrip().endswith(word) else text)
