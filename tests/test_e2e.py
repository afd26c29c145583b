"""The whole life with the preset mini, through the installed console script, on real weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

SCRIPT = Path(sys.executable).parent / "qmd-remote"
INDEX = """\
# my notes, do not touch
global_context: 'odd quoting: "yes"'
editor_uri:   "code://file/{path}:{line}"   # two spaces
collections:
  notes:
    path: ~/notes
    pattern: "**/*.md"
    ignore: [a, 'b']
    context: {"/": root}
    includeByDefault: yes
  diary:   {path: /diary, update: "git pull"}
models:
    embed: hf:some/model
# the end
"""


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Box:
    """A machine of one's own: folders, ports, and the console script with their settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.generation_port = free_port(), free_port()
        self.config = folder / "qmd" / "index.yml"
        self.env = {
            **os.environ,
            "QMD_REMOTE_HOME": str(folder / "home"),
            "QMD_CONFIG_DIR": str(self.config.parent),
            "QMD_REMOTE_PORT": str(self.port),
            "QMD_REMOTE_GENERATION_PORT": str(self.generation_port),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *words: str) -> tuple[int, dict]:
        """The exit code and the envelope of a command with --json."""
        done = subprocess.run([SCRIPT, *words, "--json"], capture_output=True, text=True, env=self.env, timeout=280)
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)

    def tree(self, service: str) -> list[psutil.Process]:
        """A service's supervisor and all below it."""
        (one,) = [s for s in self.run("status")[1]["data"]["services"] if s["service"] == service]
        supervisor = psutil.Process(one["pid"])
        below = supervisor.children(recursive=True)
        return [supervisor, *(process for process in below if "qmd-remote-leash" not in process.cmdline())]


@pytest.fixture(scope="module")
def box(tmp_path_factory, converted):
    """Both services up with the preset mini; brought down at the end, whatever happened."""
    box = Box(tmp_path_factory.mktemp("box"))
    (box.folder / "home").mkdir()
    (box.folder / "home" / "cache").symlink_to(converted)
    try:
        code, envelope = box.run("up", "--preset", "mini")
        assert 0 == code, envelope
        yield box
    finally:
        box.run("down")


def test_up_starts_both_services_on_real_weights(box):
    """After `up`, status shows both services ready with their real models."""
    code, envelope = box.run("status")
    assert 0 == code
    found = {one["service"]: (one["state"], one["model"]) for one in envelope["data"]["services"]}
    assert {
        "embed": ("ready", "sentence-transformers/all-MiniLM-L6-v2"),
        "generation": ("ready", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    } == found


def test_up_twice_keeps_what_runs(box):
    """A second `up` finds both services running and leaves their processes alone."""
    before = [process.pid for process in box.tree("embed")]
    code, envelope = box.run("up", "--preset", "mini")
    assert 0 == code
    assert {"already running"} == {one["action"] for one in envelope["data"]["services"]}
    assert before == [process.pid for process in box.tree("embed")]


def test_the_checks_pass(box):
    """`test --url` of the local server finds its generation beside it, and no check fails."""
    code, envelope = box.run("test", "--url", box.url)
    rows = envelope["data"]["checks"]
    assert [] == [row for row in rows if row["status"] == "fail"]
    assert 0 == code
    assert {"completion", "chat", "rerank", "batch"} <= {row["name"] for row in rows if row["status"] == "ok"}
    (expansion,) = [row for row in rows if row["name"] == "expansion"]
    assert expansion["status"] in {"ok", "warn"}
    (key,) = [row for row in rows if row["name"] == "key"]
    assert ("skip", "no key is set") == (key["status"], key["received"])


def test_config_write_changes_only_its_block_and_qmd_will_follow_it(box):
    """`config write` appends the remote block and nothing else, twice the same; `config check` is content."""
    box.config.parent.mkdir(parents=True, exist_ok=True)
    box.config.write_text(INDEX, encoding="utf-8")
    assert 0 == box.run("config", "write")[0]
    written = box.config.read_text(encoding="utf-8")
    assert written.startswith(INDEX)
    block = written.removeprefix(INDEX)
    assert f"  url: {box.url}\n" in block
    assert "embed: sentence-transformers/all-MiniLM-L6-v2\n" in block
    assert "generate: HuggingFaceTB/SmolLM2-135M-Instruct\n" in block
    assert 0 == box.run("config", "write")[0]
    assert written == box.config.read_text(encoding="utf-8")
    code, envelope = box.run("config", "check")
    assert (0, "remote", box.url) == (code, envelope["data"]["verdict"], envelope["data"]["embed_url"])


def test_a_killed_worker_is_replaced_while_callers_wait(box):
    """kill -9 of the worker under load: no connection is refused, and requests succeed again."""
    refused: list[Exception] = []
    answered: list[float] = []
    stop = threading.Event()

    def caller() -> None:
        while not stop.is_set():
            try:
                # a connection of its own each time: keep-alive would hide a refusal
                reply = httpx.post(f"{box.url}/v1/embeddings", json={"input": "under load"}, timeout=60)
                if reply.status_code == 200:
                    answered.append(time.monotonic())
            except httpx.ConnectError as error:
                refused.append(error)
            except httpx.TransportError:
                continue  # it was inside the killed process

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(answered) > 20)
        worker = box.tree("embed")[1]
        worker.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: any(moment > killed + 1 for moment in answered))
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=90)
    assert [] == refused
    assert worker.pid not in [process.pid for process in box.tree("embed")]


def test_a_killed_engine_is_replaced_while_callers_wait(box):
    """kill -9 of the generation engine: the next caller waits through the restart and is answered."""
    keeper, engine = box.tree("generation")[:2]
    engine.send_signal(signal.SIGKILL)
    psutil.wait_procs([engine], timeout=10)
    body = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "prompt": "Hello", "max_tokens": 2}
    url = f"http://127.0.0.1:{box.generation_port}/v1/completions"
    assert 200 == httpx.post(url, json=body, timeout=120).status_code
    assert keeper.pid == box.tree("generation")[0].pid


def test_logs_say_what_happened(box):
    """The log of the embed server tells of the crash and of the restart."""
    code, envelope = box.run("logs", "embed", "-n", "500")
    assert 0 == code
    assert any("was killed by SIGKILL; restarting at once" in line for line in envelope["data"]["logs"]["embed"])


def test_down_stops_everything_and_down_again_is_no_error(box):
    """`down` ends every process; a second one finds nothing and still succeeds; status then exits with 3."""
    processes = [*box.tree("embed"), *box.tree("generation")]
    code, envelope = box.run("down")
    assert (0, {"embed", "generation"}) == (code, set(envelope["data"]["stopped"]))
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [] == alive
    code, envelope = box.run("down")
    assert (0, []) == (code, envelope["data"]["stopped"])
    assert 3 == box.run("status")[0]


def until(condition, seconds: float = 120.0) -> None:
    """Wait for a condition, with a limit."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)
