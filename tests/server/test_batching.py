"""The batch policy: what runs next, for any queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server.batching import QUERY_LIMIT, Lane, Limits, Pending, choose

ITEMS = st.builds(
    Pending, length=st.integers(1, 1000), lane=st.sampled_from(list(Lane)), group=st.sampled_from(["embed", "rerank"])
)
QUEUES = st.lists(ITEMS, min_size=1, max_size=60)
LIMITS = st.builds(
    Limits,
    batch_size=st.integers(1, 9),
    tokens=st.integers(1, 4000),
    window=st.integers(1, 30),
    query_streak=st.integers(1, 4),
)


def drain(queue: list[Pending], limits: Limits) -> list[list[int]]:
    """Choose until nothing is left; each batch as positions in the original queue."""
    left, streak, batches = list(range(len(queue))), 0, []
    while left:
        choice = choose([queue[i] for i in left], limits, streak)
        streak = choice.streak
        batches.append([left[position] for position in choice.positions])
        left = [i for position, i in enumerate(left) if position not in choice.positions]
    return batches


@given(QUEUES, LIMITS)
def test_every_item_is_served_once(queue, limits):
    """Nothing is lost and nothing runs twice."""
    assert sorted(i for batch in drain(queue, limits) for i in batch) == list(range(len(queue)))


@given(QUEUES, LIMITS)
def test_batches_keep_to_the_limits(queue, limits):
    """A batch has 1 to batch_size items, of one lane and one model, shortest first, and only alone exceeds `tokens`."""
    for batch in drain(queue, limits):
        items = [queue[i] for i in batch]
        assert 1 <= len(items) <= limits.batch_size
        assert len({(item.lane, item.group) for item in items}) == 1
        lengths = [item.length for item in items]
        assert lengths == sorted(lengths)
        assert len(lengths) == 1 or lengths[-1] * len(lengths) <= limits.tokens


@given(QUEUES, LIMITS, st.integers(0, 5))
def test_the_oldest_of_its_lane_is_always_served(queue, limits, streak):
    """A batch holds the oldest item of its lane, however odd its length."""
    positions = choose(queue, limits, streak).positions
    lane = queue[positions[0]].lane
    assert min(i for i, item in enumerate(queue) if item.lane is lane) in positions


@given(QUEUES, LIMITS)
def test_no_item_waits_longer_than_its_place_in_the_queue(queue, limits):
    """An item with n older ones in its lane runs within n + 1 turns of the lane, each at most query_streak + 1 rounds
    after the last."""
    for round_, batch in enumerate(drain(queue, limits)):
        for i in batch:
            older = sum(item.lane is queue[i].lane for item in queue[:i])
            assert round_ < (older + 1) * (limits.query_streak + 1)


@given(LIMITS)
def test_endless_queries_do_not_starve_index_work(limits):
    """While new queries keep coming, index work still runs after query_streak batches of them."""
    queue = [Pending(10, Lane.INDEX), *[Pending(5, Lane.QUERY)] * 20]
    streak = 0
    for round_ in range(limits.query_streak + 1):
        choice = choose(queue, limits, streak)
        if queue[choice.positions[0]].lane is Lane.INDEX:
            assert round_ == limits.query_streak
            return
        streak = choice.streak
    raise AssertionError("the index item never ran")


def test_a_query_passes_index_work():
    """A query that comes last runs first."""
    queue = [*[Pending(900, Lane.INDEX)] * 100, Pending(5, Lane.QUERY)]
    assert choose(queue, Limits(8)).positions == (100,)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40, unique=True), st.integers(1, 9))
def test_neighbours_in_length_share_a_batch(lengths, size):
    """A batch has the least padding of all neighbours in length around the oldest item, or drops shorter ones for less;
    it is never more than half padding unless the oldest item itself is the short one."""
    queue = [Pending(length, Lane.INDEX) for length in lengths]
    batch = [lengths[i] for i in choose(queue, Limits(size)).positions]
    ordered = sorted(lengths)
    count = min(size, len(lengths))
    runs = [ordered[i : i + count] for i in range(len(ordered) - count + 1)]
    least = min(max(run) * count - sum(run) for run in runs if lengths[0] in run)
    padding = max(batch) * len(batch) - sum(batch)
    assert padding == least if len(batch) == count else padding < least
    assert padding <= sum(batch) or min(batch) == lengths[0]


def test_a_long_item_does_not_drag_short_ones_along():
    """One long item among short ones takes at most one of them with it, rather than padding all to its length."""
    queue = [Pending(length, Lane.INDEX) for length in (900, *[5] * 63)]
    assert len(choose(queue, Limits(64)).positions) <= 2


def test_lane_follows_from_the_size_of_the_request():
    """A person's query is a few texts; more is index work."""
    assert (Lane.of(1), Lane.of(QUERY_LIMIT), Lane.of(QUERY_LIMIT + 1)) == (Lane.QUERY, Lane.QUERY, Lane.INDEX)
