"""`doctor --index`: what is made of an index's facts, and the command against indexes and servers that are there."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import cli, doctor, doctor_index
from qmd_remote.client import index_findings as findings
from qmd_remote.client.qmd_index import IndexFacts, Sample, Vectors
from qmd_remote.doctor import Check, Finding
from tests.qmd_index_maker import Index

Run = Callable[..., Any]
FACTS = IndexFacts(path=Path("i.sqlite"), documents=9, vectors=(Vectors("m", 9, 12),), dimension=2)
SAMPLE = Sample("hf:gemma", "T", "text", (1.0, 0.0))
NAMES = [
    *("QMD's index", "documents without vectors", "documents embedded in part", "models of the vectors"),
    *("dimension", "stored vectors", "cached scores", "cached expansions"),
]
STOPGAP = [{"type": "hyde", "query": "Information about tax"}]
TEXTS = {
    "bread.md": ("Bread", "# Bread\n\nFeed the starter, and bake in the morning."),
    "tax.md": ("Tax", "# Tax\n\nThe return is due in July, and has to be signed."),
}


@pytest.mark.parametrize(
    ("judge", "changes", "state", "cure"),
    [
        (findings.summary, {}, "ok", ""),
        (findings.models, {}, "ok", ""),
        (findings.models, {"vectors": ()}, "skipped", ""),
        (findings.models, {"vectors": (Vectors("m", 6, 6), Vectors("n", 3, 3))}, "warning", "qmd embed -f"),
        (findings.without_vectors, {}, "ok", ""),
        (findings.without_vectors, {"without_vectors": 2}, "warning", "qmd embed"),
        (findings.half_embedded, {}, "ok", ""),
        (findings.half_embedded, {"vectors": ()}, "skipped", ""),
        (findings.half_embedded, {"half": 1}, "warning", "qmd embed -f"),
    ],
)
def test_what_is_made_of_the_vectors(judge: Run, changes: dict[str, Any], state: str, cure: str):
    """Each fault has its state and the command that mends it; what is not there is skipped."""
    found = judge(replace(FACTS, **changes))
    assert (state, cure) == (found.state, found.cure)


@pytest.mark.parametrize(
    ("rows", "state", "told"),
    [
        ([], "skipped", "no scores"),
        (['[{"type":"lex","query":"a"}]', "not JSON", "true", "null"], "skipped", "no scores"),
        (["0.25", "1", "1.2e-10"], "ok", "3 scores"),
        (["0.25", "0"], "warning", "1 of 2 scores are 0"),
        (["NaN", "0"], "warning", "2 of 2 scores are 0"),
        (["-3.5", "7", "0.5"], "warning", "2 of 3 scores are outside"),
    ],
)
def test_cached_scores(rows: list[str], state: str, told: str):
    """A number is a score; 0 and NaN are what a failure leaves, and none lies outside 0 to 1."""
    found = findings.rerank_cache(replace(FACTS, cache=tuple(rows)))
    assert (state, True) == (found.state, told in found.detail)
    assert ("qmd cleanup" if state == "warning" else "") == found.cure


@pytest.mark.parametrize(
    ("rows", "spoilt"),
    [
        ([[("hyde", "Information about tax")]], 1),
        ([[("hyde", "Information about tax"), ("lex", "tax"), ("vec", "tax")]], 1),
        ([[("hyde", "Information about tax"), ("vec", "when is the tax return due")]], 0),
        ([[("hyde", "Information about tax is found in the return.")]], 1),
        ([[("lex", "tax return")], [("vec", "when is tax due"), ("hyde", "It is due in July.")]], 0),
        ([[("1. lex", "tax return")], [("lex", " ")], []], 3),
    ],
)
def test_cached_expansions(rows: list[list[tuple[str, str]]], spoilt: int):
    """QMD's stopgap alone is of no use, nor is what its rule does not accept; both ways of writing it are read."""
    for name in ("query", "text"):
        cache = tuple(json.dumps([{"type": kind, name: text} for kind, text in row]) for row in rows)
        found = findings.expansion_cache(replace(FACTS, cache=cache))
        assert ("warning" if spoilt else "ok") == found.state
        assert not spoilt or found.detail.startswith(f"{spoilt} of {len(rows)} ")
    assert "skipped" == findings.expansion_cache(replace(FACTS, cache=("0.5", "{}"))).state


def test_an_expansion_of_odd_entries():
    """Entries that are no objects, or lack their parts, are of no use, and raise nothing."""
    found = findings.expansion_cache(replace(FACTS, cache=("[1, null]", '[{"type": 3}]', '[{"query": "a"}]')))
    assert found.detail.startswith("3 of 3 ")


