"""The texts that the checks send: of the sizes that QMD sends, the same at every run."""

from __future__ import annotations

RERANK_DOCUMENTS = 40
RERANK_CHARACTERS = 3600
CHINESE_CHARACTERS = 2700
PLANTED = 23
QUERY = "How do I renew an expired passport?"
ANSWER = (
    "To renew an expired passport, fill in the renewal form, add two photographs and the old passport, pay the fee at "
    "the passport office, and collect the new passport after three weeks. "
)

_TOPICS = (
    "Sourdough bread rises slowly because wild yeast works at room temperature overnight. ",
    "The committee moved the budget meeting to the second Thursday of the month. ",
    "A bicycle chain should be cleaned and oiled after every ride in the rain. ",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. ",
    "The database migration adds a column and fills it in small batches. ",
    "Tomatoes want full sun, deep watering and a stake before they grow tall. ",
    "The violin concerto opens with a long orchestral theme in D major. ",
    "Glaciers carve wide valleys and leave ridges of gravel at their edges. ",
    "Our support rota changes on Monday morning, with a written handover. ",
    "Chess openings fight for the four squares in the middle of the board. ",
    "The new coffee grinder has forty settings and is far too loud. ",
    "Honey bees tell each other the way to flowers by dancing on the comb. ",
    "Concrete needs four weeks to reach the strength that engineers plan with. ",
)
_CHINESE = (
    "每天早上我们在图书馆里整理昨天的会议记录。",
    "这份文档说明了如何在本地建立全文索引和向量索引。",
    "山谷里的河流在春天融雪之后变得又宽又急。",
    "他把旧照片按照年份放进不同的盒子里保存。",
    "新的计划需要更多的时间来讨论预算和人员安排。",
)
_FIRST = "title: none | text: "


def chunks(count: int = 32, characters: int = 600) -> list[str]:
    """Document chunks with the prefix that QMD writes in front, each text another."""
    return [f"{_FIRST}{_fill((f'Note {index}. ', *_rotated(index)), characters)}" for index in range(count)]


def chinese() -> str:
    """CHINESE_CHARACTERS characters of Chinese: one token each or more, so several times the tokens of English."""
    return _fill(_CHINESE, CHINESE_CHARACTERS)


def cut_emoji() -> list[str]:
    """A chunk that ends inside an emoji, as QMD's cutting at UTF-16 units leaves it, and a sound one."""
    return [f"{_FIRST}The holiday photographs are here \ud83d", f"{_FIRST}The holiday photographs are here."]


def rerank_documents(count: int = RERANK_DOCUMENTS, characters: int = RERANK_CHARACTERS) -> tuple[list[str], int]:
    """Documents of one length, and the place of the only one that answers QUERY."""
    planted = PLANTED % count
    documents = [_fill((f"Note {index}. ", *_rotated(index)), characters) for index in range(count)]
    documents[planted] = _fill((ANSWER,), characters)
    return documents, planted


def _rotated(by: int) -> tuple[str, ...]:
    turn = by % len(_TOPICS)
    return _TOPICS[turn:] + _TOPICS[:turn]


def _fill(sentences: tuple[str, ...], characters: int) -> str:
    text = "".join(sentences)
    return (text * (characters // len(text) + 1))[:characters]
