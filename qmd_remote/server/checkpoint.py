"""What a model folder holds, told from its JSON files alone: nothing is loaded, no library is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
OTHER_BACKENDS = ("onnx/", "openvino/", "gguf/", "coreml/", "original/", ".")


class Kind(Enum):
    """What a model can do."""

    BI_ENCODER = "bi-encoder"
    CROSS_ENCODER = "cross-encoder"
    OTHER = "other"


def kind(folder: Path) -> Kind:
    """Whether the model in `folder` embeds texts, scores pairs, or does something else.

    sentence-transformers' own files decide; without them a classification head, or a causal language model asked for
    yes or no, scores pairs, and any other encoder embeds.
    """
    declared = _object(folder / "config_sentence_transformers.json").get("model_type")
    if declared == "CrossEncoder":
        return Kind.CROSS_ENCODER
    if declared not in (None, "SentenceTransformer"):
        return Kind.OTHER
    modules = [str(module.get("type", "")).rpartition(".")[2] for module in _modules(folder)]
    if "LogitScore" in modules:
        return Kind.CROSS_ENCODER
    if "SpladePooling" in modules:
        return Kind.OTHER
    config = _object(folder / _transformer_part(folder) / "config.json")
    architectures = [str(name) for name in config.get("architectures") or []]
    if len(modules) < 2 and any(name.endswith(("ForSequenceClassification", "ForCausalLM")) for name in architectures):
        return Kind.CROSS_ENCODER
    return Kind.BI_ENCODER


def is_loadable(folder: Path) -> bool:
    """Whether `folder` has the transformer's configuration and all of its weights."""
    home = folder / _transformer_part(folder)
    return bool(_object(home / "config.json")) and _has_weights(home)


def is_complete(folder: Path) -> bool:
    """Whether nothing that belongs to the model can be missing, though another program may have fetched it in part.

    transformers fetches neither modules.json nor the folders it names, and without them an embedder would be pooled
    in another way, silently.
    """
    modules = _modules(folder)
    if not modules and kind(folder) is Kind.BI_ENCODER:
        return False
    home = folder / _transformer_part(folder)
    tokenizer = any((home / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    # Normalize has nothing to configure, so its folder is often not there
    parts = [module.get("path", "") for module in modules if not str(module.get("type", "")).endswith("Normalize")]
    return is_loadable(folder) and tokenizer and all((folder / part).is_dir() for part in parts)


def module_folders(folder: Path) -> list[str]:
    """The sub-folders that modules.json names."""
    return [str(module["path"]) for module in _modules(folder) if module.get("path")]


def wanted(files: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Which of a repository's files to fetch: configuration, tokenizer, code, and one format of weights; weights last.

    Weights are taken from the root and from `folders`. The order makes an interrupted download visible: where the
    weights are, the rest is.
    """
    small = [name for name in files if name.endswith((".json", ".txt", ".model", ".jinja", ".py"))]
    weights: list[str] = []
    for folder in ("", *folders):
        inside = [name for name in files if name.rpartition("/")[0] == folder]
        for suffix in (".safetensors", ".bin"):
            if found := [name for name in inside if name.endswith(suffix) and _is_model_weights(name)]:
                weights += found
                break
    return [name for name in small if not name.startswith(OTHER_BACKENDS)] + weights


def _is_model_weights(name: str) -> bool:
    """Not training_args.bin, optimizer.bin or a variant such as model.fp16.safetensors."""
    stem = name.rpartition("/")[2].rsplit(".", 1)[0]
    return "." not in stem and stem.startswith(("model", "pytorch_model", "adapter_model"))


def _has_weights(folder: Path) -> bool:
    if (folder / "adapter_model.safetensors").is_file():
        return True
    for name in WEIGHTS:
        if (folder / name).is_file():
            return True
        shards = set((_object(folder / f"{name}.index.json").get("weight_map") or {}).values())
        if shards and all((folder / str(shard)).is_file() for shard in shards):
            return True
    return False


def _transformer_part(folder: Path) -> str:
    """Where the transformer lies: models of sentence-transformers' first years keep it in a folder of its own."""
    modules = _modules(folder)
    return str(modules[0].get("path", "")) if modules else ""


def _modules(folder: Path) -> list[Mapping[str, Any]]:
    modules = _json(folder / "modules.json")
    return [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []


def _object(path: Path) -> Mapping[str, Any]:
    value = _json(path)
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> Any:
    """The file's content, or None where there is no such file or no JSON in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
