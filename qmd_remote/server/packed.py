"""The forward pass without padding: all rows of a batch as one row of tokens, each token attending within its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from qmd_remote.server import packed_attention
from qmd_remote.server.forward import Forward, Network, PaddedForward, arrived, sent
from qmd_remote.server.model import Float32, Row
from qmd_remote.server.packed_attention import Segments
from qmd_remote.server.packing import Head, Packing, pack

log = logging.getLogger(__name__)

# of these it is known, and tested, that attention is all by which tokens see each other
ARCHITECTURES = frozenset({"bert", "roberta", "xlm-roberta", "nomic_bert", "qwen3"})
CAUSAL = frozenset({"qwen3"})

# How far a row may be from that of the padded pass, as a share of its length (of 1, if it is shorter). Rows that see
# each other, wrong positions or the wrong token under a head show as 0.1 and more.
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
PROBE_LENGTHS = (7, 1, 12, 3)


def forward_without_padding(network: Network, dtype: str) -> Forward:
    """`PackedForward` if the network allows it and a trial in the precision `dtype` succeeds, else `PaddedForward`."""
    padded = PaddedForward(network)
    reason = obstacle(network)
    if reason is not None:
        log.info("rows are padded: %s", reason)
        return padded
    packed: PackedForward | None = None
    try:
        packed = PackedForward(network)
        error = _error(packed, padded, network)
    except Exception as problem:  # a kernel that is not there, a library that has changed: padding works all the same
        log.warning("rows are padded: computing without padding fails here", exc_info=problem)
    else:
        if error <= TOLERANCE[dtype]:
            return packed
        log.warning("rows are padded: without padding, results differ by %.2g of their length", error)
    if packed is not None:
        packed.undo()
    return padded


def obstacle(network: Network) -> str | None:
    """Why rows of this network cannot go without padding, in words; None if they can."""
    first, *rest = network.module.children()
    model: Any = getattr(first, "model", None)
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if not isinstance(first, Transformer) or kind not in ARCHITECTURES:
        return f"{kind} is not known to allow anything else"
    pooled = bool(rest) and isinstance(rest[0], Pooling)
    found = {
        "the model brings code of its own": not type(model).__module__.startswith("transformers."),
        "the model has an attention of its own": config._attn_implementation not in packed_attention.INSTEAD_OF,
        "the model is a decoder": kind not in CAUSAL and getattr(config, "is_decoder", False),
        "some layers see a window only": "sliding_attention" in (getattr(config, "layer_types", None) or ()),
        "more than the last layer counts": config.output_hidden_states or config.output_attentions,
        "no pooling follows": first.module_output_name == "token_embeddings" and not pooled,
    }
    return next((words for words, applies in found.items() if applies), None)


class PackedForward:
    """A network without `obstacle`: sentence-transformers' pooling knows packed rows, the heads of models do not.

    A head counts the rows of `input_ids` and reads one token of each. So it is called with one token a row, and hooks
    give all tokens to the encoder below it. It computes only what it reads, by its own code.
    """

    name = "torch, packed"
    packs = True

    def __init__(self, network: Network) -> None:
        transformer: Any = next(network.module.children())
        model: Any = transformer.model
        self._network = network
        self._padded = PaddedForward(network)
        self._model = model
        self._head = _head(transformer.module_output_name, causal=model.config.model_type in CAUSAL)
        self._pad_id: int | None = model.config.pad_token_id
        self._counted_from = _counted_from(model)
        self._read: Tensor | None = None  # where the head reads, while the encoder below it runs
        self._before: str = model.config._attn_implementation
        model.set_attn_implementation(packed_attention.INSTEAD_OF[self._before])
        self._hooks = [] if self._head is None else self._hook(model.base_model)

    @property
    def dtype(self) -> str:
        """What matrix products are computed in."""
        return self._padded.dtype

    @property
    def deferred(self) -> bool:
        """True on a GPU."""
        return self._padded.deferred

    def run(self, rows: Sequence[Row]) -> Any:
        """One pass. On a GPU the result is on its way to the host when this returns."""
        packing = pack(rows, counted_from=self._counted_from)
        with torch.inference_mode():
            found, mixed = self._pass(packing, packed_attention.BLOCK)
            if mixed and not found.isfinite().all():
                found, _ = self._pass(packing, 0)
            return sent(found)

    def fetch(self, output: Any) -> Float32:
        """The result on the host, float32 [rows, width]."""
        return arrived(output)

    def widen(self) -> bool:
        """Make the weights float32, for which attention goes without the GPU's kernel; False if they are."""
        return self._padded.widen()

    def free(self) -> None:
        """Empty torch's cache of device memory."""
        self._padded.free()

    def undo(self) -> None:
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()
        self._model.set_attn_implementation(self._before)

    def _pass(self, packing: Packing, block: int) -> tuple[Tensor, bool]:
        """Float32 [rows, width] on the device, and whether rows could spoil each other."""
        features, segments, places = self._features(packing, block)
        found: Tensor = self._network.module({**features, **self._network.constants})[self._network.output]
        return found.float()[places], segments.mixed

    def _features(self, packing: Packing, block: int) -> tuple[dict[str, Any], Segments, Tensor]:
        """What the network is called with, where its rows lie, and where its results are for each row."""
        heads = packing.bounds if self._head is None else packing.heads(self._head, self._pad_id)
        values = list(packing.features.values())
        *tokens, owners, bounds, places, read = _on_device(
            [*values, packing.owners, packing.bounds, packing.places, heads], self._network.module.device
        )
        segments = Segments(packing.lengths, bounds.int(), block=block)
        features: dict[str, Any] = {name: one[None] for name, one in zip(packing.features, tokens, strict=True)}
        features["segments"] = segments
        # transformers takes a mask of four dimensions as it is, and so builds none of tokens times tokens
        features["attention_mask"] = torch.empty(1, 1, 1, 1, device=bounds.device)
        if self._head is None:
            return {**features, "cu_seq_lens_q": bounds, "seq_idx": owners[None]}, segments, places
        ids = features["input_ids"][0][read][:, None]
        return {"input_ids": ids, "packed": (features, read)}, segments, places

    def _hook(self, encoder: nn.Module) -> list[Any]:
        hooks: list[Any] = [
            encoder.register_forward_pre_hook(self._unfold, with_kwargs=True),
            encoder.register_forward_hook(self._fold),
        ]
        pooler = getattr(encoder, "pooler", None)
        if pooler is not None:
            hooks.append(pooler.register_forward_pre_hook(self._gather))
        return hooks

    def _unfold(self, _encoder: nn.Module, args: Any, options: dict[str, Any]) -> Any:
        """Give the encoder all tokens instead of one a row."""
        features, self._read = options.pop("packed", (None, None))
        return None if features is None else ((), {**options, **features})

    def _gather(self, _pooler: nn.Module, args: tuple[Tensor]) -> Any:
        """Of [1, tokens, width] what the head reads, [rows, 1, width]."""
        return None if self._read is None else (args[0][0][self._read][:, None],)

    def _fold(self, _encoder: nn.Module, _args: Any, output: Any) -> None:
        if self._read is not None:
            output["last_hidden_state"] = output["last_hidden_state"][0][self._read][:, None]
            self._read = None


