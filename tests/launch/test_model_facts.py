"""How large models are, from what is known, from files, from names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd_remote.catalogue import CATALOGUE
from qmd_remote.launch import model_facts
from qmd_remote.presets import DESIGN_EMBED, DESIGN_GENERATION

NOWHERE = Path("/nowhere")
CONFIG = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 10,
    "torch_dtype": "bfloat16",
}


def folder_of(folder: Path, config: object, **sizes: int) -> Path:
    """A model's folder with a config and files of these sizes; in names "__" is a dot, "_of_" is "-of-"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, size in sizes.items():
        with (folder / name.replace("__", ".").replace("_of_", "-of-").replace("model_0", "model-0")).open(
            "wb"
        ) as file:
            file.truncate(size)
    return folder


def cached(cache: Path, name: str, config: object, **sizes: int) -> Path:
    """A model in the hub's cache."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    return folder_of(home / "snapshots" / "abc", config, **sizes)


def test_the_designs_model_is_known():
    """Qwen2.5-3B is 6.2 GB of weights; 4 × 8,192 tokens of its KV cache are 1.1 GiB."""
    facts = model_facts.generation(DESIGN_GENERATION, NOWHERE)
    assert ("known", 6_180_000_000) == (facts.source, facts.weights)
    assert 1.125 == facts.kv_per_token * 4 * 8192 / (1 << 30)


def test_every_generation_model_of_the_catalogue_is_known_whole():
    """Parameters and the shape of the KV cache of all that are recommended need no file."""
    for model in CATALOGUE.values():
        if model.role == "generation":
            assert "known" == model_facts.generation(model.id, NOWHERE).source
            assert model.id in model_facts.SHAPES


def test_a_download_changes_nothing_of_what_is_known(tmp_path: Path):
    """The facts of a known model are the same before and after its download: the container must not change by it."""
    before = model_facts.generation(DESIGN_GENERATION, tmp_path)
    cached(tmp_path, DESIGN_GENERATION, CONFIG, model__safetensors=123)
    assert before == model_facts.generation(DESIGN_GENERATION, tmp_path)


def test_files_tell_of_a_model_in_the_cache(tmp_path: Path):
    """Another model's weights are the sizes of its files, and its config tells the KV cache of a token."""
    cached(tmp_path, "acme/own", CONFIG, model__safetensors=5_000_000)
    expected = model_facts.ModelFacts(5_000_000, 2 * 10 * 4 * 64 * 2, "files")
    assert expected == model_facts.generation("acme/own", tmp_path)


def test_files_tell_of_a_local_folder(tmp_path: Path):
    """A folder's weights count, whatever its name says; a head's own size in the config wins."""
    own = folder_of(tmp_path / "own-70B", {**CONFIG, "head_dim": 128}, model__safetensors=7_000_000)
    expected = model_facts.ModelFacts(7_000_000, 2 * 10 * 4 * 128 * 2, "files")
    assert expected == model_facts.generation(str(own), NOWHERE)


def test_an_index_tells_more_than_the_files_that_have_come(tmp_path: Path):
    """Of a model in parts the index holds the whole size, also while parts are missing."""
    own = folder_of(tmp_path / "own", CONFIG, model_00001_of_00002__safetensors=10)
    assert 0 == model_facts._weights(own)
    (own / model_facts.INDEX).write_text(json.dumps({"metadata": {"total_size": 9_000_000}}))
    assert 9_000_000 == model_facts.generation(str(own), NOWHERE).weights


def test_weights_that_are_there_twice_count_once(tmp_path: Path):
    """The second copy of all weights that some repositories have is not loaded."""
    own = folder_of(tmp_path / "own", CONFIG, model__safetensors=10_000, consolidated__safetensors=10_000)
    assert 10_000 == model_facts.generation(str(own), NOWHERE).weights


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**CONFIG, "torch_dtype": "float32"}, 500),
        ({**CONFIG, "torch_dtype": None, "dtype": "float32"}, 1000),
        ({**CONFIG, "torch_dtype": "float32", "quantization_config": {"bits": 4}}, 1000),
    ],
)
def test_float32_is_loaded_as_half_of_it(tmp_path: Path, config: dict[str, object], expected: int):
    """vLLM loads float32 weights in half precision; quantised ones are as large as their files."""
    own = folder_of(tmp_path / "own", config, model__safetensors=1000)
    assert expected == model_facts.generation(str(own), NOWHERE).weights


