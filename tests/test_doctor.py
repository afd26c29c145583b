"""`doctor` inside: its runner, and each check against real sockets and files and against machines made of values."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import doctor, doctor_checks, doctor_containers, doctor_models, presets, services, settings
from qmd_remote.doctor import Check, Finding, ok, once, skipped
from qmd_remote.doctor_index import find_server
from qmd_remote.errors import ConfigError, PrerequisiteError
from qmd_remote.launch import containers, docker_engine, plan
from qmd_remote.launch.engine import EngineFacts, Published
from qmd_remote.launch.gpu import Gpu, SystemMemory
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.status import ServiceStatus
from qmd_remote.output import Output
from qmd_remote.settings import Settings

Run = Callable[..., Any]
GIB = 1 << 30
CPU = Hardware(nvidia=False, apple_gpu=False, vllm=False, transformers_serve=True, server=True, bundled={})
RTX = replace(CPU, nvidia=True, gpus=(Gpu("NVIDIA RTX 6000", 48 * GIB, 47 * GIB, "580.1", "8.9"),))
SPARK = replace(
    CPU, nvidia=True, gpus=(Gpu("NVIDIA GB10", driver="580.95"),), memory=SystemMemory(120 * GIB, 110 * GIB)
)
TOKEN = "hf_s3cret"


@pytest.fixture(autouse=True)
def own_cache(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of the test's own, empty, and no token of the caller's."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", *doctor_models.TOKENS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(cli_home / "hf"))
    return cli_home / "hf"


@pytest.fixture
def silent() -> Iterator[str]:
    """A URL at which somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class AHub:
    """The model hub on loopback; it notes the keys that it is shown."""

    def __init__(self) -> None:
        self.status = 200
        self.keys: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.keys.append(self.headers["authorization"] or "")
                self.send_response(hub.status)
                self.send_header("content-length", "0")
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def scripted_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[AHub]:
    """A hub whose status the test chooses, named by HF_ENDPOINT."""
    hub = AHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def of(preset: str, **flags: Any) -> Settings:
    """Settings as a command line with this preset gives them."""
    return settings.resolve({"preset": preset, **flags})


# the runner


def test_the_order_is_that_of_the_checks_whichever_ends_first():
    """The first check ends only when the last one has ended, and is told first all the same."""
    last = threading.Event()

    def first() -> Finding:
        assert last.wait(10)
        return ok("late")

    def second() -> Finding:
        last.set()
        return ok("early")

    rows = doctor.examine([Check("a", first), Check("b", second)])
    assert [("a", "late"), ("b", "early")] == [(row.name, row.detail) for row in rows]


def test_a_check_that_does_not_end_is_a_failure_of_its_own():
    """The others are told, and its thread does not keep the program alive."""
    stuck = threading.Event()
    checks = [Check("stuck", lambda: ok(str(stuck.wait()))), Check("fine", lambda: ok("here"))]
    rows = doctor.examine(checks, limit_s=0.2)
    assert ["failure", "ok"] == [row.state for row in rows]
    assert "no answer within 0.2 s" in rows[0].detail
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "stuck")
    stuck.set()


def test_what_a_check_raises_is_its_finding():
    """An error of ours keeps cause and fix; any other is told by name, and no check hides another."""

    def ours() -> Finding:
        raise PrerequisiteError("the disk is full", hint="df -h")

    def other() -> Finding:
        raise OSError("too odd")

    rows = doctor.examine([Check("ours", ours), Check("other", other)])
    assert [("failure", "the disk is full", "df -h")] == [(row.state, row.detail, row.fix) for row in rows[:1]]
    assert ("failure", True) == (rows[1].state, "OSError: too odd" in rows[1].detail)


def test_facts_are_gathered_once_for_all_who_ask():
    """Several threads that ask at the same time get one answer, or one error."""
    calls = []

    def look() -> int:
        calls.append(1)
        raise ConfigError("no")

    told = once(look)
    rows = doctor.examine([Check(str(i), lambda: ok(str(told()))) for i in range(8)])
    assert (1, {"no"}) == (len(calls), {row.detail for row in rows})


