"""The servers side by side: how each is started, waited for, and ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness.client import Client, Failed

START_LIMIT_S = 300
STOP_LIMIT_S = 15
PACKAGES = ("torch", "transformers", "sentence-transformers", "qmd-remote", "infinity-emb", "openvino", "numpy")
PLAIN_ST = Path(__file__).resolve().parent.parent / "peers" / "plain_st.py"

Command = Callable[[int, Path, Path | None], list[str]]


@dataclass(frozen=True)
class Server:
    """One way to serve. `command` makes its command line of a port, an embedder's folder and a reranker's or None."""

    name: str
    python: Path
    command: Command
    environment: Callable[[Path, Path | None], Mapping[str, str]]
    embeddings: str = "/v1/embeddings"
    rerank: str = "/v1/rerank"
    ours: bool = False


def ours(name: str, python: Path, backend: str, home: Path, device: str = "cpu", *, dtype: str = "auto") -> Server:
    """This package's server, as `qmd-remote serve` starts it; `backend` and `dtype` are "auto" or of its own names."""

    def environment(embed: Path, rerank: Path | None) -> dict[str, str]:
        wanted = {"QMD_REMOTE_BACKEND": backend, "QMD_REMOTE_DTYPE": dtype}
        chosen = {variable: value for variable, value in wanted.items() if value != "auto"}
        models = {"EMBED_MODEL": str(embed), "RERANK_MODEL": str(rerank or embed)}
        alike = {"QMD_REMOTE_PROMPTS": "off", "QMD_REMOTE_GENERATION": "off"}  # the texts that the peers are given
        return {**models, **chosen, **alike, "DEVICE": device, "QMD_REMOTE_HOME": str(home)}

    def command(port: int, _embed: Path, _rerank: Path | None) -> list[str]:
        return [str(python.with_name("qmd-remote")), "serve", "--host", "127.0.0.1", "--port", str(port)]

    return Server(name, python, command, environment, ours=True)


def plain(python: Path) -> Server:
    """sentence-transformers behind FastAPI."""

    def environment(embed: Path, rerank: Path | None) -> dict[str, str]:
        return {"EMBED_MODEL": str(embed), "RERANK_MODEL": str(rerank or ""), "DEVICE": "cpu"}

    return Server(
        "sentence-transformers", python, lambda port, *_: [str(python), str(PLAIN_ST), str(port)], environment
    )


def infinity(python: Path, home: Path) -> Server:
    """infinity-emb's own server with its defaults (torch, batches of 32), and no telemetry.

    Its warm-up is left out, since the harness warms up every server in the same way.
    """

    def command(port: int, embed: Path, rerank: Path | None) -> list[str]:
        start = [str(python.with_name("infinity_emb")), "v2", "--host", "127.0.0.1", "--port", str(port)]
        fixed = ["--engine", "torch", "--device", "cpu", "--no-model-warmup", "--no-trust-remote-code"]
        models = ["--model-id", str(embed), "--served-model-name", "embed"]
        if rerank:
            models += ["--model-id", str(rerank), "--served-model-name", "rerank"]
        return [*start, *fixed, *models]

    def environment(_embed: Path, _rerank: Path | None) -> dict[str, str]:
        return {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1", "INFINITY_HOME": str(home)}

    return Server("infinity-emb", python, command, environment, embeddings="/embeddings", rerank="/rerank")


@dataclass(eq=False)
class Running:
    """A server's process. `stop` ends it and all that it started."""

    server: Server
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    seconds_to_ready: float = 0.0

    def client(self, limit_s: float) -> Client:
        """A new connection, to be closed."""
        server = self.server
        return Client(self.port, embeddings=server.embeddings, rerank=server.rerank, limit_s=limit_s)

    def wait(self) -> None:
        """Until /health answers 200. Raises Failed with the end of its log."""
        while self.process.poll() is None and time.monotonic() - self.began < START_LIMIT_S:
            with suppress(Failed), closing(self.client(10)) as probe:
                probe.get("/health")
                self.seconds_to_ready = time.monotonic() - self.began
                return
            time.sleep(0.1)
        state = "ended" if self.process.poll() is not None else f"was not ready within {START_LIMIT_S} s"
        raise Failed(f"{self.server.name} {state}: {reason(self.log.read_text(errors='replace'))}")

    def facts(self) -> dict[str, Any]:
        """What /health tells about how it computes."""
        with closing(self.client(10)) as client:
            found = client.get("/health")
        if not isinstance(found, dict):
            return {}
        return {name: value for name, value in found.items() if isinstance(value, str | int | float | bool)}

    def cpu_seconds(self) -> float:
        """CPU time of the process and of all that it started, so far."""
        total = 0.0
        for process in self._all():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def stop(self) -> None:
        """End it: politely, then not."""
        family = self._all()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, STOP_LIMIT_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(STOP_LIMIT_S)

    def _all(self) -> list[psutil.Process]:
        try:
            me = psutil.Process(self.process.pid)
            return [me, *me.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def start(server: Server, embed: Path, rerank: Path | None, logs: Path) -> Running:
    """Start a server on a free port; it is not ready yet. Its group is its own, so that Ctrl-C is ours alone."""
    port = _free_port()
    log = logs / f"{server.name.replace(' ', '-')}.log"
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("QMD_REMOTE_", "INFINITY_"))}
    env = keep | {"HF_HUB_OFFLINE": "1"} | dict(server.environment(embed, rerank))
    with log.open("wb") as out:
        process = subprocess.Popen(
            server.command(port, embed, rerank), env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Running(server, port, process, log, time.monotonic())


def reason(log: str) -> str:
    """The line of a log that tells why a server ended: the last exception's, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception): ", line)]
    return (raised or lines or ["its log is empty"])[-1][:300]


def versions(python: Path) -> dict[str, str]:
    """The versions of what counts in a server's environment."""
    script = (
        "import json, importlib.metadata as m, platform\n"
        "found = {'python': platform.python_version()}\n"
        f"for name in {PACKAGES!r}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Neighbour:
    """A process that holds one core for itself, while the block runs."""

    def __init__(self, core: int) -> None:
        self._script = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Neighbour:
        self._process = subprocess.Popen([sys.executable, "-c", self._script], stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_LIMIT_S)
