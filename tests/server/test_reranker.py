"""What a reranker reads of a query and a document that are too long, and what it computes of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder

from qmd_remote.server.chat_pairs import ChatPairs
from qmd_remote.server.fast_tokens import share
from qmd_remote.server.forward import PaddedForward
from qmd_remote.server.reranker import CrossEncoderModel
from qmd_remote.server.tokenizing import LibraryTokens
from tests.server import tiny_models as tiny

DOCUMENT = " ".join(tiny.CORPUS) * 9
HEAD, TAIL = "judge: ", " ?"
CHAT = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"


def loaded(folder: Path, **options: object) -> CrossEncoderModel:
    """The reranker in a folder."""
    return CrossEncoderModel(CrossEncoder(str(folder), device="cpu", **options), PaddedForward)


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> CrossEncoderModel:
    """A language model that is asked for yes or no."""
    return loaded(tiny.save_yes_no(tmp_path_factory.mktemp("judge")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> CrossEncoderModel:
    """A cross-encoder with special tokens around its texts."""
    return loaded(tiny.save_cross_encoder(tmp_path_factory.mktemp("bert"), "bert"))


def ids(model: CrossEncoderModel, *texts: str) -> list[int]:
    """The tokens of texts, whole, with the special tokens of so many."""
    found: list[int] = model._tokenizer(*texts, truncation=False)["input_ids"]
    return found


def read(model: CrossEncoderModel, query: str, document: str) -> list[int]:
    """The tokens that the model reads of a pair that is too long."""
    (item,) = model.prepare([(query, document)])
    assert item.truncated
    assert model.max_length == item.length
    found: list[int] = item.row["input_ids"].tolist()
    return found


def decoded(model: CrossEncoderModel, tokens: Sequence[int]) -> str:
    """The text of tokens."""
    text: str = model._tokenizer.decode(tokens)
    return text


@given(query=st.integers(0, 300), document=st.integers(0, 300), room=st.integers(0, 300))
def test_the_document_makes_room(query, document, room):
    """All room is used; a query of up to three quarters of it is never cut; nothing is cut without need."""
    first, second = share(query, document, room)
    assert min(query + document, room) == first + second
    assert (query if query <= room * 3 // 4 else min(query, max(room * 3 // 4, room - document))) == first
    assert min(document, room - first) == second


def test_a_document_beside_a_long_query_keeps_a_quarter(bert):
    """A query that would fill the model is cut to three quarters, so that documents still differ."""
    room = bert.max_length - 3
    query, document = ids(bert, tiny.CORPUS[1] * 9)[1:-1], ids(bert, DOCUMENT)[1:-1]
    cls, sep = ids(bert, "")
    most = room * 3 // 4
    expected = [cls, *query[:most], sep, *document[: room - most], sep]
    assert expected == read(bert, tiny.CORPUS[1] * 9, DOCUMENT)


def test_a_long_query_beside_a_short_document_uses_the_room_that_is_left(bert):
    """The document stays whole."""
    query, document = ids(bert, DOCUMENT)[1:-1], ids(bert, "fox")[1:-1]
    cls, sep = ids(bert, "")
    expected = [cls, *query[: bert.max_length - 3 - len(document)], sep, *document, sep]
    assert expected == read(bert, DOCUMENT, "fox")


def test_of_a_long_pair_a_judge_reads_query_head_and_template(judge):
    """The template's tail, where the answer is read, and the query stay; the document's head is what is left of it."""
    assert isinstance(judge._tokens, ChatPairs)
    found = decoded(judge, read(judge, tiny.QUERY, DOCUMENT))
    begin = f"{HEAD}{tiny.QUERY} / "
    assert found.startswith(begin)
    assert found.endswith(TAIL)
    left = found.removeprefix(begin).removesuffix(TAIL)
    assert DOCUMENT.startswith(left.rstrip("\ufffd"))  # a cut may go through a letter of several tokens
    assert len(left) > 50


@pytest.mark.parametrize(
    ("query", "document"), [(DOCUMENT, DOCUMENT), (DOCUMENT, "fox"), (DOCUMENT, ""), ("", DOCUMENT)]
)
def test_a_judge_never_loses_its_template(query, document, judge):
    """Whichever of the texts is too long, or empty: something of each is left, and all of the template."""
    found = decoded(judge, read(judge, query, document))
    before, between, after = found.partition(" / ")
    assert (True, " / ", True) == (before.startswith(HEAD), between, after.endswith(TAIL))
    kept = before.removeprefix(HEAD), after.removesuffix(TAIL)
    for left, text in zip(kept, (query, document), strict=True):
        assert bool(text) == bool(left)
        assert text.startswith(left.rstrip("\ufffd"))


def test_a_judge_reads_pairs_that_fit_as_the_library_does(judge):
    """Token by token."""
    items = [(query, text) for query in (tiny.QUERY, "", " fox ") for text in (*tiny.CORPUS, "", "\n x \n")]
    whole = judge.prepare(items)
    assert not any(item.truncated for item in whole)
    features = judge._network.preprocess(items)
    for item, row, mask in zip(whole, features["input_ids"], features["attention_mask"].bool(), strict=True):
        assert row[mask].tolist() == item.row["input_ids"].tolist()


def test_each_document_that_is_cut_counts_once(bert):
    """Though a query may be cut with it, and belongs to all."""
    documents = ["fox", DOCUMENT, "", DOCUMENT, "cat"]
    counted = [
        [item.truncated for item in bert.prepare([(query, text) for text in documents])] for query in ("a", DOCUMENT)
    ]
    assert [[False, True, False, True, False], [True] * 5] == counted


def test_a_template_that_changes_texts_is_left_to_the_library(tmp_path):
    """It is rendered pair by pair; its tail stays there, too."""
    folder = tiny.save_yes_no(tmp_path / "judge")
    (folder / "chat_template.jinja").write_text(tiny.JUDGE.replace("| first }} ?", "| first | trim }} ?"))
    model = loaded(folder)
    assert isinstance(model._tokens, LibraryTokens)
    (cut, whole) = model.prepare([(tiny.QUERY, DOCUMENT), ("a", "  b ")])
    found = decoded(model, cut.row["input_ids"].tolist())
    assert cut.truncated
    assert found.startswith(f"{HEAD}{tiny.QUERY} / ")
    assert found.endswith(TAIL)
    assert f"{HEAD}a / b{TAIL}" == decoded(model, whole.row["input_ids"].tolist())


def test_only_the_two_answers_are_computed_and_in_float32(tmp_path):
    """A language model's head has one row for yes and one for no; its logits are float32, whatever the layers are."""
    folder = tiny.save_yes_no(tmp_path / "judge")
    full = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    yes, no = full[1].true_token_id, full[1].false_token_id
    weights = full.transformers_model.get_output_embeddings().weight[[yes, no]].float()
    model = loaded(folder, model_kwargs={"dtype": torch.bfloat16})
    head = model._network.transformers_model.get_output_embeddings()
    assert torch.equal(weights, head.weight)
    seen = []
    head.register_forward_hook(lambda _module, _args, logits: seen.append(logits.dtype))
    output = model.run(model.prepare([(tiny.QUERY, text) for text in tiny.CORPUS]))
    assert [torch.float32] == seen
    assert (len(tiny.CORPUS), 1) == model.finish(output).shape


def test_a_qwen3_reranker_without_a_template_for_pairs_gets_the_published_one(tmp_path):
    """Its own is that of a chat, which has no place for a query and a document."""
    folder = tiny.save_yes_no(tmp_path / "Qwen3-Reranker-Tiny", template=CHAT)
    tiny.edit_json(folder / "config.json", max_position_embeddings=1024)
    tiny.edit_json(folder / "tokenizer_config.json", model_max_length=1024)
    model = loaded(folder)
    assert isinstance(model._tokens, ChatPairs)
    text = decoded(model, model.prepare([("a query", "a document")])[0].row["input_ids"].tolist())
    assert (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
        "web search query, retrieve relevant passages that answer the query\n<Query>: a query\n<Document>: a document"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ) == text
