"""How a request is cut: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Enough batches for the model to sort and fill; few enough tokens that a small request beside a very large one, whose
# slices it takes turns with, need not wait for long, and that the model begins while the rest is still tokenised.
BATCHES_PER_SLICE = 4
MOST_TOKENS = 16_384
CHARACTERS_PER_TOKEN = 4  # of English; a guess that only decides where a request is cut


def slice_tokens(batch_tokens: int) -> int:
    """About how many tokens a slice should have where a batch has `batch_tokens`."""
    return min(BATCHES_PER_SLICE * batch_tokens, MOST_TOKENS)


def about_tokens(item: Any) -> int:
    """About how many tokens an input has: a text, token ids, or a pair of texts."""
    if isinstance(item, tuple):
        return sum(map(about_tokens, item))
    return 1 + len(item) // CHARACTERS_PER_TOKEN if isinstance(item, str) else max(1, len(item))


def slices(sizes: Sequence[int], *, texts: int, tokens: int) -> list[list[int]]:
    """Cut inputs of about these sizes, in tokens: positions, longest first, so that those of a slice are alike.

    A slice has at most `texts` inputs, and at most `tokens` tokens unless it is one input alone.
    """
    found: list[list[int]] = []
    left = 0
    for position in sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True):
        if not found or len(found[-1]) == texts or sizes[position] > left:
            found.append([])
            left = tokens
        found[-1].append(position)
        left -= sizes[position]
    return found
