"""The model contract over a sentence-transformers model: tokenising here, the forward pass in a backend."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from qmd_remote.server.forward import Forward, Network
from qmd_remote.server.model import Float32, Prepared
from qmd_remote.server.tokenizing import LibraryTokens, Tokens

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel

log = logging.getLogger(__name__)

Input = TypeVar("Input")
Backend = Callable[[Network], Forward]

# the most tokens of one text where a model names no limit of its own
LONGEST = 8192


class TextModel(ABC, Generic[Input]):
    """A loaded sentence-transformers model as a `Model`: `output` names the feature that holds its result.

    `backend` gives it its forward pass. Subclasses say what an input is. Raises ModelUnsupported when the model's
    tokenised form is not rows of tokens.
    """

    def __init__(self, network: BaseModel, backend: Backend, *, output: str, probe: Input) -> None:
        self._network = network
        self._prompt: str | None = network.prompts.get(network.default_prompt_name or "") or None
        self._tokenizer = network.tokenizer
        library = LibraryTokens(network, self._prompt, probe)
        self._names = library.names
        _bound_length(network)
        self._tokens = self._fastest(library)
        self._blank = Prepared({name: np.zeros(1, dtype=np.int64) for name in library.names}, 1)
        self._blank = self._encode([probe])[0]
        _compute_in_float32_after_the_transformer(network)
        self.forward = backend(
            Network(
                network,
                output,
                library.names,
                library.constants,
                pad_id=self._tokenizer.pad_token_id or 0,
                side="left" if self._tokenizer.padding_side == "left" else "right",
            )
        )

    @property
    def packs(self) -> bool:
        """Whether a batch holds no padding."""
        return self.forward.packs

    @property
    def deferred(self) -> bool:
        """Whether `run` returns before the device has computed."""
        return self.forward.deferred

    @property
    def max_length(self) -> int:
        """Tokens of one input, special ones included; what is beyond is cut."""
        return int(self._network.max_seq_length or LONGEST)

    def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Tokenise; one result per input, in order, whatever the inputs hold."""
        return self._encode_safely([self._clean(item) for item in inputs])

    def run(self, batch: Sequence[Prepared]) -> Any:
        """Run one forward pass; the result stays on the device."""
        return self.forward.run([item.row for item in batch])

    def finish(self, output: Any) -> Float32:
        """The result on the host, float32 [len(batch), width]."""
        return self.forward.fetch(output)

    def widen(self) -> bool:
        """Continue in float32 for good; False if that is the case already."""
        return self.forward.widen()

    def free(self) -> None:
        """Give back device memory that is only cached."""
        self.forward.free()

    @abstractmethod
    def _fastest(self, library: LibraryTokens[Any]) -> Tokens[Any]:
        """The fastest way to tokenise that is known to give what `library` gives."""

    @abstractmethod
    def _clean(self, item: Input) -> Input:
        """`item` without what tokenizers raise on."""

    @abstractmethod
    def _plain(self, item: Input) -> Input:
        """`item` in ASCII: what is left to try when the tokenizer cannot take it as it is."""

    def _encode_safely(self, items: Sequence[Input]) -> list[Prepared]:
        try:
            return self._encode(items)
        except BaseException as error:  # tokenizers written in Rust panic with a class that is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):  # none says anything of the text
                raise
            if len(items) > 1:
                return [one for item in items for one in self._encode_safely([item])]
            plain = self._plain(items[0])
            log.warning("the tokenizer cannot take a text (%s); trying its ASCII part", type(error).__name__)
            return [self._blank] if plain == items[0] else self._encode_safely([plain])

    def _encode(self, items: Sequence[Input]) -> list[Prepared]:
        """One result per item; an item without any token gets that of the probe, since no model takes none."""
        return [item if item.length else self._blank for item in self._tokens(items)]


def _bound_length(network: BaseModel) -> None:
    """Keep texts within the positions the network really has; a tokenizer may promise more, or no limit at all.

    Rotary frequencies that follow the longest row of a batch would let a vector depend on other callers' texts: there
    the limit is the length up to which they stay the same.
    """
    limits = [network.max_seq_length or LONGEST]
    if limits[0] > 1_000_000:  # transformers' way to say "not set"
        limits[0] = LONGEST
    for module in network.modules():
        positions, padding = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        rows = getattr(positions, "num_embeddings", None)
        if isinstance(rows, int):
            # RoBERTa's family counts positions from padding_idx + 1
            limits.append(rows - (padding + 1 if isinstance(padding, int) else 0))
        fixed_up_to = getattr(module, "original_max_seq_len", None)
        if "dynamic" in str(getattr(module, "rope_type", "")) and isinstance(fixed_up_to, int):
            limits.append(fixed_up_to)
    network.max_seq_length = min(limits)


def _compute_in_float32_after_the_transformer(network: BaseModel) -> None:
    """Pooling, projections and heads in float32, whatever the transformer computes in."""
    for module in list(network.children())[1:]:
        module.float()

    def to_float32(_module: Any, _args: Any, features: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.float() if getattr(value, "is_floating_point", bool)() else value
            for name, value in features.items()
        }

    next(iter(network.children())).register_forward_hook(to_float32)
