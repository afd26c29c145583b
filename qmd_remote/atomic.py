"""Put a whole new file in the place of an old one."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

NEW_MODE = 0o600


def replace(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: nobody sees half of it, and an error leaves the old file.

    A link stays a link; an old file keeps its mode and its owner, a new one is its owner's alone. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    old = target.stat() if target.exists() else None
    if old is not None and not os.access(target, os.W_OK):
        raise PermissionError(0, "it is read-only")
    put(target, text, mode=stat.S_IMODE(old.st_mode) if old is not None else NEW_MODE, owner=old)


def put(target: Path, text: str, *, mode: int, owner: os.stat_result | None = None) -> None:
    """Have a file with exactly this text and mode at `target`, in one step; links are not followed.

    Where we may, it belongs to whom `owner` belongs. Raises OSError.
    """
    handle, draft = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(draft).replace(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
