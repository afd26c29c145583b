"""The engine's client where a real engine does not help: addresses, Podman, GPUs, engines that hang."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qmd_remote.errors import ConfigError, Exit, Interrupted, PrerequisiteError, ServiceFailed, WaitEnded
from qmd_remote.launch import docker_engine
from qmd_remote.launch.container import Container, Ulimit
from qmd_remote.launch.engine import Found, ImageFacts
from tests.launch.engine_api import CONTAINER, PODMAN, EngineApi

WANTED = Container(
    name="qmd-vllm", service="generation", image="vllm", command=("vllm", "serve", "m"), owner="us", version="1"
)
IMAGE = ImageFacts("sha256:1", "arm64", ("vllm", "serve"))
FOUND = Found(CONTAINER["Id"], "qmd-vllm", "vllm", "running", owner="us")


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder of the test's own for whatever is Docker's; nothing of the caller's counts."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def api(tmp_path: Path) -> Iterator[EngineApi]:
    """An engine that says it is Docker."""
    one = EngineApi(tmp_path)
    yield one
    one.close()


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[EngineApi]:
    """One that says it is Podman."""
    one = EngineApi(tmp_path, PODMAN)
    yield one
    one.close()


def make_context(folder: Path, name: str, host: str) -> None:
    """Write a context as `docker context create` does, and choose it."""
    place = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    place.mkdir(parents=True)
    meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}
    (place / "meta.json").write_text(json.dumps(meta))
    (folder / "config.json").write_text(json.dumps({"currentContext": name}))


def refused(env: dict[str, str]) -> PrerequisiteError:
    """The error of connecting with this environment."""
    with pytest.raises(PrerequisiteError) as told:
        docker_engine.connect(env)
    return told.value


@pytest.mark.parametrize(
    "host", ["tcp://192.0.2.1:2375", "ssh://me@box", "192.0.2.1:2375", "https://box.example:2376", "tcp://box:2375"]
)
def test_an_engine_on_another_machine_is_refused(host):
    """Its ports and folders are not ours, so nothing is asked of it."""
    error = refused({"DOCKER_HOST": host})
    assert ("docker.remote", Exit.PREREQUISITE) == (error.code, error.exit_code)


def test_a_context_on_another_machine_is_refused(docker_config):
    """A Docker context counts like the variable."""
    make_context(docker_config, "far", "ssh://me@box")
    assert "docker.remote" == refused({}).code


def test_the_context_is_followed_and_the_variable_wins(docker_config, api, tmp_path):
    """DOCKER_HOST, then the context, then the usual socket; the endpoint is shown."""
    make_context(docker_config, "near", api.env["DOCKER_HOST"])
    assert api.env["DOCKER_HOST"] == docker_engine.connect({}).endpoint
    error = refused({"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"})
    assert "docker.down" == error.code
    assert "nobody.sock" in error.message
    assert "unix:///var/run/docker.sock" == docker_engine.place_of({"DOCKER_CONTEXT": "default"})[0]


@pytest.mark.parametrize(
    "env", [{"DOCKER_CONTEXT": "nosuch"}, {"DOCKER_HOST": "tcp://"}, {"DOCKER_HOST": "what://x"},
            {"DOCKER_HOST": "tcp://127.0.0.1:1", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/nowhere"}]
)  # fmt: skip
def test_an_address_that_cannot_be_one_is_told(env):
    """A context that is not there, or a wrong address, is an error with what to look at, and no default is taken."""
    error = refused(env)
    assert "docker.address" == error.code
    assert "docker context ls" in error.hint


def test_a_damaged_context_is_told(docker_config):
    """So is one whose file cannot be read."""
    make_context(docker_config, "near", "unix:///x")
    next(docker_config.rglob("meta.json")).write_text("{")
    assert "docker.address" == refused({}).code


def test_no_engine_on_loopback_is_told():
    """A loopback port where nobody listens is an engine that is down."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = refused({"DOCKER_HOST": f"tcp://127.0.0.1:{probe.getsockname()[1]}"})
    assert "docker.down" == error.code


def test_a_socket_that_may_not_be_used_is_told(api, tmp_path):
    """A socket of root's says so, with the group to join."""
    (tmp_path / "engine.sock").chmod(0)
    us = os.geteuid()
    try:
        if us == 0:
            os.seteuid(65534)
        error = refused(api.env)
    finally:
        os.seteuid(us)
    assert "docker.permission" == error.code
    assert "usermod" in error.hint


def test_an_engine_that_hangs_is_told_in_time(api, monkeypatch):
    """A call that gets no answer ends with the engine's name."""
    monkeypatch.setattr(docker_engine, "CALL_S", 2)
    engine = docker_engine.connect(api.env)
    api.answers["/info"] = lambda _: api.left.wait(20)
    with pytest.raises(PrerequisiteError, match="does not answer in time") as told:
        engine.facts()
    assert "docker.down" == told.value.code


