"""`restart`, `status` and the reach of what runs, through the command line, with stand-ins as services."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qmd_remote import keys, paths, services
from qmd_remote.launch import up
from qmd_remote.launch.keeper import free_port
from qmd_remote.services import EMBED, GENERATION, Record
from qmd_remote.settings import Settings
from tests import certificate
from tests.launch.command_line import CommandLine, pids


@pytest.fixture
def box(home: Path, tmp_path: Path) -> Iterator[CommandLine]:
    """A machine of the test's own; its commands have ended when the test has."""
    box = CommandLine(tmp_path)
    yield box
    box.close()


# restart


def test_restart_keeps_the_settings(box: CommandLine):
    """`restart` gives new processes with the settings that the old ones had, whatever the environment says now."""
    box.run("up", "--max-batch-size", "7")
    before = pids()
    code, envelope = box.run("restart", EMBED_MODEL="acme/broken", MAX_BATCH_SIZE="9")
    assert (0, ["restarted", "restarted"]) == (code, [one["action"] for one in envelope["data"]["services"]])
    assert not set(before) & set(pids())
    record = services.find(EMBED)
    assert record is not None
    assert (7, "acme/fine") == (record.spec["max_batch_size"], record.spec["embed_model"])


def test_restart_of_one_service_leaves_the_other_one_alone(box: CommandLine):
    """`restart embed` replaces the embed server only."""
    box.run("up")
    before = pids()
    assert 0 == box.run("restart", "embed")[0]
    assert before[0] == pids()[0]
    assert before[1] != pids()[1]


def test_restart_takes_a_rotated_key(box: CommandLine):
    """A key that has changed in its file is the server's key after a restart."""
    file, _ = keys.ensure()
    box.run("up", "--api-key-file", str(file))
    old = services.find(EMBED)
    code, envelope = box.run("key", "rotate", "--restart")
    assert 0 == code, envelope
    new = services.find(EMBED)
    assert old is not None
    assert new is not None
    assert (str(file), str(file)) == (old.key_file, new.key_file)
    assert old.spec["api_key"] != new.spec["api_key"]


def test_restart_needs_the_key_that_came_from_a_variable(box: CommandLine):
    """A key that is in no file cannot be guessed: `restart` says which variable it wants, and leaves all as it is."""
    box.run("up", QMD_REMOTE_API_KEY="once")
    before = pids()
    code, envelope = box.run("restart")
    assert (4, "key.missing") == (code, envelope["error"]["code"])
    assert before == pids()
    assert 0 == box.run("restart", QMD_REMOTE_API_KEY="once")[0]


@pytest.mark.parametrize(("words", "code", "name"), [((), 3, "not_running"), (("embde",), 2, "usage")])
def test_restart_of_nothing_is_an_error(words: tuple[str, ...], code: int, name: str, box: CommandLine):
    """Where nothing runs there is nothing to restart, and an unknown service gets the nearest name."""
    found, envelope = box.run("restart", *words)
    assert (code, name) == (found, envelope["error"]["code"])
    assert not words or "did you mean embed" in envelope["error"]["message"]


# reach


def test_an_open_address_gets_a_key(box: CommandLine):
    """`up --host` makes a key of mode 0600 once, keeps it the next time, and starts the server with it."""
    box.run("up", "--host", "0.0.0.0")
    path = paths.key_file()
    assert 0o600 == path.stat().st_mode & 0o777
    key = path.read_text()
    record = services.find(EMBED)
    assert record is not None
    assert str(path) == record.key_file
    box.run("up", "--host", "0.0.0.0")
    assert key == path.read_text()
    assert record.pid == pids()[1]


def test_up_says_what_to_type_on_the_workstation(box: CommandLine):
    """After `up --host` the exact commands for the other machine are told, and the key itself is not."""
    process = box.start("up", "--host", "0.0.0.0")
    stdout, stderr = process.communicate(timeout=60)
    key = paths.key_file().read_text().strip()
    host = os.uname().nodename
    assert f'export QMD_REMOTE_API_KEY="$(ssh {host} cat {paths.key_file()})"' in stderr
    assert f"config write --url http://{host}:{box.port} --api-key-env QMD_REMOTE_API_KEY" in stderr
    assert key not in stdout + stderr


def test_an_open_address_without_a_key_is_possible_if_asked_for(box: CommandLine):
    """--insecure-no-auth makes no key."""
    box.run("up", "--host", "0.0.0.0", "--insecure-no-auth")
    assert not paths.key_file().exists()


