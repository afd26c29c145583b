"""The embedding model: texts or token arrays → unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qmd_remote.errors import BadRequest
from qmd_remote.server.fast_tokens import FastTexts
from qmd_remote.server.model import Float32, Prepared
from qmd_remote.server.prompts import OFF, Prompts
from qmd_remote.server.text import scrub
from qmd_remote.server.text_model import Backend, TextModel
from qmd_remote.server.tokenizing import LONG_PROBE, PROBE_LENGTH, PROBES, LibraryTokens, Tokens, fastest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EmbedInput = str | Sequence[int]


class Embedder(TextModel[EmbedInput]):
    """A SentenceTransformer with all its modules (pooling, projections).

    An input is a text, with its prompt, or the token ids of one in the model's own vocabulary, with or without special
    tokens. `prompts` says what a text's prompt is; where they are off, that is the model's default, added here.
    """

    def __init__(self, network: SentenceTransformer, backend: Backend, prompts: Prompts = OFF) -> None:
        self.prompts = prompts
        if prompts.source != "off":
            network.default_prompt_name = None
        super().__init__(network, backend, output="sentence_embedding", probe=".")
        tokenizer = self._tokenizer
        self._before, self._after = _special_tokens(tokenizer)
        self._prompt_ids: list[int] = tokenizer.encode(self._prompt, add_special_tokens=False) if self._prompt else []
        known: int = network.transformers_model.get_input_embeddings().num_embeddings
        self.vocabulary = min(len(tokenizer), known)

    def check(self, inputs: Sequence[EmbedInput]) -> None:
        """Raise BadRequest for a token id that is not in the vocabulary."""
        for index, item in enumerate(inputs):
            if isinstance(item, str):
                continue
            if item and not 0 <= min(item) <= max(item) < self.vocabulary:
                wrong = next(token for token in item if not 0 <= token < self.vocabulary)
                raise BadRequest(
                    f"input[{index}] holds the token id {wrong}, and this model's vocabulary has "
                    f"{self.vocabulary} tokens: ids must be 0 to {self.vocabulary - 1}",
                    param="input",
                )

    def finish(self, output: Any) -> Float32:
        """Unit vectors, float32 [len(batch), dimension]; a vector without a direction becomes NaN."""
        vectors = super().finish(output)
        with np.errstate(divide="ignore", invalid="ignore"):
            unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def _fastest(self, library: LibraryTokens[Any]) -> Tokens[Any]:
        make = partial(FastTexts, self._tokenizer, library.names, self._prompt)
        limit = self.max_length
        return fastest(make, library, (*PROBES, LONG_PROBE), limit=limit, trial=min(limit, PROBE_LENGTH))

    def _clean(self, item: EmbedInput) -> EmbedInput:
        return scrub(item) if isinstance(item, str) else item

    def _plain(self, item: EmbedInput) -> EmbedInput:
        return item.encode("ascii", "ignore").decode() if isinstance(item, str) else item

    def _encode(self, items: Sequence[EmbedInput]) -> list[Prepared]:
        texts = [item for item in items if isinstance(item, str)]
        found = iter(super()._encode(texts) if texts else ())
        return [next(found) if isinstance(item, str) else self._from_ids(item) for item in items]

    def _from_ids(self, item: Sequence[int]) -> Prepared:
        """The tokens of an array, with the prompt and the special tokens that a text would have got."""
        ids = list(item)
        before, after = len(self._before), len(self._after)
        if before and ids[:before] == self._before:
            ids = ids[before:]
        if after and ids[-after:] == self._after:
            ids = ids[:-after]
        ids, room = self._prompt_ids + ids, max(0, self.max_length - before - after)
        whole = [*self._before, *ids[:room], *self._after]
        if not whole:
            return self._blank
        zeros = {name: np.zeros(len(whole), dtype=np.int64) for name in self._names}
        row = {**zeros, "input_ids": np.array(whole, dtype=np.int64)}
        return Prepared(row, len(whole), truncated=len(ids) > room)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True)
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]
