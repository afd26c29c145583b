"""An engine of a test's own, that may be stopped, killed and starved, in namespaces of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGCONT

import docker

DOCKERD = shutil.which("dockerd")
HOOK = "nvidia-container-runtime-hook"  # an engine that finds it on its PATH gives containers GPUs
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
START_S = 30.0
STOP_S = 20.0

# the first process of the new namespaces: it outlives the engine, and leaves no dead children
HOLDER = "ip link set lo up; trap '' CHLD; {mount}exec sleep infinity"


def unable() -> str:
    """Why there can be no engine of one's own here; empty where there can."""
    if os.geteuid() != 0:
        return "an engine of a test's own needs root"
    missing = [name for name in ("dockerd", "unshare", "nsenter", "ip") if shutil.which(name) is None]
    return f"an engine of a test's own needs {', '.join(missing)}" if missing else ""


class Daemon:
    """dockerd in namespaces of its own. Nothing of it is seen outside but its socket and, unless `disk_mb`, its data.

    `disk_mb` puts its images on a disk of that size, in memory. `hook` is a shell script that stands in for NVIDIA's.
    Its loopback is not this machine's: `listen` gives a socket there.
    """

    def __init__(self, *, flags: Sequence[str] = (), disk_mb: int = 0, hook: str = "") -> None:
        # not in the test's own folder: the path of a socket may have 107 bytes, and that of containerd is long already
        folder = self._folder = Path(tempfile.mkdtemp(prefix="qmd-test-"))
        for name in ("data", "bin"):
            (folder / name).mkdir()
        self.endpoint = f"unix://{folder / 'sock'}"
        # neither variables of a proxy nor a rootless engine's are meant for it
        self._env = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
        if hook:
            (folder / "bin" / HOOK).write_text(f"#!/bin/sh\n{hook}\n")
            (folder / "bin" / HOOK).chmod(0o755)
        self._flags, self._frozen = flags, False
        mount = f"mount -t tmpfs -o size={disk_mb}m tmpfs '{folder / 'data'}' && " if disk_mb else ""
        alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen([*alone, "sh", "-c", HOLDER.format(mount=mount)])
        self._daemon: subprocess.Popen[bytes] | None = None
        try:
            self._inside = self._first_process()
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it, again if it was stopped, and wait until it answers."""
        place, namespaces = self._folder, ["--net", "--mount", "--pid"]
        command = ["nsenter", "-t", str(self._inside), *namespaces, "dockerd", "--data-root", str(place / "data")]
        command += ["--exec-root", str(place / "exec"), "--pidfile", str(place / "pid"), "-H", self.endpoint]
        # left by one that was killed: it is waited for in vain, or taken for what has its number now
        for stale in (place / "pid", place / "exec" / "containerd" / "containerd.pid"):
            stale.unlink(missing_ok=True)
        with (place / "log").open("ab") as log:
            self._daemon = subprocess.Popen([*command, *self._flags], env=self._env, stdout=log, stderr=log)
        _until(self._answers, START_S, lambda: self.log()[-3000:], lambda: self._daemon.poll() is None)

    def client(self) -> docker.DockerClient:
        """Its SDK."""
        return docker.DockerClient(base_url=self.endpoint)

    def stop(self) -> None:
        """End it as an administrator does: its containers end with it."""
        self._end("TERM")

    def kill(self) -> None:
        """End it as a crash does."""
        self._end("KILL")

    def freeze(self) -> None:
        """Let it answer nothing any more, without an end."""
        self._frozen = True
        self._signal("STOP")

    def listen(self) -> socket.socket:
        """A listening socket on its loopback, which this process may serve."""
        made: list[socket.socket] = []

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(f"/proc/{self._inside}/ns/net").open() as network:
                if libc.setns(network.fileno(), NEW_NETWORK):
                    return
            made.append(socket.create_server(("127.0.0.1", 0)))

        # a thread has its own network, and a socket stays in the one that it was made in
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert made, "the engine's network cannot be entered"
        return made[0]

    @property
    def broken(self) -> bool:
        """Whether it was ended, or frozen."""
        return self._frozen or self._daemon is None or self._daemon.poll() is not None

    def log(self) -> str:
        """What it wrote."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it and all that runs in it, and take its folders away."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        # the first process of a process namespace takes all others with it
        self._holder.kill()
        self._holder.wait(STOP_S)
        if self._daemon is not None:
            self._daemon.wait(STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _first_process(self) -> int:
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")

        def ready() -> bool:
            with contextlib.suppress(OSError, IndexError):
                name = Path(f"/proc/{children.read_text().split()[0]}/comm").read_text()
                return name.strip() == "sleep"
            return False

        _until(ready, START_S, lambda: "the namespaces were not made", lambda: self._holder.poll() is None)
        return int(children.read_text().split()[0])

    def _end(self, signal: str) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._frozen = False
            self._signal(signal)
            self._daemon.send_signal(SIGCONT)  # nsenter has stopped together with an engine that was frozen
            self._daemon.wait(STOP_S)

    def _signal(self, signal: str) -> None:
        """Send it to the engine itself, not to the program that entered the namespaces."""
        number = (self._folder / "pid").read_text()  # as it is called inside
        inside = ["nsenter", "-t", str(self._inside), "--mount", "--pid"]
        subprocess.run([*inside, "kill", f"-{signal}", number], check=False)

    def _answers(self) -> bool:
        with contextlib.suppress(docker.errors.DockerException):
            client = docker.DockerClient(base_url=self.endpoint, timeout=5)
            try:
                return bool(client.ping())
            finally:
                client.close()
        return False


def _until(true: Callable[[], bool], within_s: float, why: Callable[[], str], alive: Callable[[], bool]) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert alive(), why()
        assert time.monotonic() < end, why()
        time.sleep(0.05)
