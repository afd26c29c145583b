"""Fetch one model into the hub's cache, with its progress as lines of a log: `python -m qmd_remote.fetch MODEL`.

The keeper of a container runs it, so that the container needs no token, no network, and no rights on the cache.
"""

from __future__ import annotations

import signal
import sys
import time

from qmd_remote import pull_flow, settings
from qmd_remote.errors import QmdRemoteError
from qmd_remote.output import Output
from qmd_remote.pull_flow import Progress, Wanted

TELL_S = 1.0


def main(model: str) -> int:
    """Fetch it; returns the exit code. A failure is told as an envelope, which is the last line."""
    from qmd_remote.server.hub import Hub

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = Output("pull", as_json=True)
    told = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            out.raw(f"phase: downloading the model: {str(progress).replace('%  ', '%, ', 1).replace('  ', ', ')}")

    try:
        pull_flow.require_hub_library()
        pull_flow.from_hub(Wanted(model), Hub(patience_s=settings.handed_over().stall_limit_s), tell)
    except QmdRemoteError as error:
        return out.fail(error)
    except KeyboardInterrupt:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
