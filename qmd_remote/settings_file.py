"""The settings file, config.toml: one `name = value` a setting, without sections."""

from __future__ import annotations

import shlex
import stat
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmd_remote.errors import ConfigError
from qmd_remote.setting_values import did_you_mean


@dataclass(frozen=True)
class FileLayer:
    """What a settings file says; `values` is empty when there is no such file.

    `lines` tells where each setting stands, counted from 1.
    """

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    lines: Mapping[str, int] = field(default_factory=dict, repr=False)

    def where(self, name: str) -> str:
        """How a message about a setting in this file begins: `PATH, line N: `."""
        return f"{self.path}, line {self.lines[name]}: " if name in self.lines else f"{self.path}: "


def read(path: Path, known: Collection[str]) -> FileLayer:
    """The file's values by setting name. Raises ConfigError for what is no TOML, no setting, or no value of one."""
    text = read_text(path)
    if text is None:
        return FileLayer(path)
    layer = parse_text(path, text, known)
    if "api_key" in layer.values and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(
            f"{path} holds a key and can be read by others", hint=f"chmod 600 {path}", code="settings.readable"
        )
    return layer


def read_text(path: Path) -> str | None:
    """The file's text with its own line ends, or None when there is no such file. Raises ConfigError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            hint="correct that, or move it out of the way: without a settings file the defaults count",
            code="settings.unreadable",
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: this is not UTF-8", hint="save the file as UTF-8", code="settings.unreadable"
        ) from None


def parse_text(path: Path, text: str, known: Collection[str]) -> FileLayer:
    """What a text says that stands, or will stand, at `path`. Raises ConfigError as `read` does."""
    values = parse_toml(path, text)
    layer = FileLayer(path, values, _lines(text))
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"{layer.where(name)}there is no setting '{name}'{did_you_mean(name, known)}",
                hint=f"qmd-remote settings unset {shlex.quote(name)}; all settings: qmd-remote settings",
                code="settings.unknown",
            )
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float | bool) for item in items):
            raise ConfigError(
                f"{layer.where(name)}{name} must be text, a number, true or false",
                hint="qmd-remote settings edit",
                code="settings.type",
            )
    return layer


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    """The names and values of a text, whether settings or not. Raises ConfigError when it is no TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets without end
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ConfigError(
            f"{path} is no TOML: {reason}", hint="qmd-remote settings edit", code="settings.toml"
        ) from None


def _lines(text: str) -> dict[str, int]:
    """The line at which each name of a valid text begins, up to the first section."""
    found: dict[str, int] = {}
    statement, start = "", 1
    for number, line in enumerate(text.split("\n"), start=1):
        # a value may go on over several lines: a statement is what can be read alone
        statement += f"{line}\n"
        try:
            values = tomllib.loads(statement)
        except ValueError:
            continue
        found.update({name: start for name in values if name not in found})
        if statement.lstrip().startswith("["):
            break
        statement, start = "", number + 1
    return found
