"""The forward pass in OpenVINO, for CPUs: a network's torch module, converted as it is, pooling and heads included.

It is converted once (`openvino_cache`), compiled at each start, and then has to give torch's own numbers.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qmd_remote.server.forward import Network, PaddedForward
from qmd_remote.server.model import Float32, Row, pad
from qmd_remote.server.openvino_cache import ConvertedModel, reason
from qmd_remote.server.openvino_runtime import runtime

log = logging.getLogger(__name__)

HINTS = {"float32": "f32", "bfloat16": "bf16"}
# How far a row may be from torch's in float32, as a share of its length. A wrong graph is off by far more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
EXAMPLE = (7, 4, 9)
# Unlike the example in every way, so that what tracing has wrongly taken for a constant shows.
SHORT = ((1,), (2, 23, 5, 1))
# Tried once, after a conversion: some networks go another way for long rows.
LONG = 1024
# The most outputs of a head that scores.
LOGITS = 2
# Which input of OpenVINO's attention is the mask, and a logit that softmax makes 0 of; bfloat16 holds it too.
MASK, UNSEEN = 3, -1e30


class WrongNumbers(Exception):
    """OpenVINO computes something else than torch."""


class OpenVinoForward:
    """Any network that converts; rows are padded to the longest. Once it is made, the network has no weights left.

    Raises ImportError without OpenVINO, WrongNumbers, and for a network that it cannot take whatever its conversion
    raises; the network is then as it was.
    """

    name = "openvino"
    packs = False
    deferred = False

    def __init__(self, network: Network, folder: Path, *, cache: Path, dtype: str, threads: int) -> None:
        """Compute `network`, loaded from `folder` in float32, in `dtype` with so many CPU `threads`.

        A CPU that cannot multiply bfloat16 computes in float32 whatever `dtype` says. Conversions are kept in `cache`.
        """
        self._names = (*network.names, "attention_mask")
        self._pad_id, self._side = network.pad_id, network.side
        self._limit = int(network.module.max_seq_length or 0)
        self._threads = threads
        self._core = runtime().Core()
        place = ConvertedModel(cache, folder, (*self._names, network.output))
        if not self._adopt_kept(place, network, dtype):
            self._adopt_new(place, network, dtype)
        network.module.to("meta")
        gc.collect()  # tracing leaves cycles that hold the weights

    @property
    def dtype(self) -> str:
        """The precision that OpenVINO has settled on."""
        return settled(self._compiled)

    def run(self, rows: Sequence[Row]) -> Any:
        """One pass over the padded rows, finished when this returns: an array [rows, width]."""
        least = width(max(len(row["input_ids"]) for row in rows), self._limit)
        arrays = pad(rows, pad_id=self._pad_id, side=self._side, least=least)
        # inputs are read where they are; the result is copied, since the next pass writes over it
        return self._request.infer([arrays[name] for name in self._names], share_inputs=True)[0]

    def fetch(self, output: Any) -> Float32:
        """The result, float32 [rows, width]."""
        rows: Float32 = output
        return rows

    def widen(self) -> bool:
        """Compile again, in float32; False if that is the precision already."""
        if self.dtype == "float32":
            return False
        self._compile(self._model, "float32")
        return True

    def free(self) -> None:
        """Give back what the last passes needed beside the weights."""
        self._compiled.release_memory()

    def _adopt_kept(self, place: ConvertedModel, network: Network, dtype: str) -> bool:
        kept = place.read(self._core)
        if kept is None:
            return False
        try:
            self._adopt(kept, network, dtype, SHORT)
        except (RuntimeError, WrongNumbers) as error:
            log.warning("a converted model is of no use, and is made again: %s", reason(error))
            return False
        return True

    def _adopt_new(self, place: ConvertedModel, network: Network, dtype: str) -> None:
        log.info("converting the model for OpenVINO, once")
        began = time.monotonic()
        model = _convert(network, self._names)
        if place.write(model):
            # mapped from disk, it does not hold on to torch's weights
            model = place.read(self._core) or model
        longest = min(LONG, self._limit or LONG)
        try:
            self._adopt(model, network, dtype, (*SHORT, (longest,)))
        except (RuntimeError, WrongNumbers):
            place.drop()
            raise
        log.info("converted in %.1f s", time.monotonic() - began)

    def _adopt(self, model: Any, network: Network, dtype: str, shapes: Sequence[Sequence[int]]) -> None:
        """Compute with `model` from now on, if it gives torch's numbers for rows of these lengths."""
        self._compile(model, dtype)
        torch = PaddedForward(network)
        for lengths in shapes:
            rows = _rows(network, lengths)
            expected = torch.fetch(torch.run(rows))
            off = distance(self.run(rows), expected)
            if self.dtype != "float32" and not off <= TOLERANCE[self.dtype]:
                log.warning("%s is not exact enough for this model (%.2g off): computing in float32", self.dtype, off)
                self.widen()
                off = distance(self.run(rows), expected)
            if not off <= TOLERANCE[self.dtype]:
                raise WrongNumbers(f"rows of {tuple(lengths)} tokens are {off:.2g} off torch's")

    def _compile(self, model: Any, dtype: str) -> None:
        self._compiled = self._core.compile_model(model, "CPU", properties(dtype, self._threads))
        self._request = self._compiled.create_infer_request()
        # only a narrower precision may have to be widened
        self._model = None if self.dtype == "float32" else model