@pytest.mark.parametrize(("stored", "state"), [(None, "skipped"), (2, "ok"), (3, "failure")])
def test_the_dimension(stored: int | None, state: str):
    """Another dimension than the server's is a failure: nothing works with it."""
    found = findings.dimension(replace(FACTS, dimension=stored), 2)
    assert (state, "qmd embed -f" if state == "failure" else "") == (found.state, found.cure)


@pytest.mark.parametrize(
    ("model", "title", "expected"),
    [
        ("hf:gemma", "T", ["title: T | text: text", "text"]),
        ("hf:gemma", "", ["title: none | text: text", "text"]),
        ("hf:Qwen/Qwen3-Embedding", "T", ["T\ntext", "title: T | text: text", "text"]),
        ("hf:Qwen/Qwen3-Embedding", "", ["text", "title: none | text: text"]),
    ],
)
def test_how_a_document_is_sent(model: str, title: str, expected: list[str]):
    """First as QMD sends it for the name of the model, then as others do, each form once."""
    assert expected == findings.texts(replace(SAMPLE, model=model, title=title))


@pytest.mark.parametrize(
    ("served", "state"),
    [
        ([], "skipped"),
        ([[(1, 0)], [(2, 0.0)]], "ok"),
        ([[(0, 1), (1, 0.05)], [(1, 0)]], "ok"),
        ([[(0, 1)], [(1, 0)]], "warning"),
        ([[(0, 1)], [(1, 0.2)]], "failure"),
        ([[(0, 0)], [(1, 0, 0)]], "failure"),
    ],
)
def test_stored_vectors(served: list[Any], state: str):
    """A vector is met if it is that of any form; if none is met, all were made otherwise."""
    found = findings.stored([SAMPLE] * len(served), served)
    assert (state, "qmd embed -f" if state in {"warning", "failure"} else "") == (found.state, found.cure)


