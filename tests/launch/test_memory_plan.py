"""The split of a device's memory, over machines from an 8 GB laptop through a DGX Spark to an H200."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.catalogue import CATALOGUE
from qmd_remote.errors import PrerequisiteError, UsageError
from qmd_remote.launch import docker_plan, memory_plan, vllm_plan
from qmd_remote.launch.gpu import Gpu, SystemMemory
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.memory_plan import GIB, Choice, Demand, Memory, MemoryPlan
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings

NOWHERE = vllm_plan.Place(Path("/nowhere"), Path("/nowhere/hub"), cached=False)
NONE: dict[str, Settings] = {}
DESIGN = Settings(generation_engine="docker")
MODELS = [
    *(model.id for model in CATALOGUE.values() if model.role == "generation"),
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-14B-Instruct",
    "acme/own-1.5B",
    "acme/unknown",
]


def machine(gpu: Gpu, system: SystemMemory | None = None) -> Hardware:
    """A machine with this GPU."""
    return Hardware(
        nvidia=True,
        apple_gpu=False,
        vllm=False,
        transformers_serve=False,
        server=True,
        bundled={},
        gpus=(gpu,),
        memory=system or SystemMemory(64 * GIB, 60 * GIB),
    )


def discrete(total_gib: float, free_gib: float | None = None) -> Hardware:
    """A machine whose GPU has memory of its own; half a GiB is in use unless told otherwise."""
    total = int(total_gib * GIB)
    return machine(Gpu("NVIDIA GPU", total, total - GIB // 2 if free_gib is None else int(free_gib * GIB)))


def spark(available_gib: float = 112) -> Hardware:
    """A DGX Spark: its driver reports N/A, and the memory is the system's."""
    return machine(Gpu("NVIDIA GB10"), SystemMemory(int(121.7 * GIB), int(available_gib * GIB)))


def planned(settings: Settings, hardware: Hardware, held: Mapping[str, Settings] = NONE) -> MemoryPlan:
    """The plan, which must be there."""
    made = docker_plan.split_of(settings, hardware, NOWHERE, held)
    assert made is not None
    return made


SIZES = st.sampled_from([8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141])
MACHINES = st.one_of(
    st.builds(lambda total, used: discrete(total, total * (1 - used)), SIZES, st.floats(0, 1)),
    st.builds(spark, st.floats(0, 121)),
)
SETTINGS = st.builds(
    Settings,
    generation_engine=st.just("docker"),
    generation_model=st.sampled_from(MODELS),
    generation_context=st.sampled_from([256, 2048, 4096, 8192, 32768]),
    generation_sequences=st.integers(1, 64),
    generation_gpu_share=st.sampled_from([0.0, 0.0, 0.01, 0.333, 0.5, 0.95]),
    generation_args=st.sampled_from(["", "--dtype half", "--max-num-seqs 2 --max-model-len=1k", "-tp 2"]),
    device=st.sampled_from(["auto", "cuda", "cuda:1", "cpu"]),
)


@given(SETTINGS, MACHINES)
def test_what_fits_leaves_room_for_everybody(settings: Settings, hardware: Hardware):
    """No plan that is let through gives away more than is free: vLLM's share, the embed server and the reserve."""
    made = planned(settings, hardware)
    if not made.why_not:
        share = made.share * made.memory.total
        assert share + made.demand.embed + memory_plan.reserve(made.memory) <= made.memory.available
        assert made.parts["free"] >= 0
    elif made.share <= memory_plan.MOST and not made.chosen:
        assert made.parts["free"] < 0 or made.share == memory_plan.MOST


@given(SETTINGS, MACHINES)
def test_the_share_holds_what_vllm_needs(settings: Settings, hardware: Hardware):
    """A planned share is whole hundredths between 0.01 and 0.90, and where the plan fits never less than the needs."""
    made = planned(settings, hardware)
    if made.chosen:
        assert settings.generation_gpu_share == made.share
        return
    assert 0.01 <= made.share <= 0.90
    assert round(made.share, 2) == made.share
    if not made.why_not:
        needs = made.demand.generation(unified=made.memory.unified)
        assert needs <= made.share * made.memory.total * (1 + 1e-9)
        assert made.share == 0.01 or needs > (made.share - 0.01 - 1e-9) * made.memory.total


@given(SETTINGS, MACHINES, st.floats(0, 1))
def test_the_share_does_not_depend_on_what_is_free(settings: Settings, hardware: Hardware, free: float):
    """The same settings on the same machine want the same share, whatever runs there: containers are kept for it."""
    (gpu,) = hardware.gpus
    later = replace(
        hardware,
        gpus=(replace(gpu, free=None if gpu.total is None else int(gpu.total * free)),),
        memory=replace(hardware.memory, available=int(hardware.memory.total * free)),
    )
    assert planned(settings, hardware).share == planned(settings, later).share


@given(SETTINGS, MACHINES)
def test_the_parts_are_the_whole(settings: Settings, hardware: Hardware):
    """The parts of the bar add up to the device, and only what is missing is negative."""
    made = planned(settings, hardware)
    assert made.memory.total == sum(made.parts.values())
    assert min(size for part, size in made.parts.items() if part != "free") >= 0