def test_podman_is_recognised(podman):
    """What calls itself Podman is told from Docker."""
    facts = docker_engine.connect(podman.env).facts()
    assert (True, "arm64", ("crun", "nvidia")) == (facts.podman, facts.architecture, facts.runtimes)


@pytest.mark.parametrize(
    ("gpus", "devices"), [("all", ["nvidia.com/gpu=all"]), ("0,2", ["nvidia.com/gpu=0", "nvidia.com/gpu=2"])]
)
def test_podman_is_asked_for_gpus_by_cdi(podman, gpus, devices):
    """Podman knows GPUs by the names of their specifications."""
    docker_engine.connect(podman.env).run(replace(WANTED, gpus=gpus), IMAGE)
    request = podman.bodies["/containers/create"]["HostConfig"]["DeviceRequests"][0]
    assert ("cdi", devices) == (request["Driver"], request["DeviceIDs"])


def policy_of(api) -> str:
    """The restart policy that a new container is given."""
    return api.bodies["/containers/create"]["HostConfig"]["RestartPolicy"]["Name"]


def test_a_container_has_no_restart_policy_at_first(api):
    """It gets one when it was ready."""
    docker_engine.connect(api.env).run(WANTED, IMAGE)
    assert "no" == policy_of(api)


def test_podmans_containers_have_their_restart_policy_at_once(podman):
    """Podman 4 has no way to change it, and is not asked to."""
    engine = docker_engine.connect(podman.env)
    found = engine.run(replace(WANTED, gpus="none"), IMAGE)
    assert "unless-stopped" == policy_of(podman)
    engine.keep_running(found)
    engine.start(found)
    assert not any(path.endswith("/update") for path in podman.bodies)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [("all", (-1, [])), ("1", (0, ["1"])), ("0, 1", (0, ["0", "1"]))],
)
def test_docker_is_asked_for_gpus_by_capability(api, gpus, expected):
    """Docker is asked for all GPUs by their count, or for some by their numbers, as `--gpus` does."""
    docker_engine.connect(api.env).run(replace(WANTED, gpus=gpus), IMAGE)
    request = api.bodies["/containers/create"]["HostConfig"]["DeviceRequests"][0]
    assert (*expected, [["gpu"]]) == (request["Count"], request["DeviceIDs"], request["Capabilities"])


def test_no_gpu_is_asked_for_without_one(api):
    """`--gpus none` asks for nothing."""
    docker_engine.connect(api.env).run(replace(WANTED, gpus="none"), IMAGE)
    assert not api.bodies["/containers/create"]["HostConfig"].get("DeviceRequests")


@pytest.mark.parametrize(("labelled", "asks"), [("", "us"), ("them", "us"), ("", "")])
def test_a_container_of_another_owner_is_not_removed(api, labelled, asks):
    """One of another installation is as foreign as one without a label, and nobody owns what has none."""
    with pytest.raises(ServiceFailed) as told:
        docker_engine.connect(api.env).remove(replace(FOUND, owner=labelled), asks)
    assert "name.taken" == told.value.code
    assert not [path for path in api.bodies if path.endswith("/stop")]


@pytest.mark.parametrize(
    "words",
    [
        "runc create failed: unable to start container process: error setting rlimits for ready process: error setting "
        "rlimit type 8: operation not permitted: unknown",
        "crun: setrlimit `RLIMIT_MEMLOCK`: Operation not permitted: OCI permission denied",
    ],
)
def test_limits_that_the_engine_may_not_set_are_left_out(api, words, caplog):
    """A rootless engine may raise none, whichever runtime says so: the container starts without them."""
    asked = []

    def start(handler) -> None:
        asked.append(api.bodies["/containers/create"]["HostConfig"]["Ulimits"])
        # Podman lets go of the port of the first attempt a moment later
        told = {1: words, 2: "cannot listen on the TCP port: bind: address already in use"}.get(len(asked), "")
        data = json.dumps({"message": told}).encode() if told else b""
        status = b"500 Internal Server Error" if data else b"204 No Content"
        handler.wfile.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data)
        )

    api.answers[f"/containers/{FOUND.id}/start"] = start
    docker_engine.connect(api.env).run(replace(WANTED, gpus="none", ulimits=(Ulimit("memlock", -1, -1),)), IMAGE)
    assert [[{"Name": "memlock", "Soft": -1, "Hard": -1}], [], []] == asked
    assert "memlock: they are left out" in caplog.text


def test_a_published_name_becomes_an_address(api):
    """Engines publish on numbers only, so localhost is looked up; other names that are nobody's are refused."""
    engine = docker_engine.connect(api.env)
    engine.run(replace(WANTED, publish=("localhost", 8000, 8000)), IMAGE)
    ports = api.bodies["/containers/create"]["HostConfig"]["PortBindings"]
    assert ports["8000/tcp"][0]["HostIp"] in {"127.0.0.1", "::1"}
    with pytest.raises(ConfigError) as told:
        engine.run(replace(WANTED, publish=("no such host", 8000, 8000)), IMAGE)
    assert "bind.address" == told.value.code