def test_a_failure_is_exit_code_1_with_the_first_fix(capsys: pytest.CaptureFixture[str]):
    """The envelope has every check; the error is the first failure's."""
    bad = Check("bad", lambda: Finding("failure", "broken", "mend it"))
    code = doctor.run(Output("doctor", as_json=True), [Check("fine", lambda: ok("yes")), bad, replace(bad, name="b2")])
    said = json.loads(capsys.readouterr().out)
    assert (1, 1, False) == (code, said["exit_code"], said["ok"])
    assert {"code": "doctor", "message": "bad: broken (1 more failed)", "hint": "mend it"} == said["error"]
    assert ["fine", "bad", "b2"] == [row["name"] for row in said["data"]["checks"]]
    assert {"name", "state", "detail", "fix", "seconds"} == set(said["data"]["checks"][0])


def test_warnings_and_skipped_checks_are_no_failure(capsys: pytest.CaptureFixture[str]):
    """The exit code is 0; a warning's fix is told on stderr, once."""
    checks = [Check("odd", lambda: Finding("warning", "strange", "look")), Check("none", lambda: skipped("not wanted"))]
    assert 0 == doctor.run(Output("doctor"), checks)
    said = capsys.readouterr()
    assert ["warning", "odd", "strange"] == said.out.splitlines()[1].split()
    assert 1 == said.err.count("odd: look")


# Python and the GPU


def test_a_machine_without_the_servers_part_is_told_what_to_install():
    """It is a warning where QMD here is not set up, and none on a client of another machine."""
    base = replace(CPU, server=False)
    alone = doctor_checks.python(of("cpu"), base, client=lambda: False)
    assert ("warning", True) == (alone.state, "[server]" in alone.fix)
    assert "ok" == doctor_checks.python(of("cpu"), base, client=lambda: True).state


def test_a_missing_generation_program_is_a_warning_with_its_fix():
    """`up` would leave generation off; doctor says so before."""
    found = doctor_checks.python(of("cpu"), replace(CPU, transformers_serve=False), client=lambda: False)
    assert ("warning", True) == (found.state, "generation will be off" in found.detail)
    assert "[mini]" in found.fix


def test_only_who_can_serve_is_examined_as_a_server(monkeypatch: pytest.MonkeyPatch, cli_home: Path):
    """On a client ports, disk, hub and models are skipped."""
    monkeypatch.setattr(doctor_checks.hardware, "probe", lambda: replace(CPU, server=False))
    rows = {row.name: row for row in doctor.examine(doctor_checks.all_checks(of("cpu"), cli_home / "none.yml"))}
    for name in ("ports", "disk", "model hub", "models", "gpu"):
        assert ("skipped", "no service can run here") == (rows[name].state, rows[name].detail)


@pytest.mark.parametrize(
    ("preset", "here", "state", "word"),
    [
        ("cpu", CPU, "skipped", "on the CPU"),
        ("gpu", CPU, "failure", "no NVIDIA driver"),
        ("cpu", replace(CPU, apple_gpu=True), "ok", "mps"),
        ("gpu", replace(CPU, nvidia=True, gpu_names=("NVIDIA L4",)), "warning", "NVIDIA L4, but nvidia-smi fails"),
        ("cpu", replace(RTX, gpus=(Gpu("NVIDIA X", 0),)), "ok", "memory not told"),
    ],
)
def test_the_gpu(preset: str, here: Hardware, state: str, word: str):
    """A GPU is required where vLLM's container is wanted on one, and nowhere else."""
    found = doctor_checks.gpu(replace(of(preset), device="cpu"), here)
    assert (state, True) == (found.state, word in found.detail), found
    assert bool(found.fix) == (state in {"failure", "warning"})


def test_shared_memory_is_as_expected():
    """nvidia-smi's N/A on a GB10 is no fault: the system's memory is told."""
    found = doctor_checks.gpu(replace(of("spark"), device="cpu"), SPARK)
    assert Finding("ok", "NVIDIA GB10, 120.0 GiB that CPU and GPU share, driver 580.95") == found


def test_a_torch_without_cuda_on_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch):
    """The embed server would compute on the CPU in silence."""
    monkeypatch.setattr(doctor_checks.metadata, "version", lambda _: "2.13.0+cpu")
    found = doctor_checks.gpu(of("gpu"), RTX)
    assert ("warning", True) == (found.state, "torch is the build for CPUs" in found.detail)
    monkeypatch.setattr(doctor_checks.metadata, "version", lambda _: "2.13.0+cu130")
    assert "ok" == doctor_checks.gpu(of("gpu"), RTX).state


