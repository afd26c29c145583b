"""Where this machine's services are: as their records say, else as the settings do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from qmd_remote import local, services
from qmd_remote.errors import ConfigError
from qmd_remote.services import EMBED, GENERATION, Record

Run = Callable[..., Any]
SECRET = "k3y-that-nobody-may-read"


def test_without_records_the_settings_say_where_services_would_be(cli_home: Any, monkeypatch: pytest.MonkeyPatch):
    """Ports and address are those of the environment; nothing counts as running."""
    monkeypatch.setenv("QMD_REMOTE_PORT", "9001")
    monkeypatch.setenv("QMD_REMOTE_GENERATION_PORT", "9000")
    here = local.find()
    assert ("http://127.0.0.1:9001", "http://127.0.0.1:9000") == (here.embed_url, here.generation_url)
    assert (None, None, False) == (here.embed, here.generation, here.running)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8001"),
        ("::", "http://[::1]:8001"),
        ("::1", "http://[::1]:8001"),
        ("box", "http://box:8001"),
    ],
)
def test_an_address_to_listen_on_is_turned_into_one_to_connect_to(
    cli_home: Any, monkeypatch: pytest.MonkeyPatch, host: str, url: str
):
    """A wildcard address becomes loopback, and IPv6 gets its brackets."""
    monkeypatch.setenv("QMD_REMOTE_HOST", host)
    assert url == local.find().embed_url


def test_records_are_believed_before_settings(runs: Run, monkeypatch: pytest.MonkeyPatch):
    """What runs is where its record says, whatever the environment would choose now."""
    monkeypatch.setenv("QMD_REMOTE_PORT", "9001")
    monkeypatch.setenv("QMD_REMOTE_GENERATION", "off")
    embed = runs(EMBED, "http://127.0.0.1:7001")
    generation = runs(GENERATION, "http://127.0.0.1:7000")
    here = local.find()
    assert (embed.url, generation.url) == (here.embed_url, here.generation_url)
    assert (embed, generation, True) == (here.embed, here.generation, here.running)


@pytest.mark.parametrize("service", [EMBED, GENERATION])
def test_one_service_is_enough_to_be_running(runs: Run, service: str):
    """Either service counts."""
    runs(service, "http://127.0.0.1:7000")
    assert local.find().running


def test_the_record_of_a_dead_process_is_not_believed(cli_home: Any):
    """A record whose pid belongs to another process now says nothing."""
    services.write(Record(EMBED, psutil.Process().pid, 1.0, "http://127.0.0.1:7001"))
    here = local.find()
    assert (False, "http://127.0.0.1:8001") == (here.running, here.embed_url)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"engine": "external", "url": "http://box:11434/v1/"}, "http://box:11434"),
        ({"engine": "off", "url": ""}, None),
        ({"engine": "process", "url": ""}, "http://127.0.0.1:8000"),
    ],
)
def test_generation_is_where_the_running_embed_server_was_told(
    runs: Run, monkeypatch: pytest.MonkeyPatch, beside: dict[str, str], expected: str | None
):
    """`up --generation …` is remembered by the embed server's record, not by the next command's environment."""
    monkeypatch.setenv("QMD_REMOTE_GENERATION", "external")
    monkeypatch.setenv("QMD_REMOTE_GENERATION_URL", "http://other:1")
    runs(EMBED, "http://127.0.0.1:7001", beside=beside)
    assert expected == local.find().generation_url


def test_an_external_engine_from_the_settings(cli_home: Any, monkeypatch: pytest.MonkeyPatch):
    """Without records the environment's engine counts; its URL loses the /v1 that QMD adds itself."""
    monkeypatch.setenv("QMD_REMOTE_GENERATION", "external")
    monkeypatch.setenv("QMD_REMOTE_GENERATION_URL", "http://box:11434/v1")
    assert "http://box:11434" == local.find().generation_url


def test_the_key_is_the_environments_and_is_not_shown(cli_home: Any, monkeypatch: pytest.MonkeyPatch):
    """The key is found, in the variable or its file, and no representation shows it."""
    path = cli_home / "key"
    path.write_text(SECRET + "\n", encoding="utf-8")
    monkeypatch.setenv("QMD_REMOTE_API_KEY_FILE", str(path))
    assert SECRET == local.find().key
    assert SECRET not in repr(local.find())


def test_wrong_settings_are_said(cli_home: Any, monkeypatch: pytest.MonkeyPatch):
    """A setting that cannot be is an error that names its variable."""
    monkeypatch.setenv("QMD_REMOTE_GENERATION_PORT", "x")
    with pytest.raises(ConfigError, match="QMD_REMOTE_GENERATION_PORT"):
        local.find()


def test_a_running_server_is_met_with_its_own_key(cli_home: Any, runs: Any, monkeypatch: pytest.MonkeyPatch):
    """A variable that holds the key of another box does not hide the key that the server here was started with."""
    path = cli_home / "key"
    path.write_text(SECRET + "\n", encoding="utf-8")
    monkeypatch.setenv("QMD_REMOTE_API_KEY", "the-key-of-another-box")
    runs("embed", "http://127.0.0.1:1", key_file=str(path))
    assert SECRET == local.find().key
