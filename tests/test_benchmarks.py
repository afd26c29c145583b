"""The benchmark: its pure parts, a whole stage against a stand-in server, and the GPU script without a GPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import psutil
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

STAND_IN = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"status": "ok", "device": "cpu", "threads": 2, "models": {}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/broken":
            return self.answer({}, 500)
        if self.path == "/rerank":
            scores = [{"index": i, "relevance_score": 1 / (2 + len(t))} for i, t in enumerate(asked["documents"])]
            return self.answer({"results": scores})
        rows = [{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(asked["input"])]
        self.answer({"data": rows[::-1]})

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 64

Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def parts():
    """The harness's modules, imported as `benchmarks/run.py` imports them."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        run = importlib.import_module("run")
        names = ("client", "machine", "measure", "models", "plot", "report", "servers", "stage", "venvs", "work")
        yield SimpleNamespace(run=run, **{name: importlib.import_module(f"harness.{name}") for name in names})
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def result(parts, tmp_path_factory):
    """What a run against a stand-in server gives, one whose rerank is broken beside it."""
    folder = tmp_path_factory.mktemp("stage")
    program = folder / "stand_in.py"
    program.write_text(STAND_IN)
    plan = parts.stage.Plan(
        "stub", "minilm", "cross-encoder", parts.work.Lengths(4, 30), parts.work.Lengths(4, 30),
        queries=20, rerank_documents=5, neighbour_rounds=1, compared=False,
    )  # fmt: skip

    def server(name, rerank, ours):
        def command(port, *_):
            return [sys.executable, str(program), str(port)]

        return parts.servers.Server(
            name, Path(sys.executable), command, lambda *_: {}, "/embeddings", rerank, ours=ours
        )

    servers = [server("ours", "/rerank", True), server("sentence-transformers", "/broken", False)]
    minilm = parts.models.minilm_folder()
    folders = {"minilm": minilm, "cross-encoder": minilm}
    stage = parts.stage.Stage(plan, folders, parts.models.words(), folder, rounds=2, limit_s=30)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    stage.run(servers, len(os.sched_getaffinity(0)))
    assert before == {child.pid for child in psutil.Process().children(recursive=True)}
    found = stage.result()
    machine = parts.machine.machine()
    return {
        "date": "2026-01-01", "machine": machine, "peak": {"float32": 1e11}, "versions": {"ours": {"torch": "1"}},
        "stages": [found],
    }  # fmt: skip


def test_a_stage_measures_what_its_plan_says_and_ends_its_servers(parts, result):
    """Every kind of work has its figures; the JSON holds no NaN; no process is left behind."""
    found = result["stages"][0]["servers"]["ours"]
    assert {"index", "query", "rerank", "while_indexing", "neighbour"} == set(found["work"])
    assert 2 == len(found["work"]["index"]["tokens_per_s"]["rounds"])
    assert 40 == found["work"]["query"]["samples"]
    assert {"status": "ok", "device": "cpu", "threads": 2} == found["facts"]
    json.dumps(result, allow_nan=False)


def test_a_server_that_fails_is_reported_with_its_reason(parts, result):
    """The other servers' figures stand, and the report says what failed."""
    found = result["stages"][0]["servers"]
    assert "500" in found["sentence-transformers"]["start_failed"]
    text = parts.report.markdown(result)
    assert "- sentence-transformers, start: /broken answered 500" in text
    assert "| index, tokens/s |" in text


def test_the_work_is_the_same_for_every_server_and_new_in_each_round(parts):
    """Texts follow from purpose, round and place alone; the share at the cap is exact; two rounds share no text."""
    words = [f"word{i}" for i in range(200)]
    lengths = parts.work.Lengths(4, 30, at_cap=2 / 3)
    one, other = (parts.work.Texts(words, "x") for _ in range(2))
    assert one.chunks(0, lengths) == other.chunks(0, lengths)
    assert not set(one.chunks(0, lengths)) & set(one.chunks(1, lengths))
    sizes = [len(text.split()) for text in one.chunks(0, lengths)]
    assert (32, True) == (len(sizes), sizes.count(30) >= 21)
    assert all(5 <= len(query.split()) <= 12 for query in one.queries(3, 50))


def test_a_shape_costs_its_matrix_products_and_its_attention(parts):
    """BERT-base has 85 M matmul parameters; a text's cost grows with the square of its length besides."""
    shape = parts.models.SHAPES["bert-base"]
    assert 84_934_656 == shape.matmul_params
    assert 512 * (2 * 84_934_656 + 4 * 768 * 512 * 12) == shape.flops(512)


