"""Rerankers: how a query and its documents become a model's inputs, and its outputs scores in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qmd_remote.errors import ModelUnsupported
from qmd_remote.server.embedder import Embedder
from qmd_remote.server.model import Float32
from qmd_remote.server.text import scrub
from qmd_remote.server.text_model import Backend, TextModel

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

Float64 = NDArray[np.float64]
Pair = tuple[str, str]


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
        super().__init__(network, backend, output="scores", probe=(".", "."))

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
        """The query, then the documents."""
        return [query, *documents]

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
