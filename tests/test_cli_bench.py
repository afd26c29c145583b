"""`qmd-remote bench` as its users meet it: the table, the envelope, failures, Ctrl-C; and a real small server."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import bench_flow
from qmd_remote.client.report import Target
from qmd_remote.errors import UsageError
from qmd_remote.output import Output
from tests.conftest import PROGRAM
from tests.server.conftest import mini_url  # noqa: F401 - a fixture

Run = Callable[..., Any]
ROWS = ["index", "query", "rerank", "mixed-index", "mixed-query", "expand"]
LIMIT_S = 60


@pytest.fixture(autouse=True)
def room_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins take as many connections at once as there are clients."""
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 64)


def test_the_envelope_holds_all_that_a_comparison_needs(qmd_remote: Run, stand_in: Run):
    """Target, server, the work with its version and seed, the client, and a row for each load."""
    server = stand_in()
    done = qmd_remote("bench", "--url", server.url, "--seconds", "0.1", "--seed", "5", "--json")
    data = done.envelope()["data"]
    assert (0, "") == (done.code, done.stderr)
    assert {"target", "server", "work", "client", "results"} == set(data)
    assert {"embed_url": server.url, "generation_url": server.url, "with_key": False} == data["target"]
    assert ("cpu", "real/embed") == (data["server"]["device"], data["server"]["models"]["embed"])
    assert (5, 0.1, 32, 40) == tuple(data["work"][name] for name in ("seed", "seconds", "chunks", "documents"))
    assert data["work"]["version"] >= 1
    assert data["client"]["round_trip_ms"] > 0
    assert ROWS == [row["name"] for row in data["results"]]
    assert {(0, "ok")} == {(row["errors"], row["state"]) for row in data["results"]}


def test_people_see_a_table_and_the_phases(qmd_remote: Run, stand_in: Run):
    """The table is data; what is being done is told on stderr; a load that is left out does not appear."""
    done = qmd_remote("bench", "--url", stand_in().url, "--seconds", "0.1", "--only", "query,rerank")
    assert 0 == done.code, done.stderr
    lines = done.stdout.splitlines()
    heading = next(line for line in lines if "texts/s" in line)
    assert ["work", "texts/s", "tokens/s", "median", "ms", "p95", "ms", "requests", "errors"] == heading.split()
    assert ["query", "rerank"] == [line.split()[0] for line in lines[lines.index(heading) + 1 :]]
    assert "real/embed" in done.stdout
    assert "2 of 2, rerank" in done.stderr


def test_each_run_has_texts_of_its_own(qmd_remote: Run, stand_in: Run):
    """Without --seed a new one is taken, and told."""
    line = ("bench", "--url", stand_in().url, "--seconds", "0.1", "--only", "rerank", "--json")
    seeds = {qmd_remote(*line).envelope()["data"]["work"]["seed"] for _ in range(2)}
    assert 2 == len(seeds)


def test_the_config_says_what_is_measured(qmd_remote: Run, stand_in: Run, cli_home: Path):
    """Without URLs those of QMD's file are taken, with its key."""
    server = stand_in(key="s3cret")
    (cli_home / "qmd").mkdir()
    (cli_home / "qmd" / "index.yml").write_text(f"remote:\n  url: {server.url}\n  api_key: ${{BOX_KEY}}\n")
    done = qmd_remote("bench", "--seconds", "0.1", "--only", "rerank", "--json", BOX_KEY="s3cret")
    assert 0 == done.code
    assert {"embed_url": server.url, "generation_url": server.url, "with_key": True} == done.envelope()["data"][
        "target"
    ]
    assert "s3cret" not in done.stdout


def test_failed_requests_are_no_result(qmd_remote: Run, stand_in: Run):
    """A wrong key is exit code 1 under its own code; the rows say which requests failed, and which were not sent."""
    server = stand_in(key="right")
    done = qmd_remote("bench", "--url", server.url, "--seconds", "0.1", "--json", QMD_REMOTE_API_KEY="wr0ng")
    said = done.envelope()
    assert (1, "unauthorized") == (done.code, said["error"]["code"])
    assert "no result" in said["error"]["message"]
    rows = {row["name"]: row for row in said["data"]["results"]}
    assert ("failed", "unauthorized") == (rows["index"]["state"], rows["index"]["failures"][0]["code"])
    assert "skipped" == rows["query"]["state"]
    assert "wr0ng" not in done.stdout
    shown = qmd_remote("bench", "--url", server.url, "--only", "index", QMD_REMOTE_API_KEY="wr0ng")
    assert (1, True) == (shown.code, "1 × " in shown.stdout)


