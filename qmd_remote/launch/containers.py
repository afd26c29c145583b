"""Containers as `up`, `down` and `status` see them: the look before a start, and what is left without its keeper."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from qmd_remote import paths, services
from qmd_remote.errors import QmdRemoteError
from qmd_remote.launch.container import Container, owner_of
from qmd_remote.launch.docker_preflight import overlap
from qmd_remote.launch.engine import STOP_GRACE_S, Engine, Found, Published
from qmd_remote.launch.plan import Plan
from qmd_remote.reach import numeric
from qmd_remote.services import EMBED, GENERATION

DOCKER = "docker"  # the program of a service that is a container
NOTHING: Mapping[str, Container] = MappingProxyType({})
DEFAULT_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")


def planned(plan: Plan) -> dict[str, Container]:
    """The containers of a plan, by service."""
    both = {GENERATION: plan.generation.container, EMBED: plan.embed}
    return {service: container for service, container in both.items() if container is not None}


def connect() -> Engine:
    """The container engine. Raises PrerequisiteError with how to get one; the SDK is imported here, and not before."""
    from qmd_remote.launch import docker_engine

    return docker_engine.connect()


def entrypoint(container: Container) -> tuple[str, ...]:
    """The entrypoint of a container's image; where that is not here, our own image's, or none."""
    with suppress(QmdRemoteError):
        image = connect().image(container.image) if likely() else None
        if image is not None:
            return image.entrypoint
    return ("qmd-remote",) if container.service == EMBED else ()


def preflight(plan: Plan) -> tuple[str, ...]:
    """Look at all that could stop the containers of a plan before anything is stopped or made; returns warnings.

    Raises what `Engine.preflight` raises.
    """
    wanted = planned(plan)
    if not wanted:
        return ()
    engine = connect()
    for container in wanted.values():
        for mount in container.mounts:
            if mount.kind == "bind" and not mount.read_only:
                # the hub's cache and ours: the engine would make them as root
                with suppress(OSError):
                    Path(mount.source).mkdir(parents=True, exist_ok=True)
    return tuple(warning for container in wanted.values() for warning in engine.preflight(container))


def has_other_image(container: Container) -> bool:
    """Whether the container that runs is of another image than the one that has this name now; False if none tells."""
    with suppress(QmdRemoteError):
        engine = connect()
        found, image = engine.find(container.name), engine.image(container.image)
        return bool(found and image and found.image_id and found.image_id != image.id)
    return False


def likely(env: Mapping[str, str] = os.environ) -> bool:
    """Whether there may be an engine to ask, without asking, since asking imports its SDK."""
    if env.get("DOCKER_HOST") or env.get("DOCKER_CONTEXT"):
        return True
    config = Path(env.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"
    return any(Path(socket).exists() for socket in DEFAULT_SOCKETS) or config.exists()


def without_keeper(names: Iterable[str] = services.SERVICES) -> tuple[tuple[Engine, Found], ...]:
    """Our containers for these services that no process of ours looks after; none where no engine answers."""
    alone = [name for name in names if services.find(name) is None]
    if not alone or not likely():
        return ()
    try:
        engine = connect()
        return tuple((engine, found) for found in engine.ours(us()) if found.service in alone)
    except QmdRemoteError:  # who has no engine has no containers
        return ()


def engine_answers() -> bool:
    """Whether there is an engine to ask."""
    try:
        connect()
    except QmdRemoteError:
        return False
    return True


def are_gone(service: str) -> bool:
    """Whether no container of ours is left for a service; False as well where no engine answers."""
    try:
        return not connect().ours(us(), service)
    except QmdRemoteError:
        return False


def us() -> str:
    """What our containers' label says of their owner."""
    return owner_of(paths.run_dir())


def holder_of(host: str, port: int) -> Published | None:
    """The running container that has a port where `host` would need it; None without one, or an engine to ask."""
    if not likely():
        return None
    with suppress(QmdRemoteError):
        address = numeric(host)
        return next(
            (one for one in connect().published() if one.port == port and overlap(one.address, address)),
            None,
        )
    return None


def sweep(names: Iterable[str] = services.SERVICES, *, but: Mapping[str, Container] = NOTHING) -> tuple[Found, ...]:
    """Stop and remove our containers for these services that no process of ours looks after.

    One that is the same as `but` has for its service stays: it will be adopted.
    """
    swept = []
    for engine, found in without_keeper(names):
        wanted = but.get(found.service)
        image = engine.image(wanted.image) if wanted else None
        if wanted is None or image is None or not found.is_of(wanted, image.id):
            engine.remove(found, us(), STOP_GRACE_S)
            swept.append(found)
    return tuple(swept)
