"""`qmd-remote compose`: the plan of `up`, with both services in containers, as a compose file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from qmd_remote import __version__, presets, settings, up_flow
from qmd_remote.errors import PrerequisiteError, UsageError
from qmd_remote.launch import compose as compose_file
from qmd_remote.launch import docker_plan, embed_plan, hardware, memory_plan, plan, vllm_plan
from qmd_remote.launch import up as launch_up
from qmd_remote.launch.container import Container
from qmd_remote.launch.gpu import Gpu, SystemMemory
from qmd_remote.launch.hardware import Hardware
from qmd_remote.output import Output
from qmd_remote.services import GENERATION
from qmd_remote.settings import Settings

GIB = 1 << 30
HOME = "${HF_HOME:-~/.cache/huggingface}"
HEAD = """\
# Both services of qmd-remote, from: qmd-remote compose{given}
#   docker compose up -d --build      start them; the first time pulls an image, builds one, and downloads models
#   docker compose logs -f            see how far they are
# A key and the hub's token come from the shell or from a file .env beside this one:
#   QMD_REMOTE_API_KEY=…
#   HF_TOKEN=…
"""
NOWHERE = Hardware(
    nvidia=True, apple_gpu=False, vllm=False, transformers_serve=False, server=True, bundled={}
)  # a machine of which nothing is known but that it has NVIDIA's driver
SPARK = replace(
    NOWHERE,
    gpu_names=("NVIDIA GB10",),
    gpus=(Gpu("NVIDIA GB10", compute_capability="12.1"),),
    memory=SystemMemory(int(121.7 * GIB), int(112 * GIB)),
)
ON_CPU = "--gpus none --generation-image IMAGE"


def compose(out: Output, flags: Mapping[str, Any], *, probe: bool) -> int:
    """Write the file to stdout. Raises what the plan raises, and UsageError for what has no place in such a file."""
    wanted = settings.resolve(flags, preset="" if probe else str(flags.get("preset") or "spark"))
    here = hardware.probe() if probe else None
    if not wanted.preset:
        preset, _ = plan.choose_preset(here or NOWHERE)
        wanted = settings.resolve(flags, preset=preset)
    wanted = launch_up.absolute(wanted)
    here = here or elsewhere(wanted)
    require_containers(wanted, here)
    wanted = replace(wanted, generation_engine="docker", embed_engine="docker")
    # of this machine only: what our own services use of it will be theirs, or the project's
    held = up_flow.held(wanted) if probe else {}
    generation, embed = containers(wanted, here, held)
    content = compose_file.compose(generation, embed, keyless=wanted.insecure_no_auth)
    given = f" {out.given}" if out.given else ""
    text = HEAD.format(given=given) + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    if out.as_json:
        return out.finish({"compose": content})
    out.raw(text)
    return 0


def elsewhere(wanted: Settings) -> Hardware:
    """The machine to plan for where this one is not to be looked at. Raises UsageError where too little is known."""
    if wanted.gpus == "none":
        return NOWHERE
    if wanted.preset == "spark":
        if any(number.isdecimal() and int(number) for number in wanted.gpus.split(",")):
            raise UsageError(
                f"a DGX Spark has one GPU, and --gpus {wanted.gpus} names others",
                hint=f"leave --gpus out; or for other machines: qmd-remote compose --preset gpu --no-probe "
                f"--gpus {wanted.gpus} --generation-gpu-share 0.5",
            )
        return SPARK
    if wanted.preset == "gpu" and vllm_plan.chosen_share(wanted):
        return NOWHERE
    raise UsageError(
        f"the preset {wanted.preset} is for machines of many sizes, and --no-probe has none to plan for",
        hint="leave --no-probe out on the machine itself; or say what vLLM gets of its GPU: qmd-remote compose "
        f"--preset gpu --no-probe --generation-gpu-share 0.5; or, without a GPU: {ON_CPU}",
    )


def require_containers(wanted: Settings, here: Hardware) -> None:
    """Refuse what would come out as a file that cannot work. Raises PrerequisiteError (gpu.missing), or UsageError."""
    if wanted.gpus == "none":
        if wanted.generation_image == presets.VLLM_IMAGE:
            raise UsageError(f"{wanted.generation_image} needs a GPU", hint=f"name an image for CPUs: {ON_CPU}")
    elif not here.nvidia:
        raise PrerequisiteError(
            f"{wanted.generation_model} is to run in vLLM's container on an NVIDIA GPU, and no NVIDIA driver is "
            "installed here",
            hint=docker_plan.NO_GPU,
            code="gpu.missing",
        )
    elif wanted.generation_engine != "docker":
        raise UsageError(
            f"with the preset {wanted.preset} generation is '{wanted.generation_engine}', and a compose file has "
            "containers only",
            hint=f"in a container with a GPU: qmd-remote compose --preset gpu; or without one: qmd-remote compose "
            f"--preset {wanted.preset} {ON_CPU}",
        )


def containers(wanted: Settings, here: Hardware, held: Mapping[str, Settings]) -> tuple[Container, Container]:
    """vLLM's container and the embed server's, as they are in a project of compose: both published on their own.

    `held` are our services that run already, as for `up`.
    """
    place = vllm_plan.Place(Path(HOME), Path(HOME) / "hub", cached=False)
    split = None
    if wanted.gpus != "none":
        split = docker_plan.split_of(wanted, here, place, held)
    elif here is not NOWHERE:
        docker_plan.require_memory(wanted, here, place.hub)
    docker_plan.require_fit(wanted, split, "qmd-remote compose")
    share = split.share if split else vllm_plan.chosen_share(wanted) or memory_plan.MOST / 2
    generation = vllm_plan.vllm_container(
        wanted,
        place,
        share=share,
        owner="",
        version=__version__,
        env={"HF_TOKEN": "from the shell"},
        kv_gib=docker_plan.cpu_kv_gib(wanted, place.hub),
    )
    at = compose_file.NAMES[GENERATION], vllm_plan.PORT
    return generation, embed_plan.composed(wanted, generation=at, version=__version__)
