"""A leash: when this process ends, however it ends, the kernel closes a pipe, and a tiny shell kills a process group.

The kernel of Linux can do so for a child (`supervision.end_with_parent`), but not for what that child starts, and
other systems cannot do it at all. The shell reads from a pipe whose only other end this process holds (closed by exec,
so that no child inherits it) and nobody writes to: the end of the pipe means that we died.

No group of strangers is ever killed. A number cannot be given to a new process while a process group bears it, and a
process is a member of its group until it has been waited for. So the shell joins the group that it watches and kills
"my own group": that number is its group's for as long as it lives to say so, even if all others are gone; and for this
process the number is the group's until `release` has waited for the shell, even if somebody killed that before.
A group in another session cannot be joined. There the shell stands outside and kills by number: `release` it before
you wait for the group's leader, whose number is taken until then.
"""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Any

# What ends a whole session or service must not end the leash first. `kill` and `read` are the shell's own: it needs
# neither a search path nor a second process.
SCRIPT = "trap '' HUP INT QUIT TERM; read -r nothing; kill -KILL \"$1\""
OWN_GROUP = "0"


class Leash:
    """The hold on one process group; made by `watch`. As a context manager it is released at the end."""

    def __init__(self, shell: subprocess.Popen[bytes]) -> None:
        self._shell = shell

    def release(self) -> None:
        """Let the group live on without us. To be called once the group has ended, or shall outlive this process."""
        self._shell.kill()  # before the pipe ends; it need not agree, it might be stopped
        self._shell.wait()
        if self._shell.stdin:
            self._shell.stdin.close()

    def __enter__(self) -> Leash:
        """Hold the group during the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release it."""
        self.release()


def watch(group: int) -> Leash | None:
    """Have the process group of `group` killed when this process dies without having called `release`.

    None when there is no such group any more. Raises OSError when the system has no room for another process.
    """
    try:
        return _tie(OWN_GROUP, process_group=group)
    except (PermissionError, ProcessLookupError):  # the group is in another session, or gone
        pass
    try:
        os.killpg(group, 0)
    except (PermissionError, ProcessLookupError):
        return None
    return _tie(f"-{group}", start_new_session=True)


def _tie(target: str, **where: Any) -> Leash:
    shell = subprocess.Popen(
        ["/bin/sh", "-c", SCRIPT, "qmd-remote-leash", target],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        **where,
    )
    return Leash(shell)
