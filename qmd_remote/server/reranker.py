"""Rerankers: how a query and its documents become a model's inputs, and its outputs scores in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qmd_remote.errors import ModelUnsupported
from qmd_remote.server.chat_pairs import ChatPairs, has_template, parts_of, rendering, supply_template
from qmd_remote.server.embedder import Embedder
from qmd_remote.server.fast_tokens import FastPairs, Pair
from qmd_remote.server.model import Float32
from qmd_remote.server.text import scrub
from qmd_remote.server.text_model import Backend, TextModel
from qmd_remote.server.tokenizing import LONG_PROBE, PROBE_LENGTH, PROBES, LibraryTokens, Tokens, fastest

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

Float64 = NDArray[np.float64]


class Reranker(Protocol):
    """A model, and the two pure steps around it."""

    @property
    def kind(self) -> Literal["cross-encoder", "bi-encoder"]:
        """How it scores."""
        ...

    @property
    def model(self) -> TextModel[Any]:
        """What the scheduler runs."""
        ...

    def inputs(self, query: str, documents: Sequence[str]) -> list[Any]:
        """What to give the model for one request."""
        ...

    def scores(self, rows: Float32) -> Float64:
        """Float64 [documents] in [0, 1], in input order, from the model's rows for `inputs`."""
        ...


class CrossEncoderModel(TextModel[Pair]):
    """A CrossEncoder that gives raw logits: the activation its configuration names is never applied.

    Raises ModelUnsupported for a classifier of more than two labels, which has no order from bad to good.
    """

    def __init__(self, network: CrossEncoder, backend: Backend) -> None:
        labels = network.num_labels
        if labels not in (1, 2):
            raise ModelUnsupported(
                f"this model sorts texts into {labels} classes; a reranker has one score, or the classes no and yes",
                hint="recommended rerankers: qmd-remote models",
            )
        _bare_head(network)
        _float32_logits(network)
        _answers_alone(network)
        supply_template(network)
        super().__init__(network, backend, output="scores", probe=(".", "."))

    def _fastest(self, library: LibraryTokens[Any]) -> Tokens[Any]:
        limit = self.max_length
        if has_template(self._network):

            def make(length: int) -> ChatPairs:
                parts = parts_of(rendering(self._network, self._prompt))
                return ChatPairs(self._tokenizer, parts, library.names, length)

            # short ones: the library cuts in another way, by which a long query is lost
            pairs = [(PROBES[place - 1], text) for place, text in enumerate(PROBES)]
            return fastest(make, library, pairs, limit=limit, trial=limit)
        pairs = [(query, text) for query in PROBES[:2] for text in (*PROBES, LONG_PROBE)]
        return fastest(
            partial(FastPairs, self._tokenizer, library.names, self._prompt),
            library,
            pairs,
            limit=limit,
            trial=min(limit, PROBE_LENGTH),
            truncation="only_second",
        )

    def _clean(self, item: Pair) -> Pair:
        return scrub(item[0]), scrub(item[1])

    def _plain(self, item: Pair) -> Pair:
        query, document = (text.encode("ascii", "ignore").decode() for text in item)
        return query, document


class CrossEncoderReranker:
    """The model reads query and document together; one sigmoid makes its logit a score."""

    kind: Literal["cross-encoder"] = "cross-encoder"

    def __init__(self, model: CrossEncoderModel) -> None:
        self.model = model

    def inputs(self, query: str, documents: Sequence[str]) -> list[Pair]:
        """One pair per document."""
        return [(query, document) for document in documents]

    def scores(self, rows: Float32) -> Float64:
        """The sigmoid of each logit; of two logits (no, yes), the softmax's share of yes."""
        logits = rows.astype(np.float64)
        return sigmoid(logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])


class BiEncoderReranker:
    """Query and documents are embedded alone; the cosine, mapped to [0, 1], is the score."""

    kind: Literal["bi-encoder"] = "bi-encoder"

    def __init__(self, model: Embedder) -> None:
        self.model = model

    def inputs(self, query: str, documents: Sequence[str]) -> list[str]:
        """The query, then the documents, with their prompts."""
        prompts = self.model.prompts
        return [
            prompts.apply(query, prompts.query),
            *(prompts.apply(document, prompts.document) for document in documents),
        ]

    def scores(self, rows: Float32) -> Float64:
        """(1 + cosine) / 2."""
        vectors = rows.astype(np.float64)
        cosines: Float64 = vectors[1:] @ vectors[0]
        return np.clip((1 + cosines) / 2, 0.0, 1.0)


def sigmoid(logits: Float64) -> Float64:
    """The logistic function; exact far below zero too, where 1 − 1/(1 + eˣ) would give ties."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _bare_head(network: CrossEncoder) -> None:
    """Take away an activation inside a Dense head, so that the one sigmoid here stays the only one."""
    from sentence_transformers.base.modules import Dense
    from torch.nn import Identity

    head = list(network.children())[-1]
    if isinstance(head, Dense) and head.module_output_name == "scores":
        head.activation_function = Identity()


def _float32_logits(network: CrossEncoder) -> None:
    """Compute the last step to the logits in float32: half precision has too few digits to tell near ones apart."""
    from torch.nn import Linear

    heads = [m for m in network.modules() if isinstance(m, Linear) and m.out_features == network.num_labels]
    for head in heads[-1:]:
        head.float()
        head.register_forward_pre_hook(lambda _, args: (args[0].float(),))


def _answers_alone(network: CrossEncoder) -> None:
    """Of a language model's logits compute those of the answers yes and no alone, in float32.

    Nothing else is read of a vocabulary of 150,000.
    """
    from sentence_transformers.cross_encoder.modules import LogitScore
    from torch import no_grad
    from torch.nn import Linear

    score = list(network.children())[-1]
    model: Any = network.transformers_model
    head = model.get_output_embeddings() if isinstance(score, LogitScore) else None
    if not isinstance(score, LogitScore) or not isinstance(head, Linear):
        return
    answers = [token for token in (score.true_token_id, score.false_token_id) if token is not None]
    small = Linear(head.in_features, len(answers), bias=head.bias is not None, device=head.weight.device)
    with no_grad():
        small.weight.copy_(head.weight[answers])
        if head.bias is not None:
            small.bias.copy_(head.bias[answers])
    small.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    model.set_output_embeddings(small)
    score.true_token_id = 0
    score.false_token_id = None if len(answers) == 1 else 1
