"""What the rest of the launcher knows of a container engine: facts as values, and the contract that Docker fulfils.

`docker_engine.py` is the only file with the SDK; tests of everything above it may pass a stand-in of this Protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from qmd_remote.launch.container import Container

STOP_GRACE_S = 60.0  # vLLM writes its compile cache while it ends


@dataclass(frozen=True)
class EngineFacts:
    """The engine that answers at `endpoint`. `architecture` is amd64 or arm64; `runtimes` are its OCI runtimes.

    `cdi` are the directories of device specifications that it reads; empty where it knows none. `root_dir` is where
    it keeps images, if that is on this machine.
    """

    endpoint: str
    version: str
    architecture: str
    runtimes: tuple[str, ...] = ()
    cdi: tuple[str, ...] = ()
    rootless: bool = False
    podman: bool = False
    root_dir: str = ""


@dataclass(frozen=True)
class ImageFacts:
    """An image that is here. `size_bytes` unpacked; `digest` is the registry's, empty for one that was built here."""

    id: str
    architecture: str
    entrypoint: tuple[str, ...] = ()
    digest: str = ""
    size_bytes: int = 0


@dataclass(frozen=True)
class Found:
    """A container now. `state` is the engine's word: created, running, paused, restarting, exited, dead.

    `owner` and `service` are our labels, empty on a foreign container. `exit_code` counts once it has ended.
    """

    id: str
    name: str
    image: str
    state: str
    owner: str = ""
    service: str = ""
    spec_hash: str = ""
    exit_code: int = 0
    oom_killed: bool = False
    restarts: int = 0
    started_at: str = ""
    restart_policy: str = "no"
    error: str = ""
    image_id: str = ""

    def is_of(self, container: Container, image_id: str) -> bool:
        """Whether this is what `container` means, made from this image.

        One of another image with the same name, built or pulled anew since, is another one; so is a paused one, which
        no engine starts.
        """
        wanted = (container.name, container.spec_hash, image_id)
        return (self.name, self.spec_hash, self.image_id) == wanted and self.state != "paused"

    @property
    def running(self) -> bool:
        """Whether it runs, as far as the engine knows."""
        return self.state == "running"


@dataclass(frozen=True)
class Published:
    """A port of the host that a running container has. `address` is empty where the engine does not tell."""

    container: str
    address: str
    port: int
    owner: str = ""
    service: str = ""


@dataclass(frozen=True)
class PullProgress:
    """How far a pull is: bytes of all layers seen so far, layers done, and what is being done now.

    `layers` tells each layer that is under way: (id, what, done bytes, total bytes). `unsized` counts those to come
    whose size is not known yet. `unpacking_s` is for how long the slowest layer has been unpacked, where the engine
    tells that instead of bytes.
    """

    done: int
    total: int
    layers_done: int
    layers_total: int
    step: Literal["downloading", "unpacking", "waiting", "verifying"]
    layers: tuple[tuple[str, str, int, int], ...] = ()
    unsized: int = 0
    unpacking_s: int = 0


class Engine(Protocol):
    """A container engine. Every call may raise PrerequisiteError with code docker.down when the engine is gone."""

    endpoint: str

    def facts(self) -> EngineFacts:
        """What the engine says of itself."""

    def preflight(self, container: Container) -> tuple[str, ...]:
        """Look at all that could stop `container` before anything is made; returns warnings.

        Raises PrerequisiteError or ConfigError: the GPU runtime, the port (with its holder), a mount's source, a
        foreign container of this name, disk space for an image that is not here, or an image that has to be built.
        """

    def image(self, name: str) -> ImageFacts | None:
        """The image if it is here."""

    def pull(self, name: str, tell: Callable[[PullProgress], None], cancelled: Callable[[], bool]) -> ImageFacts:
        """Fetch an image; layers that are here already are not fetched again.

        Raises ServiceFailed, PrerequisiteError or ConfigError with a diagnosis (image.missing, image.auth,
        image.arch, disk.full, registry.unreachable), Interrupted when `cancelled` says so.
        """

    def find(self, name: str) -> Found | None:
        """The container of this name, ours or not."""

    def published(self) -> tuple[Published, ...]:
        """The ports of this machine that running containers have."""

    def ours(self, owner: str, service: str = "") -> tuple[Found, ...]:
        """The containers of this installation, in whatever state."""

    def run(self, container: Container, image: ImageFacts) -> Found:
        """Create and start a container with restart policy `no`; a start that fails leaves none behind."""

    def start(self, found: Found) -> Found:
        """Start one that exists and is stopped."""

    def restart(self, found: Found, grace_s: float) -> Found:
        """Stop it, by force after the grace, and start it again."""

    def keep_running(self, found: Found) -> None:
        """From now on the engine restarts it when it ends, except when somebody stopped it: unless-stopped."""

    def logs(self, found: Found, *, tail: int | None = None, since: str = "", follow: bool = True) -> Iterator[bytes]:
        """What it wrote, stdout and stderr, as chunks; with `follow` until it ends or the engine goes away.

        `tail` lines from the end at first, or all; only what came at `since` (as `Found.started_at`) or later.
        """

    def remove(self, found: Found, owner: str, grace_s: float = STOP_GRACE_S) -> None:
        """Stop it with grace, remove it, and wait until it is gone. Refuses one that is not this owner's."""
