"""vLLM's container: from settings and facts to image, command, environment and mounts."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.errors import ConfigError, PrerequisiteError, QmdRemoteError, UsageError
from qmd_remote.launch import plan, vllm_plan
from qmd_remote.launch.container import Container, Mount, docker_run
from qmd_remote.launch.gpu import Gpu
from qmd_remote.launch.hardware import Hardware
from qmd_remote.presets import DESIGN_GENERATION
from qmd_remote.settings import Settings, resolve

GIB = 1 << 30
TOKEN = "hf_token-that-nobody-may-read"
KEY = "k3y-that-nobody-may-read"
DESIGN = resolve({"preset": "gpu"}, {})
PLACE = vllm_plan.Place(Path("/home/u/.cache/huggingface"), Path("/home/u/.cache/huggingface/hub"), cached=False)
GPU_BOX = Hardware(
    nvidia=True,
    apple_gpu=False,
    vllm=False,
    transformers_serve=False,
    server=True,
    bundled={},
    gpus=(Gpu("NVIDIA L4", 24 * GIB, 23 * GIB),),
)


def container(settings: Settings, place: vllm_plan.Place = PLACE, *, share: float = 0.46, **env: str) -> Container:
    """The container of these settings with this environment."""
    return vllm_plan.vllm_container(settings, place, share=share, owner="owner", version="1", env=env)


def value(command: list[str] | tuple[str, ...], option: str) -> str:
    """What follows an option, which must be there once."""
    assert 1 == command.count(option)
    return command[command.index(option) + 1]


def test_the_default_is_the_designs_container():
    """Image, name, port, command and GPUs are the design's, published on this machine alone."""
    made = container(DESIGN)
    assert ("nvcr.io/nvidia/vllm:25.12.post1-py3", "qmd-vllm", "all") == (made.image, made.name, made.gpus)
    assert ("127.0.0.1", 8000, 8000) == made.publish
    assert ("vllm", "serve", DESIGN_GENERATION) == made.command[:3]
    expected = {
        "--served-model-name": DESIGN_GENERATION,
        "--host": "0.0.0.0",
        "--port": "8000",
        "--max-model-len": "8192",
        "--max-num-seqs": "8",
        "--gpu-memory-utilization": "0.46",
    }
    assert expected == dict(zip(made.command[3::2], made.command[4::2], strict=True))
    assert "generation" == made.service


