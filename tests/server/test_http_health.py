"""Health, liveness, the list of models, the documentation: what the server says of itself."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from qmd_remote import __version__
from qmd_remote.errors import HubUnreachable


def test_a_ready_server_tells_what_it_runs_on(serve):
    """Models, device, dimension, dtype, uptime and version are one request away."""
    answer = serve().http.get("/health")
    assert answer.status_code == 200
    report = answer.json()
    assert report.pop("uptime_s") >= 0
    memory = report.pop("memory_bytes")
    assert 0 < memory["used"] <= memory["total"]
    assert report == {
        "status": "ok",
        "models": {"embed": "fake/embedder", "rerank": "fake/reranker"},
        "device": "cpu",
        "cuda_available": False,
        "dimension": 8,
        "dtype": "float32",
        "version": __version__,
        "generation": {"model": None, "state": "off"},
        "requests": {"total": 0, "running": 0, "errors": 0},
    }


def test_a_loading_server_tells_how_far_it_is(serve, fake_engine):
    """503 with phase and progress, while /livez is 200."""
    server = serve(fake_engine("loading"))
    answer = server.http.get("/health")
    assert answer.status_code == 503
    report = answer.json()
    assert (report["status"], report["phase"], report["progress"]) == ("loading", "loading weights", 0.25)
    answer = server.http.get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_a_failed_server_tells_the_cause_and_the_fix(serve, fake_engine):
    """503 with code, message and hint, while /livez is 200."""
    failure = HubUnreachable("the hub does not answer", hint="check the network")
    server = serve(fake_engine("failed", failure))
    answer = server.http.get("/health")
    assert answer.status_code == 503
    report = answer.json()
    assert report["status"] == "failed"
    assert report["error"] == {
        "code": "hub.unreachable",
        "message": "the hub does not answer",
        "hint": "check the network",
    }
    assert server.http.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/embeddings", {"input": "a"}), ("/v1/rerank", {"query": "q", "documents": ["a"]})]
)
def test_requests_wait_for_the_models(serve, fake_engine, path, body):
    """A request that comes while models load is answered when they are ready."""
    server = serve(fake_engine("loading"), ready_wait_s=600)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(server.http.post, path, json=body)
        assert server.engine.waiting.wait(30)
        assert not early.done()
        server.engine.settle("ready")
        assert early.result(30).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/embeddings", {"input": "a"}), ("/v1/rerank", {"query": "q", "documents": ["a"]})]
)
def test_requests_wait_only_so_long(serve, fake_engine, path, body):
    """After the wait comes a 503 that says when to come again."""
    answer = serve(fake_engine("loading"), ready_wait_s=0).http.post(path, json=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "loading"
    assert int(answer.headers["Retry-After"]) > 0


def test_a_wrong_request_does_not_wait_for_the_models(serve, fake_engine):
    """The 400 comes at once."""
    answer = serve(fake_engine("loading"), ready_wait_s=600).http.post("/v1/embeddings", json={"input": []})
    assert answer.status_code == 400


def test_health_answers_while_a_request_is_worked_on(serve):
    """Health, liveness and models answer, all before the request that came first."""
    server = serve()
    server.engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.http.post, "/v1/embeddings", json={"input": "a"})
        assert server.engine.entered.wait(30)
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/livez").status_code == 200
        assert server.http.get("/v1/models").status_code == 200
        assert not long.done()
        server.engine.gate.set()
        assert long.result(30).status_code == 200


def test_models_are_listed_as_openai_does(serve, fake_engine):
    """Both real ids are listed, one that does both jobs once."""
    answer = serve().http.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["fake/embedder", "fake/reranker"]
    assert {model["object"] for model in answer["data"]} == {"model"}
    assert [model["qmd_remote_role"] for model in answer["data"]] == ["embed", "rerank"]
    both = fake_engine()
    both.rerank_id = both.embed_id
    assert [model["id"] for model in serve(both).http.get("/v1/models").json()["data"]] == ["fake/embedder"]


def test_the_engine_lives_as_long_as_the_server(fake_engine):
    """Loading starts with the server, not with its construction, and ends with it."""
    from fastapi.testclient import TestClient

    from qmd_remote.server.app import create_app
    from qmd_remote.settings import Settings

    engine = fake_engine()
    app = create_app(Settings(), engine=engine)
    assert app.state.engine is engine
    assert not engine.started
    with TestClient(app):
        assert engine.started
        assert not engine.closed
    assert engine.closed


def test_two_apps_share_nothing(serve):
    """A key, a limit or an engine of one app is not another's."""
    closed, opened = serve(api_key="k"), serve()
    assert closed.http.get("/v1/models").status_code == 401
    assert opened.http.get("/v1/models").status_code == 200


def test_the_documentation_describes_requests_and_answers(serve):
    """/docs is there, and its schema knows the fields though the handlers read raw bytes."""
    http = serve().http
    assert "swagger" in http.get("/docs").text
    paths = http.get("/openapi.json").json()["paths"]
    ours = {"/v1/embeddings", "/v1/rerank", "/v1/models", "/health", "/livez", "/metrics"}
    theirs = {"/v2/embed", "/api/embed", "/api/generate"}
    assert set(paths) == ours | theirs | {"/v1/chat/completions", "/v1/completions"}
    for path, fields in (
        (
            "/v1/embeddings",
            {"input", "model", "encoding_format", "dimensions", "input_type", "prompt_name", "user"},
        ),
        ("/v1/rerank", {"query", "documents", "model", "top_n", "return_documents"}),
    ):
        operation = paths[path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == fields
        assert schema["examples"]
        assert {"200", "400", "401", "413", "503"} == set(operation["responses"])
        assert "$ref" in operation["responses"]["200"]["content"]["application/json"]["schema"]


def test_importing_the_app_does_not_import_torch():
    """A supervisor, a test or a documentation build can look at the app without seconds of start-up."""
    script = "import sys, qmd_remote.server.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