def test_our_image_that_is_not_built_ends_the_look_before_anything_is_made(api):
    """The engine is asked for the image, and for nothing after it; another one that is not here is left to the pull."""
    engine = docker_engine.connect(api.env)
    wanted = replace(WANTED, service="embed", image="qmd-embed-rerank", name="other", gpus="none")
    api.answers["/containers/json"] = []
    with pytest.raises(PrerequisiteError) as told:
        engine.preflight(wanted)
    assert ("image.missing", Exit.PREREQUISITE) == (told.value.code, told.value.exit_code)
    assert "/containers/create" not in api.bodies
    assert () == engine.preflight(replace(wanted, image="acme/embed"))


class Chunks:
    """A chunked answer that sends these and then stays open until the test ends, or breaks off."""

    def __init__(self, api: EngineApi, *chunks: bytes, breaks: bool = False) -> None:
        self.api, self.chunks, self.breaks = api, chunks, breaks
        self.done = threading.Event()

    def __call__(self, handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in self.chunks:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.flush()
        if not self.breaks:
            handler.rfile.read(1)  # until the other side closes the connection
        self.done.set()
        handler.close_connection = True


DOWNLOADING = b'{"status":"Downloading","id":"a","progressDetail":{"current":1,"total":9}}\r\n'


def test_a_pull_that_stalls_ends(api, monkeypatch):
    """A registry that says nothing for too long ends the pull with how to go on."""
    monkeypatch.setattr(docker_engine, "SILENCE_S", 0.3)
    api.answers["/images/create"] = Chunks(api, DOWNLOADING)
    seen = []
    with pytest.raises(WaitEnded) as told:
        docker_engine.connect(api.env).pull("127.0.0.1:5000/x", seen.append, lambda: False)
    assert [(1, 9)] == [(one.done, one.total) for one in seen]
    assert "qmd-remote up" in told.value.hint


def test_a_pull_can_be_called_off(api):
    """A wish to stop is heeded while the registry is silent."""
    api.answers["/images/create"] = Chunks(api, DOWNLOADING)
    seen = []
    with pytest.raises(Interrupted):
        docker_engine.connect(api.env).pull("127.0.0.1:5000/x", seen.append, lambda: bool(seen))


def test_a_pull_that_breaks_off_is_told(api):
    """A connection that ends in the middle of an event is an engine that went away."""
    api.answers["/images/create"] = Chunks(api, DOWNLOADING, b'{"status":"Downl', breaks=True)
    with pytest.raises((PrerequisiteError, ServiceFailed)) as told:
        docker_engine.connect(api.env).pull("127.0.0.1:5000/x", lambda _: None, lambda: False)
    assert told.value.code in {"docker.down", "docker.error"}


def frame(text: bytes) -> bytes:
    """Words of stdout as the API sends them."""
    return b"\x01\x00\x00\x00" + len(text).to_bytes(4, "big") + text


def test_a_quiet_log_goes_on_while_the_engine_answers(api, monkeypatch):
    """Silence of a container is no fault; silence of its engine is."""
    monkeypatch.setattr(docker_engine, "SILENCE_S", 0.2)
    monkeypatch.setattr(docker_engine, "CALL_S", 2)
    api.answers[f"/containers/{FOUND.id}/logs"] = Chunks(api, frame(b"hello\n"))
    asked, hangs = [], threading.Event()

    def inspect(handler) -> None:
        asked.append(1)
        if hangs.is_set():
            api.left.wait(20)
        data = json.dumps(CONTAINER).encode()
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        if len(asked) > 4:
            hangs.set()

    api.answers[f"/containers/{FOUND.id}/json"] = inspect
    got = []
    with pytest.raises(PrerequisiteError, match="does not answer in time"):
        for chunk in docker_engine.connect(api.env).logs(FOUND):
            got.append(chunk)
    assert [b"hello\n"] == got
    assert 5 < len(asked)


def test_a_log_that_is_left_lets_the_engine_go(api):
    """Who stops reading a log closes the connection, though nothing more comes."""
    answer = api.answers[f"/containers/{FOUND.id}/logs"] = Chunks(api, frame(b"hello\n"))
    log = docker_engine.connect(api.env).logs(FOUND)
    assert b"hello\n" == next(log)
    log.close()
    assert answer.done.wait(10)


def test_the_beginning_of_an_id_is_no_name(api):
    """Engines find a container by the first digits of its id, too; a name that looks like them is not it."""
    api.answers["/containers/ccc/json"] = CONTAINER
    assert docker_engine.connect(api.env).find("ccc") is None
