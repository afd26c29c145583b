"""What every command shares: how an app is made, and how a failure becomes a message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from qmd_remote.errors import Exit, Interrupted, PrerequisiteError, QmdRemoteError
from qmd_remote.output import Output


def new_app(**options: Any) -> typer.Typer:
    """A Typer app in our style. Plain help: rich's renderer alone would double the time to the first line."""
    return typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        **options,
    )


def run(out: Output, body: Callable[[], int]) -> NoReturn:
    """Run a command's body; every expected failure becomes its message and exit code."""
    try:
        code = body()
    except QmdRemoteError as error:
        code = out.fail(error)
    except KeyboardInterrupt:
        code = out.fail(Interrupted("interrupted"))
    except BrokenPipeError:  # `qmd-remote logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    except OSError as error:  # a full disk, a file of somebody else: no bug of ours, and no case of its own
        if os.environ.get("QMD_REMOTE_DEBUG") == "1":
            raise
        what = f"{error.filename}: " if error.filename else ""
        hint = "free some space (df -h)" if error.errno == errno.ENOSPC else "check who owns it and who may write it"
        code = out.fail(PrerequisiteError(f"{what}{error.strerror or error}", hint=hint, code="system"))
    except Exception as error:
        if os.environ.get("QMD_REMOTE_DEBUG") == "1":
            raise
        hint = "run it again with QMD_REMOTE_DEBUG=1 to see the traceback, and report it: this is a bug"
        code = out.fail(QmdRemoteError(f"unexpected {type(error).__name__}: {error}", hint=hint, code="bug"))
    raise typer.Exit(code)