def test_a_model_that_sees_keeps_its_language_models_values_apart(tmp_path: Path):
    """The shape is found inside `text_config`, too."""
    own = folder_of(tmp_path / "own", {"text_config": CONFIG}, model__safetensors=1000)
    assert 2 * 10 * 4 * 64 * 2 == model_facts.generation(str(own), NOWHERE).kv_per_token


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme/Own-3B-Instruct", 6e9),
        ("acme/own-1.5b", 3e9),
        ("acme/Own-350M", 0.7e9),
        ("acme/Own-7B-Instruct-1M", 14e9),
        ("acme/own_7B_v2", 14e9),
        ("acme/Own-8x7B-v0.1", 112e9),
        ("acme/Own-30B-A3B", 60e9),
        ("acme/Own-7B-AWQ", 4.9e9),
        ("acme/Own-8B-FP8", 8.8e9),
        ("7B/own", 0),
        ("acme/bge-m3", 0),
        ("acme/own-v1.5", 0),
        ("acme/own-128k", 0),
    ],
)
def test_a_name_tells_a_size(name: str, expected: float):
    """Billions and millions of parameters in a model's name are its size, quantised or not; versions are none."""
    facts = model_facts.generation(name, NOWHERE)
    assert (int(expected) or model_facts.UNKNOWN_BYTES) == pytest.approx(facts.weights)
    assert ("name" if expected else "guess") == facts.source
    assert facts.kv_per_token > 0


def test_embedders_and_rerankers(tmp_path: Path):
    """What our server loads is counted in half precision on a GPU, and in float32 on a CPU."""
    assert 274_000_000 == model_facts.embedding(DESIGN_EMBED, NOWHERE, half=True)
    assert 548_000_000 == model_facts.embedding(DESIGN_EMBED, NOWHERE, half=False)
    own = folder_of(tmp_path / "own", {"torch_dtype": "float32"}, model__safetensors=1000)
    assert (500, 1000) == tuple(model_facts.embedding(str(own), NOWHERE, half=half) for half in (True, False))
    assert model_facts.UNKNOWN_SMALL_BYTES == model_facts.embedding("acme/unknown", NOWHERE, half=True)


def test_a_whole_model_is_told_from_a_part_of_one(tmp_path: Path):
    """A tokenizer alone, or what an interrupted download left, is no model that could be served offline."""
    own = folder_of(tmp_path / "own", CONFIG)
    assert not model_facts.is_whole(own)
    (own / model_facts.INDEX).write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    folder_of(own, CONFIG, model_00001_of_00002__safetensors=1)
    assert not model_facts.is_whole(own)
    folder_of(own, CONFIG, model_00002_of_00002__safetensors=1)
    assert model_facts.is_whole(own)
    assert model_facts.is_whole(folder_of(tmp_path / "one", CONFIG, model__safetensors=1))
    assert model_facts.is_whole(folder_of(tmp_path / "old", CONFIG, pytorch_model__bin=1))
    assert not model_facts.is_whole(tmp_path / "nothing")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CONFIG, "text_config"]), inner),
)


@settings(deadline=None)
@given(config=JSON, index=JSON)
def test_odd_files_are_no_reason_to_end(tmp_path_factory: pytest.TempPathFactory, config: object, index: object):
    """Whatever stands in a config or an index, there is an answer with positive sizes."""
    own = folder_of(tmp_path_factory.mktemp("odd"), config, model__safetensors=10)
    (own / model_facts.INDEX).write_text(json.dumps({"metadata": index, "weight_map": index}))
    facts = model_facts.generation(str(own), NOWHERE)
    assert facts.weights > 0
    assert facts.kv_per_token > 0
    model_facts.is_whole(own)
