"""Large files of the hub: every way in which a line, a process or a server can fail, and what is kept then."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from qmd_remote import hub_cache
from qmd_remote.errors import ConfigError, HubUnreachable, PrerequisiteError
from qmd_remote.server import hub_download
from qmd_remote.server.checkpoint import is_complete
from qmd_remote.server.hub import Hub, cached, download, find
from tests.server import tiny_models as tiny
from tests.server.stand_in_hub import COMMIT, StandInHub, serving

NAME = "someone/tiny"
WEIGHTS = "model.safetensors"
CUT = 65_536


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    """The tiny model's weights count as large; no token of the developer's is sent."""
    monkeypatch.setattr(hub_download, "LARGE", 100_000)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny embedding model."""
    return tiny.save_encoder(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture
def stand_in(encoder) -> Iterator[StandInHub]:
    """A hub that holds the tiny model."""
    hub = StandInHub()
    hub.add(NAME, encoder)
    assert len(hub.models[NAME][WEIGHTS]) > CUT
    with serving(hub):
        yield hub


def at(stand_in: StandInHub, tmp_path: Path, patience_s: float = 60) -> Hub:
    """The stand-in with a cache of the test's own."""
    return Hub(endpoint=stand_in.url, cache=tmp_path / "cache", patience_s=patience_s)


def part_of(stand_in: StandInHub, tmp_path: Path) -> Path:
    """Where the weights are received."""
    etag = hashlib.sha256(stand_in.models[NAME][WEIGHTS]).hexdigest()
    return hub_cache.model_folder(NAME, tmp_path / "cache") / "blobs" / f"{etag}.part"


def leave_a_part(stand_in: StandInHub, tmp_path: Path, content: bytes) -> Path:
    """What an earlier run would have left of the weights."""
    part = part_of(stand_in, tmp_path)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    return part


def test_the_cache_is_laid_out_as_the_library_does(stand_in, tmp_path):
    """Blob, link and `main` are where every program of the hub looks, and no unfinished file is left."""
    from huggingface_hub import snapshot_download

    hub = at(stand_in, tmp_path)
    folder = find(NAME, hub=hub).folder
    weights = stand_in.models[NAME][WEIGHTS]
    link = folder / WEIGHTS
    assert link.is_symlink()
    assert (hashlib.sha256(weights).hexdigest(), weights) == (link.resolve().name, link.read_bytes())
    assert [] == list((tmp_path / "cache").rglob("*.part"))
    assert str(folder) == snapshot_download(NAME, cache_dir=hub.cache, local_files_only=True)
    assert folder == cached(NAME, hub).folder
    umask = os.umask(0)
    os.umask(umask)
    assert 0o666 & ~umask == link.stat().st_mode & 0o777


def test_a_cut_line_is_taken_up_at_the_last_byte(stand_in, tmp_path):
    """When the line breaks, the rest is asked for by Range, and the progress never falls back."""
    stand_in.cut_at[WEIGHTS] = CUT
    seen: list[float] = []
    folder = find(NAME, hub=at(stand_in, tmp_path), progress=seen.append).folder
    assert ["", f"bytes={CUT}-"] == stand_in.got(WEIGHTS)
    assert stand_in.models[NAME][WEIGHTS] == (folder / WEIGHTS).read_bytes()
    assert seen == sorted(seen)
    assert 1 == seen[-1]


def test_what_an_earlier_run_left_is_used(stand_in, tmp_path):
    """An unfinished file on the disk is completed, not begun anew."""
    leave_a_part(stand_in, tmp_path, stand_in.models[NAME][WEIGHTS][:CUT])
    assert is_complete(find(NAME, hub=at(stand_in, tmp_path)).folder)
    assert [f"bytes={CUT}-"] == stand_in.got(WEIGHTS)


def test_a_server_without_ranges_sends_it_all_again(stand_in, tmp_path):
    """Where Range is ignored, what is there is replaced instead of being lengthened."""
    stand_in.ignore_ranges = True
    leave_a_part(stand_in, tmp_path, b"x" * CUT)
    folder = find(NAME, hub=at(stand_in, tmp_path)).folder
    assert stand_in.models[NAME][WEIGHTS] == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("left", [b"x" * CUT, b"x" * 10_000_000])
def test_a_damaged_rest_of_an_earlier_run_is_thrown_away(stand_in, tmp_path, left):
    """When the whole has another checksum or size, and the first part is old, all is fetched once more."""
    leave_a_part(stand_in, tmp_path, left)
    folder = find(NAME, hub=at(stand_in, tmp_path)).folder
    assert stand_in.models[NAME][WEIGHTS] == (folder / WEIGHTS).read_bytes()
    assert "" == stand_in.got(WEIGHTS)[-1]


def test_a_wrong_checksum_is_refused(stand_in, tmp_path):
    """Content that is not what its name says never gets into the cache, and the next start asks for all of it."""
    stand_in.damaged.add(WEIGHTS)
    with pytest.raises(HubUnreachable) as caught:
        find(NAME, hub=at(stand_in, tmp_path))
    assert "hub.checksum" == caught.value.code
    assert WEIGHTS in caught.value.message
    assert f"qmd-remote pull {NAME}" in caught.value.hint
    assert [] == [*(tmp_path / "cache").rglob("*.part"), *(tmp_path / "cache").rglob(WEIGHTS)]
    assert cached(NAME, at(stand_in, tmp_path)) is None
    stand_in.damaged.clear()
    assert is_complete(find(NAME, hub=at(stand_in, tmp_path)).folder)


def test_a_silent_line_ends_the_wait_and_keeps_what_came(stand_in, tmp_path, monkeypatch):
    """Without a byte for the limit the download ends with the cause, the state and the command that goes on."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    stand_in.hold_at[WEIGHTS] = CUT
    stand_in.refuse_ranges = True
    with pytest.raises(HubUnreachable) as caught:
        find(NAME, hub=at(stand_in, tmp_path, patience_s=0.5))
    assert "hub.stalled" == caught.value.code
    assert "HTTP 500" in caught.value.message
    assert f"qmd-remote pull {NAME}" in caught.value.hint
    assert stand_in.models[NAME][WEIGHTS][:CUT] == part_of(stand_in, tmp_path).read_bytes()


def test_a_refusal_is_told_at_once(stand_in, tmp_path):
    """What no waiting cures ends the download with the status of the server that refuses."""
    storage = StandInHub(models=stand_in.models, refusals={NAME: (403, "")})
    with serving(storage):
        stand_in.storage = storage.url
        with pytest.raises(ConfigError) as caught:
            find(NAME, hub=at(stand_in, tmp_path))
    assert ("hub.token", [""]) == (caught.value.code, storage.got(WEIGHTS))
    assert "HTTP 403" in caught.value.message


def test_a_token_stays_with_the_hub(stand_in, encoder, tmp_path, monkeypatch):
    """The storage to which large files are redirected gets the Range, and never the token."""
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "hf_secret")
    storage = StandInHub(models=stand_in.models)
    with serving(storage):
        stand_in.storage = storage.url
        storage.cut_at[WEIGHTS] = CUT
        assert is_complete(find(NAME, hub=at(stand_in, tmp_path)).folder)
    assert {"Bearer hf_secret"} == set(stand_in.keys)
    assert ["", f"bytes={CUT}-"] == storage.got(WEIGHTS)
    assert {""} == set(storage.keys)


def test_two_processes_receive_a_file_once(stand_in, tmp_path):
    """Whoever comes second waits, sees the other's progress, and takes the finished file."""
    hub = at(stand_in, tmp_path)
    part = leave_a_part(stand_in, tmp_path, b"x" * CUT)
    locks = hub.folder / ".locks" / hub_cache.model_folder(NAME, hub.folder).name
    locks.mkdir(parents=True)
    other = FileLock(locks / f"{part.stem}.lock", thread_local=False)
    other.acquire()
    begun = sum(map(len, stand_in.models[NAME].values())) - len(stand_in.models[NAME][WEIGHTS]) + CUT
    waits = threading.Event()

    def report(done: int, total: int) -> None:
        if done == begun:  # what the other has received counts
            waits.set()

    thread = threading.Thread(target=download, args=(NAME, hub, report))
    thread.start()
    try:
        assert waits.wait(30)
        part.write_bytes(stand_in.models[NAME][WEIGHTS])
        part.replace(part.with_suffix(""))
    finally:
        other.release()
        thread.join(30)
    assert [] == stand_in.got(WEIGHTS)
    assert is_complete(cached(NAME, hub).folder)


def test_rests_of_files_that_are_not_wanted_any_more_are_removed(stand_in, tmp_path):
    """What was begun of an older version of the model does not stay for ever."""
    old = part_of(stand_in, tmp_path).with_name("0" * 64 + ".part")
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x")
    find(NAME, hub=at(stand_in, tmp_path))
    assert not old.exists()


def test_a_disk_without_room_is_told_before_the_first_byte(stand_in, tmp_path, monkeypatch):
    """A model that cannot fit is refused with what it needs and what there is, and what is there already counts."""
    weights = stand_in.models[NAME][WEIGHTS]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(weights) - CUT))
    with pytest.raises(PrerequisiteError) as caught:
        find(NAME, hub=at(stand_in, tmp_path))
    assert "disk.full" == caught.value.code
    assert "HF_HOME" in caught.value.hint
    assert [] == stand_in.got(WEIGHTS)
    others = sum(map(len, stand_in.models[NAME].values())) - len(weights)
    leave_a_part(stand_in, tmp_path, weights[: CUT + others])
    assert is_complete(find(NAME, hub=at(stand_in, tmp_path)).folder)


def test_a_disk_that_fills_up_is_told(stand_in, tmp_path, monkeypatch):
    """A disk that is full in the midst of a file is named as the cause."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_download, "_append", full)
    with pytest.raises(PrerequisiteError) as caught:
        find(NAME, hub=at(stand_in, tmp_path))
    assert "disk.full" == caught.value.code


def test_main_names_the_snapshot_that_was_fetched(stand_in, tmp_path):
    """`main` is moved from an older snapshot to the new one only once that is whole."""
    hub = at(stand_in, tmp_path)
    refs = hub_cache.model_folder(NAME, hub.folder) / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("f" * 40)
    stand_in.damaged.add(WEIGHTS)
    with pytest.raises(HubUnreachable):
        find(NAME, hub=hub)
    assert "f" * 40 == (refs / "main").read_text()
    stand_in.damaged.clear()
    find(NAME, hub=hub)
    assert (COMMIT, ["main"]) == ((refs / "main").read_text(), [one.name for one in refs.iterdir()])
