"""What the engine's API answers → our values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from qmd_remote.launch.container import OWNER_LABEL, SERVICE_LABEL, SPEC_LABEL
from qmd_remote.launch.engine import EngineFacts, Found, ImageFacts, Published

DOCKER_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}  # of the architectures, as images call them
NEVER = "0001"  # the year of a moment that has not been

# a run's first lines may be older than the moment that the engine notes as its start; it waits for this long, or
# longer, before it starts a container anew
START_SLACK_S = 0.1


def engine_facts(endpoint: str, info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineFacts:
    """The answers to /info and /version. Podman tells what it is among the components of its version."""
    machine = str(info.get("Architecture") or "")
    components = [str(one.get("Name") or "") for one in version.get("Components") or ()]
    return EngineFacts(
        endpoint=endpoint,
        version=str(info.get("ServerVersion") or version.get("Version") or ""),
        architecture=DOCKER_NAMES.get(machine, machine),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        cdi=tuple(info.get("CDISpecDirs") or ()),
        rootless=any("rootless" in option for option in info.get("SecurityOptions") or ()),
        podman=any("podman" in name.lower() for name in components),
        root_dir=str(info.get("DockerRootDir") or ""),
    )


def image_facts(told: Mapping[str, Any]) -> ImageFacts:
    """The answer to /images/NAME/json."""
    entrypoint = (told.get("Config") or {}).get("Entrypoint") or ()
    digests = told.get("RepoDigests") or [""]
    return ImageFacts(
        id=str(told["Id"]),
        architecture=str(told.get("Architecture") or ""),
        entrypoint=(entrypoint,) if isinstance(entrypoint, str) else tuple(entrypoint),
        digest=str(digests[0]).rpartition("@")[2],
        size_bytes=int(told.get("Size") or 0),
    )


def found(told: Mapping[str, Any]) -> Found:
    """The answer to /containers/NAME/json."""
    state, config = told.get("State") or {}, told.get("Config") or {}
    labels = config.get("Labels") or {}
    policy = ((told.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name") or "no"
    return Found(
        id=str(told["Id"]),
        name=str(told.get("Name") or "").lstrip("/"),
        image=str(config.get("Image") or ""),
        image_id=str(told.get("Image") or ""),
        state=str(state.get("Status") or ""),
        owner=str(labels.get(OWNER_LABEL) or ""),
        service=str(labels.get(SERVICE_LABEL) or ""),
        spec_hash=str(labels.get(SPEC_LABEL) or ""),
        exit_code=int(state.get("ExitCode") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        restarts=int(told.get("RestartCount") or 0),
        started_at=str(state.get("StartedAt") or ""),
        restart_policy=str(policy),
        error=str(state.get("Error") or ""),
    )


def published(listed: Iterable[Mapping[str, Any]]) -> tuple[Published, ...]:
    """The ports of the host in the answer to /containers/json."""
    ports = []
    for one in listed:
        name = str((one.get("Names") or [one.get("Id") or ""])[0]).lstrip("/")
        labels = one.get("Labels") or {}
        owner, service = str(labels.get(OWNER_LABEL) or ""), str(labels.get(SERVICE_LABEL) or "")
        ports += [
            Published(name, str(port.get("IP") or ""), int(port["PublicPort"]), owner, service)
            for port in one.get("Ports") or ()
            if port.get("PublicPort") and port.get("Type", "tcp") == "tcp"
        ]
    return tuple(ports)


def log_start(told: Mapping[str, Any], since: str) -> float | None:
    """From when on a container's lines are those of its run that started at `since`; None for all of them.

    `told` is the answer to /containers/NAME/json. What lies between two runs is their border, where it is known.
    """
    started = moment(since)
    if started is None:
        return None
    state = told.get("State") or {}
    ended = moment(str(state.get("FinishedAt") or ""))
    if ended is None:  # the first run goes on
        return None
    return ended if ended < started else started - START_SLACK_S


def moment(text: str) -> float | None:
    """An engine's time, such as 2026-11-23T05:05:01.123456789Z, in seconds since 1970; None where it tells none."""
    if not text or text.startswith(NEVER):
        return None
    try:
        # Python reads the nanoseconds as well, and drops what is below a microsecond
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
