"""Which requests are expansions of QMD's clients, and what an engine gets instead of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.expansion import SAMPLING, SYSTEM_PROMPT, chat_body
from qmd_remote.expansion_request import OTHER_FORMS, query_of, rewritten

QUERY = "renew my passport"
ASKS = "Expand the query. Answer with lines that begin with lex:, vec: or hyde:."


def chat(*texts, **more):
    """A chat: instructions, if there are two texts, and the user's part."""
    roles = ["system", "user"][-len(texts) :]
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return {"model": "m", "messages": turns, **more}


@pytest.mark.parametrize(
    "request_",
    [
        chat_body("m", QUERY),
        chat(ASKS, f"/no_think {QUERY}", stream=True),
        chat(ASKS, QUERY, n=1, tools=[]),
        chat(ASKS, f"Query: {QUERY}"),
        chat(ASKS, f"{QUERY} /no_think"),
        chat(f"/no_think Expand this search query: {QUERY}"),
        chat("You are helpful.", f"/no_think Expand this search query: {QUERY}"),
        chat(f"{ASKS}\n\nQuery: {QUERY}"),
        chat(f"{ASKS}\n/no_think {QUERY}"),
        chat(ASKS, f"Expand this search query: {QUERY}"),
        chat("You expand search queries. Every line must begin with lex:, vec: or hyde:.", QUERY),
        chat("You are a query expansion engine.\n\nOutput format:\nlex: keywords\nvec: question\nhyde: text", QUERY),
        chat("Given a query, you rewrite it: 1. write keywords in lex:, vec: and hyde: lines.", QUERY),
        chat("Your task is to rephrase a query as lex:, vec: and hyde: lines.", f"query: {QUERY}"),
        chat("Query expansion has\n- lex: keywords\n- vec: questions\n- hyde: text\nGive one to three of each.", QUERY),
        chat(f"{ASKS}\nQuery: {QUERY}\n\nReturn only the lines, nothing else."),
        chat(ASKS, f"/no_think Query: {QUERY}"),
    ],
)
def test_the_clients_chats_are_recognised(request_):
    """Whichever family sends it, the query is read from it."""
    assert QUERY == query_of("chat", request_)


FORM = "lex: two or three keywords\nvec: the question in other words\nhyde: a passage that answers it"


@pytest.mark.parametrize(
    "system",
    [
        f"You are a search query optimizer. Generate variations of the query.\n\nOutput format:\n{FORM}",
        f"You expand search queries. Follow this format exactly:\n{FORM}\nNo other text.",
        f"Rewrite the user's query for a hybrid search engine. The output should contain the following lines:\n{FORM}",
        "Given a search query, generate alternatives. Include 2 lex: lines, 2 vec: lines and 1 hyde: line.",
        "Query expansion. Your answer has exactly three parts: lex: (keywords), vec: (a question), hyde: (a passage).",
        "You are a query expansion model. Three types of lines are allowed: lex:, vec:, hyde:.",
        "Task: reformulate queries for retrieval. Each line starts with lex:, vec: or hyde:. Nothing else.",
        "For every search query produce paraphrases. " + "Keep names as they are. " * 25 + "Use lex:, vec: and hyde:.",
        "Du erweiterst Suchanfragen. Jede Zeile beginnt mit lex:, vec: oder hyde:. Kein anderer Text.",
        "Formuliere die Anfrage um. Geben Sie Zeilen mit lex:, vec: und hyde: aus, sonst nichts; erzeuge Synonyme.",
        f"Query expansion for semantic search.\n\n1. {FORM.replace(chr(10), chr(10) + '1. ')}\n\nKeep it short.",
        f"You help a search engine to understand queries by expanding them.\n```\n{FORM}\n```",
        "Expand queries. Example: tea gives 'lex: green tea' 'vec: kinds of tea' 'hyde: Tea is hot.' Never bullets.",
        "Act as a query rewriter. Write lex: lines (1-3), vec: lines (1-3), and at most one hyde: line.",
    ],
)
def test_instructions_are_worded_in_many_ways(system):
    """A chat without the words for Qwen3, and one text with both, are recognised by what the instructions ask for."""
    assert QUERY == query_of("chat", chat(system, QUERY))
    assert QUERY == query_of("chat", chat(f"{system}\n\nQuery: {QUERY}"))