def test_restart_keeps_where_generation_is(box: CommandLine):
    """A server that was told that generation is off, or on another port, is told the same after a restart of it."""
    other = free_port()
    for flags, engine, place in (
        (("--generation", "off"), "off", ""),
        (("--generation-port", str(other)), "process", f"http://127.0.0.1:{other}"),
    ):
        box.run("up", *flags)
        assert 0 == box.run("restart", "embed")[0]
        record = services.find(EMBED)
        assert record is not None
        assert (engine, place) == (record.beside["engine"], record.spec["generation_at"])


def test_restart_looks_before_it_stops(box: CommandLine, tmp_path: Path):
    """When the key file is gone, `restart` says so, and what runs goes on."""
    file = tmp_path / "key"
    file.write_text("a-key\n", encoding="utf-8")
    box.run("up", "--api-key-file", str(file))
    before = pids()
    file.unlink()
    code, envelope = box.run("restart")
    assert (4, "key.unreadable") == (code, envelope["error"]["code"])
    assert before == pids()


def test_a_move_to_a_taken_port_leaves_the_server_where_it_is(box: CommandLine):
    """`up --port` with a port that somebody else holds fails before the running server is stopped."""
    box.run("up")
    before = pids()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, envelope = box.run("up", "--port", str(other.getsockname()[1]))
    assert (5, "port.taken") == (code, envelope["error"]["code"])
    assert before == pids()


def test_a_renewed_certificate_is_a_difference(box: CommandLine, tmp_path: Path):
    """A certificate that was replaced in its file is a difference, named without its digest."""
    settings = Settings(tls_cert=str(certificate.write(tmp_path)[0]))
    record = Record(EMBED, 1, 1.0, "", spec=services.spec_of(EMBED, settings))
    assert () == up.differences(record, settings)
    Path(settings.tls_cert).write_text("another", encoding="utf-8")
    assert ("certificate",) == up.differences(record, settings)


# status


def test_status_needs_no_settings(box: CommandLine):
    """A mistake in the settings file does not hide what runs."""
    box.run("up")
    paths.make_private(paths.config_dir())
    paths.settings_file().write_text("no_such_setting = 1\n", encoding="utf-8")
    code, envelope = box.run("status")
    assert (0, ["ready", "ready"]) == (code, [one["state"] for one in envelope["data"]["services"]])


def test_an_engine_that_is_missing_is_a_failure(box: CommandLine):
    """When the embed server counts on an engine that is not there, status says failed and exits with 1."""
    box.run("up")
    record = services.find(GENERATION)
    assert record is not None
    services.stop(record)
    services.record_file(GENERATION).unlink(missing_ok=True)
    code, envelope = box.run("status")
    assert (1, "failed") == (code, envelope["data"]["services"][0]["state"])


def test_a_folder_that_is_not_there_stops_nothing(box: CommandLine):
    """A mistake in a folder's name is told before the running server is stopped for it."""
    box.run("up")
    before = pids()
    code, envelope = box.run("up", "--embed-model", "/no/such/folder")
    assert (4, "model.missing") == (code, envelope["error"]["code"])
    assert before == pids()


def test_an_address_that_is_none_of_ours_gets_no_key(box: CommandLine):
    """No key is made for an address that cannot be listened on."""
    code, envelope = box.run("up", "--host", "192.0.2.7")
    assert (4, "bind.address") == (code, envelope["error"]["code"])
    assert not paths.key_file().exists()


def test_status_of_what_is_off_and_of_what_is_gone(box: CommandLine):
    """Generation that is off is no problem; an embed server that is gone while generation runs is one."""
    box.run("up", "--generation", "off")
    code, envelope = box.run("status")
    assert (0, "off") == (code, envelope["data"]["services"][0]["state"])
    box.run("up")
    record = services.find(EMBED)
    assert record is not None
    services.stop(record)
    services.record_file(EMBED).unlink(missing_ok=True)
    code, envelope = box.run("status")
    assert (1, "failed") == (code, envelope["data"]["services"][1]["state"])


def test_up_after_a_kill_takes_the_preset_that_ran(box: CommandLine):
    """After both supervisors were killed, the `up` that status suggests starts the same preset again."""
    del box.env["QMD_REMOTE_PRESET"]
    box.run("up", "--preset", "mini")
    for pid in pids():
        assert pid is not None
        psutil.Process(pid).kill()
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    code, envelope = box.run("up")
    assert "mini" == envelope["data"]["preset"], (code, envelope)
