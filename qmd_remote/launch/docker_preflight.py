"""What can be looked at on this machine before a container is made: its folders, its port, the disk, the GPU's way."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from qmd_remote import services, settings
from qmd_remote.errors import ConfigError, PrerequisiteError
from qmd_remote.launch.container import Container
from qmd_remote.launch.engine import EngineFacts, Found, ImageFacts, Published
from qmd_remote.reach import numeric
from qmd_remote.supervision import listen

LARGE = ("vllm", "nvidia", "pytorch")  # in an image's name
LARGE_BYTES = 45 * 10**9
LEAST_BYTES = 10**9
PODMAN_WITH_GPUS = (5, 4)
NEWER_PODMAN = "update Podman; or use Docker: unset DOCKER_HOST, docker context use default"
CDI_GPU = "nvidia.com/gpu"  # the kind of device in a specification


def look_at_name(container: Container, found: Found | None) -> None:
    """Refuse a name that another container has, our other service's too. Raises PrerequisiteError (name.taken)."""
    if found is not None and (found.owner, found.service) != (container.owner, container.service):
        raise foreign(container, found)


def foreign(container: Container, found: Found) -> PrerequisiteError:
    """The error for a container that has the name of ours; the embed server's name has no option of its own."""
    embed = container.service == services.EMBED
    other = "qmd-remote settings set embed_container=NAME" if embed else "--generation-container NAME"
    return PrerequisiteError(
        f"there is another container named {found.name} ({found.image}, {found.state})",
        hint=f"look at it: docker inspect {found.name}; or take another name: {other}",
        code="name.taken",
    )


def look_at_absence(container: Container) -> None:
    """Refuse to pull what no registry has: our own image, which is built. Raises PrerequisiteError (image.missing)."""
    own = settings.field_of("embed_image").default
    if container.service != services.EMBED or container.image.removesuffix(":latest") != own:
        return
    raise PrerequisiteError(
        f"the image {own} is not here; it is built from the sources of qmd-remote, and is in no registry",
        hint=f"in a checkout of qmd-remote: docker build -t {own} .; or, without it: qmd-remote up "
        "--embed-engine process",
        code="image.missing",
    )


def look_at_image(container: Container, image: ImageFacts, facts: EngineFacts) -> None:
    """Refuse an image for another processor. Raises ConfigError (image.arch)."""
    if not image.architecture or image.architecture == facts.architecture:
        return
    raise ConfigError(
        f"the image {container.image} is for {image.architecture}, and this machine is {facts.architecture}",
        hint=f"fetch the one for this machine: docker pull --platform linux/{facts.architecture} {container.image}; "
        f"or choose another one: --{container.service}-image IMAGE",
        code="image.arch",
    )


def look_at_mounts(container: Container) -> None:
    """Refuse a folder that is not there, or that cannot be written where it must be. Raises ConfigError."""
    for one in container.mounts:
        if one.kind != "bind":
            continue
        path = Path(one.source)
        if not path.exists():
            raise ConfigError(
                f"{path} is to be mounted into the container {container.name}, and is not there",
                hint="name a folder that exists" if one.read_only else f"mkdir -p {path}",
                code="mount.missing",
            )
        if not one.read_only and not os.access(path, os.W_OK):
            raise ConfigError(
                f"{path} is to be written by the container {container.name}, and this user may not write it",
                hint=f"sudo chown -R $USER {path}; or set HF_HOME to a folder of yours",
                code="mount.permission",
            )


