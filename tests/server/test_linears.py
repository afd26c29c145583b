"""Linear layers as CPUs compute them: the answers are kept, and nothing but the transformer's own layers is touched."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn
from torch.nn.functional import cosine_similarity

from qmd_remote.server import linears
from qmd_remote.server.linears import SHORT_ROWS, Bfloat16Linear, Shared, ShortLinear, prepare_for_cpu
from tests.server import tiny_models as tiny

OPTIONS = {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": torch.float32}}
BF16 = torch.bfloat16
packs_bfloat16 = pytest.mark.skipif(not linears.can_pack(BF16), reason="this CPU has no bfloat16 of oneDNN's")
packs_float32 = pytest.mark.skipif(
    not (linears._has_mkl() and linears.can_pack(torch.float32)), reason="this torch has no MKL or no oneDNN"
)


@pytest.fixture(params=list(tiny.ARCHITECTURES))
def architecture(request):
    """The name of each architecture in turn."""
    return request.param


@pytest.fixture
def encoder(architecture):
    """A small network of the architecture, seeded."""
    return seeded(architecture, transformers.AutoModel)


def seeded(architecture, auto, **changes):
    """A small network with the attention that loading gives it."""
    config, _ = tiny.ARCHITECTURES[architecture]()
    config.use_cache = False  # as sentence-transformers sets it
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    return auto.from_config(config).eval()


def ids(*shape):
    """Token ids, the same at each call."""
    return torch.randint(10, 90, shape, generator=torch.Generator().manual_seed(sum(shape)))


def states(network, tokens, mask=None):
    """Hidden states of an encoder, which must be float32."""
    with torch.inference_mode():
        found = network(input_ids=tokens, attention_mask=torch.ones_like(tokens) if mask is None else mask)
    assert found.last_hidden_state.dtype is torch.float32
    return found.last_hidden_state


def of(kind, network):
    """The modules of a kind, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, kind)}


def test_bfloat16_keeps_the_answers(encoder):
    """Every architecture's pooled states keep their direction in bfloat16, padded rows included."""
    tokens = ids(3, 40)
    mask = torch.ones_like(tokens)
    mask[1, 25:] = 0
    expected = states(encoder, tokens, mask)
    prepare_for_cpu(encoder, "bfloat16")
    found = states(encoder, tokens, mask)
    assert not torch.equal(expected, found)
    weights = mask[:, :, None]
    # 32 dimensions and large random weights: rounding averages out less than in a real model
    assert cosine_similarity((expected * weights).sum(1), (found * weights).sum(1)).min() >= 0.9995


@pytest.mark.parametrize("rows", [1, 31, 32, 33])
def test_bfloat16_of_any_number_of_rows(rows):
    """Rows filled up to a round number change nothing: a text is the same alone and beside others."""
    network = seeded("bert", transformers.AutoModel)
    prepare_for_cpu(network, "bfloat16")
    tokens = ids(3, rows)
    together = states(network, tokens)
    assert together.shape == (3, rows, tiny.HIDDEN)
    torch.testing.assert_close(states(network, tokens[:1]), together[:1], atol=0.03, rtol=0)


def test_bfloat16_real_weights():
    """MiniLM's vectors in bfloat16 have a cosine of 0.9999 and more to those in float32."""
    texts = tiny.TEXTS[:8]  # the longer ones take seconds where bfloat16 is emulated
    network = SentenceTransformer(str(tiny.mini_folder()), **OPTIONS)
    expected = network.encode(texts, normalize_embeddings=True)
    prepare_for_cpu(network, "bfloat16")
    found = network.encode(texts, normalize_embeddings=True)
    assert linears.precision(network) == "bfloat16"
    assert (expected * found).sum(axis=1).min() >= 0.9999


def test_bfloat16_keeps_an_order_of_scores(tmp_path):
    """Of two pairs whose logits differ by more than 2 % of their range, the same one stays first."""
    network = CrossEncoder(str(tiny.save_cross_encoder(tmp_path / "cross", "bert")), **OPTIONS)
    pairs = [(tiny.QUERY, text) for text in tiny.TEXTS]
    options = {"activation_fn": nn.Identity()}
    expected = network.predict(pairs, **options)
    prepare_for_cpu(network, "bfloat16")
    found = network.predict(pairs, **options)
    ahead = expected[:, None] - expected[None, :]
    clear = np.abs(ahead) > 0.02 * np.ptp(expected)
    assert clear.any()
    assert np.array_equal(np.sign(ahead)[clear], np.sign(found[:, None] - found[None, :])[clear])


