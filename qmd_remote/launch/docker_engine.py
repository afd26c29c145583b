"""The container engine, through Docker's SDK: the one place that talks to it. Podman answers the same API.

Every complaint of the SDK, of what lies below it and of the engine comes out as an error of ours (docker_errors.py).
"""

from __future__ import annotations

import functools
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import docker
import requests
import urllib3
from docker.context import ContextAPI
from docker.errors import APIError, DockerException, ImageNotFound, NotFound, StreamParseError
from docker.types import DeviceRequest, LogConfig
from docker.types import Mount as SdkMount
from docker.types import Ulimit as SdkUlimit
from docker.utils import kwargs_from_env, parse_host

from qmd_remote.errors import Interrupted, QmdRemoteError, ServiceFailed, WaitEnded
from qmd_remote.launch import docker_errors, docker_facts, docker_preflight
from qmd_remote.launch.container import OWNER_LABEL, SERVICE_LABEL, Container, arguments
from qmd_remote.launch.docker_pull import Layers
from qmd_remote.launch.docker_stream import limited
from qmd_remote.launch.engine import STOP_GRACE_S, EngineFacts, Found, ImageFacts, Published, PullProgress
from qmd_remote.reach import is_loopback, numeric

log = logging.getLogger("qmd_remote.docker")

CONNECT_S = 5  # an engine that is well answers a ping at once
CALL_S = 60  # a call of the engine that is no stream
SILENCE_S = 300.0  # of a stream
GONE_S = 30.0  # for a container to vanish after its end
POLL_S = 0.2
CREATED = "created"  # the state of what was never started
ALREADY_GOING = ("already in progress", "refusing to clean up")  # Docker's words, and Podman's
PORT_HELD, PORT_FREE_S = "address already in use", 5.0
NO_LIMITS = ("setting rlimit", "setrlimit")  # runc's words, and crun's

# what the SDK lets through when a connection breaks, besides its own errors
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, StreamParseError, struct.error)


def connect(env: Mapping[str, str] = os.environ) -> DockerEngine:
    """The engine of DOCKER_HOST, else of the Docker context, else of this machine's socket.

    Raises PrerequisiteError when none answers (docker.down), it may not be used (docker.permission), it is another
    machine's (docker.remote), or there is no such context (docker.address).
    """
    endpoint, tls = place_of(env)
    if _is_remote(endpoint):
        raise docker_errors.remote(endpoint)
    try:
        client = docker.DockerClient(base_url=endpoint, tls=tls, timeout=CONNECT_S)
        client.ping()
        client.api.timeout = CALL_S
    except APIError as error:
        raise docker_errors.of_text(str(error.explanation or error), doing="asking the container engine") from error
    except (DockerException, *BROKEN) as error:
        raise docker_errors.of_connection(error, endpoint) from error
    return DockerEngine(client, endpoint)


def place_of(env: Mapping[str, str]) -> tuple[str, Any]:
    """Where the engine is, by the rules of the `docker` command, and what to encrypt with (False: nothing).

    Raises PrerequisiteError (docker.address) for a context that is not there, or an address that cannot be one.
    """
    named = {"DOCKER_HOST": "", **env}  # the SDK takes an empty environment for this process's own
    try:
        place: dict[str, Any] = {**kwargs_from_env(named)}
        if "base_url" not in place:
            place |= ContextAPI.kwargs_from_context(environment=named)
        parse_host(endpoint := str(place.get("base_url", "")).replace("http+unix://", "unix://"))
    except Exception as error:  # the SDK raises a bare one for a damaged context
        raise docker_errors.of_address(str(error)) from error
    if not endpoint:
        raise docker_errors.of_address("there is no such Docker context")
    return endpoint, place.get("tls", False)