# containers


class AnEngine:
    """What the checks ask of an engine: facts, and images, of which there are none."""

    def __init__(self, **facts: Any) -> None:
        self.told = EngineFacts("unix:///x.sock", "28.0", "arm64", **facts)

    def facts(self) -> EngineFacts:
        """What it was made with."""
        return self.told

    def image(self, name: str) -> None:
        """Nothing is here."""


def planned(wanted: Settings, here: Hardware, home: Path) -> Callable[[], plan.Plan]:
    """The plan, made when asked for."""
    return lambda: plan.make(wanted, here, home)


def test_no_engine_where_one_is_wanted(monkeypatch: pytest.MonkeyPatch, cli_home: Path):
    """It is a failure with the code and the fix of `up`; where no container is wanted, nobody asks for one."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{cli_home}/nobody.sock")
    with pytest.raises(PrerequisiteError) as met:
        doctor_containers.engine(of("gpu"), docker_engine.connect, planned(of("gpu"), CPU, cli_home))
    assert met.value.code.startswith("docker.")
    assert met.value.hint
    rows = doctor.examine(doctor_checks.all_checks(of("gpu"), cli_home / "none.yml"))
    row = next(row for row in rows if row.name == "container engine")
    assert ("failure", met.value.hint) == (row.state, row.fix)
    found = doctor_containers.engine(of("cpu"), docker_engine.connect, planned(of("cpu"), CPU, cli_home))
    assert "skipped" == found.state


def test_an_engine_is_shown_with_its_endpoint_and_what_is_to_pull(cli_home: Path):
    """Kind, version, processor, endpoint; an image that is not here is named, and is no fault."""
    wanted = of("gpu")
    found = doctor_containers.engine(wanted, lambda: AnEngine(rootless=True), planned(wanted, RTX, cli_home))  # type: ignore[arg-type,return-value]
    assert "ok" == found.state
    assert found.detail.startswith("Docker Engine 28.0 (arm64, rootless) at unix:///x.sock; `up` has to pull ")
    assert wanted.generation_image in found.detail


def test_an_image_that_has_to_be_built_is_a_failure(cli_home: Path):
    """`up` would refuse to start for it, with the same fix."""
    wanted = of("cpu", embed_engine="docker")
    with pytest.raises(PrerequisiteError) as met:
        doctor_containers.engine(wanted, AnEngine, planned(wanted, CPU, cli_home))  # type: ignore[arg-type]
    assert "image.missing" == met.value.code
    assert "docker build -t qmd-embed-rerank ." in met.value.hint


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({}, "failure"),
        ({"runtimes": ("runc", "nvidia")}, "ok"),
        ({"podman": True}, "ok"),
    ],
)
def test_the_engines_way_to_the_gpu(facts: dict[str, Any], state: str, monkeypatch: pytest.MonkeyPatch):
    """Its nvidia runtime or CDI is one; without any the toolkit is what to install."""
    monkeypatch.setenv("PATH", "")
    found = doctor_containers.gpu(of("gpu"), RTX, lambda: AnEngine(**facts))  # type: ignore[arg-type,return-value]
    assert state == found.state
    assert ("nvidia-ctk" in found.fix) == (state == "failure")


def test_a_podman_without_gpus_is_to_be_updated(monkeypatch: pytest.MonkeyPatch):
    """The toolkit would not help it."""
    monkeypatch.setenv("PATH", "")
    old = AnEngine(podman=True)
    monkeypatch.setattr(old, "facts", lambda: replace(AnEngine(podman=True).facts(), version="4.3.1"))
    found = doctor_containers.gpu(of("gpu"), RTX, lambda: old)  # type: ignore[arg-type,return-value]
    assert "failure" == found.state
    assert "update Podman" in found.fix


def test_a_folder_for_cdi_is_no_way_until_it_names_a_gpu(cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """Docker names the folders that it reads whether there is anything in them or not."""
    monkeypatch.setenv("PATH", "")
    folder = cli_home / "cdi"
    folder.mkdir()
    at = AnEngine(cdi=(str(folder),))
    assert "failure" == doctor_containers.gpu(of("gpu"), RTX, lambda: at).state  # type: ignore[arg-type,return-value]
    (folder / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    assert ok("by CDI") == doctor_containers.gpu(of("gpu"), RTX, lambda: at)  # type: ignore[arg-type,return-value]


def test_the_memory_plan(cli_home: Path):
    """Both tenants and the total where they fit; else the refusal of `up`; skipped where there is nothing to split."""
    fits = doctor_containers.memory(of("spark"), SPARK, planned(of("spark"), SPARK, cli_home))
    assert ("ok", True) == (fits.state, "of 120.0 GiB, which CPU and GPU share" in fits.detail)
    small = replace(RTX, gpus=(replace(RTX.gpus[0], total=4 * GIB, free=4 * GIB),))
    with pytest.raises(PrerequisiteError, match="does not fit"):
        doctor_containers.memory(of("gpu"), small, planned(of("gpu"), small, cli_home))
    assert "skipped" == doctor_containers.memory(of("gpu"), CPU, planned(of("gpu"), CPU, cli_home)).state
    assert "skipped" == doctor_containers.memory(of("cpu"), RTX, planned(of("cpu"), RTX, cli_home)).state


def test_the_memory_of_a_cpu(cli_home: Path):
    """An image for CPUs is judged by the machine's memory, with the refusal of `up`."""
    wanted = of("mini", generation_engine="docker", gpus="none", generation_image="x:1")
    here = replace(CPU, memory=SystemMemory(8 * GIB, 7 * GIB))
    found = doctor_containers.memory(wanted, here, planned(wanted, here, cli_home))
    assert ("ok", True) == (found.state, "vLLM on the CPU" in found.detail and "of 8.0 GiB" in found.detail)
    large = replace(wanted, generation_model="Qwen/Qwen2.5-72B-Instruct")
    with pytest.raises(PrerequisiteError, match="does not fit"):
        doctor_containers.memory(large, here, planned(large, here, cli_home))


