"""What the keeper of vLLM's container fetches before it starts, and in which order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from qmd_remote.errors import ConfigError
from qmd_remote.launch import keeper, phases
from qmd_remote.launch.container import Container
from qmd_remote.launch.container_keeper import ContainerKeeper, Service
from qmd_remote.launch.engine import ImageFacts
from qmd_remote.launch.plan import GenerationPlan, Plan
from qmd_remote.launch.wait import Limits
from qmd_remote.logbook import Logbook
from qmd_remote.settings import resolve
from qmd_remote.stop_wish import StopWish
from tests.launch.fake_engine import IMAGE, FakeEngine

SETTINGS = resolve({"preset": "gpu", "generation_model": "acme/fine"}, {})
CONTAINER = Container(name="qmd-vllm", service="generation", image="vllm:1", command=("x",), owner="me", version="1")
OFFLINE = replace(CONTAINER, env={"HF_HUB_OFFLINE": "1"})


class Kept(ContainerKeeper):
    """A keeper whose life is to say that it begins."""

    async def run(self) -> int:
        self.engine.calls.append(f"run, offline {self.container.env.get('HF_HUB_OFFLINE', '0')}")
        return 0


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine without the image, beside a hub whose downloads stand among its calls."""
    one = FakeEngine(image_here=False)

    async def ensure(model: str, book: Logbook, wish: StopWish) -> bool:
        one.calls.append(f"download {model}")
        book.say("phase: downloading the model")
        return not wish.asked.is_set()

    monkeypatch.setattr(keeper.docker_plan, "to_download", lambda _: True)
    monkeypatch.setattr(keeper.download, "possible", lambda: True)
    monkeypatch.setattr(keeper.download, "ensure", ensure)
    monkeypatch.setattr(keeper.plan, "make", lambda *_, **__: Plan("gpu", GenerationPlan("docker", container=OFFLINE)))
    return one


def live(engine: FakeEngine, log: Path, wish: StopWish | None = None) -> int:
    """The life of a keeper; its exit code."""
    service = Service("generation engine", "http://127.0.0.1:1", Limits(20, 60), 60)
    return asyncio.run(keeper._live(SETTINGS, Kept(CONTAINER, service, engine, Logbook(log), wish)))


def test_the_image_comes_before_the_model(engine: FakeEngine, tmp_path: Path):
    """Pulled, downloaded, and started offline, and the log tells the phases in this order."""
    assert 0 == live(engine, tmp_path / "log")
    assert ["pull vllm:1", "download acme/fine", "run, offline 1"] == engine.calls
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    told = [phase.name for line in lines if (phase := phases.of_line(line.partition(" ")[2]))]
    assert ["pulling the image", "downloading the model"] == told


def test_an_image_that_is_here_is_not_pulled(engine: FakeEngine, tmp_path: Path):
    """The model is what is left to fetch."""
    engine.image_here = True
    assert 0 == live(engine, tmp_path / "log")
    assert ["download acme/fine", "run, offline 1"] == engine.calls


def test_a_mistyped_image_is_told_before_gigabytes_come(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A download that nothing would serve is not begun."""

    def missing(*_: object) -> ImageFacts:
        raise ConfigError("there is no such image", code="image.missing")

    monkeypatch.setattr(engine, "pull", missing)
    with pytest.raises(ConfigError) as caught:
        live(engine, tmp_path / "log")
    assert "image.missing" == caught.value.code
    assert [] == engine.calls


def test_a_wish_to_stop_during_the_pull_ends_it_there(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is downloaded for a service that nobody wants any more."""
    wish = StopWish()

    def pulled(*_: object) -> ImageFacts:
        wish.asked.set()
        return IMAGE

    monkeypatch.setattr(engine, "pull", pulled)
    assert 0 == live(engine, tmp_path / "log", wish)
    assert [] == engine.calls