def test_only_linear_layers_of_the_encoder_are_rounded(architecture):
    """Heads, poolers, embeddings and norms stay as they were, and compute in float32."""
    network = seeded(architecture, transformers.AutoModelForSequenceClassification, num_labels=1)
    before = of(nn.Linear, network)
    prepare_for_cpu(network, "bfloat16")
    left = of(nn.Linear, network)
    assert left and all("layer" not in name for name in left)
    assert set(before) - set(left) == set(of(Bfloat16Linear, network))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert network(input_ids=ids(2, 8)).logits.dtype is torch.float32


def test_a_language_models_head_is_left():
    """A causal model's projection to its vocabulary is no part of the encoder."""
    network = seeded("qwen3", transformers.AutoModelForCausalLM)
    head = network.lm_head
    prepare_for_cpu(network, "bfloat16")
    assert network.lm_head is head
    assert type(head) is nn.Linear
    with torch.inference_mode():
        assert network(input_ids=ids(2, 8)).logits.dtype is torch.float32


def test_residual_sums_are_float32(encoder):
    """What the norms of each layer read is float32, although layers before them gave bfloat16."""
    seen = []
    prepare_for_cpu(encoder, "bfloat16")
    for name, module in encoder.named_modules():
        if "norm" in name.lower() and not name.endswith(("q_norm", "k_norm")):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    states(encoder, ids(2, 8))
    assert len(seen) > tiny.LAYERS
    assert set(seen) == {torch.float32}


def test_attention_is_in_bfloat16(encoder, monkeypatch):
    """Queries, keys and values meet in bfloat16, also where rotary embeddings made some of them float32."""
    seen = []
    attend = nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **options):
        seen.extend([query.dtype, key.dtype, value.dtype])
        return attend(query, key, value, **options)

    prepare_for_cpu(encoder, "bfloat16")
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    states(encoder, ids(2, 8))
    assert seen == [BF16] * 3 * tiny.LAYERS


def test_attention_of_another_kind_stays_in_float32():
    """Where attention is not torch's own, its queries, keys and values stay float32."""
    network = seeded("bert", transformers.AutoModel)
    network.set_attn_implementation("eager")
    expected = states(network, ids(2, 20))
    prepare_for_cpu(network, "bfloat16")
    assert network.encoder.layer[0].attention.self.query(torch.ones(1, tiny.HIDDEN)).dtype is torch.float32
    assert cosine_similarity(expected.mean(1), states(network, ids(2, 20)).mean(1)).min() >= 0.9995


@pytest.mark.parametrize(("activation", "inside"), [("gelu", True), ("gelu_new", False), ("relu", False)])
def test_gelu_is_computed_before_rounding_if_it_is_the_exact_one(activation, inside):
    """The exact GELU becomes a part of the product; other activations stay behind it."""
    network = seeded("bert", transformers.AutoModel, hidden_act=activation)
    expected = states(network, ids(2, 20))
    prepare_for_cpu(network, "bfloat16")
    intermediate = network.encoder.layer[0].intermediate
    assert isinstance(intermediate.intermediate_act_fn, nn.Identity) is inside
    assert cosine_similarity(expected.mean(1), states(network, ids(2, 20)).mean(1)).min() >= 0.9995


def test_float32_weights_are_freed(encoder):
    """No one keeps the weights that were rounded."""
    weights = [weakref.ref(module.weight) for name, module in of(nn.Linear, encoder).items() if "pooler" not in name]
    assert len(weights) >= 6 * tiny.LAYERS
    prepare_for_cpu(encoder, "bfloat16")
    gc.collect()
    assert {weight() for weight in weights} == {None}


def test_casting_the_model_leaves_rounded_layers(encoder):
    """`float` on the whole model neither fails nor widens what is rounded already."""
    prepare_for_cpu(encoder, "bfloat16")
    expected = states(encoder, ids(2, 8))
    encoder.float()
    assert torch.equal(states(encoder, ids(2, 8)), expected)
    assert linears.precision(encoder) == "bfloat16"


@packs_bfloat16
def test_bfloat16_packed_and_not_agree(encoder, monkeypatch):
    """oneDNN's packed product and torch's plain one give the same states, but for their roundings."""
    monkeypatch.setattr(linears, "can_pack", lambda _: False)
    plain = seeded(encoder.config.model_type.replace("_roberta", "-roberta"), transformers.AutoModel)
    prepare_for_cpu(plain, "bfloat16")
    monkeypatch.undo()
    prepare_for_cpu(encoder, "bfloat16")
    expected, found = states(plain, ids(2, 40)).mean(1), states(encoder, ids(2, 40)).mean(1)
    assert cosine_similarity(expected, found).min() >= 0.9995


