"""What runs, asked of real processes and a real HTTP service."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from qmd_remote import paths, services
from qmd_remote.errors import Exit
from qmd_remote.launch import containers, status
from qmd_remote.launch.status import ServiceStatus
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings
from qmd_remote.up_again import up_line


@pytest.fixture(autouse=True)
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of the test's own, and no long waits for an answer."""
    monkeypatch.setattr(status, "ASK_S", 0.5)


def look(url: str, service: str = EMBED) -> ServiceStatus:
    """The status of a service that this very process pretends to be."""
    with services.registered(service, Settings(preset="mini"), url=url, model="configured/model", program="stand-in"):
        return next(one for one in status.look() if one.service == service)


def test_nothing_runs():
    """Without a record both services are not running, generation first, and the exit code says so."""
    found = status.look()
    assert [(GENERATION, "not running"), (EMBED, "not running")] == [(one.service, one.state) for one in found]
    assert Exit.NOT_RUNNING == status.exit_code(found)


def test_a_ready_service_is_shown_with_what_it_says_of_itself(scripted):
    """State, models and device come from the service, pid, memory and age from its processes."""
    body = {"status": "ready", "models": {"embed": "a/e", "rerank": "b/r"}, "device": "cpu"}
    scripted.body = json.dumps(body).encode()
    found = look(scripted.url)
    expected = (EMBED, "ready", scripted.url, "a/e, b/r", "cpu", os.getpid(), "mini", "")
    assert expected == (
        found.service,
        found.state,
        found.url,
        found.model,
        found.device,
        found.pid,
        found.preset,
        found.detail,
    )
    assert found.memory_bytes is not None
    assert found.memory_bytes >= psutil.Process().memory_info().rss // 2
    assert found.uptime_s is not None
    assert found.uptime_s >= 0


def test_one_model_for_both_jobs_is_named_once(scripted):
    """A bi-encoder that also reranks is one model."""
    scripted.body = b'{"models": {"embed": "a/e", "rerank": "a/e"}}'
    assert "a/e" == look(scripted.url).model


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"ok", b'{"models": null}', b'{"models": {"embed": null}}'])
def test_an_engine_that_says_nothing_of_itself_is_shown_as_configured(body: bytes, scripted):
    """A health check of any shape with 200 is ready; the model is then the configured one."""
    scripted.body = body
    found = look(scripted.url, GENERATION)
    assert ("ready", "configured/model", "") == (found.state, found.model, found.device)


@pytest.mark.parametrize(
    ("code", "body", "state", "detail"),
    [
        (503, b'{"status": "loading", "phase": "loading a/e"}', "loading", "loading a/e"),
        (503, b'{"status": "failed", "phase": ""}', "failed", ""),
        (503, b'{"error": {"message": "not up", "code": "restarting"}}', "not answering", ""),
        (500, b"oops", "not answering", ""),
        (503, b'{"status": "loading", "phase": null}', "loading", ""),
    ],
)
def test_a_service_that_is_not_ready_says_what_it_is_doing(code: int, body: bytes, state: str, detail: str, scripted):
    """Loading and failing are told apart from silence, with the phase where there is one."""
    scripted.status, scripted.body = code, body
    found = look(scripted.url)
    assert (state, detail) == (found.state, found.detail)


def test_a_service_that_does_not_answer_is_not_called_ready():
    """A live supervisor whose port is silent may be restarting."""
    found = look("http://127.0.0.1:1")
    assert ("not answering", os.getpid()) == (found.state, found.pid)
    assert found.detail


def test_an_engine_that_is_away_is_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A restart of the service would not help, and would stop its keeper."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with services.registered(GENERATION, Settings(), url="http://127.0.0.1:1", model="m", program="docker"):
        found = status.look()[0]
    assert ("not answering", True) == (found.state, "systemctl start docker" in found.detail)


def test_what_ended_by_itself_is_remembered_until_the_next_up():
    """With the reason, and with the settings, which the hint for the next `up` needs."""
    settings = Settings(generation_engine="docker", generation_image="vllm:1")
    with services.registered(GENERATION, settings, url="http://x", model="m", program="docker") as place:
        place.ended = "its container was removed by somebody else"
    assert services.find(GENERATION) is None
    found = status.look()[0]
    assert ("failed", place.ended) == (found.state, found.detail)
    assert "--generation-image vllm:1" in up_line()


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("phase: starting the container\n", ("loading", "starting the container")),
        ("phase: starting the container\nengine ready after 3.0 s\nbye\n", ("not answering", "restarted unless")),
    ],
)
def test_a_container_that_was_ready_does_not_load(log: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    """One that never answered loads; one that did and is silent now has ended or hangs."""
    monkeypatch.setattr(containers, "engine_answers", lambda: True)
    file = paths.log_file(GENERATION)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(log, encoding="utf-8")
    with services.registered(GENERATION, Settings(), url="http://127.0.0.1:1", model="m", program="docker"):
        found = status.look()[0]
    assert (expected[0], True) == (found.state, expected[1] in found.detail)


def test_a_service_that_was_never_started_beside_another_has_not_failed():
    """While generation starts, the embed server's turn has not come; an older log of it changes nothing."""
    file = paths.log_file(EMBED)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("of yesterday\n", encoding="utf-8")
    os.utime(file, (1e9, 1e9))
    with services.registered(GENERATION, Settings(), url="http://127.0.0.1:1", model="m", program="docker"):
        assert status.look()[1].state == "not running"
        os.utime(file)
        assert status.look()[1].state == "failed"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("ready", "ready"), Exit.OK),
        (("not running", "ready"), Exit.OK),
        (("ready", "loading"), Exit.FAILED),
        (("not running", "not answering"), Exit.FAILED),
        (("not running", "not running"), Exit.NOT_RUNNING),
    ],
)
def test_the_exit_code_sums_up(states: tuple[str, str], expected: Exit):
    """0 when all that runs is ready, 1 when something is ill, 3 when nothing runs."""
    found = tuple(ServiceStatus(name, state) for name, state in zip(services.SERVICES, states, strict=True))
    assert expected == status.exit_code(found)


def test_a_process_that_ends_meanwhile_has_no_memory():
    """A supervisor that ends while it is looked at has no memory to add, and is no error."""
    process = psutil.Popen(["true"])
    process.wait()
    assert 0 == status.memory_of(process)