@given(SETTINGS, MACHINES)
def test_a_refusal_has_numbers_and_alternatives_that_fit(settings: Settings, hardware: Hardware):
    """Each alternative, typed in addition, is a plan that fits; the refusal itself is in GiB."""
    made = planned(settings, hardware)
    if not made.why_not:
        assert () == made.alternatives
        return
    assert "GiB" in made.why_not
    for option in made.alternatives:
        assert not planned(with_options(settings, option), hardware).why_not


def with_options(settings: Settings, line: str) -> Settings:
    """The settings with the options of a command line, as `up` would have them."""
    import shlex

    words = shlex.split(line)
    changes = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }
    typed: dict[str, object] = {name: type(getattr(settings, name))(value) for name, value in changes.items()}
    return replace(settings, **typed)  # type: ignore[arg-type]


SMALL = st.integers(0, 40 * GIB)
DEMANDS = st.builds(Demand, weights=SMALL, kv_cache=SMALL, embed=SMALL)
MEMORY = st.builds(
    lambda total, share, unified: Memory(total, int(total * share), unified),
    st.integers(GIB, 200 * GIB),
    st.floats(0, 1),
    st.booleans(),
)


@given(DEMANDS, st.floats(0.87, 1), st.integers(0, 100 * GIB), st.booleans(), st.integers(0, 20 * GIB))
def test_more_room_never_hurts(demand: Demand, free: float, spare: int, unified: bool, more: int):
    """What fits goes on to fit when more is free, and when less is needed."""
    # a device on which it fits: all that is needed is 85 % of it at most, and the share is rounded up by 1 %
    needs = demand.generation(unified=unified) + demand.embed + memory_plan.reserve(Memory(0, 0, unified))
    total = int(needs / 0.85) + spare + 1
    memory = Memory(total, int(total * free), unified)
    assert memory_plan.fits(memory, Choice(demand))
    assert memory_plan.fits(replace(memory, available=memory.available + more), Choice(demand))
    for less in (
        replace(demand, weights=max(demand.weights - more, 0)),
        replace(demand, kv_cache=max(demand.kv_cache - more, 0)),
        replace(demand, embed=max(demand.embed - more, 0)),
    ):
        assert memory_plan.fits(memory, Choice(less))


@given(MEMORY, DEMANDS, st.integers(0, 20 * GIB))
def test_the_share_grows_with_the_needs(memory: Memory, demand: Demand, more: int):
    """Who needs more gets no smaller share, and the same needs are no larger share of a larger device."""
    share = memory_plan.make(memory, demand).share
    assert share <= memory_plan.make(memory, replace(demand, weights=demand.weights + more)).share
    assert memory_plan.make(replace(memory, total=memory.total + more), demand).share <= share


@pytest.mark.parametrize(
    ("hardware", "share"),
    [(discrete(24), 0.46), (discrete(48), 0.23), (discrete(80), 0.14), (discrete(141), 0.08), (spark(), 0.12)],
)
def test_the_design_fits_on_the_machines_it_is_for(hardware: Hardware, share: float):
    """The design's three models fit on a GPU of 24 GB, on larger ones, and on a DGX Spark with 0.12 of its memory."""
    made = planned(DESIGN, hardware)
    assert ("", share) == (made.why_not, made.share)


def test_a_laptop_is_told_what_would_fit():
    """On 8 GB the design does not fit: the refusal names vLLM's needs, and the model that fits with the CPU's help."""
    made = planned(DESIGN, discrete(8))
    assert "vLLM needs 11.0 GiB" in made.why_not
    assert "over 90% of the 8.0 GiB" in made.why_not
    assert ("--device cpu --generation-model Qwen/Qwen2.5-0.5B-Instruct",) == made.alternatives
    with pytest.raises(PrerequisiteError) as caught:
        docker_plan.require_fit(DESIGN, made)
    assert ("memory.plan", 5) == (caught.value.code, caught.value.exit_code)
    assert "Qwen/Qwen2.5-3B-Instruct does not fit" in caught.value.message
    assert "Qwen/Qwen2.5-0.5B-Instruct" in caught.value.hint


def test_a_gpu_of_16_gb_offers_the_choice():
    """On 16 GB each of fewer requests, less context, the small model, and the embed server on the CPU is enough."""
    assert (
        "--generation-sequences 2",
        "--generation-context 4096",
        "--generation-model Qwen/Qwen2.5-0.5B-Instruct",
        "--device cpu",
    ) == planned(DESIGN, discrete(16)).alternatives[:4]


def test_what_others_use_is_a_reason_to_refuse():
    """A GPU that is large enough, and taken by another program, is refused with what is free; ending that helps."""
    made = planned(DESIGN, discrete(24, 10))
    assert "and 10.0 GiB of 24.0 GiB are free" in made.why_not
    full = planned(DESIGN, discrete(24, 0))
    assert "0.0 GiB of 24.0 GiB are free" in full.why_not
    with pytest.raises(PrerequisiteError) as caught:
        docker_plan.require_fit(DESIGN, full)
    assert "end what else uses it" in caught.value.hint


