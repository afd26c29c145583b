"""The whole command line on a machine whose Python runs stand-ins: `on_stand_ins.py up --foreground`."""

from __future__ import annotations

import os
import sys

from qmd_remote import cli

if __name__ == "__main__":
    # a child gets its Python from here; this process stays what it is
    sys.executable = os.environ["STAND_IN_PYTHON"]
    sys.argv[0] = "qmd-remote"
    cli.main()
