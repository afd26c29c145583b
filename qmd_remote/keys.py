"""The API key: read from its file, made, replaced. A key is never an argument, and never in a message."""

from __future__ import annotations

import secrets
from pathlib import Path

from qmd_remote import atomic, paths
from qmd_remote.errors import ConfigError

KEY_BYTES = 32  # of randomness


def is_sendable(key: str) -> bool:
    """Whether an HTTP header can carry the key."""
    return key.isascii() and key.isprintable() and " " not in key and key != ""


def read_file(path: str | Path) -> str:
    """The key in a file: its text without white space around it. Raises ConfigError when there is none."""
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: ~name of nobody
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(
            f"the API key file {path} cannot be read: {reason}",
            hint="name a readable file that holds the key; qmd-remote key rotate makes qmd-remote's own",
            code="key.unreadable",
        ) from error
    if not is_sendable(key):
        raise ConfigError(
            f"the API key file {path} must hold one key: ASCII, no spaces inside",
            hint="qmd-remote key rotate makes a new one in qmd-remote's own file",
            code="key.invalid",
        )
    return key


def ensure() -> tuple[Path, bool]:
    """Our own key file, made if there is none; and whether it was made now. Raises ConfigError."""
    path = paths.key_file()
    if path.exists():
        read_file(path)
        return path, False
    return rotate(), True


def rotate() -> Path:
    """Put a new random key into our own key file, readable by its owner alone, in one step. Raises ConfigError."""
    path = paths.key_file()
    paths.make_private(path.parent)
    try:
        atomic.put(path, secrets.token_urlsafe(KEY_BYTES) + "\n", mode=0o600)
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be written: {error.strerror}",
            hint="set QMD_REMOTE_HOME to a folder of yours",
            code="key.unwritable",
        ) from None
    return path