def look_at_port(container: Container, facts: EngineFacts, published: Iterable[Published]) -> None:
    """Refuse a port that somebody else has, naming its holder; what is ours makes way, or is kept.

    Raises PrerequisiteError (port.taken), or ConfigError for an address that is not this machine's.
    """
    if container.publish is None:
        return
    host, port, _ = container.publish
    holders = [one for one in published if one.port == port]
    us = (container.owner, container.service)
    record = services.find(container.service)
    if any((one.owner, one.service) == us for one in holders) or (record and urlsplit(record.url).port == port):
        return
    flag = "--port" if container.service == services.EMBED else "--generation-port"
    # an engine without a proxy process holds a port by rules of the firewall, and it could be bound all the same
    for one in holders:
        if overlap(one.address, numeric(host)):
            raise taken(one, flag)
    try:
        listen(host, port, holder=services.port_holder, flag=flag).close()
    except PrerequisiteError as error:
        if error.code != "port.permission" or facts.rootless:  # the engine may what we may not
            raise


def taken(holder: Published, flag: str) -> PrerequisiteError:
    """The error for a port that a container has; `flag` chooses another one."""
    return PrerequisiteError(
        f"port {holder.port} is taken by the container {holder.container}",
        hint=f"docker stop {holder.container}; or choose another port with {flag}",
        code="port.taken",
    )


def look_at_disk(container: Container, facts: EngineFacts) -> tuple[str, ...]:
    """Warnings about room for an image that has to be pulled. Raises PrerequisiteError (disk.full) without any."""
    root = facts.root_dir
    try:
        free = shutil.disk_usage(root).free
    except (OSError, ValueError):  # the engine keeps them in a virtual machine, or does not tell where
        return ()
    if free < LEAST_BYTES:
        raise PrerequisiteError(
            f"{root}, where the container engine keeps its images, has {free / 1e9:.1f} GB left",
            hint="free some space: docker system df, then docker image prune",
            code="disk.full",
        )
    if free < LARGE_BYTES and any(word in container.image.lower() for word in LARGE):
        return (f"{root} has {free / 1e9:.0f} GB left, and an image of vLLM takes 20 to 40 GB",)
    return ()


def look_at_gpu(container: Container, facts: EngineFacts) -> tuple[str, ...]:
    """A warning where nothing shows that containers get a GPU. It is no more: older engines do not tell.

    Raises PrerequisiteError (gpu.toolkit) for a Podman that would pass over the request without a word.
    """
    if container.gpus == "none":
        return ()
    if why := podman_lacks_gpus(facts):
        raise PrerequisiteError(why, hint=NEWER_PODMAN, code="gpu.toolkit")
    if gpu_way(facts):
        return ()
    return (
        "nothing shows that the container engine can give a container a GPU (NVIDIA Container Toolkit); the start will",
    )


def overlap(theirs: str, ours: str) -> bool:
    """Whether two addresses cannot have one port: they are the same, or one of them is every address."""
    if theirs == ours or not theirs:
        return True
    one, other = ipaddress.ip_address(theirs), ipaddress.ip_address(ours)
    return one.version == other.version and (one.is_unspecified or other.is_unspecified)


def podman_lacks_gpus(facts: EngineFacts) -> str:
    """Why this Podman gives no GPU to a container that is asked for through its API; empty where it does."""
    found = re.match(r"(\d+)\.(\d+)", facts.version)
    if not facts.podman or not found or (int(found[1]), int(found[2])) >= PODMAN_WITH_GPUS:
        return ""
    first = ".".join(map(str, PODMAN_WITH_GPUS))
    return f"Podman {facts.version} gives containers no GPU through its API; {first} is the first that does"


def gpu_way(facts: EngineFacts) -> str:
    """How the engine gives a container a GPU, as far as it shows; empty where nothing does."""
    if "nvidia" in facts.runtimes:
        return "its nvidia runtime"
    return "CDI" if facts.podman or _specified(facts.cdi) else ""


def _specified(folders: Iterable[str]) -> bool:
    """Whether one of these folders has a specification of an NVIDIA GPU."""
    for folder in folders:
        for path in Path(folder).glob("*"):
            try:
                if path.suffix in {".yaml", ".yml", ".json"} and CDI_GPU in path.read_text(encoding="utf-8"):
                    return True
            except (OSError, ValueError):
                continue
    return False
