"""The batch policy: what runs next, for any queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server.batching import QUERY_LIMIT, Lane, Limits, choose, cost, next_lane

LENGTHS = st.lists(st.integers(1, 1000), min_size=1, max_size=60)
LIMITS = st.builds(
    Limits,
    batch_size=st.integers(1, 9),
    tokens=st.integers(1, 4000),
    window=st.integers(1, 30),
    query_streak=st.integers(1, 4),
)


@given(LENGTHS, LIMITS, st.booleans())
def test_a_batch_keeps_to_the_limits_and_has_the_oldest(lengths, limits, packs):
    """1 to batch_size different items, the oldest among them, that cost at most `tokens`, but for one alone."""
    chosen = choose(lengths, limits, packs=packs)
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen) <= limits.batch_size
    assert set(chosen) <= set(range(len(lengths)))
    assert len(chosen) == 1 or cost([lengths[i] for i in chosen], packs=packs) <= limits.tokens


@given(LENGTHS, LIMITS)
def test_a_padded_batch_is_sorted(lengths, limits):
    """Items that are padded to the longest come shortest first."""
    found = [lengths[i] for i in choose(lengths, limits, packs=False)]
    assert found == sorted(found)


@given(LENGTHS, LIMITS)
def test_a_packed_batch_leaves_nothing_behind_that_fits(lengths, limits):
    """A batch that costs no padding takes older items before newer ones, and every one it has room for."""
    chosen = choose(lengths, limits, packs=True)
    assert chosen == sorted(chosen)
    if len(chosen) < limits.batch_size:
        left = limits.tokens - sum(lengths[i] for i in chosen)
        assert all(lengths[i] > left for i in range(len(lengths)) if i not in chosen)


def test_what_a_batch_costs():
    """Packed: the sum of its lengths. Padded: the longest times the rows."""
    assert (cost([3, 5, 10], packs=True), cost([3, 5, 10], packs=False)) == (18, 30)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40, unique=True), st.integers(1, 9))
def test_neighbours_in_length_share_a_batch(lengths, size):
    """A batch has the least padding of all neighbours in length around the oldest item, or drops shorter ones for less;
    it is never more than half padding unless the oldest item itself is the short one."""
    batch = [lengths[i] for i in choose(lengths, Limits(size), packs=False)]
    ordered = sorted(lengths)
    count = min(size, len(lengths))
    runs = [ordered[i : i + count] for i in range(len(ordered) - count + 1)]
    least = min(max(run) * count - sum(run) for run in runs if lengths[0] in run)
    padding = max(batch) * len(batch) - sum(batch)
    assert padding == least if len(batch) == count else padding < least
    assert padding <= sum(batch) or min(batch) == lengths[0]


def test_a_long_item_does_not_drag_short_ones_along():
    """One long item among short ones takes at most one of them with it, rather than padding all to its length."""
    assert len(choose([900, *[5] * 63], Limits(64), packs=False)) <= 2


def test_queries_go_first_until_index_work_has_waited_enough():
    """After query_streak batches of queries it is the turn of index work, if there is any."""
    limits = Limits(8, query_streak=2)
    both = set(Lane)
    assert [next_lane(both, limits, streak) for streak in (0, 1, 2)] == [Lane.QUERY, Lane.QUERY, Lane.INDEX]
    assert next_lane({Lane.QUERY}, limits, 99) is Lane.QUERY
    assert next_lane({Lane.INDEX}, limits, 0) is Lane.INDEX


def test_lane_follows_from_the_size_of_the_request():
    """A person's query is a few texts; more is index work."""
    assert (Lane.of(1), Lane.of(QUERY_LIMIT), Lane.of(QUERY_LIMIT + 1)) == (Lane.QUERY, Lane.QUERY, Lane.INDEX)
