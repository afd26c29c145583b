"""The model contract over a sentence-transformers model, shared by embedder and cross-encoder."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from qmd_remote.errors import ModelUnsupported
from qmd_remote.server.model import Float32, Prepared, Row, pad

if TYPE_CHECKING:
    import torch
    from sentence_transformers.base.model import BaseModel

log = logging.getLogger(__name__)

Input = TypeVar("Input")

# the most tokens of one text where a model names no limit of its own
LONGEST = 8192


class TorchModel(ABC, Generic[Input]):
    """A loaded sentence-transformers model as a `Model`: `output` names the feature that holds its result.

    Subclasses say what an input is. Raises ModelUnsupported when the model's tokenised form is not rows of tokens.
    """

    def __init__(self, network: BaseModel, *, output: str, probe: Input) -> None:
        self._network = network
        self._output = output
        # a fast tokenizer keeps truncation and padding as state: one call at a time
        self._tokenizing = threading.Lock()
        self._prompt: str | None = network.prompts.get(network.default_prompt_name or "") or None
        self._tokenizer = network.tokenizer
        features = self._preprocess([probe])
        if getattr(features.get("attention_mask"), "ndim", 0) != 2:
            raise ModelUnsupported("this model does not take rows of tokens, which is all this server can batch")
        self._names = [name for name, value in features.items() if _is_row(value) and name != "attention_mask"]
        self._constants = {name: value for name, value in features.items() if not _is_row(value)}
        self._blank: Row = {name: np.zeros(1, dtype=np.int64) for name in self._names}
        self._blank = self._encode([probe])[0]
        _bound_length(network)
        _compute_in_float32_after_the_transformer(network)

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        dtype: torch.dtype = next(self._network.parameters()).dtype
        return dtype

    @property
    def max_length(self) -> int:
        """Tokens of one input, special ones included; what is beyond is cut."""
        return int(self._network.max_seq_length or LONGEST)

    def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Tokenise; one result per input, in order, whatever the inputs hold."""
        rows = self._encode_safely([self._clean(item) for item in inputs])
        return [Prepared(row, len(row["input_ids"])) for row in rows]

    def run(self, batch: Sequence[Prepared]) -> Any:
        """Run one forward pass; the result (a tensor [len(batch), width]) stays on the device."""
        import torch

        side: Literal["left", "right"] = "left" if self._tokenizer.padding_side == "left" else "right"
        arrays = pad([item.row for item in batch], pad_id=self._tokenizer.pad_token_id or 0, side=side)
        device = self._network.device
        features = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
        with torch.inference_mode():
            return self._network({**features, **self._constants})[self._output]

    def finish(self, output: Any) -> Float32:
        """The result on the host, float32 [len(batch), width]."""
        rows: Float32 = output.float().cpu().numpy()
        return rows

    def widen(self) -> bool:
        """Continue in float32 for good; False if that is the case already."""
        import torch

        if self.dtype == torch.float32:
            return False
        self._network.float()
        return True

    def free(self) -> None:
        """Give back device memory that is only cached."""
        import torch

        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._network.device.type == "mps":
            torch.mps.empty_cache()

    @abstractmethod
    def _clean(self, item: Input) -> Input:
        """`item` without what tokenizers raise on."""

    @abstractmethod
    def _plain(self, item: Input) -> Input:
        """`item` in ASCII: what is left to try when the tokenizer cannot take it as it is."""

    def _encode_safely(self, items: Sequence[Input]) -> list[Row]:
        try:
            return self._encode(items)
        except BaseException as error:  # tokenizers written in Rust panic with a class that is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            if len(items) > 1:
                return [row for item in items for row in self._encode_safely([item])]
            plain = self._plain(items[0])
            log.warning("the tokenizer cannot take a text (%s); trying its ASCII part", type(error).__name__)
            return [self._blank] if plain == items[0] else self._encode_safely([plain])

    def _encode(self, items: Sequence[Input]) -> list[Row]:
        """One row per item; an item without any token gets the row of a full stop, since no model takes none."""
        features = self._preprocess(items)
        mask: NDArray[np.bool_] = features["attention_mask"].numpy().astype(bool)
        arrays = {name: features[name].numpy() for name in self._names}
        rows: list[Row] = []
        for i, real in enumerate(mask):
            row = {name: values[i][real].astype(np.int64, copy=False) for name, values in arrays.items()}
            rows.append(row if real.any() else self._blank)
        return rows

    def _preprocess(self, items: Sequence[Input]) -> Mapping[str, Any]:
        with self._tokenizing:
            features: Mapping[str, Any] = self._network.preprocess(list(items), prompt=self._prompt)
            return features


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
