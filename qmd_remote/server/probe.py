"""Is the server of this container's settings ready? `python -m qmd_remote.server.probe`, the image's health check."""

from __future__ import annotations

import asyncio
import sys

from qmd_remote import settings
from qmd_remote.reach import trusting
from qmd_remote.supervision import answers_ok


def main() -> int:
    """0 when it answers its health check with 200, else 1."""
    here = settings.handed_over()
    return 0 if asyncio.run(answers_ok(here.url, trusting(here.tls_cert))) else 1


if __name__ == "__main__":
    sys.exit(main())