class DockerEngine:
    """One engine; see the contract in engine.py."""

    def __init__(self, client: docker.DockerClient, endpoint: str) -> None:
        self.endpoint = endpoint
        self._api = client.api
        self._containers = client.containers

    @functools.cached_property
    def _podman(self) -> bool:
        return self.facts().podman

    def facts(self) -> EngineFacts:
        """What the engine says of itself."""
        with self._told("asking the container engine"):
            return docker_facts.engine_facts(self.endpoint, self._api.info(), self._api.version())

    def published(self) -> tuple[Published, ...]:
        """The ports of this machine that running containers have."""
        with self._told("looking at the containers"):
            return docker_facts.published(self._api.containers())

    def preflight(self, container: Container) -> tuple[str, ...]:
        """Look at all that could stop `container` before anything is made; returns warnings."""
        facts, image = self.facts(), self.image(container.image)
        docker_preflight.look_at_name(container, self.find(container.name))
        docker_preflight.look_at_mounts(container)
        docker_preflight.look_at_port(container, facts, self.published())
        warnings = docker_preflight.look_at_gpu(container, facts)
        if image is None:
            docker_preflight.look_at_absence(container)
            return docker_preflight.look_at_disk(container, facts) + warnings
        docker_preflight.look_at_image(container, image, facts)
        return warnings

    def image(self, name: str) -> ImageFacts | None:
        """The image if it is here."""
        with self._told(f"looking at the image {name}"):
            try:
                told: dict[str, Any] = self._api.inspect_image(name)  # type: ignore[no-untyped-call]
            except ImageNotFound:
                return None
        return docker_facts.image_facts(told)

    def pull(self, name: str, tell: Callable[[PullProgress], None], cancelled: Callable[[], bool]) -> ImageFacts:
        """Fetch an image. A repeated pull goes on with the layers that the engine kept, which may be none."""
        doing, layers = f"pulling {name}", Layers()
        begin = functools.partial(self._api.pull, name, stream=True, decode=True)

        def stalled() -> None:
            raise WaitEnded(
                f"{doing} has not moved for {SILENCE_S:.0f} s",
                hint="try again: qmd-remote up (an engine may have to fetch it anew)",
                code="wait.stalled",
            )

        def look() -> None:
            if cancelled():
                raise Interrupted("the pull was interrupted", hint="try again: qmd-remote up")

        with self._told(doing):
            for event in limited(begin, silence_s=SILENCE_S, on_silence=stalled, look=look):
                if "error" in event:  # the stream's own, under a status of 200
                    raise docker_errors.of_text(str(event["error"]), doing=doing)
                tell(layers.add(event))
        image = self.image(name)
        if image is None:
            raise ServiceFailed(f"{doing} ended without the image", hint="qmd-remote up", code="docker.error")
        return image

    def find(self, name: str) -> Found | None:
        """The container of this name or whole id, ours or not."""
        with self._told(f"looking at the container {name}"):
            try:
                found = docker_facts.found(self._api.inspect_container(name))
            except NotFound:
                return None
        # the engine takes the beginning of an id as well, which a name may be by chance
        return found if name in {found.name, found.id} else None

    def ours(self, owner: str, service: str = "") -> tuple[Found, ...]:
        """The containers of this installation, in whatever state."""
        labels = [f"{OWNER_LABEL}={owner}", *([f"{SERVICE_LABEL}={service}"] if service else [])]
        with self._told("looking at the containers"):
            listed = self._api.containers(all=True, filters={"label": labels})
        each = (self.find(one["Id"]) for one in listed)
        return tuple(one for one in each if one is not None)

    def run(self, container: Container, image: ImageFacts) -> Found:
        """Create and start a container; a start that fails leaves none behind.

        Its restart policy is `no`, but for Podman, whose API cannot change it later.
        """
        how, until = self._creation(container, image), time.monotonic() + PORT_FREE_S
        with self._told(f"starting the container {container.name}"):
            try:
                return self._created(container, how)
            except APIError as error:
                if not container.ulimits or not any(words in str(error) for words in NO_LIMITS):
                    raise
            # a rootless engine, or one that is confined itself, may not raise limits; most models need none
            names = ", ".join(one.name for one in container.ulimits)
            log.warning("the engine may not set the limits %s: they are left out", names)
            while True:
                try:
                    return self._created(container, how | {"ulimits": []})
                except APIError as error:
                    if PORT_HELD not in str(error) or time.monotonic() > until:
                        raise
                time.sleep(POLL_S)  # Podman lets go of the first attempt's port a moment later

    def _created(self, container: Container, how: Mapping[str, Any]) -> Found:
        """The container made and started, or nothing of it."""
        made = ""
        try:
            made = str(self._containers.create(**how).id)
            self._api.start(made)
            return docker_facts.found(self._api.inspect_container(made))
        except BaseException:  # Ctrl-C as well
            self._take_back(container, made)
            raise

    def start(self, found: Found) -> Found:
        """Start one that exists and is stopped."""
        with self._told(f"starting the container {found.name}"):
            self._restart_policy(found, "no")
            self._api.start(found.id)
            return docker_facts.found(self._api.inspect_container(found.id))

    def restart(self, found: Found, grace_s: float) -> Found:
        """Stop it, by force after the grace, and start it again."""
        with self._told(f"restarting the container {found.name}"):
            self._api.restart(found.id, timeout=int(grace_s))
            return docker_facts.found(self._api.inspect_container(found.id))

    def keep_running(self, found: Found) -> None:
        """From now on the engine restarts it when it ends, except when somebody stopped it: unless-stopped."""
        with self._told(f"setting the restart policy of {found.name}"):
            self._restart_policy(found, "unless-stopped")

    def logs(self, found: Found, *, tail: int | None = None, since: str = "", follow: bool = True) -> Iterator[bytes]:
        """What it wrote, stdout and stderr, as chunks; with `follow` until it ends or the engine goes away.

        A container that is quiet is asked about now and then, so that an engine that hangs is noticed.
        """

        def begin() -> Iterator[bytes]:
            start = docker_facts.log_start(self._api.inspect_container(found.id), since)
            return self._api.logs(
                found.id, stream=True, follow=follow, tail="all" if tail is None else tail, since=start
            )

        ask = functools.partial(self.find, found.id)
        with self._told(f"reading the log of {found.name}"):
            yield from limited(begin, silence_s=SILENCE_S, on_silence=ask)

    def remove(self, found: Found, owner: str, grace_s: float = STOP_GRACE_S) -> None:
        """Stop it with grace, remove it, and wait until it is gone. Refuses one that is not this owner's."""
        if not owner or found.owner != owner:
            raise ServiceFailed(
                f"the container {found.name} is not ours, and is left alone",
                hint=f"look at it: docker inspect {found.name}",
                code="name.taken",
            )
        with self._told(f"stopping the container {found.name}"):
            try:
                self._api.stop(found.id, timeout=int(grace_s))  # changes nothing about one that does not run
                self._api.remove_container(found.id, v=True, force=True)
            except NotFound:  # somebody was quicker
                return
            except APIError as error:
                if not any(words in str(error) for words in ALREADY_GOING):
                    raise
        until = time.monotonic() + GONE_S
        while self.find(found.id) is not None:
            if time.monotonic() > until:
                raise WaitEnded(
                    f"the container {found.name} was not gone {GONE_S:.0f} s after its end",
                    hint=f"docker rm -f {found.name}",
                    code="wait.stalled",
                )
            time.sleep(POLL_S)

    def _restart_policy(self, found: Found, name: str) -> None:
        policy: Any = {"Name": name}
        if not self._podman:
            self._api.update_container(found.id, restart_policy=policy)

    def _take_back(self, container: Container, made: str) -> None:
        """Remove what a start that failed has made, by its id, or by its name where the engine did not come to tell it.

        One that runs under that name, or ran, was there before.
        """
        with suppress(DockerException, *BROKEN):
            found = docker_facts.found(self._api.inspect_container(made or container.name))
            if made or (found.owner == container.owner and found.state == CREATED):
                self._api.remove_container(found.id, v=True, force=True)

    def _creation(self, container: Container, image: ImageFacts) -> dict[str, Any]:
        how: dict[str, Any] = {
            "name": container.name,
            "image": container.image,
            "command": arguments(container.command, image.entrypoint),
            "environment": {**container.env, **container.secret_env},
            "labels": container.labels,
            "detach": True,
            "init": True,
            "security_opt": ["no-new-privileges"],
            "restart_policy": {"Name": "unless-stopped" if self._podman else "no"},
            "mounts": [
                SdkMount(one.target, one.source, type=one.kind, read_only=one.read_only) for one in container.mounts
            ],
            "ulimits": [SdkUlimit(name=one.name, soft=one.soft, hard=one.hard) for one in container.ulimits],
            "log_config": LogConfig(
                type="json-file", config={"max-size": container.log_max_size, "max-file": str(container.log_files)}
            ),
        }
        if container.shm_bytes:
            how["shm_size"] = container.shm_bytes
        if container.user:
            how["user"] = container.user
        if container.publish is None:
            how["network_mode"] = "host"
        else:
            host, outside, inside = container.publish
            how["ports"] = {f"{inside}/tcp": (numeric(host), outside)}
        if container.gpus != "none":
            how["device_requests"] = [_gpus(container.gpus, by_cdi=self._podman)]
        return how

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Let whatever goes wrong come out as an error of ours."""
        try:
            yield
        except QmdRemoteError:
            raise
        except APIError as error:
            raise docker_errors.of_text(str(error.explanation or error), doing=doing) from error
        except BROKEN as error:
            raise docker_errors.of_connection(error, self.endpoint) from error
        except DockerException as error:
            raise docker_errors.of_text(str(error), doing=doing) from error


def _gpus(which: str, *, by_cdi: bool) -> DeviceRequest:
    """The request for all GPUs, or those of these numbers; Podman knows them by CDI only."""
    numbers = [which] if which == "all" else [one.strip() for one in which.split(",")]
    if by_cdi:
        return DeviceRequest(driver="cdi", device_ids=[f"{docker_preflight.CDI_GPU}={one}" for one in numbers])
    if which == "all":
        return DeviceRequest(count=-1, capabilities=[["gpu"]])
    return DeviceRequest(device_ids=numbers, capabilities=[["gpu"]])


def _is_remote(endpoint: str) -> bool:
    """Whether an endpoint is another machine's; one without a host, as tcp://:2375, is this one's."""
    # the SDK also takes HOST:PORT without a scheme
    place = urlsplit(parse_host(endpoint))
    if place.scheme == "ssh":
        return True
    return place.scheme in {"http", "https"} and not is_loopback(place.hostname or "localhost")