def _head(output: str, *, causal: bool) -> Head | None:
    """Which token the model's own head reads; None where there is none, and modules of sentence-transformers pool."""
    if output == "token_embeddings":
        return None
    if not causal:
        return "first"
    return "last but padding" if output == "scores" else "last"


def _counted_from(model: nn.Module) -> int | None:
    """The padding token after whose number RoBERTa's family counts positions; None where they begin at 0."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding
    return None


def _on_device(arrays: Sequence[NDArray[np.int64]], device: torch.device) -> Sequence[Tensor]:
    """All arrays in one copy; on a GPU the host does not wait for it."""
    flat = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        flat = flat.pin_memory()
    return torch.split(flat.to(device, non_blocking=True), [len(array) for array in arrays])


def _error(packed: PackedForward, padded: PaddedForward, network: Network) -> float:
    """How far a few short rows of unequal length are apart, at most, as a share of their length in the padded pass."""
    words: int = network.module.transformers_model.get_input_embeddings().num_embeddings
    random = np.random.default_rng(0)
    rows = [
        {
            name: random.integers(words, size=n) if name == "input_ids" else np.zeros(n, np.int64)
            for name in network.names
        }
        for n in PROBE_LENGTHS
    ]
    expected = padded.fetch(padded.run(rows))
    apart = np.linalg.norm(packed.fetch(packed.run(rows)) - expected, axis=1)
    return float(np.nan_to_num(apart / np.maximum(np.linalg.norm(expected, axis=1), 1), nan=np.inf).max())
