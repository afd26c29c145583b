"""Changes of the settings file: only the lines meant change, and a file that would be wrong is not written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tomlkit

from qmd_remote import atomic, paths, settings_file
from qmd_remote.errors import ConfigError, ServiceFailed, UsageError
from qmd_remote.setting_values import did_you_mean, parse
from qmd_remote.settings import field_of, names, require_device_name, resolve

FILES = frozenset({"api_key_file", "tls_cert", "tls_key"})
MODELS = frozenset({"embed_model", "rerank_model", "generation_model", "trust_remote_code"})
LOCK_S = 10
PAIRS_HINT = "for example: qmd-remote settings set port=9001 device=cpu"


def read_pairs(words: Sequence[str]) -> dict[str, Any]:
    """NAME VALUE, or NAME=VALUE …, as values ready for the file. Raises UsageError; no message holds a key."""
    pairs = [words] if len(words) == 2 and "=" not in words[0] else [word.split("=", 1) for word in words]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UsageError("settings are given as NAME VALUE, or as NAME=VALUE", hint=PAIRS_HINT)
    return {name: value_for(name, text) for name, text in pairs}


def value_for(name: str, text: str) -> Any:
    """A value as the file holds it: int, float, bool, text or a list of texts. Raises UsageError.

    Local files and folders become absolute paths: the file is read from wherever a command is typed.
    """
    f = field_of(name)
    if f.metadata["secret"]:
        raise UsageError(
            f"{name} is not taken from the command line, where others can read it",
            hint="qmd-remote key rotate makes a key; a key of yours: qmd-remote settings set api_key_file FILE",
            code="settings.secret",
        )
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how bytes that are no UTF-8 arrive in argv
        raise UsageError(f"{name} must be UTF-8", hint=f.metadata["about"])
    value = parse(f, text, where=f"{name} = ", kind=UsageError)
    if name == "device":
        require_device_name(value)
    if isinstance(value, tuple):
        return [paths.in_full(item) for item in value]
    return paths.in_full(value) if name in FILES | MODELS else value


def store(path: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Set values in the file at `path`; returns the names whose line changed.

    Raises ConfigError, and writes nothing, when the file cannot be written or would not be valid as a whole.
    """
    with _locked():
        text = settings_file.read_text(path) or ""
        old = settings_file.parse_toml(path, text)
        fresh = {name: value for name, value in values.items() if not _holds(old, name, value)}
        after = _edited(path, lambda: with_values(text, fresh), {**old, **fresh})
        check(path, after)
        if fresh:
            _write(path, after)
    return tuple(fresh)


def remove(path: Path, unwanted: Collection[str]) -> tuple[str, ...]:
    """Take names, settings or not, out of the file at `path`; returns those that stood there.

    Raises UsageError for what is neither a setting nor in the file, ConfigError when the file cannot be changed.
    """
    with _locked():
        text = settings_file.read_text(path) or ""
        old = settings_file.parse_toml(path, text)
        for name in unwanted:
            if name not in old and name not in names():
                raise UsageError(
                    f"there is no setting '{name}', and {path} has no such line{did_you_mean(name, [*old, *names()])}",
                    hint="all settings: qmd-remote settings",
                    code="settings.unknown",
                )
        gone = tuple(name for name in old if name in unwanted)
        left = {name: value for name, value in old.items() if name not in gone}
        if gone:
            _write(path, _edited(path, lambda: without(text, gone), left))
    return gone


def check(path: Path, text: str) -> None:
    """Raise ConfigError when a file with this text would be refused."""
    resolve({}, {}, file=settings_file.parse_text(path, text, names()))


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """A TOML text with these values; all else stays byte for byte. Pure."""
    newline = "\r\n" if "\r\n" in text else "\n"
    if text and not text.endswith("\n") and not values.keys() <= tomlkit.parse(text).keys():
        text += newline
    document = tomlkit.parse(text)
    for name, value in values.items():
        item = tomlkit.item(value)
        if name in document:
            document[name] = item
        else:
            item.trivia.trail = newline
            document.append(name, item)
    return tomlkit.dumps(document)


def without(text: str, unwanted: Collection[str]) -> str:
    """A TOML text without these names; all else stays byte for byte. Pure."""
    document = tomlkit.parse(text)
    for name in unwanted:
        document.remove(name)
    return tomlkit.dumps(document)


def _holds(old: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether the file says the same already, perhaps in another way (`port = "8001"`)."""
    try:
        is_same = parse(field_of(name), old[name], where="", kind=ConfigError) == parse(
            field_of(name), value, where="", kind=ConfigError
        )
    except (KeyError, ConfigError):
        return False
    return bool(is_same)


def _edited(path: Path, edit: Callable[[], str], expected: Mapping[str, Any]) -> str:
    """The edit's result, held to its promise: the file says what is expected, and nothing else changed."""
    try:
        after = edit()
        if settings_file.parse_toml(path, after) == expected:
            return after
    except (ValueError, ConfigError):  # tomlkit's errors are ValueErrors
        pass
    raise ConfigError(
        f"{path} is written in a way that cannot be changed safely, and was left as it is",
        hint="qmd-remote settings edit",
        code="settings.uneditable",
    )


def _locked() -> AbstractContextManager[None]:
    """One change at a time: two that read the same file would lose one of them."""
    busy = ServiceFailed(
        "another `qmd-remote settings` is changing the file", hint="try again when it has ended", code="busy"
    )
    return paths.locked("settings", wait_s=LOCK_S, busy=busy)


def _write(path: Path, text: str) -> None:
    paths.make_private(path.parent)
    try:
        atomic.replace(path, text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            hint="check the permissions of the file and its folder",
            code="settings.unwritable",
        ) from None
