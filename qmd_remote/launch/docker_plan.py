"""(Settings, Hardware) → the containers of `up`, and the split of the GPU's memory between vLLM, in a container or not,
and the embed server. Pure but for sizes of files in the hub's cache."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qmd_remote import __version__, catalogue, hub_cache, paths
from qmd_remote.errors import PrerequisiteError, UsageError
from qmd_remote.launch import embed_plan, memory_plan, model_facts, vllm_plan
from qmd_remote.launch.container import Container, owner_of
from qmd_remote.launch.gpu import Gpu
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.memory_plan import GIB, Choice, Demand, Memory, MemoryPlan
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings

ACTIVATIONS = 2 * GIB  # of the embed server at its largest batch
FEW_SEQUENCES, SHORT_CONTEXT = 2, 4096
NAMED = 4  # alternatives are to choose from
CPU_RESERVE = 2 * GIB  # for the system, and for what an engine needs beside weights and cache
NO_GPU = (
    "install NVIDIA's driver (check it with: nvidia-smi); or, without a GPU: qmd-remote up --preset cpu, or a CPU "
    "image: --generation docker --gpus none --generation-image IMAGE"
)


def generation(
    settings: Settings, hardware: Hardware, held: Mapping[str, Settings], env: Mapping[str, str]
) -> tuple[Container, MemoryPlan | None]:
    """vLLM's container and the memory plan; None without a GPU, or where its size is not known.

    Raises PrerequisiteError when there is no such GPU (gpu.missing), or no room on a CPU (memory.plan), and what
    `vllm_plan.vllm_container` raises.
    """
    place = place_of(settings, env)
    split = None
    require_gpus(settings, hardware)
    if settings.gpus != "none":
        if not hardware.nvidia:
            raise PrerequisiteError(
                f"{settings.generation_model} is to run in vLLM's container on an NVIDIA GPU, and no NVIDIA driver is "
                "installed here",
                hint=NO_GPU,
                code="gpu.missing",
            )
        split = split_of(settings, hardware, place, held)
    else:
        require_memory(settings, hardware, place.hub)
    container = vllm_plan.vllm_container(
        settings,
        place,
        share=split.share if split else vllm_plan.chosen_share(settings) or memory_plan.MOST / 2,
        owner=owner_of(paths.run_dir(env)),
        version=__version__,
        env=env,
        kv_gib=cpu_kv_gib(settings, place.hub),
    )
    return container, split


def require_gpus(settings: Settings, hardware: Hardware) -> None:
    """Refuse GPUs that there cannot be. Raises UsageError, or PrerequisiteError for one that is not there."""
    if settings.gpus in {"all", "none"}:
        return
    if not re.fullmatch(r"\d+(,\d+)*", settings.gpus):
        raise UsageError(
            f"the GPUs for containers are '{settings.gpus}', and must be all, none, or numbers such as 0,1",
            hint="--gpus all; their numbers: nvidia-smi -L",
        )
    missing = [number for number in settings.gpus.split(",") if int(number) >= len(hardware.gpus)]
    if hardware.gpus and missing:
        raise PrerequisiteError(
            f"there is no GPU {missing[0]} here; there are {len(hardware.gpus)}, counted from 0",
            hint="their numbers: nvidia-smi -L; or take all: --gpus all",
            code="gpu.missing",
        )


def require_fit(settings: Settings, split: MemoryPlan | None, command: str = "qmd-remote up") -> None:
    """Refuse a plan that does not fit, naming what would, for who types `command`. Raises PrerequisiteError."""
    if split is None or not split.why_not:
        return
    added = f"{command}   with one of these added: {'  or  '.join(split.alternatives[:NAMED])}; or "
    raise PrerequisiteError(
        f"{settings.generation_model} does not fit: {split.why_not}",
        hint=f"{added if split.alternatives else ''}end what else uses it",
        code="memory.plan",
    )


def require_memory(settings: Settings, hardware: Hardware, hub: Path) -> None:
    """Refuse a model that an image for CPUs could not hold in this machine's memory, were it free. As `require_fit`."""
    total = hardware.memory.total
    if not total:
        return

    def needs(**change: object) -> int:
        demand = demand_of(replace(settings, **change), hub)  # type: ignore[arg-type]
        return demand.weights + demand.kv_cache + CPU_RESERVE

    if needs() <= total:
        return
    fitting = [option for option, change in _changes(settings).items() if needs(**change) <= total]
    options = "  or  ".join(fitting[:NAMED])
    raise PrerequisiteError(
        f"{settings.generation_model} does not fit: it needs {memory_plan.gib(needs())} of memory, and this machine "
        f"has {memory_plan.gib(total)}",
        hint=f"qmd-remote up   with one of these added: {options}"
        if options
        else "ask for less: a smaller model, --generation-context, --generation-sequences",
        code="memory.plan",
    )


