"""Tokenising with the Rust tokenizer alone: without padding, tensors or locks, in any number of threads.

Texts are tokenised bare and uncut. Cutting and the special tokens are ours, so that a pair loses tokens of its
document and not of its query, and no state of the tokenizer is ever changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmd_remote.server.model import Prepared
from qmd_remote.server.tokenizing import row

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Pair = tuple[str, str]

# A text of megabytes, of which a few hundred tokens count, would hold a thread for seconds.
HEAD_CHARACTERS = 16  # a token of room: three times of what prose needs
SPARE_TOKENS = 64  # more than the room has: a tokenizer may see the end of the text some words before it


@dataclass(frozen=True, eq=False)
class Layout:
    """How texts become one row: `gaps` are the special tokens before, between and behind them.

    `types` are the token types of a row in which each text has one token.
    """

    gaps: tuple[tuple[int, ...], ...]
    types: NDArray[np.int64]

    @property
    def specials(self) -> int:
        """How many special tokens a row has."""
        return sum(map(len, self.gaps))

    def prepared(self, names: Sequence[str], texts: Sequence[Sequence[int]], *, truncated: bool) -> Prepared:
        """The row of features `names` for the ids of the texts."""
        flat, counts = list(self.gaps[0]), [1] * len(self.gaps[0])
        for ids, gap in zip(texts, self.gaps[1:], strict=True):
            flat += ids
            flat += gap
            counts += [len(ids), *[1] * len(gap)]
        types = np.repeat(self.types, counts) if self.types.any() else None
        return Prepared(row(names, np.array(flat, dtype=np.int64), types), len(flat), truncated)


class FastTexts:
    """Single texts, with `prompt` before each. `limit` is the longest row; `names` are the features of a row.

    Raises AttributeError, ValueError for tokenizers that are not like that.
    """

    def __init__(self, tokenizer: Any, names: Sequence[str], prompt: str | None, limit: int) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._layout = _layout(self._backend, texts=1)
        self._names = names
        self._prompt = prompt or ""
        self._room = max(0, limit - self._layout.specials)
        self._left = tokenizer.truncation_side == "left"

    def __call__(self, items: Sequence[str]) -> list[Prepared]:
        """As `Tokens`."""
        return [
            self._layout.prepared(
                self._names, [kept(ids, self._room, left=self._left)], truncated=len(ids) > self._room
            )
            for ids in self._ids([self._prompt + text for text in items])
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return bare_ids(self._backend, texts) if self._left else heads(self._backend, texts, self._room)


class FastPairs:
    """Queries with documents, as `FastTexts`; the prompt stands before the query. A query is tokenised once a call."""

    def __init__(self, tokenizer: Any, names: Sequence[str], prompt: str | None, limit: int) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._layout = _layout(self._backend, texts=2)
        self._names = names
        self._prompt = prompt or ""
        self._room = max(0, limit - self._layout.specials)
        self._known: dict[str, list[int]] = {}  # of the call before: the slices of a request share their query
        self._left = tokenizer.truncation_side == "left"

    def __call__(self, items: Sequence[Pair]) -> list[Prepared]:
        """As `Tokens`."""
        known = self._known
        of = {query: known[query] for query, _ in items if query in known}
        new = list(dict.fromkeys(query for query, _ in items if query not in of))
        texts = [*(self._prompt + query for query in new), *(document for _, document in items)]
        ids = bare_ids(self._backend, texts) if self._left else heads(self._backend, texts, self._room)
        of |= dict(zip(new, ids, strict=False))
        self._known = of
        return [
            self._prepared(of[query], document) for (query, _), document in zip(items, ids[len(new) :], strict=True)
        ]

    def _prepared(self, query: Sequence[int], document: Sequence[int]) -> Prepared:
        shares = share(len(query), len(document), self._room)
        texts = [kept(ids, room, left=self._left) for ids, room in zip((query, document), shares, strict=True)]
        return self._layout.prepared(self._names, texts, truncated=len(query) + len(document) > self._room)


def share(query: int, document: int, room: int) -> tuple[int, int]:
    """How many tokens of a query and of a document are kept in `room`.

    The document is what is cut. Only a query that would leave it less than a quarter of the room is cut too, to three
    quarters: a query that fills the room would score every document alike.
    """
    query = min(query, max(room * 3 // 4, room - document))
    return query, min(document, room - query)


def kept(ids: Sequence[int], room: int, *, left: bool = False) -> Sequence[int]:
    """The first `room` ids; the last, for a tokenizer that cuts on the `left`."""
    return ids if len(ids) <= room else ids[len(ids) - room :] if left else ids[:room]


def bare_ids(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, uncut and without special tokens."""
    return [encoding.ids for encoding in bare(backend, texts)]


def heads(backend: Tokenizer, texts: Sequence[str], room: int) -> list[list[int]]:
    """As `bare_ids`, but of a very long text only the first ids, and more of them than `room`."""
    begun = [_head(text, room) for text in texts]
    found = bare_ids(backend, begun)
    short = [i for i, ids in enumerate(found) if len(begun[i]) < len(texts[i]) and len(ids) < room + SPARE_TOKENS]
    for i, ids in zip(short, bare_ids(backend, [texts[i] for i in short]), strict=True):
        found[i] = ids
    return found


def _head(text: str, room: int) -> str:
    """The beginning of a long text, up to a blank; the whole of one that is not much longer, or has no blank there."""
    enough = HEAD_CHARACTERS * (room + SPARE_TOKENS)
    if len(text) <= 2 * enough:
        return text
    end = text.rfind(" ", enough // 2, enough)
    return text[:end] if end > 0 else text


def bare(backend: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """The encodings of texts, uncut and without special tokens; they hold ids, and no offsets."""
    _without_state(backend)
    return backend.encode_batch_fast(list(texts), add_special_tokens=False)


def bare_with_offsets(backend: Tokenizer, text: str) -> Encoding:
    """As `bare`, with where in the text each token lies."""
    _without_state(backend)
    return backend.encode(text, add_special_tokens=False)


def _without_state(backend: Tokenizer) -> None:
    """Undo what whoever else uses the tokenizer leaves behind. A copy of our own would cost up to 300 MB and 1 s."""
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()


def _layout(backend: Tokenizer, *, texts: int) -> Layout:
    """Read off a sample. Raises ValueError where special tokens stand inside of texts, or texts in another order."""
    _without_state(backend)
    sample = backend.encode("a") if texts == 1 else backend.encode("a", "a")
    gaps: list[list[int]] = [[] for _ in range(texts + 1)]
    types: list[int] = []
    place = 0
    for token, kind, owner in zip(sample.ids, sample.type_ids, sample.sequence_ids, strict=True):
        if owner is None:
            gaps[place].append(token)
            types.append(kind)
        elif owner == place:
            place += 1
            types.append(kind)
        elif owner != place - 1 or gaps[place]:
            raise ValueError("special tokens stand in unusual places")
    if place != texts:
        raise ValueError("the tokenizer has no token for the letter a")
    return Layout(tuple(map(tuple, gaps)), np.array(types, dtype=np.int64))
