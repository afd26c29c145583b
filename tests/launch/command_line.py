"""The command line on a machine of its own, whose services are stand-ins."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from qmd_remote import services
from qmd_remote.launch.keeper import free_port
from qmd_remote.services import EMBED, GENERATION

FOLDER = Path(__file__).parent
PYTHON = sys.executable


def _hear(hangup: signal.Handlers) -> None:
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class CommandLine:
    """The command line on a machine of its own, whose services are stand-ins."""

    def __init__(self, folder: Path) -> None:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {PYTHON} {FOLDER / "standin.py"} "$@"\n')
        python.chmod(0o700)
        self.port, self.generation_port = free_port(), free_port()
        self.env = {
            **os.environ,
            "STAND_IN_PYTHON": str(python),
            "QMD_REMOTE_PRESET": "cpu",
            "EMBED_MODEL": "acme/fine",
            "RERANK_MODEL": "acme/fine",
            "QMD_REMOTE_GENERATION_MODEL": "acme/fine",
            "QMD_REMOTE_PORT": str(self.port),
            "QMD_REMOTE_GENERATION_PORT": str(self.generation_port),
        }
        self.begun: list[subprocess.Popen[str]] = []

    def start(self, *words: str, hangup: signal.Handlers = signal.SIG_DFL, **variables: str) -> subprocess.Popen[str]:
        """Start a command, as in a terminal, also where the tests themselves run in the background, or under nohup."""
        process = subprocess.Popen(
            [PYTHON, FOLDER / "on_stand_ins.py", *words],
            env={**self.env, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=functools.partial(_hear, hangup),  # noqa: PLW1509 - it waits for no lock
        )
        self.begun.append(process)
        return process

    def run(self, *words: str, **variables: str) -> tuple[int, dict[str, Any]]:
        """The exit code and the envelope of a command with --json."""
        process = self.start(*words, "--json", **variables)
        stdout, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr
        return process.returncode, json.loads(stdout)

    def answers(self) -> list[bool]:
        """Whether generation and the embed server answer."""
        found = []
        for port in (self.generation_port, self.port):
            try:
                found.append(httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200)
            except httpx.HTTPError:
                found.append(False)
        return found

    def close(self) -> None:
        """End the commands that have not ended."""
        for process in self.begun:
            process.kill()
            process.communicate()


def pids() -> list[int | None]:
    """The processes of both services, as their records tell."""
    return [record.pid if (record := services.find(name)) else None for name in (GENERATION, EMBED)]
