"""The life of one container, on an engine in memory and with a service on a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qmd_remote import logbook
from qmd_remote.errors import Exit, PrerequisiteError, QmdRemoteError, ServiceFailed
from qmd_remote.launch import container_keeper, container_watch, download
from qmd_remote.launch.container import Container
from qmd_remote.launch.container_keeper import ContainerKeeper, Service
from qmd_remote.launch.wait import Limits
from qmd_remote.logbook import Logbook
from tests.certificate import CERTIFICATE
from tests.launch.fake_engine import FakeEngine

MODEL = "acme/fine"
CONTAINER = Container(
    name="qmd-vllm", service="generation", image="vllm:1", command=("vllm", "serve", MODEL), owner="me", version="1"
)
OLD = replace(CONTAINER, image="vllm:0")


class Served(ThreadingHTTPServer):
    """What the container publishes: `up` or not, `model` under its name, `hangs` or completes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.up, self.model, self.hangs = True, MODEL, False
        self.ended = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Who asked has hung up."""


class Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._say(200, {"data": [{"id": self.server.model}]})
        else:
            self._say(200 if self.server.up and self.path == "/health" else 503, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.server.hangs:
            self.server.ended.wait(30)
        self._say(200, {})

    def _say(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(container_keeper, "POLL_S", 0.02)
    monkeypatch.setattr(container_watch, "STOPPED_S", 0.2)


@pytest.fixture
def served() -> Iterator[Served]:
    """A service that answers."""
    with Served() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.fixture
def engine() -> FakeEngine:
    """An engine with the image and without containers."""
    return FakeEngine()


Story = Callable[[], Awaitable[None]]


class Stage:
    """A keeper, and a story that is told while it works."""

    def __init__(self, engine: FakeEngine, served: Served, book: Logbook) -> None:
        self.engine, self.served, self.book = engine, served, book
        self.limits = Limits(20, 60)
        self.hang_limit_s = 60.0
        self.fills: tuple[Path, ...] = ()
        self.certificate = ""
        self.keeper: ContainerKeeper | None = None

    def play(self, story: Story) -> int:
        """The exit code of the keeper, which is told to stop at the end of the story."""

        async def both() -> int:
            url = f"http://127.0.0.1:{self.served.server_address[1]}"
            service = Service(
                "generation engine", url, self.limits, self.hang_limit_s, MODEL, "", self.certificate, self.fills
            )
            self.keeper = ContainerKeeper(CONTAINER, service, self.engine, self.book)
            life = asyncio.ensure_future(self.keeper.run())
            told = asyncio.ensure_future(story())
            try:
                await asyncio.wait({life, told}, return_when=asyncio.FIRST_COMPLETED)
                if told.done():
                    told.result()
                    self.keeper.wish.asked.set()
                return await asyncio.wait_for(life, 20)
            finally:
                told.cancel()
                await asyncio.gather(told, return_exceptions=True)

        return asyncio.run(both())

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something to come true."""
        async with asyncio.timeout(15):
            while not true():  # noqa: ASYNC110 - another thread makes it true
                await asyncio.sleep(0.01)

    async def ready(self) -> None:
        """Wait until the keeper has seen it ready."""
        await self.until(lambda: "keep qmd-vllm" in self.engine.calls)

    def log(self) -> str:
        return self.book.path.read_text(encoding="utf-8")