def test_what_vllm_needs_of_its_container():
    """Shared memory, locked memory and stack are what vLLM needs; it sends no usage statistics."""
    made = container(DESIGN)
    assert made.shm_bytes >= GIB
    assert {("memlock", -1, -1), ("stack", 67108864, 67108864)} == {(u.name, u.soft, u.hard) for u in made.ulimits}
    assert {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items() <= made.env.items()
    assert {"VLLM_CPU_KVCACHE_SPACE"}.isdisjoint(made.env)


def test_the_hubs_cache_and_the_compile_cache_outlive_it():
    """The hub's home is mounted where vLLM looks, a cache elsewhere inside it, and compiled graphs have a volume."""
    compiled = Mount("qmd-vllm-cache", "/root/.cache/vllm", kind="volume")
    assert (Mount("/home/u/.cache/huggingface", "/root/.cache/huggingface"), compiled) == container(DESIGN).mounts
    elsewhere = replace(PLACE, hub=Path("/big/hub"))
    assert Mount("/big/hub", "/root/.cache/huggingface/hub") in container(DESIGN, elsewhere).mounts
    other = container(replace(DESIGN, generation_container="second"))
    assert "second-cache" in {mount.source for mount in other.mounts}


def test_a_model_that_is_here_is_served_without_the_hub():
    """Once the model is cached the container is offline, and is given no token."""
    made = container(DESIGN, replace(PLACE, cached=True), HF_TOKEN=TOKEN)
    assert "1" == made.env["HF_HUB_OFFLINE"]
    assert {} == made.secret_env


def test_a_model_that_must_be_fetched_gets_the_token_as_a_secret():
    """The token is for the download alone, and stands in no text."""
    made = container(DESIGN, HF_TOKEN=TOKEN)
    assert {"HF_TOKEN": TOKEN} == made.secret_env
    assert "HF_HUB_OFFLINE" not in made.env
    assert {} == container(DESIGN).secret_env
    for text in (repr(made), docker_run(made), json.dumps(made.as_dict())):
        assert TOKEN not in text


def test_the_download_does_not_change_the_container():
    """Before and after the download the container is the same one, so that it is kept."""
    before, after = container(DESIGN, HF_TOKEN=TOKEN), container(DESIGN, replace(PLACE, cached=True))
    assert before.spec_hash == after.spec_hash


def test_a_local_folder_is_mounted_to_be_read():
    """A folder is seen below /models, read-only, and served under the name that was given."""
    made = container(replace(DESIGN, generation_model="/data/my model"), HF_TOKEN=TOKEN)
    assert Mount("/data/my model", "/models/my model", read_only=True) in made.mounts
    assert ("/models/my model", "/data/my model") == (made.command[2], value(made.command, "--served-model-name"))
    assert ("1", {}) == (made.env["HF_HUB_OFFLINE"], made.secret_env)


def test_a_snapshot_is_mounted_with_what_its_links_lead_to():
    """A folder in the hub's cache holds links to files beside it, which come along."""
    home = "/cache/hub/models--acme--own"
    made = container(replace(DESIGN, generation_model=f"{home}/snapshots/abc"))
    assert Mount(home, "/models/models--acme--own", read_only=True) in made.mounts
    assert "/models/models--acme--own/snapshots/abc" == made.command[2]


def test_elsewhere_than_on_loopback_vllm_asks_for_the_key():
    """Published to other machines vLLM has our key, by its environment only; without a key that is refused."""
    public = replace(DESIGN, generation_host="0.0.0.0")
    made = container(replace(public, api_key=KEY))
    assert {"VLLM_API_KEY": KEY} == made.secret_env
    assert KEY not in docker_run(made) + repr(made)
    with pytest.raises(ConfigError) as caught:
        container(public)
    assert ("bind.no_key", 4) == (caught.value.code, caught.value.exit_code)
    assert {} == container(replace(public, insecure_no_auth=True)).secret_env
    assert {} == container(replace(DESIGN, api_key=KEY)).secret_env


def test_on_a_cpu_there_is_no_share_of_a_gpu():
    """`--gpus none` leaves out the share, and gives the image for CPUs its KV cache in GiB."""
    made = container(replace(DESIGN, gpus="none"))
    assert "--gpu-memory-utilization" not in made.command
    assert made.env["VLLM_CPU_KVCACHE_SPACE"].isdigit()
    assert "--gpus" not in docker_run(made)


@pytest.mark.parametrize(("gpus", "expected"), [("all", "PCI_BUS_ID"), ("0,2", "PCI_BUS_ID"), ("none", None)])
def test_the_first_gpu_is_the_one_that_was_planned_for(gpus: str, expected: str | None):
    """CUDA would count the fastest first, and the plan counts as nvidia-smi does."""
    assert expected == container(replace(DESIGN, gpus=gpus)).env.get("CUDA_DEVICE_ORDER")


def test_the_kv_cache_of_a_cpu_follows_the_settings():
    """Through the plan the KV cache for a CPU is what context and requests need, at least 1 GiB."""
    settings = replace(DESIGN, gpus="none")
    without = replace(GPU_BOX, nvidia=False, gpus=())
    made = plan.make(settings, without, Path("/cache"), env={"HF_HOME": "/nowhere"}).generation
    assert made.container is not None
    assert "3" == made.container.env["VLLM_CPU_KVCACHE_SPACE"]
    assert made.memory is None
    small = replace(settings, generation_sequences=1, generation_context=512)
    made = plan.make(small, without, Path("/cache"), env={"HF_HOME": "/nowhere"}).generation
    assert made.container is not None
    assert "1" == made.container.env["VLLM_CPU_KVCACHE_SPACE"]


@pytest.mark.parametrize(
    "line", ["--max-model-len 4096", "--max-model-len=4096", "--max_model_len 4096", "--dtype half --max-model-len 4k"]
)
def test_the_users_own_options_win(line: str):
    """An option that the user gives, however it is spelt, is there once, and the others are added."""
    command = container(replace(DESIGN, generation_args=line)).command
    assert 1 == sum("max" in word and "model" in word and "len" in word for word in command)
    assert command[-len(shlex.split(line)) :] == tuple(shlex.split(line))
    assert "8" == value(command, "--max-num-seqs")


def test_the_users_own_share_is_the_only_one():
    """A share among the user's options replaces the planned one."""
    command = container(replace(DESIGN, generation_args="--gpu_memory_utilization 0.7")).command
    assert "--gpu-memory-utilization" not in command
    assert ("--gpu_memory_utilization", "0.7") == command[-2:]


@pytest.mark.parametrize(("share", "expected"), [(0.2, "0.20"), (0.46, "0.46"), (0.333, "0.333"), (0.015, "0.015")])
def test_a_share_is_told_as_it_is(share: float, expected: str):
    """Planned shares are hundredths; one that a person chose keeps its digits."""
    assert expected == value(container(DESIGN, share=share).command, "--gpu-memory-utilization")


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("--port 9000", "--generation-port"),
        ("--model=acme/other", "--generation-model"),
        (f"--api-key {KEY}", "QMD_REMOTE_API_KEY"),
        ("--uds /tmp/socket", "--generation-port"),
        ("--host 127.0.0.1", "--generation-host"),
        ("--dtype half --host=::1", "--generation-host"),
        ("--ssl-keyfile k.pem --ssl-certfile c.pem", "--tls-cert"),
        ("--ssl_ca_certs c.pem", "--tls-cert"),
        ("--enable-ssl-refresh", "--tls-cert"),
        ("--headless", "leave it out"),
        ("--grpc", "leave it out"),
    ],
)
def test_options_that_would_lose_the_container_are_refused(line: str, instead: str):
    """What would leave vLLM where nobody looks, or show a key to everybody, is refused with what to use instead."""
    with pytest.raises(UsageError) as caught:
        container(replace(DESIGN, generation_args=line))
    assert instead in caught.value.hint
    assert KEY not in caught.value.message + caught.value.hint


