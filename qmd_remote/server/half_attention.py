"""Attention in bfloat16 inside a transformer that is float32 around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_in_bfloat16"

# of these it is known, and tested, that attention is all that sees queries, keys and values
ARCHITECTURES = frozenset({"bert", "roberta", "xlm-roberta", "nomic_bert", "qwen3"})


def attend_in_half(encoder: nn.Module) -> bool:
    """Let attention take bfloat16 values and give bfloat16; False where only float32 is safe, and nothing changes."""
    config: Any = encoder.config
    if config.model_type not in ARCHITECTURES or config._attn_implementation != "sdpa":
        return False
    set_implementation: Any = encoder.set_attn_implementation
    set_implementation(NAME)
    return True


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA in the precision of `value`: rotary embeddings and norms turn the others into float32."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
