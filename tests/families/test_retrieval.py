"""Whether the right note is found: a small corpus, questions in other words than its own, MiniLM in both roles."""

from __future__ import annotations

import json
import operator
import os
import shutil
from pathlib import Path

import pytest

from qmd_remote.presets import MINI_EMBED
from qmd_remote.server import hub
from tests.families.conftest import running
from tests.families.replay import KEY, Json, Step, alike, ranking, replay, similarity, vectors
from tests.families.sayings import BATCH, asked, titled

CORPUS = Path(__file__).parents[1] / "corpus"
MODEL = "embeddinggemma"
TOP = 10
# of a kind that MiniLM can answer: what is tested is the way to the model and back, not the model
QUESTIONS = {
    "What do I have to take along to renew my travel document?": "passport",
    "How do I make a loaf without shop-bought yeast?": "sourdough",
    "How do I repair a flat bike tyre?": "bicycle-tyre",
    "Why does a heater make noises and not get warm above?": "heating",
    "By when do I have to send in my income tax declaration?": "tax-return",
    "What can I do when I lie awake at night?": "sleep",
    "Which medicine does our kitten take?": "cat",
    "How are our pictures kept safe if the computer breaks?": "photos",
    "When is the right time of year to prune thorny flowers?": "roses",
    "Who looks after our puppy during holidays?": "dog-sitter",
}


@pytest.fixture(scope="module")
def notes():
    """The corpus: name → (title, text)."""
    found = {}
    for file in sorted(CORPUS.glob("*.md")):
        heading, _, text = file.read_text(encoding="utf-8").partition("\n\n")
        found[file.stem] = (heading.removeprefix("# "), text.strip())
    assert len(found) >= 30
    return found


def embedded(url: str, texts: list[str], **fields: str) -> list[Json]:
    """An item of data for each text, in batches as clients send them."""
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    steps = [Step("/v1/embeddings", {"model": MODEL, "input": batch, **fields}, [vectors]) for batch in batches]
    return [item for answer in replay(url, *steps) for item in answer.json["data"]]


def nearest_names(names: list[str], documents: list[Json], query: Json) -> list[str]:
    """The notes by their likeness to the query, the likest first."""
    order = sorted(zip(names, documents, strict=True), key=lambda one: -similarity(query, one[1]))
    return [name for name, _ in order]


def places(notes, documents: list[Json], queries: list[Json]) -> list[int]:
    """For each question how many notes are nearer to it than the right one."""
    orders = [nearest_names(list(notes), documents, query) for query in queries]
    return [order.index(right) for order, right in zip(orders, QUESTIONS.values(), strict=True)]


def by_roles(url: str, notes) -> tuple[list[Json], list[Json]]:
    """(documents, queries) by the API's way to tell them apart."""
    documents = embedded(url, [f"{title}\n{text}" for title, text in notes.values()], input_type="document")
    return documents, embedded(url, list(QUESTIONS), input_type="query")


def by_prefixes(url: str, notes) -> tuple[list[Json], list[Json]]:
    """The same with EmbeddingGemma's prefixes, as QMD's clients send them."""
    documents = embedded(url, [titled(text, title) for title, text in notes.values()])
    return documents, embedded(url, [asked(question) for question in QUESTIONS])


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """MiniLM with prompts in its files, as models have them that were trained with some."""
    folder = tmp_path_factory.mktemp("prompted") / "model"
    shutil.copytree(hub.find(MINI_EMBED).folder, folder, copy_function=os.symlink)
    config = folder / "config_sentence_transformers.json"
    config.unlink()
    config.write_text(json.dumps({"prompts": {"query": "query: ", "document": "passage: "}}))
    return {"embed_model": str(folder), "rerank_model": str(folder), "api_key": KEY}


def test_the_right_note_is_first(mini_box, notes):
    """The ten nearest of all notes, then ranked: for nine questions of ten the right one is first."""
    documents, queries = by_roles(mini_box, notes)
    missed = {}
    for question, query in zip(QUESTIONS, queries, strict=True):
        near = nearest_names(list(notes), documents, query)[:TOP]
        body = {"model": MODEL, "query": question, "documents": ["\n".join(notes[name]) for name in near]}
        (answer,) = replay(mini_box, Step("/v1/rerank", body, [ranking]))
        best = near[answer.json["results"][0]["index"]]
        if best != QUESTIONS[question]:
            missed[question] = best
    assert len(missed) <= 1, missed


def test_gemma_prefixes_become_the_models_own_prompts(prompted, notes):
    """The right notes are at no later places than with the model's own prompts, since the vectors are those.

    Without the replacement they are others. These need not be worse: MiniLM was trained with no prompts at all.
    """
    with running(**prompted) as url:
        own, replaced = by_roles(url, notes), by_prefixes(url, notes)
    with running(**prompted, prompts=False) as url:
        raw = by_prefixes(url, notes)
    for mine, theirs, untouched in zip(own, replaced, raw, strict=True):
        assert all(map(alike, mine, theirs))
        assert not any(map(alike, mine, untouched))
    assert all(map(operator.le, places(notes, *replaced), places(notes, *own)))
