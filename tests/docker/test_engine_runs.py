"""Starts, ends and logs of containers, where it matters what the real engine does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import docker
import pytest

from qmd_remote.errors import PrerequisiteError, QmdRemoteError
from qmd_remote.launch import docker_engine
from qmd_remote.launch.container import Container, Mount, Ulimit
from qmd_remote.launch.docker_engine import DockerEngine
from qmd_remote.launch.engine import Found

SLEEPS = "import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEPS}"


@pytest.fixture
def program(base_image: str, prefix: str) -> Callable[[str], Container]:
    """A container that runs a line of Python."""

    def make(code: str) -> Container:
        return Container(
            name=f"{prefix}-one",
            service="generation",
            image=base_image,
            command=("python3", "-u", "-c", code),
            owner=prefix,
            version="1",
            gpus="none",
            publish=("127.0.0.1", 0, 8000),
        )

    return make


def run(engine: DockerEngine, container: Container) -> Found:
    """Start it."""
    image = engine.image(container.image)
    assert image is not None
    return engine.run(container, image)


def until(true: Callable[[], bool], within_s: float = 30) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def ended(engine: DockerEngine, found: Found) -> Found:
    """The container once it has ended."""
    until(lambda: (now := engine.find(found.name)) is not None and now.state == "exited")
    now = engine.find(found.name)
    assert now is not None
    return now


def logged(chunks: Iterator[bytes]) -> list[str]:
    """Lines of a log."""
    return b"".join(chunks).decode().splitlines()


def test_the_log_of_a_run_has_its_first_line(engine, program):
    """The engine notes a start after the first lines may have come; they are not left out."""
    for _ in range(3):
        found = run(engine, program("print('first')"))
        assert ["first"] == logged(engine.logs(found, since=found.started_at))
        assert ["first"] == logged(engine.logs(ended(engine, found), since=found.started_at))
        engine.remove(found, found.owner)


def test_the_log_of_a_later_run_has_its_own_lines_only(engine, program):
    """After a restart the lines of the run before are not told again, and none of the new ones is lost."""
    found = run(engine, program(f"import os, time; print('run', time.time_ns()); {SLEEPS}"))
    until(lambda: len(logged(engine.logs(found, follow=False))) == 1)
    again = engine.restart(found, 0)
    until(lambda: len(logged(engine.logs(again, follow=False))) == 2)
    every = logged(engine.logs(again, follow=False))
    assert every[1:] == logged(engine.logs(again, since=again.started_at, follow=False))
    assert every[1:] == logged(engine.logs(again, tail=1, follow=False))
    engine.remove(again, again.owner, 0)


def test_a_log_is_followed_until_the_end(engine, program):
    """Following ends by itself when the container ends, with all that it wrote to both streams."""
    found = run(engine, program("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"))
    assert {"out", "err"} == set(logged(engine.logs(found)))
    assert 3 == ended(engine, found).exit_code
    engine.remove(found, found.owner)


def test_a_start_that_is_interrupted_leaves_no_container(engine, program, monkeypatch):
    """Ctrl-C between making and starting takes back what was made, even if its id never came."""
    api, container = engine._api, program(SLEEPS)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("start", "inspect_container"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            genuine = getattr(api, step)
            calls = iter([interrupted])
            patch.setattr(api, step, lambda *words, genuine=genuine, calls=calls: next(calls, genuine)(*words))
            run(engine, container)
        assert engine.find(container.name) is None


def test_limits_that_the_engine_may_not_set_are_left_out(engine, engine_client, program, caplog):
    """A rootless engine, or one that is confined, may not raise them; no kernel lets a process open endless files."""
    endless = replace(program(SLEEPS), ulimits=(Ulimit("nofile", -1, -1),))
    found = run(engine, endless)
    assert "nofile" in caplog.text
    assert not engine_client.api.inspect_container(found.id)["HostConfig"]["Ulimits"]
    assert (endless.spec_hash, "running") == (found.spec_hash, found.state)
    engine.remove(found, found.owner, 0)


def test_a_name_that_was_taken_meanwhile_is_told_and_nothing_is_removed(engine, program):
    """The other one may run and be ours: a start that loses the race leaves it alone."""
    first = run(engine, program(SLEEPS))
    with pytest.raises(PrerequisiteError) as told:
        run(engine, program(SLEEPS))
    assert "name.taken" == told.value.code
    still = engine.find(first.name)
    assert still is not None
    assert (first.id, "running") == (still.id, still.state)
    engine.remove(first, first.owner, 0)


def test_an_image_that_is_gone_is_told(engine, program):
    """The engine's own words for it are understood."""
    container = program(SLEEPS)
    image = engine.image(container.image)
    assert image is not None
    with pytest.raises(QmdRemoteError) as told:
        engine.run(replace(container, image="qmd-test-no-such-image:1"), image)
    assert "image.missing" == told.value.code
    assert engine.find(container.name) is None


