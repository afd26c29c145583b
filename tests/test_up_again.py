"""The `up` line that gives again what runs."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from qmd_remote import cli_life, services, up_again
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import resolve


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All state in a folder of the test's own."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path))
    return tmp_path


def record(service: str, **flags: object) -> None:
    """Leave the record of a service that was killed."""
    settings = resolve({"preset": "mini", **flags})
    with services.registered(service, settings, url="http://127.0.0.1:1", model="m", program="docker"):
        kept = services.record_file(service).read_text(encoding="utf-8")
    services.record_file(service).write_text(json.dumps(json.loads(kept) | {"identity": "gone"}), encoding="utf-8")


def test_every_option_that_it_names_is_one():
    """What is typed after it, `up` takes."""
    parameters = set(inspect.signature(cli_life.up).parameters) | {"generation_engine"}
    assert not set(up_again.NAMED) - parameters


def test_without_records_it_is_bare():
    """Nothing is known of what ran."""
    assert up_again.up_line() == "qmd-remote up"


def test_it_names_what_differs_from_the_preset():
    """The preset, and the options that a person gave beside it; a key never."""
    record(GENERATION, generation_engine="docker", generation_image="my image:1", gpus="none", api_key="s3cret")
    expected = "qmd-remote up --preset mini --generation docker --generation-image 'my image:1' --gpus none"
    assert expected == up_again.up_line()


def test_the_embed_server_alone_knows_of_generation():
    """Its record tells where generation was to be."""
    record(EMBED, generation_engine="external", generation_url="http://127.0.0.1:9", port=9001)
    line = up_again.up_line()
    for part in ("--preset mini", "--port 9001", "--generation external", "--generation-url http://127.0.0.1:9"):
        assert part in line


def test_status_says_it(qmd_remote, cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """After the services were killed, `status` tells the whole line."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(cli_home))
    record(GENERATION, generation_engine="off", port=9001)
    hints = [one["hint"] for one in qmd_remote("status", "--json").envelope()["warnings"]]
    assert [hint for hint in hints if hint.endswith("qmd-remote up --preset mini --generation off")]


@pytest.mark.parametrize(
    ("changed", "there", "gone"),
    [
        ("echo_model=true", ["--generation off", "--port 9001"], []),
        ("port=9002", ["--generation off"], ["--port"]),
        ("preset=mini", ["--generation off", "--port 9001"], ["--preset"]),
    ],
)
def test_settings_set_says_it(
    qmd_remote, cli_home: Path, monkeypatch: pytest.MonkeyPatch, changed: str, there: list[str], gone: list[str]
):
    """After a change `up` gives what runs, with the new value: generation that is off is not started by it."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(cli_home))
    wanted = resolve({"preset": "cpu", "generation_engine": "off", "port": 9001})
    with services.registered(EMBED, wanted, url="http://127.0.0.1:1", model="m", program="pytest"):
        said = qmd_remote("settings", "set", changed).stderr
    line = " ".join(said.split()).partition("next: ")[2]
    assert "qmd-remote up " in line
    assert all(part in line for part in there)
    assert not any(part in line for part in gone)