@pytest.fixture
def stage(engine: FakeEngine, served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Stage:
    """All of it, with a log of its own."""
    return Stage(engine, served, Logbook(tmp_path / "generation.log"))


async def _never() -> None:
    await asyncio.Event().wait()


def test_a_container_is_run_kept_and_removed_when_told_to_stop(stage: Stage):
    """Run, ready, restart policy, stop: in this order, and nothing is left."""
    assert 0 == stage.play(stage.ready)
    assert ["run qmd-vllm", "keep qmd-vllm", "remove qmd-vllm"] == stage.engine.calls
    assert {} == stage.engine.containers
    assert "Starting vLLM API server" in stage.log()


def test_a_start_that_its_engine_repeats_has_failed_all_the_same(stage: Stage):
    """Podman restarts what was never ready, and goes on in the same log: the cause is that of the run before."""
    stage.served.up = False
    run = [b"vLLM API server version 0.11.1\n", b"ERROR torch.OutOfMemoryError: CUDA out of memory.\n"]
    stage.engine.lines = [*run, *run, run[0], b"Loading weights took 1 s\n"]

    async def again() -> None:
        await stage.until(lambda: "took 1 s" in stage.log())
        stage.engine.restarted("qmd-vllm")
        await _never()

    with pytest.raises(QmdRemoteError) as told:
        stage.play(again)
    assert "memory.oom" == told.value.code
    assert {} == stage.engine.containers


def test_an_image_that_is_missing_is_pulled_with_progress_in_the_log(stage: Stage):
    """`up` reads the progress from there."""
    stage.engine.image_here = False
    assert 0 == stage.play(stage.ready)
    assert ["pull vllm:1", "run qmd-vllm"] == stage.engine.calls[:2]
    assert "phase: pulling the image: 25 %, 1 of 4 layers" in stage.log()


def test_a_pull_ends_when_we_are_told_to_stop(stage: Stage):
    """Nothing is made then."""
    stage.engine.image_here, stage.engine.pull_waits = False, True
    with pytest.raises(QmdRemoteError, match="cancelled"):
        stage.play(lambda: stage.until(lambda: bool(stage.engine.calls)))
    assert {} == stage.engine.containers


def test_the_same_container_is_adopted_as_it_is(stage: Stage):
    """A keeper that comes back after a crash disturbs nobody."""
    before = stage.engine.put(CONTAINER)
    assert 0 == stage.play(stage.ready)
    assert ["keep qmd-vllm", "remove qmd-vllm"] == stage.engine.calls
    assert before.id == "id1"


def test_the_same_container_that_rests_is_started(stage: Stage):
    """One that was stopped is not made anew."""
    stage.engine.put(CONTAINER, state="exited")
    assert 0 == stage.play(stage.ready)
    assert ["start qmd-vllm", "keep qmd-vllm"] == stage.engine.calls[:2]


def test_a_container_with_other_settings_is_replaced(stage: Stage):
    """Drift is told by the hash in its label."""
    stage.engine.put(OLD)
    assert 0 == stage.play(stage.ready)
    assert ["remove qmd-vllm", "run qmd-vllm"] == stage.engine.calls[:2]


def test_our_container_of_another_name_makes_room(stage: Stage):
    """A service has one container."""
    stage.engine.put(replace(CONTAINER, name="old-name"))
    assert 0 == stage.play(stage.ready)
    assert ["remove old-name", "run qmd-vllm"] == stage.engine.calls[:2]


@pytest.mark.parametrize("owner", ["", "somebody"])
def test_a_foreign_container_of_this_name_is_not_touched(stage: Stage, owner: str):
    """By label, never by name."""
    foreign = stage.engine.put(CONTAINER, owner=owner)
    with pytest.raises(PrerequisiteError) as caught:
        stage.play(_never)
    assert ("name.taken", Exit.PREREQUISITE) == (caught.value.code, caught.value.exit_code)
    assert "--generation-container NAME" in caught.value.hint
    assert {"qmd-vllm": foreign} == stage.engine.containers
    assert [] == stage.engine.calls


def test_a_container_that_ends_while_it_starts_is_a_failure_with_its_cause(stage: Stage):
    """The cause comes from its log; it is removed, and its last words are kept."""
    stage.served.up = False
    stage.engine.lines.append(b"ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n")

    async def dies() -> None:
        await stage.until(lambda: "CUDA out of memory" in stage.log())
        found = stage.engine.containers["qmd-vllm"]
        stage.engine.change(replace(found, state="exited", exit_code=1))
        await _never()

    with pytest.raises(ServiceFailed) as caught:
        stage.play(dies)
    assert "memory.oom" == caught.value.code
    assert {} == stage.engine.containers
    assert "CUDA out of memory" in logbook.crash_file(stage.book.path).read_text(encoding="utf-8")


def test_an_engine_that_serves_another_model_only_has_failed(stage: Stage):
    """Readiness is 200 on /health and the served name; one that serves others is not waited for."""
    stage.served.model = "acme/other"
    with pytest.raises(ServiceFailed, match="serves acme/other, and not acme/fine") as caught:
        stage.play(_never)
    assert caught.value.code == "model.other_name"
    assert {} == stage.engine.containers


@pytest.mark.parametrize("changes", [{"image_id": "an older one"}, {"state": "paused"}])
def test_a_container_of_an_older_image_and_a_paused_one_are_made_anew(stage: Stage, changes: dict[str, str]):
    """The same settings are not enough: the image behind a name may have been pulled or built since."""
    stage.engine.put(CONTAINER, **changes)
    assert 0 == stage.play(stage.ready)
    assert ["remove qmd-vllm", "run qmd-vllm"] == stage.engine.calls[:2]


def test_a_crash_after_readiness_is_told_and_its_last_words_are_kept(stage: Stage, caplog: pytest.LogCaptureFixture):
    """An end with exit code 0 that nobody asked for is a crash too."""

    async def crash() -> None:
        await stage.ready()
        await stage.until(lambda: "Starting vLLM" in stage.log())
        stage.engine.change(replace(stage.engine.containers["qmd-vllm"], state="restarting", exit_code=0))
        await stage.until(logbook.crash_file(stage.book.path).exists)
        stage.engine.restarted("qmd-vllm")
        await stage.until(lambda: "its engine restarted it" in caplog.text)

    assert 0 == stage.play(crash)
    assert "ended by itself with exit code 0" in logbook.crash_file(stage.book.path).read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["stopped", "removed"])
