"""The texts: QMD-shaped, seeded, new in each round, and the same for every server in it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

CHUNKS = 32  # of an index request
DOCUMENTS = 40  # of a rerank request
AT_CAP = 2 / 3  # share of QMD's chunks that are as long as a chunk may be
TOPIC = 60  # words that a text is about


@dataclass(frozen=True)
class Lengths:
    """How many words texts have: `at_cap` of them `longest`, the others anything from `shortest` on."""

    shortest: int
    longest: int
    at_cap: float = 0.0

    def draw(self, seed: str, count: int) -> list[int]:
        """`count` lengths in random order; the share at the cap is exact."""
        dice = random.Random(seed)
        capped = round(self.at_cap * count)
        found = [self.longest] * capped + [dice.randint(self.shortest, self.longest) for _ in range(count - capped)]
        dice.shuffle(found)
        return found


class Texts:
    """Texts for one purpose. Each has words of its own topic, so that texts differ in meaning too."""

    def __init__(self, words: Sequence[str], purpose: str) -> None:
        self._words = words
        self._purpose = purpose

    def text(self, turn: int, number: int, length: int) -> str:
        """One text of `length` words: the same for the same turn and number."""
        dice = random.Random(f"{self._purpose} {turn} {number}")
        topic = dice.sample(self._words, min(TOPIC, len(self._words)))
        return " ".join(dice.choices(topic, k=length))

    def chunks(self, turn: int, lengths: Lengths, count: int = CHUNKS) -> list[str]:
        """The texts of one index request."""
        drawn = lengths.draw(f"{self._purpose} {turn} lengths", count)
        return [self.text(turn, number, length) for number, length in enumerate(drawn)]

    def query(self, turn: int, number: int) -> str:
        """A query of 5 to 12 words."""
        length = random.Random(f"{self._purpose} {turn} {number} length").randint(5, 12)
        return self.text(turn, 1_000_000 + number, length)

    def queries(self, turn: int, count: int) -> list[str]:
        """So many queries."""
        return [self.query(turn, number) for number in range(count)]
