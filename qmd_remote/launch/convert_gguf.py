"""GGUF file → model folder, once, laid out as the hub's cache so that the engine serves it under its hub name.

`python -m qmd_remote.launch.convert_gguf GGUF CACHE MODEL` does the work in a process of its own: transformers holds
both the quantised and the full weights meanwhile, and gives the memory back only by ending.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

log = logging.getLogger("qmd_remote.convert")


def snapshot(cache: Path, model: str, source: Path) -> Path:
    """The folder a converted model lies in: `models--ORG--NAME/snapshots/REVISION`, named after the source file."""
    facts = f"{source.name}:{source.stat().st_size}"
    revision = hashlib.sha1(facts.encode(), usedforsecurity=False).hexdigest()
    return cache / f"models--{model.replace('/', '--')}" / "snapshots" / revision


def is_converted(cache: Path, model: str, source: Path) -> bool:
    """Whether the conversion was done: the folder appears whole, and the reference that names it comes last."""
    folder = snapshot(cache, model, source)
    try:
        current = (folder.parent.parent / "refs" / "main").read_text(encoding="utf-8")
    except OSError:
        return False
    return current == folder.name and folder.is_dir()


def convert(source: Path, cache: Path, model: str) -> Path:
    """Convert; returns the folder. The result appears whole or not at all."""
    target = snapshot(cache, model, source)
    home = target.parent.parent
    (home / "snapshots").mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    clear_partial(cache, model)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=home) as draft_name:
        draft = Path(draft_name) / "model"
        _write_model(source, draft)
        log.info("phase: saving")
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        # not drafted in refs: the hub's library takes every file there for a reference
        reference = Path(draft_name) / "main"
        reference.write_text(target.name, encoding="utf-8")
        reference.replace(home / "refs" / "main")
    return target


def clear_partial(cache: Path, model: str) -> None:
    """Remove what a conversion that was killed left behind."""
    for left_over in (cache / f"models--{model.replace('/', '--')}").glob("partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def _write_model(source: Path, target: Path) -> None:
    log.info("phase: loading transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("phase: reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    log.info("phase: reading the weights")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    log.info("phase: writing the weights")
    # four-bit weights fit into half precision; the engine computes in float32 all the same
    model.half().save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
