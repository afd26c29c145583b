"""One container of ours, as data: what `docker run` would need, its labels, and the hash that tells drift.

Pure, but for the look-up of an address that is a name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qmd_remote.errors import UsageError
from qmd_remote.reach import numeric

OWNER_LABEL = "qmd-remote.owner"  # which installation it belongs to: a digest of its state folder
SERVICE_LABEL = "qmd-remote.service"  # embed or generation
SPEC_LABEL = "qmd-remote.spec"  # what it was made from
VERSION_LABEL = "qmd-remote.version"

VLLM_SERVE = ("vllm", "serve")

# how the weights get there, which is no reason to remake what serves them already
NOT_IN_SPEC = frozenset({"HF_HUB_OFFLINE", "HF_TOKEN"})


@dataclass(frozen=True)
class Mount:
    """A folder of the host (an absolute path) or a named volume, and where the container sees it."""

    source: str
    target: str
    read_only: bool = False
    kind: Literal["bind", "volume"] = "bind"


@dataclass(frozen=True)
class Ulimit:
    """A resource limit; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, kw_only=True)
class Container:
    """What to run. `command` is whole, program included; the image's entrypoint may say its first words already.

    `publish` is (address, port of the host, port of the container); None with the host's own network. `gpus` is all,
    none, or device numbers ("0,1"). `user` is UID:GID, or the image's own. `secret_env` reaches the container like
    `env`, and is shown nowhere.
    """

    name: str
    service: str
    image: str
    command: tuple[str, ...]
    owner: str
    version: str
    gpus: str = "all"
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    mounts: tuple[Mount, ...] = ()
    publish: tuple[str, int, int] | None = None
    ulimits: tuple[Ulimit, ...] = ()
    shm_bytes: int = 0
    user: str = ""
    log_max_size: str = "20m"
    log_files: int = 3

    @property
    def spec_hash(self) -> str:
        """Twelve hexadecimal digits that change with anything that a running container would have to be remade for."""
        hidden = {name: _digest(value) for name, value in self.secret_env.items() if name not in NOT_IN_SPEC}
        shown = {name: value for name, value in self.env.items() if name not in NOT_IN_SPEC}
        values = asdict(self) | {"env": shown, "secret_env": hidden}
        # another version of this program that wants the same container must not restart it
        del values["version"]
        return _digest(json.dumps(values, sort_keys=True))

    @property
    def labels(self) -> dict[str, str]:
        """What makes the container recognisable as ours, and as this one."""
        return {
            OWNER_LABEL: self.owner,
            SERVICE_LABEL: self.service,
            SPEC_LABEL: self.spec_hash,
            VERSION_LABEL: self.version,
        }

    def as_dict(self) -> dict[str, Any]:
        """The container as a member of the JSON envelope's data: secrets by name only."""
        return asdict(self) | {"secret_env": sorted(self.secret_env), "labels": self.labels}


def owner_of(run_dir: Path) -> str:
    """Who an installation's containers belong to. Two installations on one machine do not touch each other's."""
    return _digest(str(run_dir.absolute()))


def require_name(name: str, setting: str) -> str:
    """A name that an engine takes for a container. Raises UsageError."""
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name):
        raise UsageError(
            f"'{name}' is no name for a container", hint=f"{setting}: two or more letters, digits, dots, - and _"
        )
    return name


def arguments(command: Sequence[str], entrypoint: Sequence[str]) -> list[str]:
    """What to pass to an image, given its entrypoint, so that `command` runs.

    An entrypoint that is, or ends with, the first words of the command has said them already; any other one is a
    wrapper that runs what it is given, as NVIDIA's is.
    """
    for said in range(min(len(command), len(entrypoint)), 0, -1):
        theirs = [Path(entrypoint[-said]).name, *entrypoint[len(entrypoint) - said + 1 :]]
        if theirs == list(command[:said]):
            return list(command[said:])
    if list(entrypoint[-2:]) == ["-m", "vllm.entrypoints.openai.api_server"] and tuple(command[:2]) == VLLM_SERVE:
        return ["--model", *command[2:]]
    return list(command)


def published(publish: tuple[str, int, int]) -> str:
    """Where a container is published, as `docker run -p` and compose want it. Raises ConfigError as `numeric`."""
    host, outside, inside = publish
    address = numeric(host)
    return f"{f'[{address}]' if ':' in address else address}:{outside}:{inside}"


def docker_run(container: Container, entrypoint: Sequence[str] = ()) -> str:
    """The `docker run` line that does the same with an image of this entrypoint. Secrets come from the shell.

    Raises ConfigError as `published`.
    """
    words = ["docker run -d", f"--name {shlex.quote(container.name)}", "--init"]
    if container.gpus != "none":
        device = "all" if container.gpus == "all" else f'"device={container.gpus}"'
        words.append(f"--gpus {shlex.quote(device) if device != 'all' else device}")
    if container.shm_bytes:
        words.append(f"--shm-size {container.shm_bytes}")
    words += [f"--ulimit {one.name}={one.soft}:{one.hard}" for one in container.ulimits]
    words.append("--security-opt no-new-privileges")
    if container.user:
        words.append(f"--user {container.user}")
    words += [f"--label {name}={value}" for name, value in container.labels.items()]
    words += [
        f"--log-driver json-file --log-opt max-size={container.log_max_size} --log-opt max-file={container.log_files}"
    ]
    words += [f"-v {shlex.quote(f'{one.source}:{one.target}' + (':ro' if one.read_only else ''))}"
              for one in container.mounts]  # fmt: skip
    words += [f"-e {shlex.quote(f'{name}={value}')}" for name, value in container.env.items()]
    words += [f"-e {name}" for name in container.secret_env]
    if container.publish is None:
        words.append("--network host")
    else:
        words.append(f"-p {published(container.publish)}")
    return " \\\n  ".join(
        [*words, f"{shlex.quote(container.image)} {shlex.join(arguments(container.command, entrypoint))}"]
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