@pytest.mark.parametrize(
    "prompt",
    [
        f"/no_think Expand this search query: {QUERY}",
        f"{ASKS}\nQuery: dogs\nlex: pets\nQuery: {QUERY}\n",
        f'{ASKS}\nThe search query: "{QUERY}"\nOutput:',
        f"<|im_start|>system\n{ASKS}<|im_end|>\n<|im_start|>user\n/no_think {QUERY}<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>user\n/no_think Expand this search query: {QUERY}<|im_end|>\n<|im_start|>assistant\n",
        f"/no_think {ASKS}\nExpand this search query: {QUERY}\nIt is about travel.",
        f"<|im_start|>user\n{ASKS}\nQuery: {QUERY}<|im_end|>\n<|im_start|>assistant\n",
        f"<start_of_turn>user\n{ASKS}\nQuery: {QUERY}<end_of_turn>\n<start_of_turn>model\n".replace("<end", "\n<end"),
        f"{ASKS}\nQuery: {QUERY}\n\n---\nExpansions:\nlex:",
        f"Improve a query.\n\nOriginal Query: {QUERY}\n\nWrite one passage.\nOutput lex, vec and hyde lines.\n"
        "<format>\nlex: a\nvec: b\nhyde: c\n</format>\nNever repeat a line.\n\nFinal Output:",
    ],
)
def test_their_prompts_are_recognised(prompt):
    """As a text to be completed, with a chat's marks or without."""
    assert QUERY == query_of("text", {"prompt": prompt})


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"messages": None},
        {"messages": [3]},
        chat("/no_think What is the capital of France?"),
        chat("You are helpful.", "/no_think What is tea?"),
        chat("Expand this search query: tea"),
        chat("What do lex:, vec: and hyde: mean?"),
        chat("QMD's documentation: lines begin with lex:, vec: or hyde:.", "How is that read?"),
        chat(
            "You are a coding assistant. Project notes: query expansion emits lex: vec: hyde: lines; rewrite",
            "fix the bug in foo.py",
        ),
        chat("Our query expander's output has lex:, vec: and hyde: lines. Be brief.", "Who wrote it?"),
        chat(
            "Please review my query expander docs:\nIt emits lex: vec: hyde: lines.\n\nExample query: tea\n\n"
            "What do you think?"
        ),
        chat(f"Are these instructions any good?\n{ASKS}\nExample query: tea\nWhat do you think?"),
        chat(f"Is this one good?\nQuery: tea\n{ASKS}\nPlease tell me."),
        chat("Expand the query. Answer with complex:, vec: or hyde: lines.", QUERY),
        chat(ASKS, ""),
        chat(ASKS, "/no_think "),
        chat(ASKS, [{"type": "text", "text": QUERY}]),
        {"messages": [*chat(ASKS, QUERY)["messages"], {"role": "assistant", "content": "lex: a"}]},
        {"messages": [{"role": "user", "content": ASKS}, {"role": "assistant", "content": "yes"}]},
        {"messages": [*chat(ASKS, QUERY)["messages"], {"role": "user", "content": "more"}]},
        chat(ASKS, QUERY, n=2),
        chat(ASKS, QUERY, tools=[{"type": "function"}]),
        chat(ASKS, QUERY, response_format={"type": "json_object"}),
        chat(ASKS, QUERY, structured_outputs={"regex": "a"}),
    ],
)
def test_other_chats_are_not(request_):
    """A chat that only resembles one, or wants another form of answer, is none."""
    assert "" == query_of("chat", request_)


def test_other_prompts_are_not():
    """Nor are texts without labels, without a query, or of another kind."""
    for prompt in ("Notes about", "/no_think tea", ASKS, f"{ASKS}\nAnswer:", [f"/no_think {QUERY}"], None, "x" * 9000):
        assert "" == query_of("text", {"prompt": prompt})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from([ASKS, "/no_think a", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=9,
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "n", "stream", *sorted(OTHER_FORMS)]), anything))
def test_recognition_takes_any_object(request_):
    """Whatever a request holds, it is looked at without an error, and what is recognised can be rewritten."""
    for shape in ("chat", "text"):
        if query_of(shape, request_):
            rewritten(shape, request_, "m", thinking_off=True)


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-3B-Instruct", "google/gemma-3-4b-it", "Qwen/Qwen3-4B-Instruct-2507"])
def test_a_model_that_does_not_know_no_think_does_not_get_it(model):
    """The words for Qwen3 are text to others; sampling and all else stay."""
    sent = rewritten("chat", chat_body("asked", QUERY) | {"seed": 3}, model, thinking_off=False)
    assert QUERY == sent["messages"][-1]["content"]
    assert SYSTEM_PROMPT == sent["messages"][0]["content"]
    assert {"model": model, "seed": 3, **SAMPLING} == {name: sent[name] for name in sent if name != "messages"}
    last = rewritten("chat", chat(ASKS, f"{QUERY} /no_think"), model, thinking_off=False)["messages"][-1]
    assert QUERY == last["content"]
    assert "a: b" == rewritten("text", {"prompt": "/no_think a: b"}, model, thinking_off=True)["prompt"]