def test_our_own_services_are_no_reason_to_refuse():
    """What our running services use is theirs to use again."""
    busy = discrete(24, 8)
    ours = {GENERATION: DESIGN, EMBED: DESIGN}
    assert planned(DESIGN, busy).why_not
    assert not planned(DESIGN, busy, ours).why_not
    assert planned(DESIGN, discrete(24, 23), ours).memory.available <= 24 * GIB


def test_a_smaller_service_of_ours_frees_what_it_has_and_no_more():
    """What is counted as ours is what the running services were planned with, not what is wanted instead."""
    small = replace(DESIGN, generation_model="Qwen/Qwen2.5-0.5B-Instruct")
    running = planned(small, discrete(24))
    others = 12 * GIB
    free = (24 * GIB - others - running.share * 24 * GIB - running.demand.embed) / GIB
    assert planned(DESIGN, discrete(24, free), {GENERATION: small, EMBED: small}).why_not


def test_generation_that_is_no_container_frees_nothing():
    """A process that generates on the CPU has nothing of the GPU to give back."""
    process = replace(DESIGN, generation_engine="process")
    alone = planned(DESIGN, discrete(24, 8))
    assert alone.memory == planned(DESIGN, discrete(24, 8), {GENERATION: process}).memory


def test_shared_memory_keeps_a_reserve_for_the_system():
    """On a DGX Spark 8 GiB are left to the system, and what runs on the CPU uses the same memory."""
    made = planned(DESIGN, spark())
    assert (8 * GIB, True) == (made.parts["reserve"], made.memory.unified)
    assert planned(replace(DESIGN, device="cpu"), spark()).demand.embed > 0
    assert 0 == planned(replace(DESIGN, device="cpu"), discrete(24)).demand.embed
    assert "which CPU and GPU share" in planned(DESIGN, spark(20)).why_not


def test_a_share_that_a_person_chose_is_taken_as_it_is():
    """A chosen share wins, too small or large; when it leaves no room, giving it back to the plan is offered first."""
    small = planned(replace(DESIGN, generation_gpu_share=0.1), discrete(24))
    assert (0.1, True, "") == (small.share, small.chosen, small.why_not)
    large = planned(replace(DESIGN, generation_gpu_share=0.95), discrete(24))
    assert large.why_not
    assert "--generation-gpu-share 0" == large.alternatives[0]
    by_option = planned(replace(DESIGN, generation_args="--seed 1 --gpu_memory_utilization=0.95"), discrete(24))
    assert (0.95, True) == (by_option.share, by_option.chosen)
    assert "--generation-args '--seed 1'" == by_option.alternatives[0]


@pytest.mark.parametrize(
    "line", ["--gpu-memory-utilization 2", "--gpu-memory-utilization=x", "--gpu-memory-utilization 0"]
)
def test_a_share_that_is_none_is_refused(line: str):
    """A share beyond the device, or no number at all, is refused before anything starts."""
    with pytest.raises(UsageError) as caught:
        planned(replace(DESIGN, generation_args=line), discrete(24))
    assert "between 0.01 and 0.95" in caught.value.message


def test_the_users_own_options_count_in_the_plan():
    """Context, requests at once and the number of GPUs given to vLLM directly are what the plan makes room for."""
    plain = planned(replace(DESIGN, generation_context=1024, generation_sequences=2), discrete(24))
    told = planned(replace(DESIGN, generation_args="--max-model-len 1024 --max_num_seqs=2"), discrete(24))
    assert plain.demand == told.demand
    halved = planned(replace(DESIGN, generation_args="--tensor-parallel-size 2"), discrete(24))
    assert 2 * halved.demand.weights == planned(DESIGN, discrete(24)).demand.weights


def test_an_embed_server_on_another_gpu_takes_nothing_of_this_one():
    """Where the two services are given different GPUs each has its own to itself."""
    two = replace(discrete(12), gpus=(discrete(12).gpus[0],) * 2)
    assert 0 == planned(replace(DESIGN, device="cuda:1"), two).demand.embed
    assert 0 == planned(replace(DESIGN, gpus="1"), two).demand.embed
    assert planned(replace(DESIGN, gpus="1", device="cuda:1"), two).demand.embed > 0
    turned = replace(DESIGN, gpus="1,0", device="cuda:0")
    assert planned(turned, two).demand.embed > 0
    inside = replace(DESIGN, gpus="1", device="cuda:0", embed_engine="docker")
    assert planned(inside, two).demand.embed > 0


def test_no_plan_where_nobody_tells_the_size():
    """A GPU of unknown size has no plan, rather than one from a guess; one whose use is unknown counts as free."""
    assert docker_plan.split_of(DESIGN, machine(Gpu("NVIDIA GPU", 0)), NOWHERE, NONE) is None
    assert docker_plan.split_of(DESIGN, replace(discrete(24), gpus=()), NOWHERE, NONE) is None
    untold = planned(DESIGN, machine(Gpu("NVIDIA A100", 40 * GIB, None)))
    assert (40 * GIB, "") == (untold.memory.available, untold.why_not)
