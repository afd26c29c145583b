"""How a request is cut: every input once, of like length together, none too large."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server.slices import MOST_TOKENS, about_tokens, slice_tokens, slices


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 20), st.integers(1, 3000))
def test_every_input_is_in_one_slice(sizes, texts, tokens):
    """Slices hold all positions once, longest first, within both limits unless it is one input alone."""
    found = slices(sizes, texts=texts, tokens=tokens)
    order = [position for part in found for position in part]
    assert sorted(order) == list(range(len(sizes)))
    assert [sizes[i] for i in order] == sorted(sizes, reverse=True)
    for part in found:
        assert 1 <= len(part) <= texts
        assert len(part) == 1 or sum(sizes[i] for i in part) <= tokens


def test_sizes_are_guessed_in_tokens():
    """A text has about a token for four characters, token ids are tokens, a pair has both its sides."""
    assert (about_tokens("a" * 400), about_tokens([1] * 100), about_tokens(("a" * 400, "b" * 40))) == (101, 100, 112)
    assert min(about_tokens(""), about_tokens([])) == 1


def test_a_slice_is_a_few_batches_but_not_too_large():
    """Small batches come in fours; where they are large, the first need not wait until all of it is tokenised."""
    assert [slice_tokens(n) for n in (512, MOST_TOKENS // 4, 65_536)] == [2048, MOST_TOKENS, MOST_TOKENS]