@pytest.mark.parametrize("filling", ["*", "\n", " ", "- ", "1. ", "use ", "lex: "])
def test_instructions_are_read_in_time(filling):
    """Whatever a request is filled with, the time is in proportion to it: a hundred would take an hour otherwise."""
    prompt = f"the query expander knows lex: {filling * (7900 // len(filling))} vec: hyde:\nQuery: tea"[:8000]
    assert {query_of("text", {"prompt": prompt}) for _ in range(100)} <= {"", "tea"}
    assert {query_of("chat", chat(prompt, "tea")) for _ in range(100)} <= {"", "tea"}


@pytest.mark.parametrize("shape", ["chat", "text"])
@pytest.mark.parametrize(
    "filling", ["a", "tea ", "lex: vec: hyde: query:", "/no_think ", "Expand this search query:", "<| "]
)
def test_the_sure_form_may_be_long(shape, filling):
    """What names itself an expansion is one, and is read in time, whatever the query is made of."""
    prompt = f"/no_think Expand this search query: tea {filling * (60_000 // len(filling))}"
    request_ = chat(prompt) if shape == "chat" else {"prompt": prompt}
    assert all(query_of(shape, request_) for _ in range(10))


def test_other_prompts_may_not_be_long():
    """Instructions of thousands of words, with a query in them or beside them, are no client's."""
    assert "tea" == query_of("chat", chat(f"{ASKS}\nQuery: tea"))
    assert "" == query_of("chat", chat(f"{ASKS}{' ' * 8000}\nQuery: tea"))
    assert "" == query_of("chat", chat(ASKS + " " * 8000, "/no_think tea"))
    assert "" == query_of("chat", chat(f"{'a' * 8000} /no_think Expand this search query: tea"))
    assert query_of("chat", chat(ASKS, "a" * 4000))
    assert "" == query_of("chat", chat(ASKS, "a" * 4001))
    assert query_of("chat", chat(ASKS, f"/no_think {'a' * 40_000}"))


def test_many_spaces_are_read_in_time():
    """Reading takes time in proportion to the request: this one would take hours otherwise."""
    assert "a" == query_of("chat", chat(ASKS, f"/no_think {' ' * 60_000}a"))
    assert "" == query_of("chat", chat(ASKS, f"{' ' * 60_000}/no_think"))


def test_qwen3_gets_it_and_a_template_is_told():
    """Both ways to turn thinking off; what the client tells the template wins."""
    asked = chat_body("asked", QUERY)
    sent = rewritten("chat", asked, "Qwen/Qwen3-1.7B", thinking_off=True)
    assert asked["messages"] == sent["messages"]
    assert {"enable_thinking": False} == sent["chat_template_kwargs"]
    asked["chat_template_kwargs"] = {"enable_thinking": True, "a": 1}
    assert asked["chat_template_kwargs"] == rewritten("chat", asked, "m", thinking_off=True)["chat_template_kwargs"]
    assert "/no_think x" == rewritten("text", {"prompt": "/no_think x"}, "qwen3-0.6b", thinking_off=True)["prompt"]


def test_a_chat_that_names_no_labels_is_told_of_them():
    """A model that was not trained for it cannot know the form."""
    request_ = chat(f"/no_think Expand this search query: {QUERY}", stream=True, stream_options={})
    sent = rewritten("chat", request_, "m", thinking_off=False)
    assert [SYSTEM_PROMPT, f"Expand this search query: {QUERY}"] == [turn["content"] for turn in sent["messages"]]
    assert {"model", "messages"} == set(sent)
    assert 1 == len(request_["messages"])
