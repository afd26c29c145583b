"""What befalls an engine: a line that breaks, a full disk, GPUs that it has or has not, its end and its return."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from qmd_remote.errors import Exit, QmdRemoteError
from qmd_remote.launch import container_end, docker_engine
from qmd_remote.launch.container import Container
from qmd_remote.launch.docker_engine import DockerEngine
from qmd_remote.launch.engine import Found, ImageFacts, PullProgress
from tests.docker import dockerd, images, need, registry
from tests.docker.dockerd import Daemon
from tests.docker.line import Line

IMAGE = "acme/llm:1"
LAYERS = (3 << 20, 24 << 20)
BASE = "base:latest"
SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
HOOK = 'cat "{folder}/says" >&2; exit $(cat "{folder}/ends")'


class Own:
    """An engine of our own, and what the stand-in for NVIDIA's hook says in it."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon, self._folder = daemon, folder
        self.hook(0)

    def hook(self, code: int, text: str = "") -> None:
        """How the hook ends from now on."""
        (self._folder / "says").write_text(text)
        (self._folder / "ends").write_text(str(code))

    def engine(self) -> DockerEngine:
        return docker_engine.connect({"DOCKER_HOST": self.daemon.endpoint})


@pytest.fixture(scope="module")
def daemon(engine_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    """One engine for all tests that stop it; it has a GPU to give, and tries a download once only."""
    if why := dockerd.unable():
        need.missing(why)
    folder = tmp_path_factory.mktemp("engine")
    flags = ["--max-download-attempts", "1"]
    with Daemon(flags=flags, hook=HOOK.format(folder=folder)) as one:
        images.build_base(one.client(), "base")
        yield Own(one, folder)


@pytest.fixture
def own(daemon: Own) -> Iterator[Own]:
    """That engine, running and empty of containers."""
    daemon.hook(0)
    yield daemon
    if daemon.daemon.broken:
        daemon.daemon.kill()
        daemon.daemon.start()
    client = daemon.daemon.client()
    for container in client.containers.list(all=True):
        container.remove(force=True)
    for image in client.images.list():
        if BASE not in image.tags:
            client.images.remove(image.id, force=True)


@pytest.fixture(scope="module")
def shop(engine_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a registry that has the image."""
    if registry.PROGRAM is None:
        need.missing("docker-registry is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with registry.serving(tmp_path_factory.mktemp("shop"), port) as address:
        name = f"{address}/{IMAGE}"
        images.build_random(engine_client, "scratch", name, sizes=LAYERS)
        told = [json.loads(line) for line in engine_client.images.push(name).splitlines()]
        assert not [one for one in told if "error" in one], told
        engine_client.images.remove(name, force=True)
        yield port


@pytest.fixture
def forget(engine_client: docker.DockerClient) -> Iterator[Callable[[str], str]]:
    """Remove an image from the common engine after the test."""
    names: list[str] = []
    yield lambda name: names.append(name) or name
    for name in names:
        for image in engine_client.images.list(name):
            engine_client.images.remove(image.id, force=True)


def program(code: str = SLEEPS, **changes: object) -> Container:
    """A container that runs a line of Python in the network of its engine."""
    one = Container(
        name="qmd-test-life",
        service="generation",
        image=BASE,
        command=("python3", "-u", "-c", code),
        owner="life",
        version="1",
        gpus="none",
    )
    return replace(one, **changes)


def started(engine: DockerEngine, container: Container) -> Found:
    """Start it."""
    image = engine.image(container.image)
    assert image is not None
    return engine.run(container, image)


def until(true: Callable[[], object], within_s: float = 30) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def failing(call: Callable[[], object]) -> QmdRemoteError:
    """The error of a call that must fail."""
    with pytest.raises(QmdRemoteError) as told:
        call()
    return told.value


def whole(_: PullProgress) -> None:
    """Nobody looks at the progress."""


def test_a_line_that_breaks_once_is_mended_and_the_wait_is_told(engine: DockerEngine, shop: int, forget):
    """The engine waits, says so, and asks for the rest only."""
    seen: list[PullProgress] = []
    with Line(shop, length=16 << 20) as line:

        def tell(progress: PullProgress) -> None:
            seen.append(progress)
            if any(what.startswith("Retrying") for _, what, _, _ in progress.layers):
                line.heal()

        image = engine.pull(forget(f"127.0.0.1:{line.port}/{IMAGE}"), tell, lambda: False)
        assert image.size_bytes >= sum(LAYERS)
        assert any(what.startswith("Retrying") for one in seen for _, what, _, _ in one.layers)
        assert sum(LAYERS) <= line.carried < 1.3 * sum(LAYERS)


def test_a_line_that_stays_broken_is_told_and_a_later_pull_succeeds(own: Own, shop: int):
    """The cause is the line, nothing half-made stays, and the same pull ends well once the line is whole."""
    engine = own.engine()
    with Line(shop, length=16 << 20, listener=own.daemon.listen()) as line:
        name = f"127.0.0.1:{line.port}/{IMAGE}"
        error = failing(lambda: engine.pull(name, whole, lambda: False))
        assert "registry.unreachable" == error.code, error.message
        assert engine.image(name) is None
        line.heal()
        assert engine.pull(name, whole, lambda: False).size_bytes >= sum(LAYERS)


def test_a_full_disk_is_told_and_leaves_nothing(engine_client: docker.DockerClient, shop: int):
    """The engine's own words say that the image is missing; ours say why, and what to do."""
    if why := dockerd.unable():
        need.missing(why)
    with Daemon(disk_mb=40, flags=["--max-download-attempts", "1"]) as daemon:
        engine = docker_engine.connect({"DOCKER_HOST": daemon.endpoint})
        with Line(shop, listener=daemon.listen()) as line:
            name = f"127.0.0.1:{line.port}/{IMAGE}"
            error = failing(lambda: engine.pull(name, whole, lambda: False))
        assert ("disk.full", Exit.PREREQUISITE) == (error.code, error.exit_code), error.message
        assert "docker system df" in error.hint
        assert engine.image(name) is None


def test_all_gpus_are_given_where_the_engine_has_them(own: Own):
    """With NVIDIA's hook the request goes through."""
    found = started(own.engine(), program(gpus="all"))
    assert found.running
    own.engine().remove(found, found.owner, 0)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: no", "gpu.library"),
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.9, please update", "gpu.driver_old"),
        ("nvidia-container-cli: device error: 3: unknown device", "gpu.missing"),
        ("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch", "gpu.library"),
        ("nvidia-container-cli: something that nobody has seen", "gpu.toolkit"),
    ],
)
def test_what_the_hook_complains_about_is_told_and_no_container_stays(own: Own, text: str, code: str):
    """The engine wraps the hook's words in its own."""
    own.hook(1, text)
    error = failing(lambda: started(own.engine(), program(gpus="all")))
    assert (code, Exit.PREREQUISITE) == (error.code, error.exit_code), error.message
    assert text[-40:] in error.message
    assert own.engine().find(program().name) is None