def test_an_option_that_changes_no_address_passes():
    """A path behind a proxy, or a limit of the door, leaves vLLM where it is asked."""
    line = "--root-path /llm --allowed-origins '[]' --uvicorn-log-level warning"
    assert shlex.split(line) == list(container(replace(DESIGN, generation_args=line)).command[-6:])


def test_more_names_are_fine_and_others_alone_are_not():
    """The served name may have company; without the one that clients ask for it would never be ready."""
    line = f"--served-model-name {DESIGN_GENERATION} expansion"
    command = container(replace(DESIGN, generation_args=line)).command
    assert 1 == command.count("--served-model-name")
    assert "expansion" == command[-1]
    with pytest.raises(UsageError) as caught:
        container(replace(DESIGN, generation_args="--served-model-name expansion"))
    assert f"{DESIGN_GENERATION} expansion" in caught.value.hint


@pytest.mark.parametrize("line", ["--dtype 'half", "acme/other", "dtype half"])
def test_a_line_that_is_none_is_refused(line: str):
    """An open quote, or a word that is no option, is refused with an example."""
    with pytest.raises(UsageError) as caught:
        container(replace(DESIGN, generation_args=line))
    assert "--generation-args '--dtype half" in caught.value.hint


@given(
    st.builds(
        replace,
        st.just(DESIGN),
        generation_args=st.one_of(st.just(""), st.text(max_size=30), st.just("--hf-overrides '{\"a\": 1}' --seed -1")),
        generation_model=st.sampled_from([DESIGN_GENERATION, "acme/own", "/data/own"]),
        gpus=st.sampled_from(["all", "none", "0,1"]),
        generation_host=st.sampled_from(["127.0.0.1", "0.0.0.0", "::"]),
        api_key=st.sampled_from(["", KEY]),
    )
)
def test_a_container_or_an_error_with_a_way_out(settings: Settings):
    """Every mixture ends in the same container twice, without secrets in sight and without risky options, or in an
    expected error that says what to do.
    """
    try:
        made = container(settings, HF_TOKEN=TOKEN)
    except QmdRemoteError as error:
        assert error.hint
        return
    assert made == container(settings, HF_TOKEN=TOKEN)
    assert not {KEY, TOKEN} & set(made.command)
    if not settings.generation_args:
        assert {"--enforce-eager", "--trust-remote-code"}.isdisjoint(made.command)


