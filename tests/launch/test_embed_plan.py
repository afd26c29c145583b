"""The embed server's container: the settings that it is given, and what it sees of this machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from qmd_remote.launch import embed_plan
from qmd_remote.launch.container import Container, docker_run
from qmd_remote.settings import Settings, resolve

DESIGN = resolve({"preset": "gpu"}, {})
KEY = "k3y-that-nobody-may-read"
DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"


def container(settings: Settings = DESIGN, *, gpu: bool = True) -> Container:
    """The container that `up` would run."""
    return embed_plan.embed_container(
        settings, hub=Path("/hf"), ours=Path("/ours"), owner="owner", version="1", user="1000:1000", gpu=gpu
    )


def inside(one: Container) -> Settings:
    """The settings that the server in it reads."""
    return resolve({}, {**one.env, **one.secret_env})


def test_it_listens_where_the_process_would():
    """On the host's network, with the host's address and port, and the caller's user."""
    one = container(replace(DESIGN, port=9001))
    assert (None, "1000:1000", ("qmd-remote", "serve")) == (one.publish, one.user, one.command)
    assert ("127.0.0.1", 9001, False) == (inside(one).host, inside(one).port, inside(one).insecure_no_auth)


@pytest.mark.parametrize("changes", [
    {},
    {"generation_port": 9000},
    {"generation_engine": "external", "generation_url": "http://box:8000"},
    {"generation_engine": "off"},
    {"generation_host": "0.0.0.0", "api_key": KEY},
])  # fmt: skip
def test_it_reaches_generation_as_the_process_would(changes: dict[str, object]):
    """Under the same address, and with the key where generation asks for it."""
    settings = replace(DESIGN, **changes)  # type: ignore[arg-type]
    found = inside(container(settings))
    assert settings.generation_at == found.generation_at
    assert (settings.generation_host, settings.generation_model) == (found.generation_host, found.generation_model)


def test_the_designs_four_variables_are_always_told():
    """And a setting whose value is another than the default."""
    assert {"EMBED_MODEL", "RERANK_MODEL", "DEVICE", "MAX_BATCH_SIZE"} <= set(container().env)
    assert 5 == inside(container(replace(DESIGN, max_queue=5))).max_queue


def test_the_key_is_secret():
    """It is nowhere but in `secret_env`: not in the environment that is shown, not in the `docker run` line."""
    one = container(replace(DESIGN, api_key=KEY))
    assert {"QMD_REMOTE_API_KEY": KEY} == one.secret_env
    assert KEY not in str(one.env) + repr(one) + docker_run(one)
    assert {} == container().secret_env


def test_local_models_and_certificates_are_seen_where_they_lie():
    """Once each, and not to be written."""
    settings = replace(DESIGN, embed_model="/m/one", rerank_model="/m/one", tls_cert="/c.pem", tls_key="/k.pem")
    for one in (container(settings), embed_plan.composed(settings, generation=("vllm", 8000), version="1")):
        local = [(mount.source, mount.target, mount.read_only) for mount in one.mounts if mount.read_only]
        assert [(path, path, True) for path in ("/m/one", "/c.pem", "/k.pem")] == local


def test_without_a_gpu_none_is_asked_for():
    """An engine refuses to start a container with GPUs where there is none."""
    assert ("all", "none") == (container().gpus, container(gpu=False).gpus)


def test_places_are_those_of_the_dockerfile():
    """The image's folders and port."""
    recipe = DOCKERFILE.read_text(encoding="utf-8")
    found = dict(re.findall(r"^\s*(?:ENV )?([A-Z_]+)=(\S+)", recipe, re.MULTILINE))
    assert (embed_plan.HUB, embed_plan.OURS) == (found["HF_HOME"], found["QMD_REMOTE_HOME"])
    assert f"\nEXPOSE {embed_plan.PORT}\n" in recipe
