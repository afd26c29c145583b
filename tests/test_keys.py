"""The API key: made once, readable by its owner alone, replaced in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmd_remote import keys, paths
from qmd_remote.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_key_is_made_once():
    """The first call makes a long random key, of mode 0600 in a folder of mode 0700; the second one finds it."""
    path, made = keys.ensure()
    assert (paths.key_file(), True) == (path, made)
    assert (0o600, 0o700) == (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777)
    key = keys.read_file(path)
    assert 40 <= len(key)
    assert (path, False) == keys.ensure()
    assert key == keys.read_file(path)


def test_a_rotated_key_is_another_one():
    """A rotation leaves one file, with another key, and closes one that was open to others."""
    path, _ = keys.ensure()
    old = keys.read_file(path)
    path.chmod(0o644)
    assert path == keys.rotate()
    assert old != keys.read_file(path)
    assert 0o600 == path.stat().st_mode & 0o777
    assert [path.name] == [one.name for one in path.parent.iterdir()]


def test_a_damaged_key_file_is_not_taken_for_a_key():
    """An empty key file is an error that says how to get a new key, and is not silently replaced."""
    path, _ = keys.ensure()
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        keys.ensure()
    assert ("key.invalid", True) == (caught.value.code, "qmd-remote key rotate" in caught.value.hint)


def test_a_folder_that_cannot_be_written_is_told(home: Path):
    """Where our folder would lie there is a file: the error names it."""
    (home / "home").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        keys.ensure()
    assert os.fspath(home / "home") in caught.value.message
