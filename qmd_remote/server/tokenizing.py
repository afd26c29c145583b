"""Inputs → rows of tokens, as sentence-transformers does it: right for every model, but one call at a time.

`fast_tokens` and `chat_pairs` do the same for most models many times faster, in any number of threads. Which of them
may stand in is not concluded from a model's configuration, but tried on texts that tokenizers treat differently.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qmd_remote.errors import ModelUnsupported
from qmd_remote.server.model import Prepared, Row

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel

log = logging.getLogger(__name__)

Input = TypeVar("Input")
Input_contra = TypeVar("Input_contra", contravariant=True)

PROBES = (
    "fox",
    "",
    "  two  spaces,\ttab\nline ",
    "The Größe of a NAÏVE café: déjà-vu, don't!",
    "ﬁve ① ½ Ⅷ ﷺ ｆｕｌｌ e\u0301 \u00a0\u200b\u202e.",
    "東京は日本の首都です。서울 Москва ไทย हिन्दी עברית",
    "🦊👩‍💻🇩🇪",
    "def f(x: int) -> str: return f'{x:>3}' # 3.14e-2",
    "[CLS] [SEP] [MASK] <s> </s><pad> <|endoftext|> <|im_end|>",
    "Donaudampfschifffahrtsgesellschaftskapitän" * 2,
)
LONG_PROBE = " ".join(PROBES * 3)
# what the long probe is cut to, so that what cutting leaves is compared as well
PROBE_LENGTH = 64


class Tokens(Protocol[Input_contra]):
    """A way to tokenise."""

    def __call__(self, items: Sequence[Input_contra]) -> list[Prepared]:
        """One result per item, in order, no longer than the model's length; of length 0 where there is no token.

        Raises what the tokenizer raises, a panic that is no Exception included.
        """
        ...


class LibraryTokens(Generic[Input]):
    """sentence-transformers' own way, with `prompt` before each text. For any thread.

    Raises ModelUnsupported when the model's tokenised form is not rows of tokens, which is tried with `probe`.
    """

    def __init__(self, network: BaseModel, prompt: str | None, probe: Input) -> None:
        self._network = network
        self._prompt = prompt
        # a tokenizer keeps truncation and padding as state
        self._lock = threading.Lock()
        features = self._preprocess([probe])
        if getattr(features.get("attention_mask"), "ndim", 0) != 2:
            raise ModelUnsupported(
                "this model does not take rows of tokens, which is all this server can batch",
                hint="recommended models: qmd-remote models",
            )
        self.names = tuple(name for name, value in features.items() if _is_row(value) and name != "attention_mask")
        self.constants = {name: value for name, value in features.items() if not _is_row(value)}

    def __call__(self, items: Sequence[Input], **options: Any) -> list[Prepared]:
        """As `Tokens`; `options` override how the tokenizer is called."""
        features = self._preprocess(items, **options)
        mask: NDArray[np.bool_] = features["attention_mask"].numpy().astype(bool)
        arrays = {name: features[name].numpy() for name in self.names}
        lengths = mask.sum(axis=1)
        cut = self._cut(features, items, lengths)
        return [
            Prepared({name: _int64(values[i][mask[i]]) for name, values in arrays.items()}, int(lengths[i]), cut[i])
            for i in range(len(items))
        ]

    def _cut(self, features: Mapping[str, Any], items: Sequence[Input], lengths: NDArray[np.int64]) -> Sequence[bool]:
        """Of which items tokens were cut off."""
        encodings = getattr(features, "encodings", None)
        if encodings is not None:  # a fast tokenizer keeps what it cuts
            return [bool(encoding.overflowing) for encoding in encodings]
        cut = [False] * len(items)
        for i in np.flatnonzero(lengths >= (self._network.max_seq_length or 0)):
            try:
                whole = self._preprocess([items[int(i)]], truncation=False)
            except Exception as error:  # a module of a model's own may not know how; no text may fail for a number
                log.debug("whether a text was cut is not known", exc_info=error)
                break
            cut[i] = int(whole["attention_mask"].sum()) > lengths[i]
        return cut

    def _preprocess(self, items: Sequence[Input], **options: Any) -> Mapping[str, Any]:
        more = {"processing_kwargs": {"text": options}} if options else {}
        with self._lock:
            features: Mapping[str, Any] = self._network.preprocess(list(items), prompt=self._prompt, **more)
            return features


def fastest(
    make: Callable[[int], Tokens[Input]],
    library: LibraryTokens[Input],
    probes: Sequence[Input],
    *,
    limit: int,
    trial: int,
    **options: Any,
) -> Tokens[Input]:
    """What `make` makes for a length of `limit`, if at a length of `trial` it gives the library's rows; else `library`.

    `options` are what the library is called with in that comparison.
    """
    try:
        found = make(trial)(probes)
        expected = library(probes, max_length=trial, **options)
        if all(_equal(one, other) for one, other in zip(found, expected, strict=True)):
            return make(limit)
        reason: object = "its rows are different"
    except BaseException as error:  # tokenizers written in Rust panic with a class that is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = f"{type(error).__name__}: {error}"
    log.info("sentence-transformers tokenises for this model, the faster way does not suit it: %s", reason)
    return library


def row(names: Sequence[str], ids: NDArray[np.int64], types: NDArray[np.int64] | None = None) -> Row:
    """A row of these features. Raises ValueError for one that is neither token ids nor their types."""
    known = {"input_ids": ids, "token_type_ids": np.zeros_like(ids) if types is None else types}
    unknown = set(names) - known.keys()
    if unknown:
        raise ValueError(f"the model takes {', '.join(sorted(unknown))}, too")
    return {name: known[name] for name in names}


def _equal(one: Prepared, other: Prepared) -> bool:
    return (
        one.truncated == other.truncated
        and one.length == other.length
        and one.row.keys() == other.row.keys()
        and all(np.array_equal(one.row[name], other.row[name]) for name in one.row)
    )


def _is_row(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 2


def _int64(values: NDArray[Any]) -> NDArray[np.int64]:
    return values.astype(np.int64, copy=False)
