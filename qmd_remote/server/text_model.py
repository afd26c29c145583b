"""The model contract over a sentence-transformers model: tokenising here, the forward pass in a backend."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from qmd_remote.errors import ModelUnsupported
from qmd_remote.server.forward import Forward, Network
from qmd_remote.server.model import Float32, Prepared, Row

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
        # a fast tokenizer keeps truncation and padding as state: one call at a time
        self._tokenizing = threading.Lock()
        self._prompt: str | None = network.prompts.get(network.default_prompt_name or "") or None
        self._tokenizer = network.tokenizer
        features = self._preprocess([probe])
        if getattr(features.get("attention_mask"), "ndim", 0) != 2:
            raise ModelUnsupported(
                "this model does not take rows of tokens, which is all this server can batch",
                hint="recommended models: qmd-remote models",
            )
        self._names = [name for name, value in features.items() if _is_row(value) and name != "attention_mask"]
        constants = {name: value for name, value in features.items() if not _is_row(value)}
        self._blank = _prepared({name: np.zeros(1, dtype=np.int64) for name in self._names})
        self._blank = self._encode([probe])[0]
        _bound_length(network)
        _compute_in_float32_after_the_transformer(network)
        self.forward = backend(
            Network(
                network,
                output,
                tuple(self._names),
                constants,
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
    def _clean(self, item: Input) -> Input:
        """`item` without what tokenizers raise on."""

    @abstractmethod
    def _plain(self, item: Input) -> Input:
        """`item` in ASCII: what is left to try when the tokenizer cannot take it as it is."""

    def _encode_safely(self, items: Sequence[Input]) -> list[Prepared]:
        try:
            return self._encode(items)
        except BaseException as error:  # tokenizers written in Rust panic with a class that is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            if len(items) > 1:
                return [one for item in items for one in self._encode_safely([item])]
            plain = self._plain(items[0])
            log.warning("the tokenizer cannot take a text (%s); trying its ASCII part", type(error).__name__)
            return [self._blank] if plain == items[0] else self._encode_safely([plain])

    def _encode(self, items: Sequence[Input]) -> list[Prepared]:
        """One result per item; an item without any token gets that of a full stop, since no model takes none."""
        features = self._preprocess(items)
        mask: NDArray[np.bool_] = features["attention_mask"].numpy().astype(bool)
        arrays = {name: features[name].numpy() for name in self._names}
        cut = self._cut(features, items, mask.sum(axis=1))
        found: list[Prepared] = []
        for i, real in enumerate(mask):
            row = {name: values[i][real].astype(np.int64, copy=False) for name, values in arrays.items()}
            found.append(_prepared(row, bool(cut[i])) if real.any() else self._blank)
        return found

    def _cut(self, features: Mapping[str, Any], items: Sequence[Input], lengths: NDArray[np.int64]) -> Sequence[bool]:
        """Of which items tokens were cut off."""
        encodings = getattr(features, "encodings", None)
        if encodings is not None:  # a fast tokenizer keeps what it cuts
            return [bool(encoding.overflowing) for encoding in encodings]
        cut = [False] * len(items)
        for i in np.flatnonzero(lengths >= self.max_length):
            try:
                whole = self._preprocess([items[int(i)]], processing_kwargs={"text": {"truncation": False}})
            except Exception as error:  # a module of a model's own may not know how; no text may fail for a number
                log.debug("whether a text was cut is not known", exc_info=error)
                break
            cut[i] = int(whole["attention_mask"].sum()) > lengths[i]
        return cut

    def _preprocess(self, items: Sequence[Input], **options: Any) -> Mapping[str, Any]:
        with self._tokenizing:
            features: Mapping[str, Any] = self._network.preprocess(list(items), prompt=self._prompt, **options)
            return features


def _prepared(row: Row, truncated: bool = False) -> Prepared:
    return Prepared(row, len(row["input_ids"]), truncated)


def _is_row(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 2


def _bound_length(network: BaseModel) -> None:
    """Keep texts within the positions the network really has; a tokenizer may promise more, or no limit at all."""
    limits = [network.max_seq_length or LONGEST]
    if limits[0] > 1_000_000:  # transformers' way to say "not set"
        limits[0] = LONGEST
    for module in network.modules():
        positions, padding = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        rows = getattr(positions, "num_embeddings", None)
        if isinstance(rows, int):
            # RoBERTa's family counts positions from padding_idx + 1
            limits.append(rows - (padding + 1 if isinstance(padding, int) else 0))
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
