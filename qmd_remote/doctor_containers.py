"""What `doctor` looks at where containers are wanted: their engine, its way to the GPU, the plan of its memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from qmd_remote import hub_cache
from qmd_remote.doctor import Finding, ok, skipped
from qmd_remote.errors import QmdRemoteError
from qmd_remote.launch import containers, docker_plan, docker_preflight
from qmd_remote.launch.docker_errors import TOOLKIT
from qmd_remote.launch.engine import Engine, EngineFacts
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.memory_plan import gib
from qmd_remote.launch.plan import Plan
from qmd_remote.settings import Settings

HOOK = "nvidia-container-runtime-hook"  # what engines without CDI run for --gpus


def wanted(settings: Settings) -> bool:
    """Whether `up` would run a container."""
    return "docker" in {settings.generation_engine, settings.embed_engine}


def engine(settings: Settings, connected: Callable[[], Engine], planned: Callable[[], Plan]) -> Finding:
    """The engine, which images are here, and room for those that are not. Raises for one that has to be built."""
    if not wanted(settings):
        return skipped("no container is wanted")
    at = connected()
    facts = at.facts()
    rootless = ", rootless" if facts.rootless else ""
    here = f"{_kind(facts)} {facts.version} ({facts.architecture}{rootless}) at {facts.endpoint}"
    try:
        all_wanted = containers.planned(planned()).values()
    except QmdRemoteError:  # told by the checks of what is missing for a plan
        return ok(here)
    absent = [container for container in all_wanted if at.image(container.image) is None]
    for container in absent:
        docker_preflight.look_at_absence(container)
    tight = [warning for container in absent for warning in docker_preflight.look_at_disk(container, facts)]
    if tight:
        return Finding("warning", f"{here}; {tight[0]}", "free some space: docker system df, then docker image prune")
    images = ", ".join(container.image for container in absent)
    return ok(f"{here}; `up` has to pull {images}" if images else here)


def gpu(settings: Settings, here: Hardware, connected: Callable[[], Engine]) -> Finding:
    """Whether the engine can give a container a GPU, as far as that shows."""
    if not wanted(settings) or settings.gpus == "none":
        return skipped("no container with a GPU is wanted")
    if not here.nvidia:
        return skipped("there is no NVIDIA GPU")
    try:
        facts = connected().facts()
    except QmdRemoteError:
        return skipped("the container engine does not answer")
    if why := docker_preflight.podman_lacks_gpus(facts):
        return Finding("failure", why, docker_preflight.NEWER_PODMAN)
    way = docker_preflight.gpu_way(facts)
    if way or shutil.which(HOOK):
        return ok(f"by {way}" if way else "the NVIDIA Container Toolkit is installed")
    return Finding(
        "failure", f"{_kind(facts)} knows no way to the GPU: the NVIDIA Container Toolkit is missing", TOOLKIT
    )


def memory(settings: Settings, here: Hardware, planned: Callable[[], Plan]) -> Finding:
    """Whether vLLM and the embed server fit on the GPU together."""
    in_container = settings.generation_engine == "docker"
    as_process = settings.generation_engine == "process" and docker_plan.process_program(settings, here) == "vllm"
    if not (in_container or as_process):
        return skipped("no vLLM is wanted")
    if in_container and settings.gpus == "none":
        return _on_cpu(settings, here, planned)
    if not here.nvidia:
        return skipped("there is no NVIDIA GPU")
    split = planned().generation.memory
    if split is None:
        return skipped("the size of the GPU's memory is not known: nvidia-smi does not tell")
    named = f" --preset {settings.preset}" if settings.origins.get("preset") == "flag" else ""
    docker_plan.require_fit(settings, split, f"qmd-remote up{named}")
    vllm = gib(round(split.share * split.memory.total))
    shared = ", which CPU and GPU share" if split.memory.unified else ""
    return ok(f"vLLM {vllm}, embed server {gib(split.demand.embed)}, of {gib(split.memory.total)}{shared}")


def _on_cpu(settings: Settings, here: Hardware, planned: Callable[[], Plan]) -> Finding:
    """What an image for CPUs needs of this machine's memory; the plan refuses what is too large."""
    planned()
    demand = docker_plan.demand_of(settings, hub_cache.folder())
    total = f", of {gib(here.memory.total)}" if here.memory.total else ""
    return ok(f"vLLM on the CPU: weights {gib(demand.weights)}, KV cache {gib(demand.kv_cache)}{total}")


def _kind(facts: EngineFacts) -> str:
    return "Podman" if facts.podman else "Docker Engine"
