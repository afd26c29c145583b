"""Prompts: what clients put before texts, and what the loaded model gets instead."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qmd_remote.errors import BadRequest
from qmd_remote.server.prompts import NAMES, OFF, Prompts, Tagged, prompts_of, recognise

MODELS = {
    "nomic-ai/nomic-embed-text-v1.5": ("search_query: ", "search_document: "),
    "google/embeddinggemma-300m": ("task: search result | query: ", "title: none | text: "),
    "BAAI/bge-base-en-v1.5": ("Represent this sentence for searching relevant passages: ", ""),
    "BAAI/bge-large-zh-v1.5": ("为这个句子生成表示以用于检索相关文章：", ""),
    "BAAI/bge-m3": ("", ""),
    "intfloat/e5-small-v2": ("query: ", "passage: "),
    "intfloat/multilingual-e5-base": ("query: ", "passage: "),
    "thenlper/gte-base": ("", ""),
    "sentence-transformers/all-MiniLM-L6-v2": ("", ""),
}
INSTRUCTED = (
    "Qwen/Qwen3-Embedding-0.6B",
    "intfloat/multilingual-e5-large-instruct",
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
)
FAMILIES = [prompts_of({}, name) for name in (*MODELS, *INSTRUCTED)]
QUERY_PREFIXES = (
    "task: search result | query: ",
    "search_query: ",
    "Instruct: Retrieve relevant documents for the given query\nQuery: ",
)

# what no prefix can begin with, so that a text of these is always a plain one
plain = st.text(st.characters(codec="utf-8", exclude_characters=":"), max_size=40)
titles = st.text(max_size=40).filter(lambda title: " | text: " not in title and title.strip() not in ("", "none"))


@pytest.mark.parametrize("prefix", QUERY_PREFIXES)
@given(text=st.text(max_size=80))
def test_a_query_prefix_is_taken_off(prefix, text):
    """Every client's query prefix tells the role, and the rest is the text, whatever it holds."""
    assert Tagged(text, "query") == recognise(prefix + text)


@given(title=titles, text=st.text(max_size=80))
@example(title="two\nlines", text="")
def test_a_title_is_kept_apart(title, text):
    """A document's title ends at the first mark; further marks belong to the text."""
    assert Tagged(f"a | text: {text}", "document", title.strip()) == recognise(
        f"title: {title} | text: a | text: {text}"
    )


@pytest.mark.parametrize("title", ["none", "", " "])
def test_no_title(title):
    """`none` and nothing stand for a document without a title."""
    assert Tagged("body", "document") == recognise(f"title: {title} | text: body")


def test_the_documents_prefix_of_nomic():
    """`search_document: ` tells the role and no title."""
    assert Tagged("body", "document") == recognise("search_document: body")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "title: of a note",
        "the title: a | text: b",
        " search_query: indented",
        "Search_query: capital",
        "Instruct: me\nand more\nQuery: no",
        "query: what a note may begin with",
        f"title: {'long ' * 300}| text: far away",
    ],
)
def test_other_texts_have_no_prefix(text):
    """Only the exact prefixes at a text's very beginning count."""
    assert Tagged(text) == recognise(text)


@pytest.mark.parametrize(("name", "expected"), MODELS.items(), ids=str)
def test_each_family_gets_its_own(name, expected):
    """A model of the registry, by its hub id, gets what its makers ask for."""
    prompts = prompts_of({}, name)
    query, document = expected
    for prefix in QUERY_PREFIXES:
        assert query + "x" == prompts.apply(f"{prefix}x", prompts.document)
    assert document + "x" == prompts.apply("title: none | text: x", prompts.query)
    assert document + "x" == prompts.apply("search_document: x", prompts.query)
    assert document + "x" == prompts.apply("x", prompts.choose("document"))
    assert query + "x" == prompts.apply("x", prompts.choose("query"))


@pytest.mark.parametrize("name", INSTRUCTED)
def test_models_with_instructions(name):
    """Queries get a task in Qwen's form, documents nothing."""
    prompts = prompts_of({}, name)
    assert prompts.apply("search_query: x", "").startswith("Instruct: Given a web search query")
    assert prompts.apply("search_query: x", "").rstrip().endswith("x")
    assert prompts.apply("search_document: x", prompts.query) == "x"


