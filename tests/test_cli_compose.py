"""`qmd-remote compose` through the installed program."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmd_remote import services, settings
from qmd_remote.services import Record
from tests.docker import need

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., Any]
SPARK = ("compose", "--preset", "spark", "--no-probe")


@pytest.fixture
def gpu_here(tmp_path: Path) -> str:
    """A PATH on which nvidia-smi tells of one GPU of 12 GiB."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA A, 12288, 12000, 580.1, 8.9'\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_the_file_in_the_repository_is_what_the_command_writes(qmd_remote: Run):
    """Byte for byte, whatever this machine is."""
    done = qmd_remote(*SPARK)
    assert (0, "") == (done.code, done.stderr)
    assert (ROOT / "compose.yaml").read_text(encoding="utf-8") == done.stdout


def test_the_file_does_not_depend_on_the_machine(qmd_remote: Run, tmp_path: Path):
    """Another home, another cache, no nvidia-smi: the same file, without a path of any."""
    other = tmp_path / "other"
    other.mkdir()
    done = qmd_remote(*SPARK, HOME=str(other), HF_HOME=str(other / "hf"), HF_TOKEN="hf_secret", PATH="/nowhere")
    assert qmd_remote(*SPARK).stdout == done.stdout
    assert str(tmp_path) not in done.stdout
    assert str(Path.home()) not in done.stdout.replace("/root/.cache", "")
    assert "hf_secret" not in done.stdout


def test_json_is_the_same_content(qmd_remote: Run):
    """One envelope, whose data is the file."""
    said = qmd_remote(*SPARK, "--json").envelope()
    assert yaml.safe_load(qmd_remote(*SPARK).stdout) == said["data"]["compose"]


def test_options_change_it_and_stand_in_its_head(qmd_remote: Run):
    """Who reads it sees how it was made."""
    done = qmd_remote(*SPARK, "--port", "9001", "--generation-model", "Qwen/Qwen2.5-0.5B-Instruct")
    content = yaml.safe_load(done.stdout)
    assert ["127.0.0.1:9001:8001"] == content["services"]["embed"]["ports"]
    assert "Qwen/Qwen2.5-0.5B-Instruct" in content["services"]["vllm"]["command"]
    assert "--port 9001" in done.stdout.splitlines()[0]


def test_a_plan_that_does_not_fit_is_refused(qmd_remote: Run):
    """As by `up`, with what would fit, and no file."""
    done = qmd_remote(*SPARK, "--generation-model", "acme/huge-400B")
    assert (5, "") == (done.code, done.stdout)
    assert "does not fit" in done.stderr


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("preset", ["", "cpu", "gpu", "mini"])
def test_a_machine_without_a_gpu_gets_no_file_for_one(qmd_remote: Run, preset: str):
    """Whichever preset is named, or none: the code, the cause and the way out of `up`, and no file."""
    done = qmd_remote("compose", *(["--preset", preset] if preset else []), PATH="/nowhere")
    assert (5, "") == (done.code, done.stdout)
    assert "--gpus none --generation-image IMAGE" in done.stderr
    if preset == "gpu":
        assert qmd_remote("up", "--preset", "gpu", "-q", PATH="/nowhere").stderr == done.stderr
    assert "to run in vLLM's container on an NVIDIA GPU, and no NVIDIA driver is installed here" in done.stderr


@pytest.mark.parametrize("preset", ["cpu", "mini"])
def test_a_preset_without_containers_is_no_file_for_a_gpu(qmd_remote: Run, gpu_here: str, preset: str):
    """Its generation is a process: the file would hold something else than was asked for."""
    done = qmd_remote("compose", "--preset", preset, PATH=gpu_here)
    assert (2, "") == (done.code, done.stdout)
    assert f"compose --preset {preset} --gpus none --generation-image IMAGE" in done.stderr


@pytest.mark.parametrize("here", [(), ("--no-probe",)])
def test_an_image_for_cpus_needs_no_gpu(qmd_remote: Run, here: tuple[str, ...]):
    """The way out works: neither service gets a GPU or a share of one; NVIDIA's image is not taken for one."""
    cpu = ("compose", "--preset", "mini", "--gpus", "none", *here)
    done = qmd_remote(*cpu, "--generation-image", "acme/vllm-cpu:1")
    content = yaml.safe_load(done.stdout)
    assert "acme/vllm-cpu:1" == content["services"]["vllm"]["image"]
    assert "nvidia" not in done.stdout
    assert "--gpu-memory-utilization" not in content["services"]["vllm"]["command"]
    refused = qmd_remote(*cpu)
    assert (2, "") == (refused.code, refused.stdout)
    assert "--generation-image IMAGE" in refused.stderr


