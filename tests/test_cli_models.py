"""`qmd-remote models`: what there is, what is here, in the light installation too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from qmd_remote import catalogue, hub_cache, views_models
from qmd_remote.presets import DESIGN_EMBED, DESIGN_RERANK, MINI_EMBED
from tests.conftest import Done

COMMIT = "a" * 40


@pytest.fixture
def hub_home(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; returns its folder."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(cli_home / "hf"))
    return cli_home / "hf" / "hub"


def cache(hub_home: Path, name: str, *files: str) -> Path:
    """A reranker's snapshot in the cache, as a download would have left it; returns it."""
    home = hub_cache.model_folder(name, hub_home)
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"architectures": ["XLMRobertaForSequenceClassification"]}))
    for file in files:
        (snapshot / file).touch()
    hub_cache.point_main_to(snapshot)
    return snapshot


def test_the_list_has_every_model_and_says_how_to_use_others(hub_home: Path, qmd_remote: Callable[..., Done]):
    """All models of the catalogue are shown by role, and that other ids and folders work too."""
    done = qmd_remote("models")
    assert 0 == done.code
    assert all(f"\n{name} " in done.stdout for name in catalogue.CATALOGUE)
    assert ["embedding", "reranking", "generation"] == [
        line.split()[0] for line in done.stdout.splitlines() if " tokens " in line
    ]
    assert "any other hub id or local folder works too" in done.stderr


def test_json_has_everything_prompts_included(hub_home: Path, qmd_remote: Callable[..., Done]):
    """The envelope lists each model with its facts, prompts, presets, state and commands."""
    models = {one["id"]: one for one in qmd_remote("models", "--json").envelope()["data"]["models"]}
    assert set(catalogue.CATALOGUE) == set(models)
    nomic = models[DESIGN_EMBED]
    assert ("search_query: ", "search_document: ") == (nomic["query_prompt"], nomic["document_prompt"])
    assert (768, 8192, ["spark", "gpu", "cpu"]) == (nomic["dimension"], nomic["tokens"], nomic["presets"])
    assert ("not yet", None) == (nomic["here"], nomic["folder"])
    assert f"qmd-remote up --embed-model {DESIGN_EMBED}" in nomic["commands"]
    assert "bundled" == models[MINI_EMBED]["here"]


@pytest.mark.parametrize("name", [DESIGN_EMBED, "nomic-embed-text-v1.5", "Nomic-Embed-Text-v1.5"])
def test_one_model_in_detail(hub_home: Path, qmd_remote: Callable[..., Done], name: str):
    """A model is found by its id or the last part of it, and shown with its prompts and the command to use it."""
    said = qmd_remote("models", name).stdout
    assert "'search_query: '" in said
    assert f"qmd-remote up --embed-model {DESIGN_EMBED}" in said


def test_an_unknown_model_gets_the_nearest_name(hub_home: Path, qmd_remote: Callable[..., Done]):
    """A misspelt name is answered with the nearest one, and with how to use a model that is not listed."""
    done = qmd_remote("models", "bge-m4")
    assert 2 == done.code
    assert "did you mean bge-m3?" in done.stderr
    assert "up --embed-model bge-m4" in done.stderr


def test_a_model_counts_as_cached_only_when_it_is_whole(hub_home: Path, qmd_remote: Callable[..., Done]):
    """A snapshot without weights is not here; with them it is, and its folder is told."""

    def here() -> tuple[str, str | None]:
        (model,) = qmd_remote("models", DESIGN_RERANK, "--json").envelope()["data"]["models"]
        return model["here"], model["folder"]

    snapshot = cache(hub_home, DESIGN_RERANK, "tokenizer.json")
    assert ("not yet", None) == here()
    (snapshot / "model.safetensors").touch()
    assert ("cached", str(snapshot)) == here()


def test_the_light_installation_sees_the_cache_too(hub_home: Path):
    """Without huggingface_hub the command works, and finds what is cached."""
    cache(hub_home, DESIGN_RERANK, "tokenizer.json", "model.safetensors")
    code = (
        "import sys; sys.modules.update(huggingface_hub=None, torch=None, transformers=None, fastapi=None)\n"
        "from qmd_remote.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "models", "--json"], capture_output=True, text=True, timeout=60)
    models = {one["id"]: one["here"] for one in json.loads(done.stdout)["data"]["models"]}
    assert "cached" == models[DESIGN_RERANK]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "$ROOM/hf", "ROOM": "/room"},
        {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf"},
        {"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf"},
    ],
)
def test_the_cache_is_where_the_hub_s_library_has_it(tmp_path: Path, variables: dict[str, str]):
    """For every mixture of its variables our rule and the library's agree."""
    code = (
        "from huggingface_hub import constants; from qmd_remote import hub_cache\n"
        "print(constants.HF_HUB_CACHE); print(hub_cache.folder())"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    theirs, ours = done.stdout.splitlines()
    assert theirs == ours


def test_the_tables_fit_a_usual_terminal():
    """In 80 columns every fact is whole: id, parameters, licence and presets."""
    console = Console(width=80, record=True, file=io.StringIO())
    models = list(catalogue.CATALOGUE.values())
    console.print(views_models.models_tables(models, ["not yet"] * len(models)))
    text = console.export_text()
    assert "…" not in text
    for model in models:
        about = (views_models.count(model.parameters), model.licence, ", ".join(model.presets))
        assert model.id in text
        assert " · ".join(filter(None, about)) in text
