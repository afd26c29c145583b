"""A registry on this machine, Debian's, for real pulls."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAM = shutil.which("docker-registry")
CONFIG = """\
version: 0.1
storage:
  filesystem:
    rootdirectory: {folder}
http:
  addr: 127.0.0.1:{port}
{auth}"""
AUTH = """\
auth:
  htpasswd:
    realm: test
    path: {file}
"""


@contextlib.contextmanager
def serving(folder: Path, port: int, htpasswd: str = "") -> Iterator[str]:
    """A registry with its images in `folder`, as "host:port"; with `htpasswd` it asks for a login."""
    assert PROGRAM is not None
    folder.mkdir(parents=True, exist_ok=True)
    auth = ""
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd)
        auth = AUTH.format(file=folder / "htpasswd")
    config = folder / "config.yml"
    config.write_text(CONFIG.format(folder=folder / "images", port=port, auth=auth))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", config], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while not _listens(port):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