def test_titles_where_the_prompt_has_a_place_for_them_and_where_not():
    """EmbeddingGemma's prompt holds the title; before other models' texts it stands as a line of its own."""
    tagged = "title: Bread | text: Knead it."
    gemma = prompts_of({}, "google/embeddinggemma-300m")
    assert tagged == gemma.apply(tagged, gemma.document)
    nomic = prompts_of({}, "nomic-ai/nomic-embed-text-v1.5")
    assert nomic.apply(tagged, nomic.document) == "search_document: Bread\nKnead it."
    assert prompts_of({}, "all-MiniLM-L6-v2").apply(tagged, "") == "Bread\nKnead it."


@pytest.mark.parametrize("prompts", FAMILIES, ids=lambda prompts: prompts.reason)
@given(title=titles, text=plain)
def test_nothing_of_a_text_is_lost(prompts, title, text):
    """Title and text come through every family's prompts, whole."""
    sent = prompts.apply(f"title: {title} | text: {text}", prompts.document)
    assert sent.endswith(text)
    assert title.strip() in sent


@pytest.mark.parametrize("prompts", FAMILIES, ids=lambda prompts: prompts.reason)
@given(text=plain, role=st.sampled_from(["query", "document"]))
@example(text=" ", role="query")
def test_a_client_that_knows_the_prompts_loses_nothing(prompts, text, role):
    """A text that already has this model's prompts, in a form that is recognised, is not given them twice."""
    once = prompts.apply(text, prompts.choose(role))
    if recognise(once).role is not None:
        assert once == prompts.apply(once, prompts.document)


def test_the_models_own_files_come_first():
    """Prompts in the model's files win over the registry, under whichever name they stand."""
    own = {"query": "ask: ", "passage": "note: "}
    prompts = prompts_of(own, "nomic-ai/nomic-embed-text-v1.5")
    assert prompts.source == "model"
    assert prompts.apply("x", prompts.choose("search_query")) == "ask: x"
    assert prompts.apply("x", prompts.choose("document")) == "note: x"


def test_empty_prompts_of_the_library_are_none():
    """The two empty prompts that sentence-transformers gives every model do not hide the registry."""
    assert prompts_of({"query": "", "document": ""}, "nomic-ai/nomic-embed-text-v1.5").source == "registry"


def test_a_local_folder_is_known_by_its_architecture():
    """A copy of nomic's model under any name is still one; the name of a file's path does not decide alone."""
    assert prompts_of({}, "my-notes-model", "nomic_bert").query == "search_query: "
    assert prompts_of({}, "my-notes-model", "bert").source == "none"


def test_own_names_can_be_asked_for():
    """Any prompt of the model's files can be named; a name that it has not is refused with those that it has."""
    prompts = prompts_of({"query": "q: ", "clustering": "group: "}, "m")
    assert prompts.apply("x", prompts.choose("clustering")) == "group: x"
    assert prompts.apply("x", prompts.choose("query")) == "q: x"
    with pytest.raises(BadRequest, match=r"query, clustering, document$") as caught:
        prompts.choose("poetry")
    assert caught.value.param == "prompt_name"


@given(text=st.text(max_size=80), name=st.sampled_from(list(NAMES)))
def test_off_means_off(text, name):
    """Switched off, every text goes to the model as it came."""
    assert text == OFF.apply(text, OFF.choose(name))


def test_health_shows_the_rule():
    """The rule is told with its source and its reason; off tells no prompts."""
    prompts = Prompts("registry", "because", "q: ", "d: ")
    expected = {"source": "registry", "reason": "because", "query": "q: ", "document": "d: ", "default": "query"}
    assert expected == prompts.facts("query")
    assert set(OFF.facts("query")) == {"source", "reason"}


def test_the_catalogue_tells_the_same():
    """`qmd-remote models` shows the prompts that the server really uses."""
    from qmd_remote.catalogue import CATALOGUE

    for model in CATALOGUE.values():
        if model.role == "embed":
            prompts = prompts_of({}, model.id)
            assert (prompts.query, prompts.document) == (model.query_prompt, model.document_prompt)
