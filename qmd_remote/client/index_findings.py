"""What is wrong with QMD's index, and what mends it: facts and the server's vectors → findings. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qmd_remote import expansion
from qmd_remote.client.qmd_index import IndexFacts, Sample

SAME = 0.995  # half precision and another device stay above it
INFORMATION = "Information about "

_QWEN = re.compile(r"qwen.*embed|embed.*qwen", re.IGNORECASE)


@dataclass(frozen=True)
class IndexFinding:
    """What was seen of one matter. `cure` is QMD's command for it, without the name of the index."""

    state: Literal["ok", "warning", "failure", "skipped"]
    detail: str
    cure: str = ""
    remark: str = ""


EMBED = "qmd embed"
EMBED_ALL = "qmd embed -f"
CLEAN = "qmd cleanup"
_ALL_ANEW = "embeds all documents anew"
_EMPTIES = "empties QMD's cache of answers, the good ones too; it fills again. First see that both services answer"


def summary(facts: IndexFacts) -> IndexFinding:
    """What the index holds."""
    chunks = sum(one.chunks for one in facts.vectors)
    numbers = f" of {facts.dimension} numbers" if facts.dimension else ""
    told = f"{facts.documents} documents, {chunks} vectors{numbers}, {len(facts.cache)} cached answers"
    return IndexFinding("ok", f"{facts.path}: {told}")


def models(facts: IndexFacts) -> IndexFinding:
    """Whether all vectors were made under one name of a model."""
    if not facts.vectors:
        return IndexFinding("skipped", "there are no vectors yet")
    if len(facts.vectors) == 1:
        return IndexFinding("ok", f"all under the name {facts.vectors[0].model}")
    told = ", ".join(f"{one.model} ({one.documents} documents)" for one in facts.vectors)
    detail = f"vectors under {len(facts.vectors)} names of models, which cannot be compared unless they are one: {told}"
    return IndexFinding("warning", detail, EMBED_ALL, _ALL_ANEW)


def without_vectors(facts: IndexFacts) -> IndexFinding:
    """Whether every document has been embedded."""
    if not facts.without_vectors:
        return IndexFinding("ok", "every document has been embedded")
    return IndexFinding("warning", f"{facts.without_vectors} of {facts.documents} documents have no vectors", EMBED)


def half_embedded(facts: IndexFacts) -> IndexFinding:
    """Whether of each embedded document all chunks have a vector."""
    if not facts.vectors:
        return IndexFinding("skipped", "there are no vectors yet")
    if not facts.half:
        return IndexFinding("ok", "no document is embedded in part")
    detail = f"{facts.half} documents are embedded in part: the rest of them is not found by meaning"
    return IndexFinding("warning", detail, EMBED_ALL, _ALL_ANEW)


def rerank_cache(facts: IndexFacts) -> IndexFinding:
    """Whether failed requests, or scores outside [0, 1], were cached as scores."""
    scores = [score for row in facts.cache if isinstance(score := _value(row), float)]
    if not scores:
        return IndexFinding("skipped", "no scores are cached")
    zeros = sum(score == 0 or math.isnan(score) for score in scores)
    outside = sum(score < 0 or score > 1 for score in scores)
    if not zeros and not outside:
        return IndexFinding("ok", f"{len(scores)} scores, none of them 0")
    told = []
    if zeros:
        told.append(f"{zeros} of {len(scores)} scores are 0, as QMD caches a request that failed")
    if outside:
        told.append(f"{outside} of {len(scores)} scores are outside 0 to 1")
    return IndexFinding("warning", "; ".join(told), CLEAN, _EMPTIES)


def expansion_cache(facts: IndexFacts) -> IndexFinding:
    """Whether expansions that could not be used were cached."""
    expansions = [value for row in facts.cache if isinstance(value := _value(row), list)]
    if not expansions:
        return IndexFinding("skipped", "no expansions are cached")
    spoilt = sum(_is_spoilt(entries) for entries in expansions)
    if not spoilt:
        return IndexFinding("ok", f"{len(expansions)} expansions, all of use")
    detail = f"{spoilt} of {len(expansions)} expansions are of no use: QMD could not read the answers"
    return IndexFinding("warning", detail, CLEAN, _EMPTIES)


def dimension(facts: IndexFacts, served: int) -> IndexFinding:
    """Whether the server's vectors have as many numbers as those stored."""
    if facts.dimension is None:
        return IndexFinding("skipped", "there are no vectors yet")
    if facts.dimension == served:
        return IndexFinding("ok", f"{served}, as the server's")
    detail = f"{facts.dimension}, and the server's vectors have {served}: QMD can neither embed nor search by meaning"
    return IndexFinding("failure", detail, EMBED_ALL, _ALL_ANEW)


def texts(sample: Sample) -> list[str]:
    """A document in each form in which clients send it; first as QMD does for the name of the model."""
    forms = [f"title: {sample.title or 'none'} | text: {sample.text}"]
    if _QWEN.search(sample.model):
        forms.insert(0, f"{sample.title}\n{sample.text}" if sample.title else sample.text)
    return list(dict.fromkeys([*forms, sample.text]))


def stored(samples: Sequence[Sample], served: Sequence[Sequence[Sequence[float]]]) -> IndexFinding:
    """Whether the server makes the stored vectors again. `served` has the vectors of each sample's `texts`.

    One that differs may be of a file that was renamed since, as a title can come from its name. If none is met, the
    model or its prompts are others than those that the documents were embedded with.
    """
    if not samples:
        return IndexFinding("skipped", "there is no short document with a vector to compare")
    best = [max(cosine(one.vector, made) for made in forms) for one, forms in zip(samples, served, strict=True)]
    met = sum(one >= SAME for one in best)
    told = f"{met} of {len(best)} stored vectors are what the server makes of the same text today"
    if met == len(best):
        return IndexFinding("ok", f"{told} (cosine {min(best):.4f}{' or more' if met > 1 else ''})")
    detail = f"{told} (cosines from {min(best):.2f} to {max(best):.2f})"
    if met:
        why = "files were renamed, or some were embedded with another model or other prompts"
        return IndexFinding("warning", f"{detail}: {why}", EMBED_ALL, _ALL_ANEW)
    why = "they were made by another model, or with other prompts"
    return IndexFinding("failure", f"{detail}: {why}, and compare badly with those of queries", EMBED_ALL, _ALL_ANEW)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 for vectors of different lengths or without any."""
    if len(one) != len(other):
        return 0.0
    lengths = math.sqrt(math.fsum(x * x for x in one)) * math.sqrt(math.fsum(x * x for x in other))
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 0.0


def _value(row: str) -> float | list[Any] | None:
    """A cached answer: a score is a number as JavaScript writes it, an expansion a list in JSON."""
    try:
        value = json.loads(row)
    except ValueError:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value if isinstance(value, list) else None


def _is_spoilt(entries: Iterable[Any]) -> bool:
    """Whether a cached expansion is QMD's own stopgap, or nothing that its rule would accept."""
    rows = [entry for entry in entries if isinstance(entry, dict)]
    pairs = [(row.get("type"), row.get("query", row.get("text"))) for row in rows]
    stopgap = [text for kind, text in pairs if kind == "hyde" and str(text).startswith(INFORMATION)]
    if stopgap:
        query = str(stopgap[0]).removeprefix(INFORMATION)
        return all(text in {query, stopgap[0]} for _, text in pairs)
    # that a line has a term of the query cannot be seen here: the cache does not name the query
    return not expansion.parse("\n".join(f"{kind}: {text}" for kind, text in pairs), "").accepted
