"""What no tokenizer and no UTF-8 takes is taken out of texts here, by one rule. Pure."""

from __future__ import annotations

import re

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def scrub(text: str) -> str:
    """`text` with U+FFFD for every NUL and every lone surrogate; two that make a pair become their character."""
    if not _UNUSABLE.search(text):
        return text
    whole = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _UNUSABLE.sub("\ufffd", whole)