@pytest.fixture
def place(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """QMD's cache folder of the test's own, on a machine where nothing else is wrong."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        for name, one in zip(("QMD_REMOTE_PORT", "QMD_REMOTE_GENERATION_PORT"), sockets, strict=True):
            monkeypatch.setenv(name, str(one.getsockname()[1]))
    monkeypatch.delenv("INDEX_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cli_home / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(cli_home / "hf"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{cli_home}/nobody.sock")
    return cli_home / "cache" / "qmd"


def point(cli_home: Path, url: str, name: str = "index") -> None:
    """Let QMD's config name this server."""
    file = cli_home / "qmd" / f"{name}.yml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"remote:\n  embed_url: {url}\n  generation_url: {url}\n", encoding="utf-8")


def embedded(path: Path, server: Any, form: str = "title: {} | text: {}") -> None:
    """An index with the vectors that this server makes of these texts in this form."""
    sent = [form.format(title, text) for title, text in TEXTS.values()]
    data = server.answer("/v1/embeddings", {"input": sent}, f"Bearer {server.key}")[1]["data"]
    with Index(path, dimension=len(data[0]["embedding"])) as index:
        for (name, (title, text)), one in zip(TEXTS.items(), data, strict=True):
            index.embedded(name, text, one["embedding"], title=title)
        index.cached("0.5", '[{"type":"vec","query":"when is the tax return due"}]')


def told(done: Any) -> dict[str, dict[str, Any]]:
    """The checks of the index by their names."""
    return {row["name"]: row for row in done.envelope()["data"]["checks"] if row["name"] in NAMES}


def test_an_index_that_fits(qmd_remote: Run, place: Path, cli_home: Path, stand_in: Run):
    """All is well, the server is asked once, the folder stays as it was, and `--index` needs no name."""
    server = stand_in()
    point(cli_home, server.url)
    embedded(place / "index.sqlite", server)
    done = qmd_remote("doctor", "--preset", "mini", "--index", "--json")
    rows = told(done)
    assert (0, NAMES) == (done.code, list(rows))
    assert {"ok"} == {row["state"] for row in rows.values()}
    assert "2 of 2 stored vectors" in rows["stored vectors"]["detail"]
    assert ["index.sqlite"] == [path.name for path in place.iterdir()]


def test_without_the_option_no_index_is_read(qmd_remote: Run, place: Path):
    """The checks of the index are for those who ask for them."""
    assert {} == told(qmd_remote("doctor", "--preset", "mini", "--json"))


def test_vectors_of_another_rule(qmd_remote: Run, place: Path, cli_home: Path, stand_in: Run):
    """Vectors that the server would not make of the same texts are a failure, with the command for this index."""
    server = stand_in()
    point(cli_home, server.url, "work")
    embedded(place / "work.sqlite", server, form="passage: {} passage: {} passage: passage:")
    done = qmd_remote("doctor", "--preset", "mini", "--index", "work", "--json")
    row = told(done)["stored vectors"]
    assert (1, "failure") == (done.code, row["state"])
    assert row["fix"].startswith("qmd embed -f --index work")
    assert done.envelope()["error"]["message"].startswith("stored vectors: 0 of 2")


def test_another_dimension(qmd_remote: Run, place: Path, cli_home: Path, stand_in: Run):
    """It is a failure, and of such vectors no more is said."""
    point(cli_home, stand_in().url)
    with Index(place / "index.sqlite") as index:
        index.embedded("a.md", "text", (1, 0, 0))
    done = qmd_remote("doctor", "--preset", "mini", "--index", "--json")
    rows = told(done)
    assert (1, "failure", "skipped") == (done.code, rows["dimension"]["state"], rows["stored vectors"]["state"])


def test_a_spoilt_cache_and_missing_vectors(qmd_remote: Run, place: Path, stand_in: Run, runs: Run):
    """Warnings with their commands, and exit code 0; the server that runs here is asked with its key."""
    server = stand_in(key="s3cret")
    embedded(place / "index.sqlite", server)
    with closing(sqlite3.connect(place / "index.sqlite", isolation_level=None)) as index:
        index.execute("INSERT INTO content VALUES ('new', 'a new text', '')")
        index.execute(
            "INSERT INTO documents (collection, path, title, hash, created_at, modified_at)"
            " VALUES ('notes', 'n', 'N', 'new', '', '')"
        )
        index.execute("INSERT INTO llm_cache VALUES ('a', '0', ''), ('b', ?, '')", [json.dumps(STOPGAP)])
    runs("embed", server.url)
    done = qmd_remote("doctor", "--preset", "mini", "--index", "--json", QMD_REMOTE_API_KEY="s3cret")
    rows = told(done)
    expected = {
        "documents without vectors": "qmd embed",
        "cached scores": "qmd cleanup",
        "cached expansions": "qmd cleanup",
    }
    wrong = {name: row["fix"].split("   ")[0] for name, row in rows.items() if row["state"] != "ok"}
    assert (0, expected) == (done.code, wrong)
    assert "s3cret" not in done.stdout


def test_settings_that_are_wrong_are_not_the_index(place: Path, cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that cannot be looked for fails as such; the index itself could be read."""
    with Index(place / "index.sqlite") as index:
        index.embedded("a.md", "text", (1, 0, 0))
    monkeypatch.setenv("QMD_REMOTE_PORT", "nonsense")
    rows = {row.name: row for row in doctor.examine(doctor_index.index_checks("index", cli_home / "none.yml"))}
    assert ("failure", "ok") == (rows["stored vectors"].state, rows["QMD's index"].state)
    assert "nonsense" in rows["stored vectors"].detail


@pytest.mark.parametrize("there", [True, False])
def test_no_server_to_ask(qmd_remote: Run, place: Path, cli_home: Path, stand_in: Run, nobody: str, there: bool):
    """What needs a server is skipped and says why; the rest is told."""
    embedded(place / "index.sqlite", stand_in())
    if there:
        point(cli_home, nobody)
    rows = told(qmd_remote("doctor", "--preset", "mini", "--index", "--json"))
    for name in ("dimension", "stored vectors"):
        assert "skipped" == rows[name]["state"]
        assert ("could not be asked" if there else "none runs here") in rows[name]["detail"]
    assert "ok" == rows["models of the vectors"]["state"]


def test_there_is_no_index(qmd_remote: Run, place: Path):
    """Who asks for an index that is not there gets one failure, and nothing is made."""
    done = qmd_remote("doctor", "--preset", "mini", "--index", "nothing", "--json")
    rows = told(done)
    assert (1, "failure") == (done.code, rows["QMD's index"]["state"])
    assert {"skipped"} == {row["state"] for name, row in rows.items() if name != "QMD's index"}
    assert not place.exists()


def test_a_project_of_its_own(qmd_remote: Run, place: Path, cli_home: Path, stand_in: Run):
    """Where QMD would take a project's index, the commands name the one that was looked at."""
    (cli_home / ".qmd").mkdir()
    (cli_home / ".qmd" / "index.yml").touch()
    point(cli_home, stand_in().url)
    with Index(place / "index.sqlite") as index:
        index.document("a.md", "text")
    rows = told(qmd_remote("doctor", "--preset", "mini", "--index", "--json"))
    assert "qmd embed --index index" == rows["documents without vectors"]["fix"]


@pytest.mark.parametrize(("given", "told"), [(["--index"], "--index index"), (["--index", "work"], "--index work")])
def test_a_hint_names_the_index_again(
    place: Path, given: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """Who is to try once more gets the command with the index that was meant."""
    busy = Check("QMD's index", lambda: Finding("failure", "busy", "qmd-remote doctor"))
    monkeypatch.setattr(doctor_index, "index_checks", lambda *_: [busy])
    monkeypatch.setattr("sys.argv", ["qmd-remote", "doctor", "--preset", "mini", *given])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"qmd-remote doctor --preset mini {told}" in capsys.readouterr().err
