"""A transformer's linear layers as CPUs compute them fastest, put in the place of a loaded model's own.

bfloat16: weights are rounded and packed for oneDNN once, not at every pass as autocast does. Products are summed in
float32; what a layer returns is rounded once. The residual sums, normalisation, softmax, pooling and heads stay in
float32, which keeps the cosine to float32 at 0.9999 and better.

float32: a second, packed copy serves short inputs. MKL, which torch asks, is the faster one for many rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from qmd_remote.server.half_attention import attend_in_half

# layers of one parent that read the same tensor one after the other, in the order in which they are called
SIBLINGS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ATTENTION = frozenset(SIBLINGS[0] + SIBLINGS[1])

# a query has some ten tokens; from here on the packed copy is no faster on one thread
SHORT_ROWS = 48
# what the packed copy may cost: a model of BERT-base's size has 324 MiB
SHORT_BYTES = 512 * 2**20
# oneDNN generates code for every number of rows it meets, for milliseconds, and keeps a thousand such codes
ROW_STEP = 32
# packing asks how many rows there will be; the layout serves all numbers
TYPICAL_ROWS = 512


def prepare_for_cpu(module: nn.Module, dtype: Literal["float32", "bfloat16"], *, short: bool = False) -> None:
    """Replace the linear layers of the transformer in `module`, whose weights are float32 on the CPU, in place.

    `short` says that inputs of a few tokens matter; in float32 nothing else is sped up. Heads, poolers and layers of
    other libraries (LoRA, quantised ones) stay as they are, and so does a model that is none of transformers'.
    bfloat16 cannot be undone: the weights are rounded. It needs no way back either, since what overflows in it
    overflows in float32.
    """
    encoder = _encoder(module)
    if encoder is None:
        return
    families = list(_families(encoder))
    if dtype == "bfloat16":
        # a layer of another library may take float32 only
        half = _is_uniform(encoder)
        half_attention = half and attend_in_half(encoder)
        while families:  # each family's float32 weights go before the next is rounded
            _round(families.pop(), half=half, half_attention=half_attention)
    elif short and _has_mkl() and can_pack(torch.float32) and _bytes(families) <= SHORT_BYTES:
        for family in families:
            _pack_for_short(family)


def precision(module: nn.Module) -> str:
    """What matrix products of `module` are computed in: float32, bfloat16 or float16."""
    if any(isinstance(one, Bfloat16Linear) for one in module.modules()):
        return "bfloat16"
    return str(next(module.parameters()).dtype).removeprefix("torch.")


class Bfloat16Linear(nn.Module):
    """y = x Wᵀ + b, and perhaps GELU, with x, W, b and y rounded to bfloat16 and all between them in float32.

    Takes [..., in] of any precision; returns [..., out] in `returns`. The weight is no parameter, so that whoever
    casts or moves the module leaves it as it is packed.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool, returns: torch.dtype, rounded: Shared) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed = can_pack(torch.bfloat16)
        weight = linear.weight.detach().to(torch.bfloat16)
        self.weight = pack(weight) if self._packed else weight
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)
        self._gelu, self._returns, self._rounded = gelu, returns, rounded
        self._place = rounded.join()

    def forward(self, x: Tensor) -> Tensor:
        """One product, over rows filled up to a multiple of `ROW_STEP`."""
        rows: Tensor = self._rounded(x, self._place, _to_bfloat16)
        y = self._multiply(rows)[: x.numel() // self.in_features]
        return y.view(*x.shape[:-1], self.out_features).to(self._returns)

    def _multiply(self, x: Tensor) -> Tensor:
        if self._packed:
            return multiply(x, self.weight, self.bias, gelu=self._gelu)
        y = functional.linear(x, self.weight, self.bias)
        return functional.gelu(y) if self._gelu else y


class ShortLinear(nn.Module):
    """A linear layer as it was, but for at most `SHORT_ROWS` rows computed together with its siblings."""

    def __init__(self, linear: nn.Linear, together: Together) -> None:
        super().__init__()
        self.linear = linear
        self._together = together
        self._place = together.outputs.join()

    @property
    def weight(self) -> Tensor:
        """Float32 [out, in], which some models look at."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """Float32 [out], if there is one."""
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] → [..., out]."""
        if x.numel() > SHORT_ROWS * self.linear.in_features:
            found: Tensor = self.linear(x)
            return found
        outputs: Sequence[Tensor] = self._together.outputs(x, self._place, self._together.compute)
        return outputs[self._place]


class Together:
    """Layers over the same input as one product by their packed weights."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.outputs = Shared()
        self._widths = [linear.out_features for linear in linears]
        self._weight = pack(torch.cat([linear.weight.detach() for linear in linears]))
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None

    def compute(self, x: Tensor) -> Sequence[Tensor]:
        """The output of each layer: views [..., out] of one tensor."""
        return torch.split(multiply(x, self._weight, self._bias, gelu=False), self._widths, dim=-1)


class Shared:
    """What siblings compute from the tensor that all of them read: once, and kept only until the last has it."""

    def __init__(self) -> None:
        self._members = 0
        self._input: Tensor | None = None
        self._value: Any = None

    def join(self) -> int:
        """One more sibling; its place."""
        self._members += 1
        return self._members - 1

    def __call__(self, x: Tensor, place: int, compute: Callable[[Tensor], Any]) -> Any:
        """`compute(x)`, or what an earlier sibling got from it. The first computes always: memory is used again."""
        if place == 0 or x is not self._input:
            self._input, self._value = x, compute(x)
        value = self._value
        if place == self._members - 1:
            self._input = self._value = None
        return value


Family = tuple[nn.Module, dict[str, nn.Linear]]


def _encoder(module: nn.Module) -> nn.Module | None:
    """The transformer without its head; None where there is none that transformers made."""
    whole = next((one for one in module.modules() if isinstance(one, PreTrainedModel)), None)
    return None if whole is None else whole.base_model


def _families(parent: nn.Module) -> Iterator[Family]:
    """Layers that read the same input, by name, with their parent; one that is alone is a family too.

    Wrappers of other libraries are passed over: they look into the layers that they wrap.
    """
    linears: dict[str, nn.Linear] = {}
    for name, child in parent.named_children():
        if _is_ordinary(child):
            linears[name] = child
        elif name != "pooler" and _is_container(child):
            yield from _families(child)
    for names in SIBLINGS:
        found = [linears[name] for name in names if name in linears]
        if len(found) == len(names) and len({(one.in_features, one.bias is None) for one in found}) == 1:
            yield parent, {name: linears.pop(name) for name in names}
    for name, linear in linears.items():
        yield parent, {name: linear}


def _is_ordinary(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer of torch's with a plain float32 weight on the CPU."""
    if type(module) is not nn.Linear:
        return False
    weight = module.weight.data
    return type(weight) is Tensor and weight.dtype is torch.float32 and weight.device.type == "cpu"


def _is_container(module: nn.Module) -> bool:
    return _is_of_transformers(module) or isinstance(module, nn.ModuleList | nn.Sequential)


def _is_of_transformers(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in ("transformers", "transformers_modules")


def _is_uniform(encoder: nn.Module) -> bool:
    """Whether all linear layers are ordinary ones, and nothing is of another library."""
    return all(
        _is_ordinary(one) if isinstance(one, nn.Linear) else _is_of_transformers(one) or _is_of_torch(one)
        for one in encoder.modules()
    )


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _has_mkl() -> bool:
    return bool(torch._C.has_mkl)


def _bytes(families: Sequence[Family]) -> int:
    return sum(linear.weight.nbytes for _, linears in families for linear in linears.values())


def _round(family: Family, *, half: bool, half_attention: bool) -> None:
    parent, linears = family
    rounded = Shared()
    for name, linear in linears.items():
        gelu = name == "dense" and _ends_in_gelu(parent)
        given_on = (half and gelu) or (half_attention and name in ATTENTION)
        returns = torch.bfloat16 if given_on else torch.float32
        setattr(parent, name, Bfloat16Linear(linear, gelu=gelu, returns=returns, rounded=rounded))
        if gelu:
            parent.intermediate_act_fn = nn.Identity()


def _ends_in_gelu(parent: nn.Module) -> bool:
    """Whether all that `parent` does after its linear layer is the exact GELU."""
    activation = getattr(parent, "intermediate_act_fn", None)
    return isinstance(activation, GELUActivation) and activation.act is functional.gelu


def _pack_for_short(family: Family) -> None:
    parent, linears = family
    together = Together(list(linears.values()))
    for name, linear in linears.items():
        setattr(parent, name, ShortLinear(linear, together))


def _to_bfloat16(x: Tensor) -> Tensor:
    """Rows [n, in], n filled up with zeros to a multiple of `ROW_STEP`."""
    rows = x.reshape(-1, x.shape[-1])
    missing = -len(rows) % ROW_STEP
    if not missing:
        return rows.to(torch.bfloat16)
    filled = rows.new_empty((len(rows) + missing, rows.shape[1]), dtype=torch.bfloat16)
    filled[: len(rows)] = rows
    filled[len(rows) :] = 0
    return filled


def pack(weight: Tensor) -> Tensor:
    """A weight [out, in] in oneDNN's own layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
    return packed


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """x Wᵀ + b for a packed W, in the precision of x; `gelu` applies the exact GELU before anything is rounded."""
    attribute, algorithm = ("gelu", "none") if gelu else ("none", "")
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, attribute, [], algorithm)
    return product


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch can multiply by packed weights of `dtype` on this CPU: tried once, since it promises nothing.

    These are the operations to which torch's own compiler turns linear layers; they are not in its public interface.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    bias = weight[0]
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        found = multiply(x, pack(weight), bias, gelu=True)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    expected = functional.gelu(functional.linear(x.float(), weight.float(), bias.float()))
    # bfloat16 has 8 bits: one rounding is at most 1/256 of the value
    return torch.allclose(found.float(), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-4)