# ports and the address


def test_ports_free_ours_and_taken(runs: Run, nobody: str, taken: int):
    """A port of somebody else's raises with the option to choose another; one of our services is ours."""
    free = int(nobody.rpartition(":")[2])
    wanted = of("cpu", port=free, generation_port=taken)
    with pytest.raises(PrerequisiteError, match=f"port {taken} is taken") as met:
        doctor_checks.ports(wanted)
    assert "--generation-port" in met.value.hint
    runs(services.GENERATION, f"http://127.0.0.1:{taken}")
    assert f"{free} is free, {taken} is ours" == doctor_checks.ports(wanted).detail
    with pytest.raises(ConfigError, match="both services"):
        doctor_checks.ports(of("cpu", port=free, generation_port=free))


@pytest.mark.parametrize(
    ("address", "clashes"),
    [("127.0.0.1", True), ("0.0.0.0", True), ("", True), ("127.0.0.2", False), ("::1", False)],
)
def test_a_container_on_another_address_takes_no_port(
    monkeypatch: pytest.MonkeyPatch, nobody: str, address: str, clashes: bool
):
    """One port may be published on several addresses, as `up` itself sees it."""
    free = int(nobody.rpartition(":")[2])

    class Engine(AnEngine):
        def published(self) -> tuple[Published, ...]:
            """One container."""
            return (Published("web", address, free),)

    monkeypatch.setattr(containers, "likely", lambda: True)
    monkeypatch.setattr(containers, "connect", Engine)
    wanted = of("cpu", port=free, generation_engine="off")
    if clashes:
        with pytest.raises(PrerequisiteError, match="taken by the container web"):
            doctor_checks.ports(wanted)
    else:
        assert ok(f"{free} is free") == doctor_checks.ports(wanted)


def test_only_the_ports_of_ours_are_looked_at(nobody: str, taken: int):
    """Generation elsewhere needs none here."""
    free = int(nobody.rpartition(":")[2])
    wanted = of("cpu", port=free, generation_engine="off", generation_port=taken)
    assert ok(f"{free} is free") == doctor_checks.ports(wanted)


