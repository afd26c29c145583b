"""What a container engine complains about → an error of ours with its cause and its cure. Pure: texts in, errors out.

Texts are matched by a part of them: engines differ in the rest, and by version.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from qmd_remote.errors import ConfigError, PrerequisiteError, QmdRemoteError, ServiceFailed

TOOLKIT = (
    "install the NVIDIA Container Toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && "
    "sudo systemctl restart docker; check it with: docker run --rm --gpus all ubuntu nvidia-smi"
)

LONGEST = 300  # characters of the engine's own words in a message
OLD = r"client version .* is too (?:new|old)|minimum supported API version|API versions below"


LOOKED_AT = 2000  # characters: some patterns are slow on long lines


@dataclass(frozen=True)
class Complaint:
    """A part of the text → code, cause, cure and kind of error."""

    pattern: str
    code: str
    cause: str
    cure: str
    kind: type[QmdRemoteError] = PrerequisiteError


COMPLAINTS: tuple[Complaint, ...] = (
    Complaint(
        r"could not select device driver|unresolvable CDI devices|failed to discover GPU vendor|"
        r"[Uu]nknown (?:or invalid )?runtime.*nvidia|nvidia-container-runtime.*not found",
        "gpu.toolkit",
        "the container engine cannot give a container a GPU: the NVIDIA Container Toolkit is missing or not set up",
        TOOLKIT,
    ),
    Complaint(
        r"driver/library version mismatch",
        "gpu.library",
        "the NVIDIA driver was updated, and the old one is still loaded",
        "restart this machine, then: qmd-remote up",
    ),
    Complaint(
        r"load library failed: libnvidia-ml|nvml error: driver not loaded",
        "gpu.library",
        "the NVIDIA driver is not there for the container engine",
        "install the NVIDIA driver of this GPU (check it with: nvidia-smi), then: qmd-remote up",
    ),
    Complaint(
        r"device error: .*unknown device",
        "gpu.missing",
        "there is no GPU of this number",
        "see which there are: nvidia-smi -L; and choose with --gpus all, or --gpus 0",
    ),
    Complaint(
        r"unsatisfied condition: cuda|CUDA driver version is insufficient",
        "gpu.driver_old",
        "the NVIDIA driver is older than the image needs",
        "update the driver, or take an older image: --generation-image nvcr.io/nvidia/vllm:TAG",
    ),
    Complaint(
        r"nvidia-container-cli|nvidia-container-runtime-hook",
        "gpu.toolkit",
        "the NVIDIA Container Toolkit failed",
        TOOLKIT,
    ),
    Complaint(
        r"port is already allocated|address already in use|failed to bind host port|ports are not available",
        "port.taken",
        "the port is taken",
        "see who has it: ss -ltnp; or choose another one: --generation-port or --port",
    ),
    Complaint(
        r"(?:bind|listen).*cannot assign requested address",
        "bind.address",
        "the address to publish on is not this machine's",
        "name one of its addresses, or 127.0.0.1: --generation-host or --host",
        ConfigError,
    ),
    Complaint(
        r"cannot expose privileged port",
        "port.permission",
        "a rootless container engine may not have a port below 1024",
        "choose a port from 1024 up with --generation-port or --port",
    ),
    Complaint(
        r"name .* is already in use",
        "name.taken",
        "another container has the name",
        "look at it: docker ps -a; rename it: docker rename NAME OTHER; or remove it: docker rm NAME",
    ),
    Complaint(
        r"no matching manifest for|no match for platform in manifest|no image found in (?:manifest list|image index)|"
        r"does not match the specified platform|exec format error",
        "image.arch",
        "the image is not made for this machine's processor",
        "choose an image for it: --generation-image IMAGE, or --embed-image IMAGE",
        ConfigError,
    ),
    # before "program": that a helper's executable is not found says nothing of the image
    Complaint(
        r"Credentials store error|error getting credentials|docker-credential-\S+ (?:not installed|executable file)",
        "image.auth",
        "the helper that keeps the passwords of registries does not work",
        "install it, or take credsStore and credHelpers out of ~/.docker/config.json",
    ),
    Complaint(
        r"toomanyrequests|too many requests|rate limit",
        "image.rate",
        "the registry allows no more pulls for now",
        "log in to it (docker login REGISTRY), or try again later: qmd-remote up",
    ),
    # before "missing": registries that want a login say both in one text
    Complaint(
        r"unauthorized|no basic auth credentials|authentication required|denied: requested access|"
        r"access forbidden|403 Forbidden|pull access denied",
        "image.auth",
        "the registry does not give the image to us: there is no such image, or it wants a login",
        "check its name, or log in: docker login REGISTRY",
    ),
    Complaint(
        r"manifest unknown|manifest for .* not found|failed to resolve reference .*: \S+: not found|no such image|"
        r"repository does not exist|name unknown|invalid reference format|short-name .* did not resolve|"
        r"Repository name cannot|Invalid index name",
        "image.missing",
        "there is no such image",
        "check its name and tag: --generation-image IMAGE, or --embed-image IMAGE",
        ConfigError,
    ),
    Complaint(
        r"no space left on device|disk quota exceeded",
        "disk.full",
        "the disk that holds the engine's images is full",
        "free some space: docker system df, then docker image prune; a vLLM image takes 20 to 40 GB",
    ),
    Complaint(
        r"executable file not found|OCI runtime create failed.*exec:.*(?:not found|no such file)",
        "program.missing",
        "the image does not have the program that is to run in it",
        "choose an image with vLLM: --generation-image IMAGE",
        ConfigError,
    ),
    Complaint(
        r"bind source path does not exist|error while creating mount source path|statfs .*no such file|"
        r"not a directory: unknown",
        "mount.missing",
        "a folder that the container needs is not there",
        "make it, or name another one (HF_HOME is where models lie)",
        ConfigError,
    ),
    Complaint(
        OLD,
        "docker.old",
        "the container engine is too old",
        "update it to Docker Engine 20.10 or newer",
    ),
    Complaint(
        r"x509:",
        "registry.unreachable",
        "the registry's certificate is not one that the container engine trusts",
        "put its authority into /etc/docker/certs.d/REGISTRY/ca.crt, then: qmd-remote up",
    ),
    Complaint(
        r"dial tcp|lookup .* no such host|connection refused|i/o timeout|TLS handshake timeout|"
        r"server gave HTTP response to HTTPS client|request canceled while waiting|network is unreachable|"
        r"unexpected EOF|: EOF$|connection reset by peer|download failed after attempts|Client\.Timeout exceeded|"
        # of a registry's address: a container that takes too long to start has the same words
        r"(?:https?://|failed to (?:resolve|do|copy)).*context deadline exceeded|"
        r"unexpected (?:HTTP )?status(?: code)?(?: from \w+ request to)?(?: \S+)?: 5\d\d",
        "registry.unreachable",
        "the registry does not answer",
        "check the network and the image's name; then: qmd-remote up (an engine may have to fetch it anew)",
    ),
    Complaint(
        r"cannot allocate memory",
        "memory.system",
        "there is no memory left on this machine",
        "end what else runs, then: qmd-remote up",
    ),
)


# where an engine listens that nobody named
USUAL = frozenset({"unix:///var/run/docker.sock", "unix:///run/docker.sock"})
OWN = "use this machine's usual one: unset DOCKER_HOST, docker context use default"


def of_text(text: str, *, doing: str) -> QmdRemoteError:
    """The error for a complaint of the engine; an unknown one is told as it is. `doing` says what was tried."""
    start = text[:LOOKED_AT]
    for one in COMPLAINTS:
        if re.search(one.pattern, start, re.IGNORECASE):
            return one.kind(f"{doing} failed: {one.cause} ({_short(text)})", hint=one.cure, code=one.code)
    return ServiceFailed(
        f"{doing} failed: {_short(text)}", hint="look at the engine itself: docker info", code="docker.error"
    )


def of_connection(error: BaseException, endpoint: str) -> QmdRemoteError:
    """The error for an engine that cannot be reached; the reason lies in what the SDK's exception was raised from."""
    numbers = {one.errno for one in _causes(error) if isinstance(one, OSError)}
    if numbers & {errno.EACCES, errno.EPERM}:
        return PrerequisiteError(
            f"this user may not use the container engine at {endpoint}",
            hint="sudo usermod -aG docker $USER, then log in again; or, without Docker: "
            "qmd-remote up --generation process",
            code="docker.permission",
        )
    text = " ".join(str(one) for one in _causes(error))
    if re.search(OLD, text, re.IGNORECASE):
        return of_text(text, doing="talking to the container engine")
    if "timed out" in text:
        return PrerequisiteError(
            f"the container engine at {endpoint} does not answer in time",
            hint="look at it: systemctl status docker; and if it hangs: sudo systemctl restart docker"
            if endpoint in USUAL
            else f"see whether the address is right: echo $DOCKER_HOST; docker context ls; or {OWN}",
            code="docker.down",
        )
    without = "or, without one: qmd-remote up --generation process, or --generation off"
    if endpoint not in USUAL:
        own = "systemctl --user start docker" if endpoint.startswith("unix:///run/user/") else "start it there"
        return PrerequisiteError(
            f"no container engine answers at {endpoint}, which DOCKER_HOST or Docker's context names",
            hint=f"{own}; or {OWN}; {without}",
            code="docker.down",
        )
    missing = errno.ENOENT in numbers
    return PrerequisiteError(
        f"no container engine answers at {endpoint}" + (": it is not installed, or not started" if missing else ""),
        hint=f"start it: sudo systemctl start docker; or install Docker Engine; {without}",
        code="docker.down",
    )


def of_address(why: str) -> QmdRemoteError:
    """The error for an address of an engine that cannot be one, or a Docker context that is not there."""
    return PrerequisiteError(
        f"where the container engine is cannot be told: {_short(why)}",
        hint="see what is set: echo $DOCKER_HOST $DOCKER_CONTEXT; docker context ls",
        code="docker.address",
    )


def remote(endpoint: str) -> QmdRemoteError:
    """The error for an engine on another machine."""
    return PrerequisiteError(
        f"the container engine at {endpoint} is on another machine: its ports and folders are not this one's",
        hint="install qmd-remote there and run it there; or use this machine's engine: unset DOCKER_HOST, "
        "docker context use default",
        code="docker.remote",
    )


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and all it came from, by cause, by context, and as an argument: the SDK's layers use all three."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or one in found:
            continue
        found.append(one)
        todo += [one.__cause__, one.__context__, *(part for part in one.args if isinstance(part, BaseException))]
        reason = getattr(one, "reason", None)
        todo.append(reason if isinstance(reason, BaseException) else None)
    return found


def _short(text: str) -> str:
    """One line of bounded length. Engines put each layer's words before those of the one below: the cause is last."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"…{line[1 - LONGEST :]}"
