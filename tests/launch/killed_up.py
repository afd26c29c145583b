"""Brings both services up, and dies of SIGKILL as a function of ours is entered: `killed_up.py [MODULE.NAME[#2]]`.

`#2` means its second entry: what is done for generation first is then done for the embed server. Without a name it
lives, and prints the names of all functions in the order in which they are entered first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from qmd_remote import paths
from qmd_remote.launch import plan, up
from qmd_remote.launch.hardware import Hardware
from qmd_remote.settings import handed_over

# what an `up` goes through between its first look and its last; the rest computes
MODULES = tuple(f"qmd_remote.{name}" for name in ("launch.up", "launch.down", "launch.wait", "services", "logbook"))
HARDWARE = Hardware(nvidia=False, apple_gpu=False, vllm=False, transformers_serve=True, server=True, bundled={})


def main() -> int:
    """Do it."""
    fatal = sys.argv[1] if len(sys.argv) > 1 else None
    seen: dict[str, int] = {}
    me = os.getpid()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith(MODULES) or os.getpid() != me:
            return
        name = f"{module}.{frame.f_code.co_qualname}"
        seen[name] = seen.get(name, 0) + 1
        if fatal in {f"{name}#{seen[name]}", name}:
            os.kill(me, signal.SIGKILL)

    settings = handed_over()
    planned = plan.make(settings, HARDWARE, paths.cache_dir())
    sys.executable = os.environ["STAND_IN_PYTHON"]
    launch = up.Launch(settings, planned, lambda *_: None)
    sys.setprofile(watch)
    launch.run()
    sys.setprofile(None)
    print(json.dumps(list(seen)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
