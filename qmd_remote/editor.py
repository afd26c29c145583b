"""The user's own editor: $VISUAL, else $EDITOR."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from qmd_remote.errors import PrerequisiteError, QmdRemoteError, UsageError


def command(path: Path, ours: str) -> list[str]:
    """The editor's command line, without the file. `ours` is the command that asks for it, for hints.

    Raises PrerequisiteError when no variable names an editor, UsageError for one whose quotes do not match.
    """
    text = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        words = shlex.split(text)
    except ValueError:
        raise UsageError(f"VISUAL or EDITOR is no command: {text}", hint="its quotes do not match") from None
    if not words:
        raise PrerequisiteError(
            f"no editor is named for {path}: neither VISUAL nor EDITOR is set",
            hint=f"EDITOR=nano {ours}; or open {path}",
            code="editor.missing",
        )
    return words


def open_file(words: list[str], path: Path, ours: str, *, keep_stdout: bool) -> None:
    """Run the editor on a file until it ends. `keep_stdout` keeps it off our stdout, where JSON will stand.

    Raises PrerequisiteError when it cannot be started, QmdRemoteError when it ends with an error.
    """
    try:
        done = subprocess.run([*words, path], stdout=sys.stderr if keep_stdout else None, check=False)
    except OSError as error:
        raise PrerequisiteError(
            f"the editor {words[0]} cannot be started: {error.strerror}",
            hint=f"set EDITOR to one that is installed; or open {path}",
            code="editor.missing",
        ) from None
    if done.returncode != 0:
        raise QmdRemoteError(
            f"the editor {words[0]} ended with exit code {done.returncode}; {path} is as it left it",
            hint=ours,
            code="editor.failed",
        )
