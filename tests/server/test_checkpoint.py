"""What a folder's JSON files say about the model in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.server.checkpoint import Kind, is_complete, is_loadable, kind, wanted
from tests.server import tiny_models as tiny

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
LOGIT_SCORE = {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}
SPLADE = {"path": "1_SpladePooling", "type": "sentence_transformers.sparse_encoder.models.SpladePooling"}


def write(folder: Path, *, architecture: str | None = None, modules: list[Any] | None = None, model_type: str = ""):
    """A folder whose JSON files say this."""
    folder.mkdir(exist_ok=True)
    tiny.edit_json(folder / "config.json", model_type="bert", architectures=[architecture] if architecture else None)
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if model_type:
        tiny.edit_json(folder / "config_sentence_transformers.json", model_type=model_type)
    return folder


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({"architecture": "BertModel"}, Kind.BI_ENCODER),
        ({"architecture": None}, Kind.BI_ENCODER),
        ({"architecture": "BertForMaskedLM"}, Kind.BI_ENCODER),
        ({"architecture": "XLMRobertaForSequenceClassification"}, Kind.CROSS_ENCODER),
        ({"architecture": "Qwen3ForCausalLM"}, Kind.CROSS_ENCODER),
        ({"architecture": "Qwen3ForCausalLM", "modules": [TRANSFORMER, POOLING, NORMALIZE]}, Kind.BI_ENCODER),
        ({"architecture": "Qwen3ForCausalLM", "modules": [TRANSFORMER, LOGIT_SCORE]}, Kind.CROSS_ENCODER),
        ({"architecture": "BertForSequenceClassification", "modules": [TRANSFORMER]}, Kind.CROSS_ENCODER),
        ({"architecture": "BertForSequenceClassification", "modules": [TRANSFORMER, POOLING]}, Kind.BI_ENCODER),
        ({"architecture": "BertModel", "model_type": "CrossEncoder"}, Kind.CROSS_ENCODER),
        (
            {"architecture": "BertModel", "modules": [TRANSFORMER, POOLING], "model_type": "SentenceTransformer"},
            Kind.BI_ENCODER,
        ),
        ({"architecture": "BertForMaskedLM", "modules": [TRANSFORMER, SPLADE]}, Kind.OTHER),
        ({"architecture": "BertForMaskedLM", "model_type": "SparseEncoder"}, Kind.OTHER),
        ({"architecture": "BertModel", "model_type": "MultiVectorEncoder"}, Kind.OTHER),
    ],
)
def test_kind_follows_from_the_json_files(says, expected, tmp_path):
    """sentence-transformers' own files decide; without them the architecture does."""
    assert kind(write(tmp_path / "model", **says)) is expected


def test_the_real_minilm_is_a_complete_bi_encoder():
    """The packaged weights are recognised, although the folder of Normalize is not there."""
    folder = tiny.mini_folder()
    assert (kind(folder), is_loadable(folder), is_complete(folder)) == (Kind.BI_ENCODER, True, True)


def test_broken_json_is_no_model(tmp_path):
    """A folder whose config.json is cut off is not loadable, and nothing is raised."""
    (tmp_path / "config.json").write_text('{"architectures": [')
    (tmp_path / "model.safetensors").touch()
    assert not is_loadable(tmp_path)


def test_all_shards_have_to_be_there(tmp_path):
    """Weights in shards count only with every shard that the index names."""
    folder = write(tmp_path / "model", architecture="BertForSequenceClassification")
    (folder / "tokenizer.json").touch()
    tiny.edit_json(
        folder / "model.safetensors.index.json", weight_map={"a": "model-1.safetensors", "b": "model-2.safetensors"}
    )
    (folder / "model-1.safetensors").touch()
    assert not is_complete(folder)
    (folder / "model-2.safetensors").touch()
    assert is_complete(folder)


def test_an_embedder_without_its_pooling_is_incomplete(tmp_path):
    """What transformers alone has cached of an embedder is loadable, but its pooling is missing."""
    folder = write(tmp_path / "model", architecture="BertModel")
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    assert is_loadable(folder)
    assert not is_complete(folder)
    write(folder, architecture="BertModel", modules=[TRANSFORMER, POOLING, NORMALIZE])
    assert not is_complete(folder)
    (folder / "1_Pooling").mkdir()
    assert is_complete(folder)


def test_the_transformer_may_lie_in_a_folder_of_its_own(tmp_path):
    """Old models keep config.json and weights in 0_Transformer."""
    parts = [{**TRANSFORMER, "path": "0_Transformer"}, POOLING]
    (tmp_path / "modules.json").write_text(json.dumps(parts))
    home = write(tmp_path / "0_Transformer", architecture="BertModel")
    for name in ("pytorch_model.bin", "tokenizer_config.json"):
        (home / name).touch()
    (tmp_path / "1_Pooling").mkdir()
    assert is_complete(tmp_path)


def test_only_what_is_needed_is_fetched_and_the_weights_last():
    """One format of weights, no other backend, no training state; modules' folders included."""
    needed = ["1_Pooling/config.json", "config.json", "modules.json", "sentencepiece.bpe.model", "tokenizer.json"]
    needed += ["vocab.txt", "chat_template.jinja", "modeling_own.py", "model.safetensors", "2_Dense/model.safetensors"]
    other = ["2_Dense/pytorch_model.bin", "pytorch_model.bin", "model.fp16.safetensors", "flax_model.msgpack"]
    other += [
        "model.onnx",
        "onnx/config.json",
        "onnx/model.onnx",
        "openvino/openvino_model.bin",
        "q4.gguf",
        "tf_model.h5",
    ]
    junk = [".gitattributes", "README.md", "checkpoint-9/model.safetensors", "optimizer.bin", "training_args.bin"]
    assert wanted([*junk, *needed, *other], ["1_Pooling", "2_Dense"]) == needed


def test_older_weights_are_fetched_where_there_are_no_safetensors():
    """pytorch_model.bin and its shards serve where nothing better is there."""
    needed = ["config.json", "pytorch_model.bin.index.json", "pytorch_model-1.bin", "pytorch_model-2.bin"]
    assert wanted([*needed, "rust_model.ot"], []) == needed


def test_a_language_model_is_fetched_with_all_it_needs_to_speak():
    """Every shard and their index, the tokenizer with its template, and the generation's own configuration."""
    needed = ["config.json", "generation_config.json", "merges.txt", "model.safetensors.index.json", "tokenizer.json"]
    needed += ["tokenizer_config.json", "vocab.json", "chat_template.jinja"]
    needed += ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    other = [".gitattributes", "LICENSE", "README.md", "consolidated.safetensors", "original/params.json"]
    assert wanted([*other, *needed], []) == needed
