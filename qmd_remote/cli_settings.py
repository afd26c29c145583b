"""`qmd-remote settings …`: every setting with its origin, and the settings file."""

from __future__ import annotations

from qmd_remote.cli_run import new_app

app = new_app(help="Show every setting with its origin; set, unset and edit those in the settings file.")
