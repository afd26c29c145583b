"""Which services run here: records that are believed only while their process lives, and how a service is ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from qmd_remote import services
from qmd_remote.errors import ServiceFailed
from qmd_remote.reach import connect_host
from qmd_remote.services import EMBED, GENERATION, Record
from qmd_remote.settings import Settings, declared

SECRET = "k3y-that-nobody-may-read"
SLEEPER = "import time; print(flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
# a parent that hands its child's pid to the test
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All state in a folder of the test's own."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], str]]]:
    """Start a small Python program; returns it with the first line it prints, which says that it is set up."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str, *arguments: str) -> tuple[subprocess.Popen[bytes], str]:
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().decode().strip()

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def record_of(pid: int, service: str = EMBED, **changes: Any) -> Record:
    """The record that a live process would have written of itself."""
    record = Record(service, pid, psutil.Process(pid).create_time(), "http://127.0.0.1:1", "m", "p", "", {})
    return replace(record, **changes)


def write(record: Record) -> None:
    """Put a record where its service's lies."""
    path = services.record_file(record.service)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(record)), encoding="utf-8")


# records


def test_a_service_is_known_while_its_block_runs():
    """A supervisor is found with its pid, place, model and settings, and is gone when it ends, even by an error."""
    settings = Settings(api_key=SECRET, trust_remote_code=("a/b",), preset="mini")
    with (
        pytest.raises(ZeroDivisionError),
        services.registered(EMBED, settings, url="http://127.0.0.1:8001", model="a/b", program="p"),
    ):
        found = services.find(EMBED)
        assert found is not None
        expected = (EMBED, os.getpid(), "http://127.0.0.1:8001", "a/b", "p", "mini")
        assert expected == (found.service, found.pid, found.url, found.model, found.program, found.preset)
        assert services.spec_of(EMBED, settings) == found.spec
        assert services.find(GENERATION) is None
        raise ZeroDivisionError
    assert services.find(EMBED) is None
    assert not services.record_file(EMBED).exists()


def test_a_record_holds_no_key():
    """The file of a running service tells that there is a key, and not which."""
    with services.registered(EMBED, Settings(api_key=SECRET), url="", model="", program=""):
        assert SECRET not in services.record_file(EMBED).read_text(encoding="utf-8")


def test_a_record_that_belongs_to_a_successor_is_left_alone(start):
    """A supervisor that ends late does not remove the record of the one that follows it."""
    other, _ = start(SLEEPER)
    with services.registered(EMBED, Settings(), url="", model="", program=""):
        write(record_of(other.pid))
    found = services.find(EMBED)
    assert found is not None
    assert other.pid == found.pid


def test_the_record_of_a_dead_process_is_not_believed(start):
    """After a kill -9 the record lies there still, and counts for nothing."""
    process, _ = start(SLEEPER)
    record = record_of(process.pid)
    write(record)
    assert record == services.find(EMBED)
    process.kill()
    process.wait()
    assert services.find(EMBED) is None


def test_a_zombie_is_dead(start):
    """A process that ended and was not collected by its parent runs no service."""
    process, _ = start(SLEEPER)
    write(record_of(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert services.find(EMBED) is None


def test_a_recycled_pid_is_not_believed(start):
    """A process that got the pid of a dead service later is not that service, and is never stopped in its place."""
    process, _ = start(SLEEPER)
    record = record_of(process.pid)
    recycled = replace(record, created=record.created - 60)
    write(recycled)
    assert services.find(EMBED) is None
    assert services.stop(recycled, grace_s=0.1)
    assert process.poll() is None


def test_the_record_of_another_version_is_believed(start):
    """A service that an older or newer qmd-remote started can still be found, and so be stopped, after an upgrade."""
    process, _ = start(SLEEPER)
    members = asdict(record_of(process.pid))
    del members["program"]
    path = services.record_file(EMBED)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**members, "colour": "green"}), encoding="utf-8")
    found = services.find(EMBED)
    assert found is not None
    assert process.pid == found.pid


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"service": "embed"}', "\x00"]
    + [json.dumps({**asdict(Record(EMBED, pid, 1.0, "", "", "", "", {}))}) for pid in (-1, 0, 2**40)]
    + [json.dumps({**asdict(Record(EMBED, 1, 1.0, "", "", "", "", {})), "pid": "x"})],
)
def test_a_damaged_record_is_no_record(text: str):
    """Whatever stands in a record's file, looking for the service gives an answer and never fails."""
    path = services.record_file(EMBED)
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert services.find(EMBED) is None


# what a service would have to be restarted for


@pytest.mark.parametrize("f", declared(), ids=lambda f: f.name)
def test_each_setting_belongs_to_the_services_it_changes(f):
    """A changed setting differs in the specs of those services that behave otherwise with it, and in no other."""
    default = f.default
    other = {bool: not default, int: 7, float: 7.5, tuple: ("x/y",), str: "other"}[type(default)]
    before, after = Settings(), replace(Settings(), **{f.name: other})
    if f.name == "api_key_file":
        return  # its content counts, see below
    changed = {name for name in services.SERVICES if services.spec_of(name, before) != services.spec_of(name, after)}
    if f.name in {"preset", "stall_limit_s", "start_limit_s", "hang_limit_s"}:
        assert set() == changed
    elif f.name in {"generation_engine", "generation_port", "shutdown_limit_s", "gpus"}:
        assert {GENERATION, EMBED} == changed  # the embed server passes requests on to where generation is
    else:
        assert {GENERATION if f.name.startswith("generation_") else EMBED} == changed