def test_a_container_that_somebody_took_away_ends_the_keeper(stage: Stage, how: str, caplog: pytest.LogCaptureFixture):
    """It is not fought for, and one that was stopped is left as it is."""

    async def taken() -> None:
        await stage.ready()
        if how == "removed":
            stage.engine.containers.clear()
        else:
            stage.engine.change(replace(stage.engine.containers["qmd-vllm"], state="exited"))
        await _never()

    assert 1 == stage.play(taken)
    assert f"{how} by somebody else" in caplog.text
    assert "remove qmd-vllm" not in stage.engine.calls


@pytest.mark.parametrize("error", [True, ServiceFailed("the engine answers 500")])
def test_an_engine_that_goes_away_is_waited_for(
    stage: Stage, caplog: pytest.LogCaptureFixture, error: ServiceFailed | bool
):
    """Containers may outlive a restart of their engine; it is told once that it is gone or ill, and that it is back."""

    async def away() -> None:
        await stage.ready()
        stage.engine.gone = error
        await stage.until(lambda: "does not answer" in caplog.text)
        stage.engine.gone = False
        await stage.until(lambda: "answers again" in caplog.text)

    with caplog.at_level("INFO"):
        assert 0 == stage.play(away)
    assert 1 == caplog.text.count("does not answer")


def test_a_container_that_its_engine_took_down_is_started_again(stage: Stage, caplog: pytest.LogCaptureFixture):
    """An engine that crashed ends what it finds alive, and restarts nothing by itself."""

    async def crash() -> None:
        await stage.ready()
        stage.engine.gone = True
        await stage.until(lambda: "does not answer" in caplog.text)
        stage.engine.change(replace(stage.engine.containers["qmd-vllm"], state="exited", exit_code=143))
        stage.engine.gone = False
        await stage.until(lambda: stage.engine.calls.count("keep qmd-vllm") == 2)

    assert 0 == stage.play(crash)
    assert ["start qmd-vllm", "keep qmd-vllm", "remove qmd-vllm"] == stage.engine.calls[-3:]


