"""The compose file: what compose's own rules ask for, and the same containers as `up` runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.launch import compose, embed_plan, vllm_plan
from qmd_remote.settings import Settings, resolve

DESIGN = resolve({"preset": "spark"}, {})
KEY = "k3y-that-nobody-may-read"
PLACE = vllm_plan.Place(Path("/hf"), Path("/hf/hub"), cached=False)
# what compose's specification knows of a service, as far as it is used here
KNOWN = {
    *("image", "build", "container_name", "command", "init", "restart", "security_opt", "environment", "ports"),
    *("volumes", "shm_size", "ulimits", "healthcheck", "logging", "deploy", "depends_on"),
}


def written(settings: Settings = DESIGN, **how: bool) -> dict[str, Any]:
    """The content for these settings."""
    generation = vllm_plan.vllm_container(
        settings, PLACE, share=0.12, owner="", version="1", env={"HF_TOKEN": "hf_secret"}
    )
    return compose.compose(generation, embed_plan.composed(settings, generation=("vllm", 8000), version="1"), **how)


def test_only_what_compose_knows():
    """No key that compose would refuse; all volumes that are named are declared."""
    content = written()
    assert {"name", "services", "volumes"} == set(content)
    for service in content["services"].values():
        assert set(service) <= KNOWN
        named = {one.partition(":")[0] for one in service["volumes"] if not one.startswith(("/", "$", ".", "~"))}
        assert named <= set(content["volumes"])
        assert all(isinstance(value, str) for value in service["environment"].values())
        assert all(isinstance(word, str) for word in [*service["command"], *service["healthcheck"]["test"]])


def test_both_are_published_on_this_machine_alone():
    """127.0.0.1 unless told otherwise; IPv6 in brackets."""
    services = written()["services"]
    assert [["127.0.0.1:8000:8000"], ["127.0.0.1:8001:8001"]] == [one["ports"] for one in services.values()]
    other = written(replace(DESIGN, host="::1", port=9001))["services"]["embed"]
    assert ["[::1]:9001:8001"] == other["ports"]
    bracketed = written(replace(DESIGN, host="[::1]", generation_host="[::1]"))["services"]
    assert [["[::1]:8000:8000"], ["[::1]:8001:8001"]] == [one["ports"] for one in bracketed.values()]
    named = written(replace(DESIGN, host="localhost", generation_host="localhost"))["services"]
    assert not [one["ports"] for one in named.values() if "localhost" in one["ports"][0]]


def test_the_embed_server_waits_for_generation_and_finds_it_by_name():
    """The larger tenant of a GPU first; a shared key goes along."""
    embed = written()["services"]["embed"]
    assert {"vllm": {"condition": "service_healthy"}} == embed["depends_on"]
    env = {name: value for name, value in embed["environment"].items() if "$" not in value}
    assert "http://vllm:8000" == resolve({}, env).generation_at


def test_gpus_are_reserved():
    """All, some by number, or none; none for an embed server on the CPU."""

    def devices(name: str, **changes: str) -> Any:
        service = written(replace(DESIGN, **changes))["services"][name]  # type: ignore[arg-type]
        return service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")

    gpu = {"driver": "nvidia", "capabilities": ["gpu"]}
    assert [{**gpu, "count": "all"}] == devices("vllm") == devices("embed")
    assert [{**gpu, "device_ids": ["0", "1"]}] == devices("vllm", gpus="0,1")
    assert devices("vllm", gpus="none") is None
    assert devices("embed", device="cpu") is None


def test_no_secret_is_written():
    """They come from the shell; compose replaces a name that is not set by nothing."""
    content = str(written(replace(DESIGN, api_key=KEY, generation_host="0.0.0.0")))
    assert KEY not in content
    assert "hf_secret" not in content
    assert "${HF_TOKEN:-}" == written()["services"]["vllm"]["environment"]["HF_TOKEN"]
    assert "${QMD_REMOTE_API_KEY:-}" == written()["services"]["embed"]["environment"]["QMD_REMOTE_API_KEY"]


@pytest.mark.parametrize(("service", "field", "name"), [
    ("embed", "host", "QMD_REMOTE_API_KEY"),
    ("vllm", "generation_host", "VLLM_API_KEY"),
])  # fmt: skip
def test_what_other_machines_can_reach_does_not_start_without_a_key(service: str, field: str, name: str):
    """Compose itself refuses then, unless everybody is to be served."""
    settings = replace(DESIGN, api_key=KEY, **{field: "0.0.0.0"})  # type: ignore[arg-type]
    assert written(settings)["services"][service]["environment"][name].startswith("${QMD_REMOTE_API_KEY:?")
    keyless = written(settings, keyless=True)["services"][service]["environment"][name]
    assert "${QMD_REMOTE_API_KEY:-}" == keyless


def test_health_checks_ask_inside_the_container():
    """Each at its own port, whatever it is published as; there is time to download a model first."""
    services = written(replace(DESIGN, generation_port=9000, port=9001))["services"]
    asked = services["vllm"]["healthcheck"]["test"]
    assert ["CMD", "python3", "-c"] == asked[:3]
    compile(asked[3], "health check", "exec")
    assert "'127.0.0.1', 8000" in asked[3]
    assert ["CMD", "python3", "-m", "qmd_remote.server.probe"] == services["embed"]["healthcheck"]["test"]
    for service in services.values():
        assert re.fullmatch(r"\d+m", service["healthcheck"]["start_period"])
