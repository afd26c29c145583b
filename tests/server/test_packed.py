"""The forward pass without padding gives the numbers of the padded one, and steps back where it cannot."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from qmd_remote.server import packed_attention
from qmd_remote.server.embedder import Embedder
from qmd_remote.server.forward import Network, PaddedForward
from qmd_remote.server.linears import prepare_for_cpu
from qmd_remote.server.packed import PackedForward, forward_without_padding, obstacle
from qmd_remote.server.packing import pack
from qmd_remote.server.reranker import CrossEncoderModel
from tests.server import tiny_models as tiny

FEW = settings(max_examples=10, database=None)
LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=12)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}

# one token, equal lengths, one long row among short ones, a single row, more than a block, unsorted
ODD = [[1], [1, 1, 1], [7, 7, 7], [90, 2, 1, 3, 2, 5], [100], [64], [65, 64, 63], [30] * 8, [5, 80, 1, 40, 2, 33]]


def options(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """How both libraries are told to load from a folder."""
    return {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": dtype}}


def embedder(folder: Path, dtype: torch.dtype = torch.float32) -> Network:
    """An embedding model as backends get it."""
    got: list[Network] = []
    Embedder(SentenceTransformer(str(folder), **options(dtype)).eval(), _keep(got))
    return got[0]


def cross_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> Network:
    """A cross-encoder as backends get it."""
    got: list[Network] = []
    network = CrossEncoder(str(folder), activation_fn=torch.nn.Identity(), **options(dtype)).eval()
    network.config.pad_token_id = network.tokenizer.pad_token_id
    CrossEncoderModel(network, _keep(got))
    return got[0]


def _keep(got: list[Network]) -> Callable[[Network], PaddedForward]:
    def backend(network: Network) -> PaddedForward:
        got.append(network)
        return PaddedForward(network)

    return backend


def rows(network: Network, lengths: Sequence[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Rows of random tokens, padding tokens and second segments among them."""
    words = network.module.transformers_model.get_input_embeddings().num_embeddings
    random = np.random.default_rng(seed)
    return [
        {name: random.integers(words if name == "input_ids" else 1, size=length) for name in network.names}
        for length in lengths
    ]