def test_the_address_and_its_key(cli_home: Path):
    """`up` makes a key where others can come, so that its lack is no fault; to want none is worth a warning."""
    assert "this machine only" in doctor_checks.address(of("cpu")).detail
    assert ("ok", True) == (
        doctor_checks.address(of("cpu", host="0.0.0.0")).state,
        "that `up` makes" in doctor_checks.address(of("cpu", host="0.0.0.0")).detail,
    )
    everybody = doctor_checks.address(of("cpu", host="0.0.0.0", insecure_no_auth=True))
    assert ("warning", True) == (everybody.state, bool(everybody.fix))
    with pytest.raises(ConfigError, match="--tls-key is missing"):
        doctor_checks.address(of("cpu", tls_cert=str(cli_home / "cert.pem")))


# disk, hub, models


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch):
    """Less than the models need is a failure, hardly more a warning, and plenty is fine."""
    for free, state in ((1e9, "failure"), (5e9, "warning"), (500e9, "ok")):
        usage = type("Usage", (), {"free": int(free)})
        monkeypatch.setattr(doctor_models.shutil, "disk_usage", lambda _, usage=usage: usage)
        found = doctor_models.disk(of("cpu"))
        assert (state, state != "ok") == (found.state, "df -h" in found.fix), found


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, own_cache: Path):
    """The fix names the folder of the models and none above it, which may be the system's."""
    monkeypatch.setattr(doctor_models.os, "access", lambda *_: False)
    found = doctor_models.disk(of("cpu"))
    assert ("failure", True) == (found.state, str(own_cache / "hub") in found.detail)
    assert found.fix.endswith(f'chown -R "$USER" {own_cache / "hub"}')


def test_the_hub_answers(scripted_hub: AHub, monkeypatch: pytest.MonkeyPatch):
    """HF_ENDPOINT is asked, without a token unless there is one."""
    found = doctor_models.hub(of("cpu"))
    assert ("ok", True) == (found.state, scripted_hub.url in found.detail and "without a token" in found.detail)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = doctor_models.hub(of("cpu"))
    assert ("ok", True) == (found.state, "takes the token" in found.detail)
    assert ["", f"Bearer {TOKEN}"] == scripted_hub.keys


def test_a_token_that_the_hub_refuses(scripted_hub: AHub, own_cache: Path):
    """It stops every download, so it is a failure while a model is missing. The token itself is never told."""
    own_cache.mkdir()
    (own_cache / "token").write_text(f"{TOKEN}\n")
    scripted_hub.status = 401
    found = doctor_models.hub(of("cpu"))
    assert ("failure", True) == (found.state, "refuses the token" in found.detail)
    assert TOKEN not in found.detail + found.fix
    assert f"Bearer {TOKEN}" in scripted_hub.keys
    assert "warning" == doctor_models.hub(of("mini")).state


@pytest.mark.parametrize("status", [502, 503])
def test_a_hub_that_is_ill(scripted_hub: AHub, status: int):
    """A gateway's error is no answer of the hub."""
    scripted_hub.status = status
    found = doctor_models.hub(of("cpu"))
    assert ("failure", True) == (found.state, f"answers {status}" in found.detail)


