"""A container engine in memory, for the keeper's tests; tests/docker runs the same stories on a real one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from qmd_remote.errors import Interrupted, PrerequisiteError, QmdRemoteError
from qmd_remote.launch.container import OWNER_LABEL, SERVICE_LABEL, SPEC_LABEL, Container
from qmd_remote.launch.engine import EngineFacts, Found, ImageFacts, Published, PullProgress

IMAGE = ImageFacts("sha256:1", "amd64")


class FakeEngine:
    """Containers by name. A test sets what happens; `calls` tells what was asked for, in order."""

    endpoint = "fake://"

    def __init__(self, *, image_here: bool = True) -> None:
        self.containers: dict[str, Found] = {}
        self.calls: list[str] = []
        self.lines: list[bytes] = [b"Starting vLLM API server version 0.11.1\n"]
        self.image_here = image_here
        self.gone: QmdRemoteError | bool = False
        self.pull_waits = False
        self.on_run: Callable[[Found], Found] = lambda found: found
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()

    def put(self, container: Container, **values: object) -> Found:
        """Let a container be there already."""
        labels = container.labels
        found = Found(
            f"id{next(self._numbers)}",
            container.name,
            container.image,
            "running",
            owner=labels[OWNER_LABEL],
            service=labels[SERVICE_LABEL],
            spec_hash=labels[SPEC_LABEL],
            started_at=str(next(self._numbers)),
            image_id=IMAGE.id,
        )
        return self.change(replace(found, **values))

    def change(self, found: Found) -> Found:
        """Let a container be like this from now on."""
        with self._changed:
            self.containers[found.name] = found
            self._changed.notify_all()
        return found

    def restarted(self, name: str) -> None:
        """Let the engine restart a container that ended."""
        found = self.containers[name]
        again = replace(found, state="running", restarts=found.restarts + 1, started_at=str(next(self._numbers)))
        self.change(again)

    # the contract

    def facts(self) -> EngineFacts:
        return EngineFacts(self.endpoint, "1", "amd64")

    def preflight(self, container: Container) -> tuple[str, ...]:
        return ()

    def published(self) -> tuple[Published, ...]:
        return ()

    def image(self, name: str) -> ImageFacts | None:
        self._require()
        return IMAGE if self.image_here else None

    def pull(self, name: str, tell: Callable[[PullProgress], None], cancelled: Callable[[], bool]) -> ImageFacts:
        self.calls.append(f"pull {name}")
        tell(PullProgress(1_000_000_000, 4_000_000_000, 1, 4, "downloading"))
        while self.pull_waits:
            if cancelled():
                raise Interrupted("the pull was cancelled")
            with self._changed:
                self._changed.wait(0.01)
        self.image_here = True
        return IMAGE

    def find(self, name: str) -> Found | None:
        self._require()
        return self.containers.get(name)

    def ours(self, owner: str, service: str = "") -> tuple[Found, ...]:
        self._require()
        return tuple(one for one in self.containers.values() if one.owner == owner and service in {"", one.service})

    def run(self, container: Container, image: ImageFacts) -> Found:
        self.calls.append(f"run {container.name}")
        return self.change(self.on_run(self.put(container)))

    def start(self, found: Found) -> Found:
        self.calls.append(f"start {found.name}")
        again = replace(found, state="running", restart_policy="no", started_at=str(next(self._numbers)))
        return self.change(again)

    def restart(self, found: Found, grace_s: float) -> Found:
        self.calls.append(f"restart {found.name}")
        return self.change(replace(found, started_at=str(next(self._numbers))))

    def keep_running(self, found: Found) -> None:
        self.calls.append(f"keep {found.name}")
        self.change(replace(self.containers[found.name], restart_policy="unless-stopped"))

    def logs(self, found: Found, *, tail: int | None = None, since: str = "", follow: bool = True) -> Iterator[bytes]:
        told = 0
        while True:
            with self._changed:
                news, told = self.lines[told:], len(self.lines)
            yield from news
            now = self.containers.get(found.name)
            if now is None or not now.running or now.started_at != found.started_at:
                return
            with self._changed:
                self._changed.wait(0.02)

    def remove(self, found: Found, owner: str, grace_s: float = 60.0) -> None:
        assert owner == found.owner
        self.calls.append(f"remove {found.name}")
        with self._changed:
            self.containers.pop(found.name, None)
            self._changed.notify_all()

    def _require(self) -> None:
        if isinstance(self.gone, QmdRemoteError):
            raise self.gone
        if self.gone:
            raise PrerequisiteError("the container engine is gone", code="docker.down")