def test_a_service_that_hangs_is_restarted(stage: Stage, caplog: pytest.LogCaptureFixture):
    """200 on /health and no completion within the limit."""
    stage.hang_limit_s = 0.2

    async def hang() -> None:
        await stage.ready()
        stage.served.hangs = True
        await stage.until(lambda: "restart qmd-vllm" in stage.engine.calls)
        stage.served.hangs = False
        stage.served.ended.set()

    assert 0 == stage.play(hang)
    assert "completed nothing for" in caplog.text


def test_hangs_back_off(stage: Stage, caplog: pytest.LogCaptureFixture):
    """The second restart in a row waits for two seconds, since the first one did not help."""
    stage.hang_limit_s = 0.1

    async def hang() -> None:
        await stage.ready()
        stage.served.hangs = True
        await stage.until(lambda: "restarting it in 2 s" in caplog.text)
        stage.served.ended.set()

    assert 0 == stage.play(hang)
    assert ["restarting it at once", "restarting it in 2 s"] == [
        one.message.rpartition("; ")[2] for one in caplog.records if "; restarting it" in one.message
    ]


def test_what_its_engine_restarted_must_come_back(stage: Stage, caplog: pytest.LogCaptureFixture):
    """A container that runs again, says nothing and is never ready is restarted at the stall limit."""
    stage.limits = Limits(0.3, 60)

    async def stuck() -> None:
        await stage.ready()
        stage.served.up = False
        stage.engine.change(replace(stage.engine.containers["qmd-vllm"], state="restarting", exit_code=1))
        await stage.until(logbook.crash_file(stage.book.path).exists)
        stage.engine.restarted("qmd-vllm")
        await stage.until(lambda: "restart qmd-vllm" in stage.engine.calls)
        stage.served.up = True

    assert 0 == stage.play(stuck)
    assert "made no progress" in caplog.text


def test_one_that_a_person_paused_is_not_restarted(stage: Stage):
    """Its health check does not answer either, and that is meant so."""
    stage.limits = Limits(0.1, 60)

    async def paused() -> None:
        await stage.ready()
        stage.served.up = False
        stage.engine.change(replace(stage.engine.containers["qmd-vllm"], state="paused"))
        await asyncio.sleep(0.5)

    assert 0 == stage.play(paused)
    assert "restart qmd-vllm" not in stage.engine.calls


def test_a_download_that_says_nothing_is_progress(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a container that downloads writes to the disk keeps it from counting as stuck, and is told."""
    monkeypatch.setattr(download, "LOOK_S", 0.05)
    stage.limits, stage.served.up = Limits(2, 60), False
    stage.fills = (tmp_path / "models--acme--fine",)
    part = stage.fills[0] / "blobs" / "abc.incomplete"
    part.parent.mkdir(parents=True)

    async def slowly() -> None:
        for _ in range(20):
            with part.open("ab") as file:
                file.write(bytes(1 << 20))
            await asyncio.sleep(0.2)
        stage.served.up = True
        await stage.ready()

    assert 0 == stage.play(slowly)
    assert "phase: downloading the model: 0.02 GB" in stage.log()


def test_a_certificate_that_is_being_renewed_is_no_standstill(stage: Stage, tmp_path: Path):
    """A container that was ready is asked whether it lives, not who it is."""
    stage.hang_limit_s, stage.limits = 0.5, Limits(1, 60)
    certificate = tmp_path / "cert.pem"
    certificate.write_text(CERTIFICATE)
    stage.certificate = str(certificate)

    async def renewed() -> None:
        await stage.ready()
        certificate.write_text("half a certif")
        await asyncio.sleep(2.5)

    assert 0 == stage.play(renewed)
    assert "restart qmd-vllm" not in stage.engine.calls
