"""Attention over rows of tokens that lie one behind the other, without padding: no row sees another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qmd_remote.server import half_attention

NAME, HALF_NAME = "sdpa_packed", "sdpa_packed_in_bfloat16"

# which of them takes the place of which, with the same precision
INSTEAD_OF = {"sdpa": NAME, half_attention.NAME: HALF_NAME}

# Rows computed by one call of SDPA, masked from each other, have at most so many tokens together. A call costs some
# 50 µs and wakes all threads; 64 tokens are too few for the masked products to matter beside the linear layers. On
# two cores 64 rows of 8 tokens take half the time that a call per row takes, rows beyond 64 tokens lose nothing.
BLOCK = 64


class Blocks(NamedTuple):
    """Consecutive runs of tokens: how many each has, and its additive mask [1, 1, size, size] if it needs one."""

    sizes: list[int]
    masks: list[Tensor | None]


class Work(NamedTuple):
    """What one layer has to compute: [1, heads, tokens, width] each, keys and values perhaps of fewer heads."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    scale: float | None

    @property
    def shares_keys(self) -> bool:
        """Whether several heads look at the same keys."""
        return self.query.shape[1] != self.key.shape[1]


class Segments:
    """Where each row lies: `lengths` in tokens, `bounds` int32 [rows + 1] on the device.

    SDPA may compute several rows in one call, of at most `block` tokens together.
    """

    def __init__(self, lengths: Sequence[int], bounds: Tensor, *, block: int = BLOCK) -> None:
        self.lengths = lengths
        self.bounds = bounds
        self.longest = max(lengths)
        self._block = block
        self._blocks: Blocks | None = None

    @property
    def mixed(self) -> bool:
        """Whether rows were computed together: what is not finite in one then spreads, since NaN - inf is NaN."""
        return self._blocks is not None and any(mask is not None for mask in self._blocks.masks)

    def blocks(self, like: Tensor, *, causal: bool) -> Blocks:
        """How to compute them by SDPA, with masks of the precision of `like`; the same in every layer of a pass."""
        if self._blocks is None:
            groups = _grouped(self.lengths, self._block)
            masks = [_mask(group, like, causal=causal) if len(group) > 1 else None for group in groups]
            self._blocks = Blocks([sum(group) for group in groups], masks)
        return self._blocks


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, heads, tokens, width] → [1, tokens, heads, width] with `segments`.

    Without them it is transformers' own SDPA.
    """
    if segments is None:
        padded: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return padded
    work = Work(query, key, value, module.is_causal, options.get("scaling"))
    return (_by_kernel if has_kernel(value) else _by_blocks)(work, segments), None


def attend_in_half(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The same in bfloat16, whatever it is given: see `half_attention`."""
    query, key, value = (states.to(torch.bfloat16) for states in (query, key, value))
    return attend(module, query, key, value, attention_mask, **options)


def has_kernel(value: Tensor) -> bool:
    """Whether torch's kernel for rows of unequal length takes it."""
    return value.is_cuda and value.dtype in (torch.float16, torch.bfloat16)


def _by_kernel(work: Work, segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(
        work.query[0].transpose(0, 1),
        work.key[0].transpose(0, 1),
        work.value[0].transpose(0, 1),
        segments.bounds,
        segments.bounds,
        segments.longest,
        segments.longest,
        scale=work.scale,
        window_size=(-1, 0) if work.causal else (-1, -1),
        enable_gqa=work.shares_keys,
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


def _by_blocks(work: Work, segments: Segments) -> Tensor:
    sizes, masks = segments.blocks(work.query, causal=work.causal)
    queries, keys, values = (torch.split(part, sizes, dim=2) for part in (work.query, work.key, work.value))
    attended = [
        scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=work.causal and mask is None,
            scale=work.scale,
            enable_gqa=work.shares_keys,
        ).transpose(1, 2)
        for query, key, value, mask in zip(queries, keys, values, masks, strict=True)
    ]
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


def _grouped(lengths: Sequence[int], block: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room = 0
    for length in lengths:
        if length > room:
            groups.append([])
            room = block
        groups[-1].append(length)
        room -= length
    return groups


def _mask(lengths: Sequence[int], like: Tensor, *, causal: bool) -> Tensor:
    """0 where a token may look, -inf where not."""
    mask = torch.full((1, 1, sum(lengths), sum(lengths)), float("-inf"), dtype=like.dtype)
    start = 0
    for length in lengths:
        seen = mask[0, 0, start : start + length, start : start + length]
        seen.triu_(1) if causal else seen.zero_()
        start += length
    return mask.to(like.device)


AttentionInterface.register(NAME, attend)
AttentionInterface.register(HALF_NAME, attend_in_half)
for name in (NAME, HALF_NAME):
    AttentionMaskInterface.register(name, sdpa_mask)