def test_a_container_that_ignores_its_end_is_ended_by_force(engine, program):
    """The grace is kept to, and then the engine kills."""
    found = run(engine, program(STUBBORN))
    until(lambda: logged(engine.logs(found, follow=False)) == ["deaf"])
    engine.remove(found, found.owner, grace_s=1)
    assert engine.find(found.name) is None


def test_every_state_can_be_removed(engine, engine_client, program):
    """Paused, made and never started, and ended containers go like running ones; a second removal is no error."""
    found = run(engine, program(SLEEPS))
    engine_client.api.pause(found.id)
    engine.remove(found, found.owner, grace_s=1)
    engine_client.api.create_container(program("").image, ["python3"], name=program("").name, labels=program("").labels)
    never_started = engine.find(program("").name)
    assert never_started is not None
    assert "created" == never_started.state
    engine.remove(never_started, never_started.owner)
    found = run(engine, program(""))
    engine.remove(ended(engine, found), found.owner)
    engine.remove(found, found.owner)
    assert engine.find(found.name) is None


def test_two_who_remove_at_once_do_not_quarrel(engine, program):
    """Each returns when it is gone."""
    found = run(engine, program(SLEEPS))
    errors: list[Exception] = []

    def remove() -> None:
        try:
            docker_engine.connect().remove(found, found.owner, grace_s=0)
        except QmdRemoteError as error:
            errors.append(error)

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [] == errors
    assert engine.find(found.name) is None


def test_one_that_is_stopped_can_be_started_again(engine, program):
    """Until it is ready, the engine must not restart it: the policy of its former life ends."""
    found = run(engine, program(SLEEPS))
    engine.keep_running(found)
    engine._api.stop(found.id, timeout=0)
    again = engine.start(found)
    assert (found.id, "running", "no") == (again.id, again.state, again.restart_policy)
    engine.remove(again, again.owner, 0)


def test_the_engine_restarts_what_ends_and_is_kept_running(engine, program):
    """Once it was ready, an end of any kind is followed by a restart that the engine counts."""
    found = run(engine, program("import time; time.sleep(0.5)"))
    engine.keep_running(found)
    until(lambda: (now := engine.find(found.name)) is not None and now.restarts > 0)
    engine.remove(found, found.owner, 0)
    assert engine.find(found.name) is None


def test_a_container_in_the_hosts_network_publishes_nothing(engine, engine_client, program):
    """No ports are asked for; the network is the host's."""
    found = run(engine, replace(program(SLEEPS), publish=None, user="1000:1000"))
    told = engine_client.api.inspect_container(found.id)
    assert ("host", {}) == (told["HostConfig"]["NetworkMode"], told["HostConfig"]["PortBindings"] or {})
    assert "1000:1000" == told["Config"]["User"]
    engine.remove(found, found.owner, 0)


def test_a_port_that_is_taken_between_look_and_start_is_told(engine, program, free_port):
    """Whether a container or a process was quicker, the cause is the port; nothing is left."""
    port = free_port()
    first = run(engine, replace(program(SLEEPS), publish=("127.0.0.1", port, 8000)))
    second = replace(program(SLEEPS), name=f"{first.name}-2", publish=("127.0.0.1", port, 8000))
    with pytest.raises(PrerequisiteError) as told:
        run(engine, second)
    assert "port.taken" == told.value.code
    engine.remove(first, first.owner, 0)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PrerequisiteError) as told:
        run(engine, second)
    assert "port.taken" == told.value.code
    with pytest.raises(QmdRemoteError) as elsewhere:
        run(engine, replace(second, publish=("192.0.2.1", port, 8000)))
    assert "bind.address" == elsewhere.value.code
    assert engine.find(second.name) is None


def test_folders_that_vanish_are_told(engine, program, tmp_path):
    """A folder that was there at the look and is gone at the start."""
    container = replace(program(SLEEPS), mounts=(Mount(str(tmp_path / "gone"), "/data"),))
    with pytest.raises(QmdRemoteError) as told:
        run(engine, container)
    assert "mount.missing" == told.value.code


def test_no_volume_without_a_name_stays_behind(engine, engine_client: docker.DockerClient, program):
    """An image may ask for volumes of its own, which nobody would ever find again."""
    container = program("")
    made = engine_client.api.create_container(
        container.image, ["python3"], name=container.name, labels=container.labels, volumes=["/scratch"]
    )
    engine_client.api.start(made["Id"])
    (volume,) = engine_client.api.inspect_container(made["Id"])["Mounts"]
    found = engine.find(container.name)
    assert found is not None
    engine.remove(found, found.owner)
    assert volume["Name"] not in {one.name for one in engine_client.volumes.list()}
