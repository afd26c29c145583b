"""`qmd-remote models` and `qmd-remote pull`: which models there are, and having them ahead of time."""

from __future__ import annotations

from qmd_remote.cli_run import new_app

app = new_app()
