"""Models in the GPU benchmark's shapes, with seeded random weights and tokenizers made here."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from harness.models import Shape, embedder_files
from harness.work import Texts

CONSONANTS, VOWELS = "bcdfghjklmnprstvwxz", "aeiou"
SYLLABLES = [a + b for a, b in itertools.product(CONSONANTS, VOWELS)]
WORDS = [a + b for a, b in itertools.product(SYLLABLES, SYLLABLES)]  # each is one token


def save_embedder(shape: Shape, target: Path) -> Path:
    """NomicBert with mean pooling."""
    import transformers

    tokenizer = _tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]", shape.length, pad=0, unk=1)
    config = transformers.NomicBertConfig(
        **_sizes(shape), vocab_size=len(tokenizer), max_position_embeddings=shape.length
    )
    folder = target / "embedder"
    transformers.NomicBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    embedder_files(folder, shape)
    return folder


def save_reranker(shape: Shape, target: Path) -> Path:
    """XLM-R with one label, whose scores are spread to what a sigmoid keeps apart."""
    import torch
    import transformers

    tokenizer = _tokenizer(["<s>", "<pad>", "</s>", "<unk>"], "<s>", "</s>", shape.length, pad=1, unk=3)
    config = transformers.XLMRobertaConfig(
        **_sizes(shape), vocab_size=len(tokenizer), max_position_embeddings=shape.length + 2, num_labels=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = transformers.XLMRobertaForSequenceClassification(config).eval()
    texts = Texts(WORDS, "centre")
    pairs = [(texts.query(0, i), texts.text(0, i, 20 + i)) for i in range(16)]
    batch = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        found, head = model(**batch).logits, model.classifier.out_proj
        scale = 3 / float(found.max() - found.min())
        head.weight.mul_(scale)
        head.bias.copy_((head.bias - found.mean()) * scale)
    model.save_pretrained(target / "reranker")
    tokenizer.save_pretrained(target / "reranker")
    return target / "reranker"


def _sizes(shape: Shape) -> dict[str, int]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": max(2, shape.hidden // 64),
        "intermediate_size": shape.inner,
    }


def _tokenizer(specials: list[str], start: str, end: str, length: int, *, pad: int, unk: int) -> Any:
    """Words of WORDS are one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=specials[unk]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = (end, vocabulary[end]), (start, vocabulary[start])
    tokenizer.post_processor = processors.BertProcessing(*ends)
    roles = {"pad_token": specials[pad], "unk_token": specials[unk], "cls_token": start, "sep_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, model_max_length=length)