def test_a_new_key_is_seen_and_not_shown(tmp_path: Path):
    """Another key, in the variable or in its file, means another spec; the spec shows neither."""
    file = tmp_path / "key"
    specs = [services.spec_of(EMBED, Settings())]
    for key in ("one-key", SECRET):
        file.write_text(key, encoding="utf-8")
        specs.append(services.spec_of(EMBED, Settings(api_key_file=str(file))))
    assert 3 == len({spec["api_key"] for spec in specs})
    assert specs[2] == services.spec_of(EMBED, Settings(api_key=SECRET))
    assert SECRET not in str(specs)


def test_a_new_key_is_seen_by_generation_where_it_has_it():
    """vLLM's container knows the key only where other machines can reach it."""
    here, there = Settings(generation_engine="docker"), Settings(generation_engine="docker", generation_host="0.0.0.0")
    for settings, knows in ((here, False), (there, True)):
        specs = [services.spec_of(GENERATION, replace(settings, api_key=key)) for key in ("one-key", SECRET)]
        assert knows == (specs[0] != specs[1])


def test_a_spec_survives_its_file():
    """A spec read back from JSON equals the one computed anew, so that `up` twice finds no difference."""
    spec = services.spec_of(EMBED, Settings(trust_remote_code=("a/b", "c/d"), max_body_mb=0.1, device="cuda:1"))
    assert spec == json.loads(json.dumps(spec))


# ending


def test_a_service_that_listens_to_sigterm_ends_in_its_grace(start):
    """A service that ends when asked is not killed."""
    polite = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit()); print(flush=True); time.sleep(600)"
    process, _ = start(polite)
    assert services.stop(record_of(process.pid), grace_s=20)
    assert not psutil.pid_exists(process.pid)


def test_stopping_takes_the_whole_process_tree(start):
    """Children of the service are ended with it, also those that will not listen."""
    parent, grandchild = start(FAMILY, STUBBORN)
    assert not services.stop(record_of(parent.pid), grace_s=0.3)
    assert not psutil.pid_exists(parent.pid)
    assert not psutil.pid_exists(int(grandchild)) or psutil.Process(int(grandchild)).status() == psutil.STATUS_ZOMBIE


def test_stopping_what_is_gone_is_done(start):
    """A service that ended by itself counts as stopped."""
    process, _ = start(SLEEPER)
    record = record_of(process.pid)
    process.kill()
    process.wait()
    assert services.stop(record)


def test_a_service_that_ends_while_it_is_looked_at_is_stopped(start, monkeypatch: pytest.MonkeyPatch):
    """The race between finding a process and ending it is no error: gone is gone."""
    process, _ = start(SLEEPER)
    record = record_of(process.pid)
    found = services.process_of(record)
    assert found is not None
    process.kill()
    process.wait()
    monkeypatch.setattr(services, "process_of", lambda _: found)
    assert services.stop(record, grace_s=1)


# one at a time

HOLDER = """
import sys, time
from qmd_remote import services
with services.exclusive():
    print(flush=True)
    time.sleep(600)
"""


def test_the_second_caller_learns_at_once_that_another_is_at_work(start):
    """While one process works on the services, another gets an error that names the reason and the next command."""
    start(HOLDER)
    with pytest.raises(ServiceFailed) as caught, services.exclusive():
        pass
    assert "busy" == caught.value.code
    assert "another" in caught.value.message
    assert "qmd-remote status" in caught.value.hint


def test_the_turn_ends_with_the_holder(start):
    """After a normal end, an error or a kill -9 of the holder the next caller may work."""
    holder, _ = start(HOLDER)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), services.exclusive():
            raise ZeroDivisionError


# addresses


def test_the_holder_of_a_port_is_named():
    """Who listens on a port is named with its pid; a free port has no holder."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert "" == services.port_holder(port)
        server.listen()
        assert f"(pid {os.getpid()})" in services.port_holder(port)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("::", "[::1]"),
        ("[::]", "[::1]"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("box.lan", "box.lan"),
        ("192.168.1.5", "192.168.1.5"),
    ],
)
def test_this_machine_reaches_itself(host: str, expected: str):
    """A wildcard address is reached by loopback of its family; an IPv6 address stands in brackets."""
    assert expected == connect_host(host)


def test_a_clock_that_is_set_a_little_does_not_hide_a_service(start):
    """A creation time that differs by a second, as after a clock's correction, is still the same process."""
    process, _ = start(SLEEPER)
    record = record_of(process.pid)
    assert services.process_of(replace(record, created=record.created + 1)) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the tick in which a process began")
@pytest.mark.parametrize(("identity", "found"), [("", False), ("another/1", False), (None, True)])
def test_a_clock_that_is_set_hides_no_service(identity: str | None, found: bool):
    """A process is known by its boot and tick, whatever the time of day says; another tick is another process."""
    me = os.getpid()
    known = services.identity_of(me) if identity is None else identity
    services.write(Record(EMBED, me, psutil.Process().create_time() - 3600, "", identity=known))
    assert found == (services.find(EMBED) is not None)
