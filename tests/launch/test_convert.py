"""The one-time conversion of a GGUF file: where its result lies, and that it appears whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from qmd_remote.launch import convert_gguf

MODEL = "acme/small"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to convert; its content does not matter to a stand-in conversion."""
    path = tmp_path / "small.Q4_1.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path, Path], None]], None]:
    """Let a function of the test's write the model in transformers' place."""
    return lambda function: monkeypatch.setattr(convert_gguf, "_write_model", function)


def write_well(source: Path, target: Path) -> None:
    """A model folder, of sorts."""
    target.mkdir()
    (target / "config.json").write_text("{}")


def write_half(source: Path, target: Path) -> None:
    """A conversion that fails in the middle."""
    write_well(source, target)
    raise OSError(28, "No space left on device")


def test_the_result_lies_where_an_engine_looks_for_the_model(tmp_path: Path, source: Path, writer):
    """The folder is laid out as the hub's cache, so that the model is served under its hub name, offline."""
    writer(write_well)
    cache = tmp_path / "hub"
    folder = convert_gguf.convert(source, cache, MODEL)
    home = cache / "models--acme--small"
    assert folder == home / "snapshots" / (home / "refs" / "main").read_text()
    assert (folder / "config.json").is_file()
    assert convert_gguf.is_converted(cache, MODEL, source)
    assert {"refs", "snapshots"} == {path.name for path in home.iterdir()}


def test_huggingface_hub_finds_it_by_its_name(tmp_path: Path, source: Path, writer):
    """The library that the engines use finds a converted model's file in our cache without a network."""
    from huggingface_hub import try_to_load_from_cache

    writer(write_well)
    folder = convert_gguf.convert(source, tmp_path / "hub", MODEL)
    assert str(folder / "config.json") == try_to_load_from_cache(MODEL, "config.json", cache_dir=tmp_path / "hub")


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path, source: Path, writer):
    """After an error there is no model, no partial folder, and the next try starts afresh."""
    writer(write_half)
    cache = tmp_path / "hub"
    with pytest.raises(OSError, match="No space left"):
        convert_gguf.convert(source, cache, MODEL)
    assert not convert_gguf.is_converted(cache, MODEL, source)
    assert [] == [path for path in cache.rglob("*") if path.is_file() or path.name.startswith("partial-")]
    writer(write_well)
    convert_gguf.convert(source, cache, MODEL)
    assert convert_gguf.is_converted(cache, MODEL, source)


def test_what_a_killed_conversion_left_is_cleared_away(tmp_path: Path, source: Path, writer):
    """A conversion that was killed could not tidy up; the next one does."""
    left_over = tmp_path / "hub" / "models--acme--small" / "partial-x" / "model"
    left_over.mkdir(parents=True)
    (left_over / "model.safetensors").write_bytes(b"half")
    writer(write_well)
    convert_gguf.convert(source, tmp_path / "hub", MODEL)
    assert not left_over.parent.exists()


def test_another_file_is_another_revision(tmp_path: Path, source: Path, writer):
    """A new version of the package is converted anew, and takes the old one's place for the engine."""
    writer(write_well)
    cache = tmp_path / "hub"
    first = convert_gguf.convert(source, cache, MODEL)
    source.write_bytes(b"GGUF, but longer")
    assert not convert_gguf.is_converted(cache, MODEL, source)
    second = convert_gguf.convert(source, cache, MODEL)
    assert first != second
    assert second.name == (cache / "models--acme--small" / "refs" / "main").read_text()


def test_its_steps_are_told_in_the_form_that_phases_reads(tmp_path: Path, source: Path, writer, caplog):
    """What the conversion logs is what the waiting `up` understands."""
    from qmd_remote.launch.phases import Phase, latest

    caplog.set_level(logging.INFO)
    writer(write_well)
    convert_gguf.convert(source, tmp_path / "hub", MODEL)
    assert Phase("saving") == latest("\n".join(caplog.messages))


def test_a_conversion_whose_reference_is_missing_or_old_is_made_again(tmp_path: Path, source: Path, writer):
    """Killed between its folder and its reference, a conversion is not taken for done: an engine would not find it."""
    writer(write_well)
    cache = tmp_path / "hub"
    first = convert_gguf.convert(source, cache, MODEL)
    reference = cache / "models--acme--small" / "refs" / "main"
    for content in (None, "0123456789"):
        reference.unlink()
        if content is not None:
            reference.write_text(content)
        assert not convert_gguf.is_converted(cache, MODEL, source)
        assert first == convert_gguf.convert(source, cache, MODEL)
        assert convert_gguf.is_converted(cache, MODEL, source)
    assert ["main"] == [path.name for path in reference.parent.iterdir()]