def test_a_model_larger_than_the_memory_is_refused_for_cpus(qmd_remote: Run):
    """On the machine itself as by `up`; of another one nothing is known."""
    line = ("compose", "--preset", "mini", "--gpus", "none", "--generation-image", "x:1")
    model = ("--generation-model", "acme/huge-40000B")
    done = qmd_remote(*line, *model)
    assert (5, "") == (done.code, done.stdout)
    assert "does not fit" in done.stderr
    assert 0 == qmd_remote(*line, *model, "--no-probe").code


def test_gpus_elsewhere_are_planned_with_a_share_of_ones_own(qmd_remote: Run):
    """Nobody can know their memory, so that without a share there is no file; how many there are here is no matter."""
    line = ("compose", "--preset", "gpu", "--no-probe", "--gpus", "0,1")
    done = qmd_remote(*line)
    assert (2, "") == (done.code, done.stdout)
    assert "--generation-gpu-share" in done.stderr
    done = qmd_remote(*line, "--generation-gpu-share", "0.4", "--generation-context", "4096")
    vllm = yaml.safe_load(done.stdout)["services"]["vllm"]
    assert ["0", "1"] == vllm["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
    assert "0.40" == vllm["command"][vllm["command"].index("--gpu-memory-utilization") + 1]
    assert "4096" == vllm["command"][vllm["command"].index("--max-model-len") + 1]


def test_a_dgx_spark_has_one_gpu(qmd_remote: Run):
    """The refusal speaks of the machine that is planned for, and not of this one."""
    done = qmd_remote(*SPARK, "--gpus", "0,1")
    assert (2, "") == (done.code, done.stdout)
    assert "a DGX Spark has one GPU" in done.stderr
    assert "here" not in done.stderr
    assert 0 == qmd_remote(*SPARK, "--gpus", "0").code


def test_what_would_fit_can_be_typed(qmd_remote: Run, gpu_here: str):
    """Each option that the refusal names is one of this command, and with it the file is written."""
    line = ("compose", "--preset", "gpu", "--generation-model", "Qwen/Qwen2.5-3B-Instruct")
    refused = qmd_remote(*line, "--json", PATH=gpu_here).envelope()["error"]
    assert "memory.plan" == refused["code"]
    first = refused["hint"].partition("added: ")[2].split("  or  ")[0].split(";")[0]
    assert 0 == qmd_remote(*line, *first.split(), PATH=gpu_here).code


def test_what_our_own_services_use_is_no_reason_to_refuse(qmd_remote: Run, runs: Callable[..., Record], tmp_path: Path):
    """The file takes their place, as an `up` with other settings would; elsewhere nothing of this machine counts."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA A, 24576, 1000, 580.1, 8.9'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    line, path = ("compose", "--preset", "gpu"), f"{tmp_path}:/usr/bin:/bin"
    refused = qmd_remote(*line, "--json", PATH=path).envelope()
    assert "memory.plan" == refused["error"]["code"]
    ours = settings.resolve({"preset": "gpu"}, {})
    for service in services.SERVICES:
        runs(service, "http://127.0.0.1:9", spec=services.spec_of(service, ours), program="docker")
    done = qmd_remote(*line, PATH=path)
    assert (0, "") == (done.code, done.stderr)
    elsewhere = qmd_remote("compose", "--preset", "spark", "--no-probe", "--generation-model", "acme/huge-40B")
    assert 5 == elsewhere.code


def test_compose_replaces_nothing_in_it(qmd_remote: Run):
    """A dollar sign stays one, and a name of an address becomes its digits."""
    done = qmd_remote(*SPARK, "--generation-args", "--chat-template '$HOME/x'", "--host", "localhost")
    content = yaml.safe_load(done.stdout)
    assert "$$HOME/x" in content["services"]["vllm"]["command"]
    assert ["127.0.0.1:8001:8001"] == content["services"]["embed"]["ports"]


def test_a_key_never_stands_in_it(qmd_remote: Run):
    """Keys come from where compose runs, not from where the file is written."""
    done = qmd_remote(*SPARK, "--host", "0.0.0.0", "--generation-host", "0.0.0.0", QMD_REMOTE_API_KEY="s3cret-key")
    assert 0 == done.code
    assert "s3cret-key" not in done.stdout + done.stderr


def test_generation_is_not_published_elsewhere_without_a_key(qmd_remote: Run):
    """vLLM would serve everybody."""
    said = qmd_remote(*SPARK, "--generation-host", "0.0.0.0", "--json").envelope()
    assert "bind.no_key" == said["error"]["code"]


def test_compose_itself_accepts_it(tmp_path: Path):
    """`docker compose config`, or its predecessor's, which knows all of it but the project's name."""
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    ways = {("docker", "compose"): text, ("docker-compose",): text.replace("name: qmd-remote\n", "", 1)}
    found = [way for way in ways if shutil.which(way[0]) and not subprocess.run([*way, "version"]).returncode]
    if not found:
        need.missing("docker compose is not installed here")
    file = tmp_path / "compose.yaml"
    file.write_text(ways[found[0]], encoding="utf-8")
    done = subprocess.run([*found[0], "-f", file, "config", "-q"], capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
