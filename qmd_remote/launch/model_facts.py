"""How large models are: from what is known of them, else from their files where they are here, else from their name.

Bytes of weights as they are loaded, and for a generation model the bytes that one token takes in the KV cache. What is
known comes first, so that the answer is the same before and after a download.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from qmd_remote import hub_cache
from qmd_remote.catalogue import CATALOGUE

HALF = 2  # bytes of a float16 or bfloat16
UNKNOWN_BYTES = 8 << 30  # a generation model that nothing is known of
UNKNOWN_SMALL_BYTES = 1 << 30  # an embedder or reranker that nothing is known of
# of models with grouped heads: of 0.6 to 9 B parameters, and of 14 to 70 B
KV_GUESS, KV_GUESS_LARGE = 144 << 10, 320 << 10
LARGE_BYTES = 20 * 10**9
INDEX = "model.safetensors.index.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# bytes of a parameter, by a word in the names of quantised models
QUANTISED = ((r"awq|gptq|int4|w4a16|4bit|nvfp4|mxfp4|bnb", 0.7), (r"fp8|int8|w8a8|8bit", 1.1))

Source = Literal["known", "files", "name", "guess"]


@dataclass(frozen=True)
class ModelFacts:
    """`weights` in bytes, `kv_per_token` in bytes over all layers, and where the weights' size is from."""

    weights: int
    kv_per_token: int
    source: Source


@dataclass(frozen=True)
class Shape:
    """Layers, heads of keys and values, and the size of one head: what the KV cache is made of."""

    layers: int
    kv_heads: int
    head_dim: int

    @property
    def kv_per_token(self) -> int:
        """Bytes: keys and values in half precision."""
        return 2 * self.layers * self.kv_heads * self.head_dim * HALF


# from the config.json of each model's repository on the hub
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "Qwen/Qwen2.5-0.5B-Instruct": Shape(24, 2, 64),
        "Qwen/Qwen2.5-1.5B-Instruct": Shape(28, 2, 128),
        "Qwen/Qwen2.5-3B-Instruct": Shape(36, 2, 128),
        "Qwen/Qwen2.5-7B-Instruct": Shape(28, 4, 128),
        "Qwen/Qwen2.5-14B-Instruct": Shape(48, 8, 128),
        "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 3, 64),
    }
)
# those that the catalogue does not have
PARAMETERS: Mapping[str, int] = MappingProxyType(
    {
        "Qwen/Qwen2.5-1.5B-Instruct": 1_540_000_000,
        "Qwen/Qwen2.5-7B-Instruct": 7_620_000_000,
        "Qwen/Qwen2.5-14B-Instruct": 14_770_000_000,
    }
)


def generation(name: str, cache: Path) -> ModelFacts:
    """A generation model, by hub id or folder; `cache` is the hub's."""
    folder = _folder(name, cache)
    shape = SHAPES.get(name) or (_shape(folder) if folder else None)
    weights, source = _size(name, folder)
    guess = KV_GUESS if weights < LARGE_BYTES else KV_GUESS_LARGE
    return ModelFacts(weights, shape.kv_per_token if shape else guess, source)


def embedding(name: str, cache: Path, *, half: bool) -> int:
    """The bytes of an embedder's or reranker's weights as our server loads them, in half precision or in float32."""
    folder = _folder(name, cache)
    in_half = _known(name) * HALF or (_weights(folder) if folder else 0) or int(_named(name)) or UNKNOWN_SMALL_BYTES
    return in_half if half else 2 * in_half


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model to serve, and not what an interrupted download left, or a tokenizer alone."""
    # a link of the hub's cache may lead nowhere
    here = {file.name for file in folder.glob("*") if file.exists()}
    if "config.json" not in here:
        return False
    for index in fnmatch.filter(here, "*.index.json"):
        shards = {str(shard) for shard in _within(_read(folder / index), "weight_map").values()}
        if shards and here.issuperset(shards):
            return True
    return any("-of-" not in name for kind in WEIGHTS for name in fnmatch.filter(here, kind))


def _size(name: str, folder: Path | None) -> tuple[int, Source]:
    if known := _known(name):
        return known * HALF, "known"
    if folder and (stored := _weights(folder)):
        return stored, "files"
    if named := _named(name):
        return int(named), "name"
    return UNKNOWN_BYTES, "guess"


def _known(name: str) -> int:
    """How many parameters a model has, where that is known; else 0."""
    return CATALOGUE[name].parameters if name in CATALOGUE else PARAMETERS.get(name, 0)


def _named(name: str) -> float:
    """The bytes of the weights by what the name says: "…-3B-…", "…-8x7B-AWQ"; 0 where it says nothing."""
    base = Path(name).name
    sizes = re.findall(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])", base)
    # the largest, since "…-7B-Instruct-1M" tells its context, too
    parameters = max((int(n or 1) * float(size) * (1e9 if unit in "Bb" else 1e6) for n, size, unit in sizes), default=0)
    each = next((size for words, size in QUANTISED if re.search(words, base.lower())), HALF)
    return parameters * each


def _folder(name: str, cache: Path) -> Path | None:
    """Where a model's files are on this machine, if they are."""
    path = Path(name).expanduser()
    return path if path.is_dir() else hub_cache.main_snapshot(name, cache)


def _weights(folder: Path) -> int:
    """Bytes of the weights as a GPU holds them; 0 where there are none, or not all."""
    total = _within(_read(folder / INDEX), "metadata").get("total_size")
    if isinstance(total, int | float) and math.isfinite(total) and total > 0:
        stored = int(total)
    else:
        files = [file for file in folder.glob("*.safetensors") if file.exists()]
        # some repositories hold all weights a second time under this name
        once = [file for file in files if not file.name.startswith("consolidated")] or files
        if any("-of-" in file.name for file in once):  # a part of them, and no index to tell how many there are
            return 0
        stored = sum(file.stat().st_size for file in once)
    config = _read(folder / "config.json")
    wide = config.get("torch_dtype", config.get("dtype")) == "float32" and not config.get("quantization_config")
    return stored // 2 if wide else stored


def _shape(folder: Path) -> Shape | None:
    config = _read(folder / "config.json")
    # models that see or hear keep their language model's values apart
    config = config if "num_attention_heads" in config else _within(config, "text_config")
    try:
        heads = int(config["num_attention_heads"])
        size = int(config.get("head_dim") or config["hidden_size"] // heads)
        shape = Shape(int(config["num_hidden_layers"]), int(config.get("num_key_value_heads") or heads), size)
    except (ValueError, KeyError, TypeError, ZeroDivisionError, AttributeError, OverflowError):
        return None
    return shape if min(shape.layers, shape.kv_heads, shape.head_dim) > 0 else None


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _within(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object in an object; empty where there is none."""
    inner = content.get(name)
    return inner if isinstance(inner, dict) else {}