def test_an_engine_that_stops_during_a_pull_is_told(own: Own, shop: int):
    """The stream just ends; after it comes the truth."""
    engine = own.engine()
    with Line(shop, rate=4e6, listener=own.daemon.listen()) as line:
        begun = threading.Event()

        def stop() -> None:
            begun.wait(30)
            own.daemon.stop()

        thread = threading.Thread(target=stop)
        thread.start()
        name = f"127.0.0.1:{line.port}/{IMAGE}"
        error = failing(lambda: engine.pull(name, lambda one: one.done and begun.set(), lambda: False))
        thread.join()
        assert ("docker.down", Exit.PREREQUISITE) == (error.code, error.exit_code), error.message


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_engine_that_ends_is_told_by_every_call(own: Own, end: str):
    """A log that is followed ends, since that is all the engine lets one see; each call after it says why."""
    engine = own.engine()
    found = started(engine, program())
    log = engine.logs(found)
    assert b"up\n" == next(log)
    getattr(own.daemon, end)()
    assert [] == list(log)
    calls: list[Callable[[], object]] = [
        engine.facts,
        lambda: engine.find(found.name),
        lambda: engine.image(found.image),
        lambda: engine.ours("life"),
        lambda: engine.preflight(program()),
        lambda: engine.pull("127.0.0.1:9/acme/none:1", whole, lambda: False),
        lambda: engine.run(program(name="qmd-test-other"), ImageFacts("sha256:0", "amd64")),
        lambda: engine.start(found),
        lambda: engine.restart(found, 0),
        lambda: engine.keep_running(found),
        lambda: engine.remove(found, found.owner, 0),
        lambda: list(engine.logs(found)),
        own.engine,
    ]
    errors = [failing(call) for call in calls]
    assert {"docker.down"} == {one.code for one in errors}, [one.message for one in errors]
    assert all(own.daemon.endpoint in one.message for one in errors)


