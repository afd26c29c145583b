"""Values of settings: from what was given (a flag, a variable, a line of a file) to what it means, and back. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import Field
from typing import Any

from qmd_remote.errors import ConfigError, UsageError

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off", ""})
MOST = {"threads": 1024, "max_batch_size": 65536, "max_batch_tokens": 2**24}  # beyond is a mistake
FLAGS = {"generation_engine": "generation"}  # setting → option, where they differ
ErrorKind = type[ConfigError] | type[UsageError]


def to_text(value: Any) -> str:
    """A value as a variable holds it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def parse(f: Field[Any], raw: Any, *, where: str, kind: ErrorKind) -> Any:
    """`raw` (text, or a typed value) as the field's type, checked against its limits.

    Raises `kind`; its message begins with `where` and the value.
    """
    about = f.metadata["about"]
    try:
        return _checked(f, raw)
    except _Wrong as error:
        raise kind(f"{where}{_shown(f, raw)}: {error}", hint=about) from None


class _Wrong(ValueError):
    """Why a value is no value of its setting."""


def _shown(f: Field[Any], raw: Any) -> str:
    if f.metadata["secret"]:
        return "(hidden)"
    return str(raw).lower() if isinstance(raw, bool) else repr(raw)


def _checked(f: Field[Any], raw: Any) -> Any:
    _require_kind(f, raw)
    text = to_text(raw).strip()
    if isinstance(f.default, bool):
        return _as_bool(text)
    if isinstance(f.default, int | float):
        return _as_number(f, text)
    if "\0" in text:  # no variable can hold one
        raise _Wrong("must be text")
    if isinstance(f.default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if not text and f.default:
        raise _Wrong("needs a value")
    choices = f.metadata["choices"]
    if choices and text not in choices:
        listed = ", ".join(choice for choice in choices if choice)
        raise _Wrong(f"must be one of {listed}{did_you_mean(text, choices)}")
    return text


def _require_kind(f: Field[Any], raw: Any) -> None:
    """Refuse a typed value of another kind, which its text would hide: `true` for a number is 1 by its text."""
    if isinstance(raw, list | tuple):
        if not isinstance(f.default, tuple) or not all(isinstance(item, str) for item in raw):
            raise _Wrong("must be a list of texts" if isinstance(f.default, tuple) else "must be one value, not a list")
    elif isinstance(raw, int | float) and isinstance(f.default, str | tuple):
        raise _Wrong("must be text, in quotes")
    elif isinstance(raw, bool) and not isinstance(f.default, bool):
        raise _Wrong("must be a number")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A guess to append to a message; empty when nothing is near. A flag's or a variable's name is understood."""
    plain = word.strip("-").lower().replace("-", "_").removeprefix("qmd_remote_")
    plain = next((name for name, flag in FLAGS.items() if flag == plain), plain)
    near = difflib.get_close_matches(plain, [one for one in known if one], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def flag_of(name: str) -> str:
    """The command line's option for a setting."""
    return f"--{FLAGS.get(name, name).replace('_', '-')}"


def _as_number(f: Field[Any], text: str) -> int | float:
    whole = type(f.default) is int
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        raise _Wrong("must be a whole number" if whole else "must be a number") from None
    if number == math.inf:
        raise _Wrong("must be a finite number")
    if not number >= f.metadata["low"]:
        raise _Wrong(f"must be at least {f.metadata['low']}")
    most = 65535 if f.name.endswith("port") else MOST.get(f.name, math.inf)
    if number > most:
        raise _Wrong(f"must be at most {most}")
    return number


def _as_bool(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise _Wrong("must be 1 or 0")