def both(network: Network, lengths: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The results without and with padding."""
    given_rows = rows(network, lengths, seed)
    packed, padded = PackedForward(network), PaddedForward(network)
    try:
        return packed.fetch(packed.run(given_rows)), padded.fetch(padded.run(given_rows))
    finally:
        packed.undo()


def _embedding(architecture: str, pooling: str, *, width: int = 0, prompt: bool = False) -> Callable[[Path], Network]:
    def make(folder: Path) -> Network:
        tiny.save_encoder(folder, architecture, pooling=pooling)
        if width:
            tiny.add_dense(folder, width=width)
        if prompt:
            tiny.edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
            more = {"prompts": {"document": "fox: "}, "default_prompt_name": "document"}
            tiny.edit_json(folder / "config_sentence_transformers.json", **more)
        return embedder(folder)

    return make


def _crossing(architecture: str, labels: int = 1) -> Callable[[Path], Network]:
    return lambda folder: cross_encoder(tiny.save_cross_encoder(folder, architecture, labels=labels))


CASES: dict[str, Callable[[Path], Network]] = {
    **{
        f"{architecture} {pooling}": _embedding(architecture, pooling)
        for architecture in tiny.ARCHITECTURES
        for pooling in ("mean", "cls", "lasttoken")
    },
    "max": _embedding("bert", "max"),
    "weightedmean": _embedding("bert", "weightedmean"),
    "dense": _embedding("nomic_bert", "mean", width=8),
    **{f"{architecture} classifier": _crossing(architecture) for architecture in tiny.ARCHITECTURES},
    "two labels": _crossing("bert", labels=2),
    "yes or no": lambda folder: cross_encoder(tiny.save_yes_no(folder)),
}


@pytest.fixture(scope="module", params=list(CASES))
def network(request, tmp_path_factory) -> Network:
    """Every architecture with every kind of head."""
    return CASES[request.param](tmp_path_factory.mktemp("model"))


def test_results_are_those_of_the_padded_pass(network):
    """Rows of odd lengths give the same numbers, in the order in which they were given."""
    assert obstacle(network) is None
    for seed, lengths in enumerate(ODD):
        found, expected = both(network, lengths, seed)
        assert (len(lengths), expected.shape[1]) == found.shape
        np.testing.assert_allclose(found, expected, **CLOSE, err_msg=str(lengths))


@FEW
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_no_lengths_make_a_difference(network, lengths, seed):
    """Whatever the lengths are, each row gives what it gives with padding."""
    found, expected = both(network, lengths, seed)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_trial_at_load_lets_these_through(network):
    """A model of a known architecture goes without padding, and its padded pass still works beside it."""
    padded = PaddedForward(network)
    some = rows(network, [3, 9])
    expected = padded.fetch(padded.run(some))
    forward = forward_without_padding(network, "float32")
    assert ("torch, packed", True) == (forward.name, forward.packs)
    np.testing.assert_array_equal(padded.fetch(padded.run(some)), expected)
    assert isinstance(forward, PackedForward)
    forward.undo()
    np.testing.assert_array_equal(padded.fetch(padded.run(some)), expected)


def test_a_prompt_left_out_of_the_mean_is_left_out(tmp_path):
    """A default prompt that pooling leaves out is left out of every row."""
    network = _embedding("bert", "mean", prompt=True)(tmp_path)
    assert network.constants["prompt_length"] > 1
    np.testing.assert_allclose(*both(network, [9, 30, 12, 70]), **CLOSE)


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_what_is_not_finite_stays_in_its_row(architecture, tmp_path):
    """A row that gives NaN changes no other one, though short rows are computed together."""
    network = embedder(tiny.save_encoder(tmp_path, architecture))
    network.module.transformers_model.get_input_embeddings().weight.data[7] = float("nan")
    ids = [[9, 8], [9, 7, 8], [8, 9, 9]]
    some = [{**dict.fromkeys(network.names, np.zeros(len(one), int)), "input_ids": np.array(one)} for one in ids]
    packed, padded = PackedForward(network), PaddedForward(network)
    found = packed.fetch(packed.run(some))
    assert [True, False, True] == np.isfinite(found).all(axis=1).tolist()
    np.testing.assert_allclose(found, padded.fetch(padded.run(some)), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["embedder", "classifier"])
def test_half_precision_ends_in_float32(kind, dtype, tmp_path):
    """With half precision in the transformer, pooling and logits are float32, and no further off than with padding."""
    make = {"embedder": lambda d: embedder(tiny.save_encoder(tmp_path / "e", "bert"), d)}
    make["classifier"] = lambda d: cross_encoder(tiny.save_cross_encoder(tmp_path / "c", "bert"), d)
    exact = both(make[kind](torch.float32), [5, 80, 1, 40])[1]
    network = make[kind](dtype)
    packed = PackedForward(network)
    output, arrived = packed.run(rows(network, [5, 80, 1, 40]))
    assert (torch.float32, None) == (output.dtype, arrived)
    assert str(dtype) == f"torch.{packed.dtype}"
    step = torch.finfo(dtype).eps
    np.testing.assert_allclose(output.numpy(), exact, atol=20 * step)
    widened = packed.widen()
    assert (dtype is torch.float16) is widened  # bfloat16 has float32's range: there is nothing to gain
    np.testing.assert_allclose(packed.fetch(packed.run(rows(network, [5, 80, 1, 40]))), exact, atol=20 * step)
    assert ("float32" if widened else "bfloat16") == packed.dtype


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_linear_layers_in_bfloat16_are_let_through(architecture, tmp_path):
    """Layers that compute in bfloat16, and attention with them, go without padding too."""
    network = embedder(tiny.save_encoder(tmp_path, architecture))
    prepare_for_cpu(network.module, "bfloat16")
    assert "torch, packed" == forward_without_padding(network, "bfloat16").name


def _distil(folder: Path) -> Network:
    tokenizer = tiny.wordpiece()
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=160
    )
    transformers.DistilBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pooling = {"embedding_dimension": 32, "pooling_mode": "mean"}
    tiny.add_modules(folder, [("1_Pooling", "Pooling", pooling)])
    return embedder(folder)


def _windowed(folder: Path) -> Network:
    tiny.save_encoder(folder, "qwen3")
    kinds = ["full_attention", "sliding_attention"]
    tiny.edit_json(folder / "config.json", use_sliding_window=True, sliding_window=4, layer_types=kinds)
    return embedder(folder)


def _eager(folder: Path) -> Network:
    network = embedder(tiny.save_encoder(folder, "bert"))
    network.module.transformers_model.set_attn_implementation("eager")
    return network


@pytest.mark.parametrize(
    ("make", "why"),
    [(_distil, "distilbert"), (_windowed, "window"), (_eager, "attention of its own")],
    ids=["architecture", "window", "eager"],
)
def test_other_networks_are_padded(make, why, tmp_path):
    """An architecture not known, a layer with a window, an attention that was chosen: padding, and the reason."""
    network = make(tmp_path)
    before = network.module.transformers_model.config._attn_implementation
    assert why in str(obstacle(network))
    forward = forward_without_padding(network, "float32")
    assert ("torch, padded", False) == (forward.name, forward.packs)
    assert before == network.module.transformers_model.config._attn_implementation
    assert (2, 32) == forward.fetch(forward.run(rows(network, [3, 9]))).shape


def _wrong(*_: Any) -> torch.Tensor:
    raise RuntimeError("no kernel image is available")


def _leaking(work: packed_attention.Work, segments: packed_attention.Segments) -> torch.Tensor:
    return scaled_dot_product_attention(work.query, work.key, work.value).transpose(1, 2)


@pytest.mark.parametrize(("fault", "told"), [(_wrong, "no kernel image"), (_leaking, "differ by")])
@pytest.mark.parametrize("kind", ["embedder", "classifier"])
def test_a_trial_that_fails_is_told_and_means_padding(kind, fault, told, tmp_path, monkeypatch, caplog):
    """Attention that raises, or lets rows see each other, is found at load; the model then works as if untouched."""
    if kind == "embedder":
        network = embedder(tiny.save_encoder(tmp_path, "bert"))
    else:
        network = cross_encoder(tiny.save_cross_encoder(tmp_path, "bert"))
    padded = PaddedForward(network)
    expected = padded.fetch(padded.run(rows(network, [3, 9])))
    monkeypatch.setattr(packed_attention, "_by_blocks", fault)
    forward = forward_without_padding(network, "float16")
    assert "torch, padded" == forward.name
    assert told in caplog.text
    assert "sdpa" == network.module.transformers_model.config._attn_implementation
    np.testing.assert_array_equal(forward.fetch(forward.run(rows(network, [3, 9]))), expected)


@pytest.mark.parametrize("architecture", ["bert", "nomic_bert", "qwen3"])
def test_the_kernel_for_gpus_is_called_as_it_wants(architecture, tmp_path, monkeypatch):
    """The arguments fit the signature of torch's varlen_attn, and what it is documented to compute is right."""
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(varlen.varlen_attn)

    def stand_in(*args: Any, **more: Any) -> torch.Tensor:
        asked = signature.bind(*args, **more)
        asked.apply_defaults()
        calls.append(asked.arguments)
        return _as_documented(**asked.arguments)

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(packed_attention, "has_kernel", lambda value: True)
    network = embedder(tiny.save_encoder(tmp_path, architecture))
    np.testing.assert_allclose(*both(network, [5, 80, 1, 40]), **CLOSE)
    assert tiny.LAYERS == len(calls)
    for call in calls:
        assert (126, tiny.HEADS, tiny.HIDDEN // tiny.HEADS) == tuple(call["query"].shape)
        assert {1} == {call[name].stride(-1) for name in ("query", "key", "value")}
        assert (torch.int32, [0, 1, 6, 46, 126]) == (call["cu_seq_q"].dtype, call["cu_seq_q"].tolist())
        assert (80, 80) == (call["max_q"], call["max_k"])
        assert (architecture == "qwen3") == call["enable_gqa"] == ((-1, 0) == call["window_size"])


def _as_documented(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **asked: Any) -> torch.Tensor:
    """What varlen_attn's documentation says, by SDPA: [tokens, heads, width]."""
    bounds = asked["cu_seq_q"].tolist()
    return torch.cat(
        [
            scaled_dot_product_attention(
                *(part[first:last].transpose(0, 1) for part in (query, key, value)),
                is_causal=asked["window_size"] == (-1, 0),
                scale=asked["scale"],
                enable_gqa=asked["enable_gqa"],
            ).transpose(0, 1)
            for first, last in pairwise(bounds)
        ]
    )


@FEW
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_packing_says_where_everything_is(texts):
    """Places, bounds, owners, positions and the tokens heads read all lead back to the rows that were given."""
    plain, counted = (pack([{"input_ids": np.array(text)} for text in texts], counted_from=c) for c in (None, 1))
    for text, place in zip(texts, plain.places, strict=True):
        where = slice(plain.bounds[place], plain.bounds[place + 1])
        assert text == plain.features["input_ids"][where].tolist()
        assert {place} == set(plain.owners[where])
        assert list(range(len(text))) == plain.features["position_ids"][where].tolist()
        real = torch.tensor([text]).ne(1).int()
        expected = (torch.cumsum(real, 1) * real + 1)[0].tolist()
        assert expected == counted.features["position_ids"][where].tolist()
        last = max((i for i, token in enumerate(text) if token != 1), default=0)
        read = [plain.heads(which, 1)[place] - where.start for which in ("first", "last", "last but padding")]
        assert [0, len(text) - 1, last] == read
    assert sorted(plain.lengths) == plain.lengths


@FEW
@given(st.lists(st.integers(1, 90), min_size=1, max_size=30))
def test_blocks_are_all_rows_and_no_larger_than_they_may_be(lengths):
    """Blocks hold every token once; only a row that is longer alone makes one longer than its limit."""
    segments = packed_attention.Segments(lengths, torch.zeros(0))
    sizes, masks = segments.blocks(torch.zeros(1), causal=False)
    assert sum(lengths) == sum(sizes)
    for size, mask in zip(sizes, masks, strict=True):
        assert size <= packed_attention.BLOCK or mask is None
        assert mask is None or (1, 1, size, size) == tuple(mask.shape)