def test_nobody_answers(qmd_remote: Run, nobody: str):
    """A refused connection is exit code 1 under its own code, with what to do."""
    error = qmd_remote("bench", "--url", nobody, "--json").envelope()["error"]
    assert ("refused", True) == (error["code"], "qmd-remote up" in error["hint"])


def test_what_was_asked_for_and_is_not_there_is_no_result(qmd_remote: Run, stand_in: Run):
    """Only expansion is wanted, and no generation is known: nothing was measured."""
    done = qmd_remote("bench", "--embed-url", stand_in().url, "--only", "expand", "--json")
    error = done.envelope()["error"]
    assert (1, "bench.nothing") == (done.code, error["code"])
    assert "--generation-url" in error["message"]


def test_nothing_to_measure(qmd_remote: Run):
    """Neither URLs nor a config nor a running service: not running, with the commands that help."""
    done = qmd_remote("bench", "--json")
    error = done.envelope()["error"]
    assert (3, "not_running") == (done.code, error["code"])
    assert "qmd-remote bench --url" in error["hint"]


@pytest.mark.parametrize(("only", "hint"), [("rerrank", "rerank"), ("index,,query", "index,"), ("x", "expand")])
def test_a_phase_that_does_not_exist(only: str, hint: str):
    """It is a usage error with the nearest name, or with all."""
    with pytest.raises(UsageError) as caught:
        bench_flow.phases(only)
    assert hint in caught.value.hint


def test_phases_keep_their_order():
    """However they are named, spaces allowed; without a choice they are all."""
    assert ["index", "rerank"] == bench_flow.phases("rerank, index,rerank")
    assert ["index", "query", "rerank", "mixed", "expand"] == bench_flow.phases(None)


def test_a_client_that_is_the_limit_says_so(
    stand_in: Run, cli_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where this process computed nearly all the time the figure may be its own: a warning names the loads."""
    monkeypatch.setattr(bench_flow, "BUSY", 0.0)
    target = Target(embed_url=stand_in().url)
    assert 0 == bench_flow.bench(Output("bench", as_json=True), target, only="rerank", seconds=0.1, seed=1)
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert "rerank" in warning["message"]


def test_ctrl_c_ends_with_what_was_measured(stand_in: Run, cli_home: Path):
    """An interrupted run is exit code 130, with the rows up to then: the last is partial, what never began has none."""
    server = stand_in()
    line = [PROGRAM, "bench", "--url", server.url, "--seconds", "600", "--only", "query,rerank", "--json"]
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # it hears Ctrl-C also where this test does not, as in the background of a shell
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        deadline = time.monotonic() + LIMIT_S
        while len(server.keys_sent) < 100 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    said = json.loads(stdout)
    assert (130, "interrupted", "") == (process.returncode, said["error"]["code"], stderr)
    (row,) = said["data"]["results"]
    assert ("query", "partial") == (row["name"], row["state"])
    assert row["requests"] > 0 < row["texts_per_s"]


def test_a_real_server_is_measured_with_its_tokens(qmd_remote: Run, mini_url: str):  # noqa: F811
    """MiniLM on a CPU: tokens are told, no request fails, and chunks fill the model's length."""
    done = qmd_remote("bench", "--url", mini_url, "--seconds", "0.1", "--only", "index,query", "--json")
    data = done.envelope()["data"]
    assert 0 == done.code
    assert ("cpu", "float32", "torch") == tuple(data["server"][name] for name in ("device", "dtype", "backend"))
    for row in data["results"]:
        assert row["tokens"] > 0 == row["errors"]
        assert row["tokens_per_s"] > row["texts_per_s"]
    index = data["results"][0]
    assert index["tokens"] / index["texts"] > 200  # of 256