@pytest.mark.parametrize("name", ["nobody", "silent"])
def test_a_hub_that_does_not_answer(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Refusing or silent: a failure where models must come from there, and a warning where all are here."""
    monkeypatch.setattr(doctor_models, "HUB_S", 0.3)
    monkeypatch.setenv("HF_ENDPOINT", request.getfixturevalue(name))
    found = doctor_models.hub(of("cpu"))
    assert ("failure", True) == (found.state, "does not answer" in found.detail and "bge-reranker" in found.detail)
    assert "--preset mini" in found.fix
    assert "warning" == doctor_models.hub(of("mini")).state


def test_models_here_and_not(monkeypatch: pytest.MonkeyPatch, cli_home: Path):
    """A missing one is a warning with the command, except where nothing may fetch it; half a folder is an error."""
    assert "ok" == doctor_models.models(of("mini")).state
    found = doctor_models.models(of("cpu"))
    assert ("warning", "fetch them ahead: qmd-remote pull --preset cpu") == (found.state, found.fix)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = doctor_models.models(of("cpu"))
    assert ("failure", True) == (found.state, found.fix.startswith("unset HF_HUB_OFFLINE"))
    assert "skipped" == doctor_models.hub(of("cpu")).state
    with pytest.raises(ConfigError, match="holds no model"):
        doctor_models.models(of("mini", embed_model=str(cli_home)))


def test_a_model_whose_package_is_missing_is_not_here(monkeypatch: pytest.MonkeyPatch):
    """What generates nothing for want of its package is not called present; a container needs the hub's files."""
    monkeypatch.setattr(presets, "bundled_path", lambda name: None if name == presets.MINI_GENERATION else Path("/x"))
    wanted = of("mini")
    found = doctor_models.models(wanted)
    assert ("warning", True) == (found.state, f"{presets.MINI_GENERATION} is not" in found.detail)
    in_container = of("mini", generation_engine="docker", gpus="none")
    assert [presets.MINI_GENERATION] == doctor_models.absent(in_container)


# QMD and the services


def test_qmds_config(cli_home: Path, stand_in: Run, nobody: str):
    """No file is nothing to look at; ours with services that answer is fine; what QMD fails with is told."""
    file = cli_home / "index.yml"
    assert "skipped" == look_at_config(file).state
    names = "  models: {embed: real/embed, generate: real/first, rerank: real/rerank}\n"
    file.write_text(f"remote:\n  url: {stand_in().url}\n{names}")
    assert "ok" == look_at_config(file).state
    file.write_text(f"remote:\n  url: {nobody}\n{names}")
    dead = look_at_config(file)
    assert ("warning", True) == (dead.state, nobody in dead.detail)
    assert dead.fix
    file.write_text("remote:\n  url: nonsense\n")
    assert "failure" == look_at_config(file).state
    file.write_text("collections: {}\n")
    local = look_at_config(file)
    assert ("warning", True) == (local.state, "config write" in local.fix)


def test_a_config_of_another_family_of_clients_is_judged_as_theirs(tmp_path: Path, stand_in: Callable[..., Any]):
    """It has no `remote:` block, and needs none."""
    file = tmp_path / "index.yml"
    url = stand_in().url
    names = {"embed": "real/embed", "rerank": "real/rerank", "expand": "real/first"}
    lines = [f"  {task}_api_{what}" for task, name in names.items() for what in (f"url: {url}/v1", f"model: {name}")]
    file.write_text("models:\n" + "\n".join(lines) + "\n")
    found = look_at_config(file)
    assert ("ok", True) == (found.state, url in found.detail), found
    assert url in find_server(file).url


def look_at_config(file: Path) -> Finding:
    """The check of QMD's file, as `all_checks` makes it."""
    check = next(one for one in doctor_checks.all_checks(of("cpu"), file) if one.name == "QMD's config")
    return check.look()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("ready", "ok"),
        ("off", "skipped"),
        ("not running", "skipped"),
        ("loading", "warning"),
        ("unattended", "warning"),
        ("failed", "failure"),
        ("not answering", "failure"),
    ],
)
def test_a_services_state(state: str, expected: str):
    """What works is ok, what passes a warning, what is broken a failure; each of these with a command."""
    found = doctor_checks.service("generation", of("cpu"), [ServiceStatus("generation", state)])
    assert expected == found.state
    assert ("qmd-remote " in found.fix) == (expected in {"warning", "failure"})


def test_a_client_is_not_told_to_start_services():
    """Where no service can run, none is missed."""
    found = doctor_checks.service("embed", of("cpu"), [ServiceStatus("embed", "not running")], can_run=False)
    assert ("skipped", "no service can run here") == (found.state, found.detail)


def test_generation_elsewhere_is_asked(stand_in: Run, nobody: str):
    """An external service answers or does not, whether the embed server runs or not."""
    url = stand_in().url
    for status in (ServiceStatus("generation", "external", url=url), ServiceStatus("generation", "not running")):
        found = doctor_checks.service(
            "generation", of("cpu", generation_engine="external", generation_url=url), [status]
        )
        assert ok(f"answers at {url}, real/first") == found
    found = doctor_checks.service("generation", of("cpu"), [ServiceStatus("generation", "external", url=nobody)])
    assert ("failure", True) == (found.state, nobody in found.detail)
