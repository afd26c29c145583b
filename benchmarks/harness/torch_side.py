"""What needs torch: the fp32 reference, and the machine's own limit. Runs in a process of its own, which ends."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from harness import models

GEMM_SHAPES = ((768, 3072), (3072, 768), (768, 768))  # inputs and outputs of BERT-base's layers
GEMM_ROWS = (128, 512, 2048)
GEMM_TRIALS = 15


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(*arguments)` in a fresh process, so that neither its memory nor its threads stay."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def make_models(names: Sequence[str], cache: Path) -> dict[str, Path]:
    """The folders of the models."""
    return {name: models.folder(name, cache) for name in names}


def vectors(folder: Path, texts: list[str]) -> list[list[float]]:
    """sentence-transformers in float32, one text at a time."""
    from sentence_transformers import SentenceTransformer

    found: list[list[float]] = SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=1).tolist()
    return found


def logits(folder: Path, query: str, documents: list[str]) -> list[float]:
    """The cross-encoder's in float32, one pair at a time."""
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    network = CrossEncoder(str(folder), device="cpu", activation_fn=Identity())
    found: list[float] = network.predict([(query, text) for text in documents], batch_size=1).tolist()
    return found


def gemm_peak(flags: Sequence[str]) -> dict[str, float]:
    """FLOP/s of torch's matrix product on all cores, the best of a few shapes; bfloat16 where the CPU has it."""
    import torch

    dtypes = ["float32"]
    if {"amx_bf16", "avx512_bf16"} & set(flags):
        dtypes.append("bfloat16")
    return {
        name: max(_gemm(getattr(torch, name), rows, *shape) for rows in GEMM_ROWS for shape in GEMM_SHAPES)
        for name in dtypes
    }


def _gemm(dtype: Any, rows: int, width: int, height: int) -> float:
    import torch

    with torch.inference_mode():
        a, b = torch.randn(rows, width).to(dtype), torch.randn(height, width).to(dtype)
        times = []
        for _ in range(GEMM_TRIALS):
            began = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - began)
    return 2.0 * rows * width * height / min(times)


def lengths(folder: Path, limit: int, texts: Sequence[str | tuple[str, str]]) -> list[int]:
    """How many tokens a model reads of each text or pair. Needs no torch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
