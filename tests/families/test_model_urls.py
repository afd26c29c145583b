"""The client whose model is a URL, `http://host/v1#model` (QMD's pull request 761), trusts the order of an answer."""

from __future__ import annotations

from tests.families import sayings as say
from tests.families.replay import Step, alike, nearest, refused, replay, vectors


def test_the_order_is_that_of_the_request(box):
    """The vector at each place is that of the text at that place, whatever the texts' lengths."""
    texts = [say.chunk(number, length) for number, length in enumerate((2000, 3, 500, 0, 1200, 40, 2720))]
    batch, *singles = replay(
        f"{box}/v1",
        Step("/embeddings", {"model": "model", "input": texts}, [vectors]),
        *(Step("/embeddings", {"model": "model", "input": text}, [vectors]) for text in texts),
    )
    for item, single in zip(batch.json["data"], singles, strict=True):
        assert alike(item, single.json["data"][0])


def test_index_and_query(mini_box):
    """Raw notes and a raw query find each other."""
    stored, asked = replay(
        f"{mini_box}/v1",
        Step("/embeddings", {"model": "model", "input": list(say.NOTES)}, [vectors]),
        Step("/embeddings", {"model": "model", "input": say.QUERY}, [vectors]),
    )
    assert say.ANSWER == nearest(asked.json["data"][0], stored.json["data"])


def test_errors(box):
    """A wrong key, and an empty batch."""
    replay(f"{box}/v1", Step("/embeddings", {"model": "m", "input": "a"}, [refused(401)]), key="another")
    (answer,) = replay(f"{box}/v1", Step("/embeddings", {"model": "m", "input": []}, [refused(400)]))
    assert "input" == answer.json["error"]["param"]