@packs_float32
@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (4, SHORT_ROWS // 4), (1, SHORT_ROWS + 1), (3, 100)])
def test_short_inputs_in_float32(encoder, shape, monkeypatch):
    """Short inputs go through the packed copy with equal results; for long ones nothing has changed at all."""
    packed_products = []
    multiply = linears.multiply
    monkeypatch.setattr(
        linears, "multiply", lambda x, *args, **named: packed_products.append(x) or multiply(x, *args, **named)
    )
    tokens = ids(*shape)
    expected = states(encoder, tokens)
    prepare_for_cpu(encoder, "float32", short=True)
    found = states(encoder, tokens)
    short = tokens.numel() <= SHORT_ROWS
    # queries, keys and values are one product; so are a gate and what it lets through
    assert len(packed_products) == (4 * tiny.LAYERS if short else 0)
    assert linears.precision(encoder) == "float32"
    torch.testing.assert_close(found, expected, atol=2e-5 if short else 0, rtol=0)


@packs_float32
def test_short_inputs_of_real_weights():
    """MiniLM's vectors of queries are the same with the packed copy."""
    network = SentenceTransformer(str(tiny.mini_folder()), **OPTIONS)
    queries = [tiny.QUERY, "fox", "passport renewal"]
    expected = network.encode(queries, normalize_embeddings=True)
    prepare_for_cpu(network, "float32", short=True)
    assert of(ShortLinear, network)
    np.testing.assert_allclose(network.encode(queries, normalize_embeddings=True), expected, atol=1e-6)


@pytest.mark.parametrize("reason", ["not asked for", "too large", "not packable", "no MKL"])
def test_float32_layers_stay_where_a_copy_does_not_pay(reason, encoder, monkeypatch):
    """Without the wish, the memory, oneDNN or MKL, a float32 model stays as it is."""
    if reason == "too large":
        monkeypatch.setattr(linears, "SHORT_BYTES", 1000)
    if reason == "not packable":
        monkeypatch.setattr(linears, "can_pack", lambda _: False)
    if reason == "no MKL":
        monkeypatch.setattr(linears, "_has_mkl", lambda: False)
    before = dict(encoder.named_modules())
    prepare_for_cpu(encoder, "float32", short=reason != "not asked for")
    assert dict(encoder.named_modules()) == before


class Quantised(nn.Linear):
    """A linear layer of another library."""


class Wrapper(nn.Module):
    """An adapter of another library, which reads the weights of the layer that it wraps."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    def forward(self, x):
        """As the layer itself."""
        return nn.functional.linear(x, self.base_layer.weight, self.base_layer.bias)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_of_other_libraries_are_left(dtype):
    """Quantised layers and adapters stay, and work beside layers that were replaced."""
    network = seeded("bert", transformers.AutoModel)
    attention, output = network.encoder.layer[0].attention.self, network.encoder.layer[0].output
    attention.query = Wrapper(attention.query)
    quantised = Quantised(2 * tiny.HIDDEN, tiny.HIDDEN)
    quantised.load_state_dict(output.dense.state_dict())
    output.dense = quantised
    expected = states(network, ids(1, 10)).mean(1)
    prepare_for_cpu(network, dtype, short=True)
    assert cosine_similarity(states(network, ids(1, 10)).mean(1), expected).min() >= 0.9995
    assert type(attention.query.base_layer) is nn.Linear
    assert output.dense is quantised
    assert type(attention.key) is not nn.Linear


def test_network_that_is_none_of_transformers_is_left():
    """A module without a transformer inside stays as it is."""
    module = nn.Sequential(nn.Linear(4, 4))
    prepare_for_cpu(module, "bfloat16")
    assert type(module[0]) is nn.Linear
    assert linears.precision(module) == "float32"


def test_probe_says_no(monkeypatch):
    """A torch without the operations, one that refuses, and one that computes wrongly are all not packable."""
    probe = linears.can_pack.__wrapped__

    def raising(error):
        def fail(*_, **__):
            raise error

        return fail

    for error in (AttributeError("no such operation"), NotImplementedError(), RuntimeError("needs avx512")):
        with monkeypatch.context() as patch:
            patch.setattr(linears, "pack", raising(error))
            assert probe(torch.float32) is False
            assert probe(BF16) is False
    with monkeypatch.context() as patch:
        patch.setattr(linears, "pack", lambda weight: weight)
        patch.setattr(linears, "multiply", lambda x, *_, **__: torch.zeros_like(x))
        assert probe(torch.float32) is False


def test_siblings_share_until_the_last():
    """What the first computes serves the others; another input or the next round is computed anew; nothing is kept."""
    shared, calls = Shared(), []
    places = [shared.join() for _ in range(3)]
    x, other = torch.ones(2), torch.zeros(2)

    def compute(value):
        calls.append(value)
        return value + 1

    assert all(shared(x, place, compute) is not None for place in places)
    assert len(calls) == 1
    assert shared._input is None
    assert shared._value is None
    shared(x, 0, compute)
    x += 1  # the same memory, used again
    assert torch.equal(shared(x, 0, compute), x + 1)
    assert torch.equal(shared(other, 1, compute), other + 1)
    assert len(calls) == 4