def embed(settings: Settings, hardware: Hardware, cache: Path, env: Mapping[str, str]) -> Container:
    """The embed server's container. Raises as `require_gpus`."""
    require_gpus(settings, hardware)
    return embed_plan.embed_container(
        settings,
        hub=hf_home(env),
        cache=hub_cache.folder(env),
        ours=cache / "container",
        owner=owner_of(paths.run_dir(env)),
        version=__version__,
        user=f"{os.getuid()}:{os.getgid()}",
        gpu=hardware.nvidia and settings.device != "cpu",
        env=env,
    )


def process_program(settings: Settings, hardware: Hardware) -> str:
    """The program that generation without a container is: vllm or transformers."""
    if settings.generation_command != "auto":
        return settings.generation_command
    return "vllm" if hardware.vllm and hardware.nvidia else "transformers"


def process_split(
    settings: Settings, hardware: Hardware, held: Mapping[str, Settings], env: Mapping[str, str]
) -> MemoryPlan | None:
    """The same split for a vLLM that is a process: of the GPUs that are visible it takes the first.

    None where there is no GPU, or which ones are visible is not told by numbers.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES", "all")
    if not hardware.nvidia or not re.fullmatch(r"all|\d+(,\d+)*", visible):
        return None
    # the embed server sees the same ones, and counts them as one in a container does those that it is given
    seen = replace(settings, gpus=visible, embed_engine="docker")
    return split_of(seen, hardware, place_of(settings, env), held)


def split_of(
    settings: Settings, hardware: Hardware, place: vllm_plan.Place, held: Mapping[str, Settings]
) -> MemoryPlan | None:
    """The split of the first GPU that is used; None where nvidia-smi told nothing. Raises as `require_gpus`."""
    require_gpus(settings, hardware)
    gpu = used_gpu(settings, hardware.gpus)
    if gpu is None:
        return None
    memory = memory_of(gpu, hardware)
    if not memory.total:
        return None
    demand = demand_of(settings, place.hub, unified=memory.unified)
    kept = _kept(held, place.hub, memory, hardware)
    memory = replace(memory, available=min(memory.available + kept, memory.total))
    share = vllm_plan.chosen_share(settings)
    others = _others(settings, place.hub, unified=memory.unified)
    return memory_plan.make(memory, demand, chosen_share=share, others=others)


def _kept(held: Mapping[str, Settings], hub: Path, memory: Memory, hardware: Hardware) -> int:
    """What our services have of a device now, by the settings that they run with."""
    kept = 0
    if GENERATION in held and _is_vllm(held[GENERATION], hardware):
        runs = held[GENERATION]
        demand = demand_of(runs, hub, unified=memory.unified)
        kept += int(memory_plan.make(memory, demand, chosen_share=vllm_plan.chosen_share(runs)).share * memory.total)
    if EMBED in held:
        kept += _embed_demand(held[EMBED], hub, unified=memory.unified)
    return kept


def _is_vllm(settings: Settings, hardware: Hardware) -> bool:
    if settings.generation_engine == "docker":
        return settings.gpus != "none"
    return settings.generation_engine == "process" and process_program(settings, hardware) == "vllm"


def memory_of(gpu: Gpu, hardware: Hardware) -> Memory:
    """A GPU's memory; the system's where it has none of its own. `total` is 0 where nobody tells."""
    if gpu.unified:
        return Memory(hardware.memory.total, hardware.memory.available, unified=True)
    total = gpu.total or 0
    # who does not tell what is free is no reason to refuse: vLLM looks again
    return Memory(total, total if gpu.free is None else min(gpu.free, total))


def demand_of(settings: Settings, hub: Path, *, unified: bool = False) -> Demand:
    """What these settings need of the device that vLLM uses; of shared memory also what runs on the CPU."""
    facts = model_facts.generation(settings.generation_model, hub)
    room = vllm_plan.room(settings)
    return Demand(
        weights=facts.weights // room.gpus,
        kv_cache=facts.kv_per_token * room.context * room.sequences // room.gpus,
        embed=_embed_demand(settings, hub, unified=unified),
    )


def _embed_demand(settings: Settings, hub: Path, *, unified: bool) -> int:
    models = {settings.embed_model, settings.rerank_model}
    if settings.device in {"cpu", "mps"}:
        weights = sum(model_facts.embedding(model, hub, half=False) for model in models)
        return weights + ACTIVATIONS if unified else 0
    if _embed_gpu(settings) != _first(settings.gpus):
        return 0
    return (
        sum(model_facts.embedding(model, hub, half=True) for model in models) + ACTIVATIONS + memory_plan.CUDA_CONTEXT
    )


def _embed_gpu(settings: Settings) -> int:
    """The number of the GPU that the embed server computes on; in a container it counts those that it was given."""
    _, _, number = settings.device.partition(":")
    at = int(number or 0)
    given = _given(settings.gpus)
    return given[at] if settings.embed_engine == "docker" and at < len(given) else at


def cpu_kv_gib(settings: Settings, hub: Path) -> int:
    """GiB of KV cache for an image for CPUs."""
    return max(1, -(-demand_of(settings, hub).kv_cache // GIB))


def used_gpu(settings: Settings, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The GPU that vLLM uses: the first of those that it is given."""
    number = _first(settings.gpus)
    return gpus[number] if number < len(gpus) else None


