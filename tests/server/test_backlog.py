"""The queue: nothing lost, nothing twice, and nobody waits for ever, whatever arrives and whoever goes away."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server.backlog import Backlog
from qmd_remote.server.batching import Lane, Limits, cost


@dataclass(frozen=True, eq=False)
class Kind:
    """As much of a model as the queue needs."""

    packs: bool


PADDED, PACKED = Kind(packs=False), Kind(packs=True)


@dataclass(eq=False)
class Item:
    """An item that counts how often it is looked at, and knows its place in the story."""

    length: int = 10
    lane: Lane = Lane.INDEX
    model: Kind = PADDED
    gone: bool = False
    looks: int = 0
    older: int = 0
    arrived: int = 0
    served: list[int] = field(default_factory=list)

    @property
    def dropped(self) -> bool:
        self.looks += 1
        return self.gone


ITEMS = st.builds(
    Item,
    length=st.integers(1, 1000),
    lane=st.sampled_from(list(Lane)),
    model=st.sampled_from([PADDED, PACKED, Kind(packs=False)]),
)
# what arrives before each batch, and whose callers go away then
STORIES = st.lists(st.tuples(st.lists(ITEMS, max_size=6), st.lists(st.integers(0, 30), max_size=2)), max_size=25)
LIMITS = st.builds(
    Limits,
    batch_size=st.integers(1, 5),
    tokens=st.integers(1, 4000),
    window=st.integers(1, 8),
    query_streak=st.integers(1, 4),
)


def told(story: list[tuple[list[Item], list[int]]], limits: Limits) -> tuple[list[Item], list[list[Item]]]:
    """Live through a story, then run what is left: (all items, the batches)."""
    backlog: Backlog[Item] = Backlog()
    everything: list[Item] = []
    batches: list[list[Item]] = []

    def one_batch() -> list[Item]:
        batch = backlog.take(limits)
        for item in batch:
            assert not item.gone
            item.served.append(len(batches))
        batches.append(batch)
        return batch

    for arriving, leaving in story:
        for item in arriving:
            waiting = [one for one in everything if not one.served and not one.gone]
            item.older = sum(one.lane is item.lane for one in waiting)
            item.arrived = len(batches)
            backlog.add([item])
            everything.append(item)
        for number in leaving:
            for item in everything[number : number + 1]:
                item.gone = item.gone or not item.served
        one_batch()
    while one_batch():
        pass
    return everything, batches


@given(STORIES, LIMITS)
def test_every_item_is_served_once(story, limits):
    """Nothing is lost, nothing runs twice, and what was dropped in the queue never runs."""
    for item in told(story, limits)[0]:
        assert len(item.served) == (0 if item.gone else 1)


@given(STORIES, LIMITS)
def test_batches_keep_to_the_limits(story, limits):
    """A batch has at most batch_size items, of one lane and one model, and only alone exceeds `tokens`."""
    for batch in told(story, limits)[1]:
        if not batch:
            continue
        assert len(batch) <= limits.batch_size
        assert len({(item.lane, id(item.model)) for item in batch}) == 1
        assert len(batch) == 1 or cost([i.length for i in batch], packs=batch[0].model.packs) <= limits.tokens


@given(STORIES, LIMITS)
def test_the_wait_is_bounded_whatever_arrives_later(story, limits):
    """Behind n older items of its lane, an item waits for at most n + 1 + n // streak batches (query), or for
    n + (n + 1) * streak (index)."""
    streak = limits.query_streak
    for item in told(story, limits)[0]:
        bound = {
            Lane.QUERY: item.older + 1 + item.older // streak,
            Lane.INDEX: item.older + (item.older + 1) * streak,
        }[item.lane]
        for batch in item.served:
            assert batch - item.arrived <= bound


@given(LIMITS, st.sampled_from(list(Lane)))
def test_an_endless_stream_of_one_lane_does_not_starve_the_other(limits, endless):
    """While new work of one lane comes before every batch, the other lane is served within its bound."""
    other = Lane.INDEX if endless is Lane.QUERY else Lane.QUERY
    lonely = Item(lane=other)
    story = [([*(Item(lane=endless) for _ in range(6)), *([lonely] if step == 1 else [])], []) for step in range(8)]
    told(story, limits)
    assert lonely.served[0] - lonely.arrived <= limits.query_streak


@pytest.mark.parametrize("model", [PADDED, PACKED])
def test_a_choice_looks_at_a_window_however_many_wait(model):
    """With thousands in the queue a batch costs a look at the oldest, not at all of them."""
    backlog: Backlog[Item] = Backlog()
    waiting = [Item(length=1 + n % 300, lane=lane, model=model) for n in range(5000) for lane in Lane]
    backlog.add(waiting)
    limits = Limits(batch_size=8, tokens=512, window=64)
    assert backlog.take(limits)
    assert sum(item.looks for item in waiting) <= 2 + limits.reach(packs=model.packs)


def test_depth_counts_the_lane():
    """Each lane's depth falls by what is taken; a cleared queue is empty and gives back what waited."""
    backlog: Backlog[Item] = Backlog()
    items = [Item(), Item(), Item(lane=Lane.QUERY)]
    backlog.add(items)
    assert [backlog.depth(lane) for lane in (Lane.INDEX, Lane.QUERY)] == [2, 1]
    assert backlog.take(Limits(8)) == [items[2]]
    assert [backlog.depth(lane) for lane in (Lane.INDEX, Lane.QUERY)] == [2, 0]
    assert backlog.clear() == items[:2]
    assert (backlog.depth(Lane.INDEX), backlog.take(Limits(8))) == (0, [])


def test_a_query_batch_is_filled_with_queries_only():
    """Index work that waits does not ride with a query: the query would wait for it."""
    backlog: Backlog[Item] = Backlog()
    queries = [Item(lane=Lane.QUERY), Item(lane=Lane.QUERY)]
    backlog.add([Item(), queries[0], Item(), queries[1]])
    assert backlog.take(Limits(8)) == queries