def test_the_plan_has_the_container_and_the_split():
    """`plan.make` gives generation's container with the planned share of the GPU, and where it will be."""
    made = plan.make(DESIGN, GPU_BOX, Path("/cache"), env={"HF_HOME": "/nowhere", "QMD_REMOTE_HOME": "/state"})
    generation = made.generation
    assert ("docker", "http://127.0.0.1:8000", DESIGN_GENERATION) == (
        generation.engine,
        generation.url,
        generation.model,
    )
    assert generation.container is not None
    assert generation.memory is not None
    assert "0.46" == value(generation.container.command, "--gpu-memory-utilization")
    assert 0.46 == generation.memory.share


def test_what_is_free_does_not_change_the_container():
    """The same settings want the same container on a busy GPU: it is refused or begun, and never made anew for it."""
    env = {"HF_HOME": "/nowhere"}
    busy = replace(GPU_BOX, gpus=(Gpu("NVIDIA L4", 24 * GIB, 2 * GIB),))
    idle, later = (plan.make(DESIGN, box, Path("/cache"), env=env).generation for box in (GPU_BOX, busy))
    assert idle.container is not None
    assert later.container is not None
    assert idle.container.spec_hash == later.container.spec_hash
    assert (True, False) == tuple(not made.memory.why_not for made in (idle, later) if made.memory)


def test_without_a_driver_the_cause_and_the_cure():
    """On a machine without NVIDIA's driver the plan ends with what is missing and three ways on; exit code 5."""
    with pytest.raises(PrerequisiteError) as caught:
        plan.make(DESIGN, replace(GPU_BOX, nvidia=False, gpus=()), Path("/cache"), env={})
    assert ("gpu.missing", 5) == (caught.value.code, caught.value.exit_code)
    assert "no NVIDIA driver" in caught.value.message
    for way in ("nvidia-smi", "--preset cpu", "--gpus none"):
        assert way in caught.value.hint


def test_gpus_that_are_not_there_are_refused():
    """A GPU's number beyond the last, or no number at all, is refused before anything starts."""
    with pytest.raises(PrerequisiteError) as caught:
        plan.make(replace(DESIGN, gpus="0,1"), GPU_BOX, Path("/cache"), env={})
    assert ("gpu.missing", "there is no GPU 1 here; there are 1, counted from 0") == (
        caught.value.code,
        caught.value.message,
    )
    with pytest.raises(UsageError):
        plan.make(replace(DESIGN, gpus="first"), GPU_BOX, Path("/cache"), env={})


def test_a_tokenizer_in_the_cache_is_no_model(tmp_path: Path):
    """A model of which only some files are cached is not served offline, but fetched."""
    home = tmp_path / "hub" / "models--Qwen--Qwen2.5-3B-Instruct"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    snapshot = home / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    env = {"HF_HOME": str(tmp_path)}
    before = plan.make(DESIGN, GPU_BOX, Path("/cache"), env=env).generation.container
    (snapshot / "model.safetensors").write_bytes(b"1")
    after = plan.make(DESIGN, GPU_BOX, Path("/cache"), env=env).generation.container
    assert before is not None
    assert after is not None
    assert (None, "1") == (before.env.get("HF_HUB_OFFLINE"), after.env.get("HF_HUB_OFFLINE"))
    assert before.spec_hash == after.spec_hash