def place_of(settings: Settings, env: Mapping[str, str]) -> vllm_plan.Place:
    """Where the hub's cache is, and whether the generation model is in it."""
    hub = hub_cache.folder(env)
    snapshot = hub_cache.main_snapshot(settings.generation_model, hub)
    return vllm_plan.Place(hf_home(env), hub, cached=snapshot is not None and model_facts.is_whole(snapshot))


def to_download(settings: Settings, env: Mapping[str, str] = os.environ) -> bool:
    """Whether the generation model has to come from the hub before a container can serve it."""
    return not (settings.generation_model.startswith("/") or place_of(settings, env).cached)


def hf_home(env: Mapping[str, str]) -> Path:
    """The hub's home by its library's rule: HF_HOME, else below the user's cache."""
    named = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(named)).expanduser()


def _first(gpus: str) -> int:
    """The number of the first GPU of those that containers are given."""
    return next(iter(_given(gpus)), 0)


def _given(gpus: str) -> list[int]:
    """The numbers that containers are given, in the order in which CUDA counts them there; none for all, or none."""
    return [] if gpus in {"all", "none"} else sorted(int(number) for number in gpus.split(","))


def _others(settings: Settings, hub: Path, *, unified: bool) -> dict[str, Choice]:
    """What could be asked for instead, by the options to type, from the least loss on.

    A share that a person chose is given back to the plan first: with it, smaller models would need no less.
    """
    undo = vllm_plan.planned_share(settings)
    changes = _changes(settings)
    if undo:
        changes = {"": dict[str, object](), **changes}
    if settings.device != "cpu":
        on_cpu: dict[str, dict[str, object]] = {
            f"--device cpu {option}".strip(): {**change, "device": "cpu"} for option, change in changes.items()
        }
        changes |= {"--device cpu": {"device": "cpu"}, **on_cpu}
    found = {}
    for option, change in changes.items():
        other = replace(settings, **change)  # type: ignore[arg-type]
        found[f"{undo} {option}".strip()] = Choice(demand_of(other, hub, unified=unified))
    return found


def _changes(settings: Settings) -> dict[str, dict[str, object]]:
    """Settings that need less, by their options."""
    room = vllm_plan.room(settings)
    changes: dict[str, dict[str, object]] = {}
    if room.sequences == settings.generation_sequences > FEW_SEQUENCES:
        changes[f"--generation-sequences {FEW_SEQUENCES}"] = {"generation_sequences": FEW_SEQUENCES}
    if room.context == settings.generation_context > SHORT_CONTEXT:
        changes[f"--generation-context {SHORT_CONTEXT}"] = {"generation_context": SHORT_CONTEXT}
    for model in catalogue.CATALOGUE.values():
        if model.role == "generation" and model.recommended and model.id != settings.generation_model:
            changes[f"--generation-model {model.id}"] = {"generation_model": model.id}
    return changes