def test_the_order_counts_pairs_that_differ_by_more_than_two_percent(parts):
    """Swapped neighbours within 2 % of the range do not count, others do."""
    wanted = [0.0, 0.01, 0.5, 1.0]
    near = parts.measure.order([0.01, 0.0, 0.5, 1.0], wanted)
    assert (5, 0) == (near["pairs"], near["swapped"])
    assert 1 == parts.measure.order([0.0, 0.01, 1.0, 0.5], wanted)["swapped"]


def test_cosines_and_ratios(parts):
    """The least cosine is over the rows; a ratio above 1 is always in our favour."""
    assert 0.0 == parts.measure.least_cosine([[1, 0], [0, 2]], [[3, 0], [5, 0]])
    assert 4.0 == parts.report.ratio(8, 2, more_is_better=True)
    assert 4.0 == parts.report.ratio(2, 8, more_is_better=False)


def test_a_score_becomes_its_logit_in_the_order_of_the_documents(parts):
    """Answers are sorted by score; their logits come back by index. base64 vectors are read too."""
    raw = json.dumps({"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}]})
    assert [pytest.approx(-1.0986123), 0.0] == parts.client.logits(raw.encode())
    raw = json.dumps({"data": [{"index": 0, "embedding": "AACAPwAAAEA="}]})
    assert [[1.0, 2.0]] == parts.client.vectors(raw.encode())


def test_the_docs_page_has_its_marks_and_keeps_the_rest(parts):
    """--write-docs replaces what stands between the marks of the page as it is, and nothing else."""
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    changed = parts.report.replace(page, "FIGURES")
    assert changed == parts.report.replace(changed, "FIGURES")
    assert page.partition(parts.report.BEGIN)[0] == changed.partition(parts.report.BEGIN)[0]
    assert page.partition(parts.report.END)[2] == changed.partition(parts.report.END)[2]
    with pytest.raises(ValueError, match="has no"):
        parts.report.replace("no marks", "FIGURES")


def test_the_plot_is_well_formed_and_compares_with_the_base(parts):
    """Each group holds the servers with a figure, the base being 1."""
    work = {"index": {"tokens_per_s": {"median": 300.0}}}
    base = {"index": {"tokens_per_s": {"median": 100.0}}}
    stage = {
        "models": {"embed": "a & b", "rerank": ""},
        "servers": {"ours": {"work": work}, "sentence-transformers": {"work": base}},
    }
    report = {"stages": [stage]}
    assert [("a & b: index", {"ours": 3.0, "sentence-transformers": 1.0})] == parts.plot.groups(report)
    ElementTree.fromstring(parts.plot.svg(report))


def test_flags_of_the_processor(parts):
    """Of /proc/cpuinfo the instruction sets that matter are kept, of the environment what changes threads."""
    assert ["avx2", "amx_bf16"] == parts.machine.flags("model name : x\nflags\t\t: fpu avx2 amx_bf16 sse\n")
    seen = parts.machine.threading_variables({"OMP_NUM_THREADS": "1", "HOME": "/", "KMP_BLOCKTIME": "0"})
    assert {"OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"} == seen


def test_options_name_what_there_is(parts, capsys):
    """--quick is MiniLM alone; a stage or work that does not exist is refused by name."""
    assert (["minilm"], 3) == (parts.run.options(["--quick"]).stages, parts.run.options(["--quick"]).rounds)
    for wrong in (["--stages", "minilm,bart"], ["--only", "bart"], ["--servers", "bart"]):
        with pytest.raises(SystemExit):
            parts.run.options(wrong)
        assert "bart" in capsys.readouterr().err


def test_the_reason_of_a_failed_start_is_its_last_exception(parts):
    """Of a server's log the last exception's line is told, else its last line."""
    log = "INFO: x\nTraceback (most recent call last):\n  File\nValueError: no such model\nERROR: startup failed.\n"
    assert "ValueError: no such model" == parts.servers.reason(log)
    assert ("last", "its log is empty") == (parts.servers.reason("first\nlast\n"), parts.servers.reason(""))


def test_every_peer_has_the_torch_of_this_environment(parts):
    """infinity-emb is pinned, and neither peer gets another release of torch than ours."""
    for name in parts.run.PEERS:
        assert any(one.startswith("torch==") and "+" not in one for one in parts.venvs.requirements(name))
    assert "infinity-emb[torch,server]==0.0.78" in parts.venvs.requirements("infinity-emb")


def test_the_gpu_script_runs_without_a_gpu(tmp_path):
    """With --device cpu --tiny it goes through all of its parts, and its answers agree with float32."""
    target = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--tiny", "--rounds", "1", "--json", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert 0 == done.returncode, done.stdout + done.stderr
    found = json.loads(target.read_text())
    assert found["answers"]["good"]
    assert found["http"]["index"]["tokens_per_s"] > 0
    assert "| over HTTP |" in done.stdout
