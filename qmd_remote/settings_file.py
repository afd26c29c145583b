"""The settings file, config.toml: one `name = value` a setting, without sections."""

from __future__ import annotations

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
    """What a settings file says; `values` is empty when there is no such file."""

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read(path: Path, known: Collection[str]) -> FileLayer:
    """The file's values by setting name. Raises ConfigError for what is no TOML, no setting, or no value of one."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        return FileLayer(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", code="settings.unreadable") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(
            f"{path} is no TOML: {error}", hint="qmd-remote settings edit", code="settings.toml"
        ) from None
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"{path}: there is no setting '{name}'{did_you_mean(name, known)}",
                hint=f"qmd-remote settings unset {name}; all settings: qmd-remote settings",
                code="settings.unknown",
            )
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float | bool) for item in items):
            raise ConfigError(f"{path}: {name} must be text, a number, true or false", code="settings.type")
    if "api_key" in values and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(
            f"{path} holds a key and can be read by others", hint=f"chmod 600 {path}", code="settings.readable"
        )
    return FileLayer(path, values)