def test_an_engine_that_hangs_is_told_in_time(own: Own, monkeypatch: pytest.MonkeyPatch):
    """Neither a call nor a log that is followed waits for ever."""
    monkeypatch.setattr(docker_engine, "CALL_S", 1)
    monkeypatch.setattr(docker_engine, "SILENCE_S", 0.5)
    engine = own.engine()
    found = started(engine, program())
    log = engine.logs(found)
    assert b"up\n" == next(log)
    own.daemon.freeze()
    for call in (engine.facts, lambda: list(log), own.engine):
        error = failing(call)
        assert "docker.down" == error.code
        assert "does not answer in time" in error.message


def test_what_is_kept_running_comes_back_with_its_engine(own: Own):
    """It is the same container in a new run, with the new run's lines apart; one that was not ready stays down."""
    engine = own.engine()
    kept, other = started(engine, program()), started(engine, program(name="qmd-test-other"))
    engine.keep_running(kept)
    until(lambda: b"".join(engine.logs(kept, follow=False)) == b"up\n")
    own.daemon.stop()
    own.daemon.start()
    again = engine.find(kept.name)
    assert again is not None
    assert (kept.id, "running", kept.spec_hash) == (again.id, again.state, again.spec_hash)
    assert again.started_at > kept.started_at
    until(lambda: b"".join(engine.logs(again, follow=False)).count(b"up\n") == 2)
    assert b"up\n" == b"".join(engine.logs(again, since=again.started_at, follow=False))
    down = engine.find(other.name)
    assert down is not None
    assert "exited" == down.state


def test_after_a_crash_of_its_engine_a_container_can_be_started_again(own: Own):
    """Engine 20.10 ends what it finds alive after a crash, and does not restart it, whatever the policy says."""
    engine = own.engine()
    kept = started(engine, program())
    engine.keep_running(kept)
    own.daemon.kill()
    own.daemon.start()
    found = engine.find(kept.name)
    assert found is not None
    assert (kept.id, "unless-stopped") == (found.id, found.restart_policy)
    again = found if found.running else engine.start(found)
    assert (kept.id, "running", kept.spec_hash) == (again.id, again.state, again.spec_hash)


def test_a_container_that_eats_memory_is_killed_and_that_is_told(
    engine: DockerEngine, engine_client: docker.DockerClient, vllm_image: str, prefix: str
):
    """Exit code 137 and the engine's word for it."""
    container = program(
        name=f"{prefix}-eats", owner=prefix, image=vllm_image, command=("vllm", "serve", "acme/fine"),
        env={"STANDIN_MODE": "eats"}, shm_bytes=1 << 30,
    )  # fmt: skip
    found = started(engine, container)
    engine_client.api.update_container(found.id, mem_limit="64m", memswap_limit="64m")
    until(lambda: engine.find(found.id).state == "exited")
    now = engine.find(found.id)
    assert now is not None
    assert (137, True) == (now.exit_code, now.oom_killed)
    log = b"".join(engine.logs(now, follow=False)).decode()
    assert "memory.system" == container_end.to_error("generation", log, now, Path("log")).code
