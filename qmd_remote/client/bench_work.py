"""What `bench` sends: requests of QMD's shapes, with texts that follow from a seed and are never sent twice.

How long texts are does not depend on the seed: the n-th request of a kind is as large in every run, on every machine.
Their words do, so that no cache of an earlier run answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmd_remote import expansion
from qmd_remote.client.remote_block import ModelNames

VERSION = 1  # of the work: figures of different versions are not to be compared
EMBEDDINGS, RERANK, CHAT = "/v1/embeddings", "/v1/rerank", "/v1/chat/completions"

CHUNKS = 32  # of an index request
CHUNKS_AT_CAP = 21  # of them: QMD cuts where a chunk is full, so that two of three are
CHUNK_CHARACTERS = (200, 2700)  # what QMD takes for up to 900 tokens
DOCUMENTS = 40  # of a rerank request
DOCUMENT_CHARACTERS = (900, 3600)
QUERY_WORDS = (5, 12)

_DOCUMENT = "title: none | text: "
_QUERY = "task: search result | query: "
_PROSE_WORDS = 20_000
_BITS = 32  # of a text's number: it is spelled in four words

_LIST = """
about above account across action address after again against agree almost alone along already always amount animal
another answer apple april arrive article autumn balance basket battery beach because become before begin behind
believe below between bicycle board border bottle branch bread breakfast bridge bright bring brother budget build
butter button calendar camera candle carbon careful castle center century chair change chapter children choose
circle city clean clear climate closed cloud coast coffee collect column common compare concert consider contain
corner cotton country course cover create credit crowd current customer daily database daughter december decide
degree deliver desert design detail develop device different dinner direct discover distance doctor double dozen
draft dream early earth easy edge effect eight either electric empty energy engine enough enter error evening event
every example expect expert explain fabric factory family farmer father february fever field figure filter final
finger finish fire first fish flight floor flower follow forest forget form found free fresh friday friend front
fruit future garden gather general gentle glass gold grain grass great green ground group grow guess guitar half
hammer handle harbour harvest health heart heavy height history hold honey horse hotel house hundred idea image
improve inside instead invite iron island january journey judge juice july kettle kitchen knife ladder lake
language large later laugh layer learn leave lemon length lesson letter level library light limit listen little
local lunch machine manager manual march market master matter measure meeting member memory message metal method
middle minute mirror model moment money month morning mother mountain
"""
WORDS = tuple(_LIST.split())  # 256: one spells a byte


@dataclass(frozen=True)
class Request:
    """A body for a path. `texts` is what it counts for in texts per second."""

    path: str
    body: dict[str, Any]
    texts: int


Make = Callable[[int], Request]
"""A request's number, from 0 on → the request."""


class Work:
    """The requests of one load. Loads of a run differ in `series` (0 to 255), and so share no text."""

    def __init__(self, seed: int, series: int, models: ModelNames) -> None:
        dice = _dice(seed)
        self._spelling = dice.sample(WORDS, len(WORDS))
        self._prose = _prose(dice)
        self._series = series
        self._models = models

    def index(self, turn: int) -> Request:
        """32 chunks of documents."""
        dice = _dice(f"chunks {turn}")
        shortest, longest = CHUNK_CHARACTERS
        lengths = [longest] * CHUNKS_AT_CAP
        lengths += [dice.randint(shortest, longest) for _ in range(CHUNKS - CHUNKS_AT_CAP)]
        dice.shuffle(lengths)
        texts = [_DOCUMENT + self._text(turn * CHUNKS + place, length) for place, length in enumerate(lengths)]
        return Request(EMBEDDINGS, {"model": self._models.embed, "input": texts}, CHUNKS)

    def query(self, turn: int) -> Request:
        """One short text, in a list as QMD sends it."""
        return Request(EMBEDDINGS, {"model": self._models.embed, "input": [_QUERY + self._question(turn)]}, 1)

    def rerank(self, turn: int) -> Request:
        """One query against 40 documents."""
        dice = _dice(f"documents {turn}")
        first = turn * (DOCUMENTS + 1)
        documents = [self._text(first + 1 + place, dice.randint(*DOCUMENT_CHARACTERS)) for place in range(DOCUMENTS)]
        body = {"model": self._models.rerank, "query": self._question(first), "documents": documents}
        return Request(RERANK, body, DOCUMENTS)

    def expand(self, turn: int) -> Request:
        """The chat request that asks for other words for a query."""
        return Request(CHAT, expansion.chat_body(self._models.generate or "", self._question(turn)), 1)

    def _question(self, number: int) -> str:
        dice = _dice(f"question {number}")
        count = dice.randint(*QUERY_WORDS)
        opening = self._opening(number)
        return " ".join([*opening, *dice.choices(self._spelling, k=count - len(opening))])

    def _text(self, number: int, characters: int) -> str:
        """So many characters that begin as no other text does, cut wherever they end, as QMD cuts."""
        opening = " ".join(self._opening(number)).capitalize() + ". "
        start = _dice(f"start {number}").randrange(len(self._prose) - characters)
        start = self._prose.index(" ", start) + 1 if start else 0
        return (opening + self._prose[start : start + characters])[:characters]

    def _opening(self, number: int) -> list[str]:
        """Four words that spell a text's number. An odd factor mixes its bits and keeps numbers apart."""
        mixed = ((self._series << 24 | number) + 1) * 0x9E3779B1 % (1 << _BITS)
        return [self._spelling[mixed >> shift & 0xFF] for shift in range(0, _BITS, 8)]


def _dice(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - to be repeated is what it is for


def _prose(dice: random.Random) -> str:
    """Sentences of 6 to 16 words. Texts are cut out of one long one: it takes no time between two requests."""
    words = dice.choices(WORDS, k=_PROSE_WORDS)
    sentences, at = list[str](), 0
    while at < len(words):
        length = dice.randint(6, 16)
        sentences.append(" ".join(words[at : at + length]).capitalize() + ".")
        at += length
    return " ".join(sentences)
