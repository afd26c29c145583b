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
    where = f"{where}{'(hidden)' if f.metadata['secret'] else repr(raw)}"
    about = f.metadata["about"]
    text = to_text(raw).strip()
    try:
        if isinstance(f.default, bool):
            return _as_bool(text)
        if isinstance(f.default, int | float):
            return _as_number(f, text)
        if isinstance(f.default, tuple):
            return tuple(part.strip() for part in text.split(",") if part.strip())
    except ValueError as error:
        wanted = "a whole number" if type(f.default) is int else "a number"
        reason = str(error) if "must" in str(error) else f"must be {wanted}"
        raise kind(f"{where}: {reason}", hint=about) from None
    if not text and f.default:
        raise kind(f"{where}: needs a value", hint=about)
    choices = f.metadata["choices"]
    if choices and text not in choices:
        listed = ", ".join(choice for choice in choices if choice)
        raise kind(f"{where}: must be one of {listed}{did_you_mean(text, choices)}", hint=about)
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A guess to append to a message; empty when nothing is near."""
    near = difflib.get_close_matches(word, [one for one in known if one], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def flag_of(name: str) -> str:
    """The command line's option for a setting."""
    return "--generation" if name == "generation_engine" else f"--{name.replace('_', '-')}"


def _as_number(f: Field[Any], text: str) -> int | float:
    number = int(text) if type(f.default) is int else float(text)
    if number == math.inf:
        raise ValueError("must be a finite number")
    if not number >= f.metadata["low"]:
        raise ValueError(f"must be at least {f.metadata['low']}")
    if f.name.endswith("port") and number > 65535:
        raise ValueError("must be at most 65535")
    return number


def _as_bool(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError("must be 1 or 0")