def attempt(network: Network, folder: Path, *, cache: Path, dtype: str, threads: int) -> OpenVinoForward | None:
    """An OpenVinoForward, or None and a warning with the cause where this network has none."""
    try:
        return OpenVinoForward(network, folder, cache=cache, dtype=dtype, threads=threads)
    except Exception as error:  # whatever a model's code raises while it is traced; torch still computes it
        log.warning("OpenVINO does not take the model in %s, torch computes it: %s", folder.name, reason(error))
        log.debug("OpenVINO's failure", exc_info=error)
        return None


def properties(dtype: str, threads: int) -> Mapping[str, Any]:
    """What to ask of OpenVINO's CPU plugin, which computes for one caller at a time."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # a thread tied to a core could not leave one that another process holds
        "ENABLE_CPU_PINNING": False,
    }


def settled(compiled: Any) -> str:
    """The precision in which a compiled model multiplies matrices."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return next((name for name, known in HINTS.items() if known == hint), hint)


def width(length: int, limit: int) -> int:
    """How wide to make a batch whose longest row has `length` tokens, of a model that takes `limit` (0: any number).

    OpenVINO keeps what it has prepared for every shape. So there are few of them: multiples of 8, above 256 tokens of a
    16th to a 32nd of the length.
    """
    step = 1 << max(3, length.bit_length() - 5)
    rounded = -(-length // step) * step
    return max(length, min(rounded, limit)) if limit else rounded


def distance(found: Float32, expected: Float32) -> float:
    """How far the worst row is from what is expected, as a share of its length; infinite for another shape.

    Logits near zero have no length to speak of: theirs counts as 1 at least.
    """
    if found.shape != expected.shape:
        return float("inf")
    lengths = np.linalg.norm(expected, axis=1)
    scale = np.maximum(lengths, 1.0 if expected.shape[1] <= LOGITS else np.finfo(np.float32).tiny)
    return float(np.max(np.linalg.norm(found - expected, axis=1) / scale))


def _convert(network: Network, names: Sequence[str]) -> Any:
    """The network as an OpenVINO model: int64 inputs [rows, length] in the order of `names`, one output."""
    import torch

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = network.module

        def forward(self, *features: Any) -> Any:
            return self.module({**dict(zip(names, features, strict=True)), **network.constants})[network.output]

    arrays = pad(_rows(network, EXAMPLE), pad_id=network.pad_id, side=network.side)
    openvino = runtime()
    shape = openvino.PartialShape([-1, -1])
    with torch.inference_mode(), _quietly(), _sums_for_heads(network.module):
        model = openvino.convert_model(
            Traced(),
            input=[(shape, openvino.Type.i64)] * len(names),
            example_input=tuple(torch.from_numpy(arrays[name]) for name in names),
        )
    _mask_finitely(openvino, model)
    return model


def _rows(network: Network, lengths: Sequence[int]) -> list[Row]:
    """Rows of these lengths of token ids that every table has; the last ids of a vocabulary may be in none."""
    known = max(1, len(network.module.tokenizer) // 2)
    rows: list[Row] = []
    for length in lengths:
        zeros = {name: np.zeros(length, dtype=np.int64) for name in network.names}
        rows.append({**zeros, "input_ids": (np.arange(length) * 37 + length) % known})
    return rows


def _mask_finitely(openvino: Any, model: Any) -> None:
    """Let attention masks be large numbers instead of truth values.

    OpenVINO makes NaN of a token that may see none, which torch makes 0 of, and a NaN spreads though it is masked. Such
    tokens are padding on the left of a causal model, and padding that is far from all text in a sliding window.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention" and node.get_input_size() > MASK:
            mask = node.input_value(MASK)
            if mask.get_element_type() == openvino.Type.boolean:
                finite = openvino.opset13.select(mask, np.float32(0), np.float32(UNSEEN))
                node.input(MASK).replace_source_output(finite.output(0))
    model.validate_nodes_and_infer_types()


@contextmanager
def _sums_for_heads(module: Any) -> Iterator[None]:
    """Write a linear layer of one or two outputs as a sum of products.

    OpenVINO narrows matrix products, and a logit in bfloat16 has two or three digits. What comes after the last of them
    it leaves in float32.
    """
    from torch.nn import Linear

    heads = [layer for layer in module.modules() if isinstance(layer, Linear) and layer.out_features <= LOGITS]
    for head in heads:
        head.forward = partial(_summed, head)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for head in heads:
            del head.forward


def _summed(head: Any, features: Any) -> Any:
    logits = (features.unsqueeze(-2) * head.weight).sum(-1)
    return logits if head.bias is None else logits + head.bias


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of tracing: what they are about is checked afterwards, with other shapes.

    The converter sets up the root logger as if it were the only program; that is undone.
    """
    root, transformers = logging.getLogger(), logging.getLogger("transformers")
    before = root.level, transformers.level
    filters, handlers = root.filters[:], root.handlers[:]
    transformers.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before[0])
        transformers.setLevel(before[1])
        root.filters[:], root.handlers[:] = filters, handlers
