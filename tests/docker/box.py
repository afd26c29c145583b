"""A machine whose generation is a container: its command line, its engine, and what its published port answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import docker
import httpx

from qmd_remote import paths
from qmd_remote.services import GENERATION
from tests.launch.command_line import CommandLine

MODEL = "acme/fine"


class Box:
    """A machine with an engine: its command line, and its containers as the engine knows them."""

    def __init__(self, line: CommandLine, client: docker.DockerClient, name: str) -> None:
        self.line, self.client, self.name = line, client, name

    def run(self, *words: str, **variables: str):
        """The exit code and the envelope of a command."""
        return self.line.run(*words, **variables)

    def up(self, *words: str, **variables: str):
        """`up`, which must succeed; returns what it did about generation."""
        _, said = self.run("up", *words, **variables)
        # the embed server here is a stand-in, which the last checks of `up` find wanting
        assert "services" in said["data"], json.dumps(said) + self.log()[-2000:]
        return next(one for one in said["data"]["services"] if one["service"] == GENERATION)

    def container(self):
        """What the engine tells of the container, or None."""
        try:
            return self.client.api.inspect_container(self.name)
        except docker.errors.NotFound:
            return None

    def log(self) -> str:
        file = paths.log_file(GENERATION)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def until(self, true: Callable[[], object], within_s: float = 30) -> None:
        """Wait for something to come true."""
        end = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < end, f"it did not come true in time; the log:\n{self.log()[-3000:]}"
            time.sleep(0.05)

    def state(self, service: str = GENERATION) -> str:
        """The state of a service, as `status` tells it."""
        _, said = self.run("status")
        return {one["service"]: str(one["state"]) for one in said["data"]["services"]}[service]


def answers(box: Box) -> bool:
    """Whether the published port answers its health check."""
    try:
        return httpx.get(f"http://127.0.0.1:{box.line.generation_port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def completes(box: Box) -> bool:
    """Whether the published port completes a prompt."""
    try:
        url = f"http://127.0.0.1:{box.line.generation_port}/v1/completions"
        return httpx.post(url, json={"model": MODEL, "prompt": "a"}, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
