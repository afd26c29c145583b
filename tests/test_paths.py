"""Where things lie, and QMD's own rule for its configuration file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from qmd_remote import paths


@pytest.mark.parametrize(("look", "kind"), [(paths.run_dir, "run"), (paths.log_dir, "log"), (paths.cache_dir, "cache")])
def test_one_variable_moves_everything(look, kind: str, tmp_path: Path):
    """QMD_REMOTE_HOME holds state, logs and cache, each in a folder of its own."""
    assert tmp_path / kind == look({"QMD_REMOTE_HOME": str(tmp_path)})


def test_without_it_everything_lies_in_the_system_s_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without QMD_REMOTE_HOME the three folders differ, are named after the program, and lie in the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "QMD_REMOTE_HOME"):
        monkeypatch.delenv(name, raising=False)
    folders = [look({}) for look in (paths.run_dir, paths.log_dir, paths.cache_dir)]
    assert 3 == len(set(folders))
    assert all(paths.APP in folder.parts and folder.is_relative_to(tmp_path) for folder in folders)


def test_a_tilde_in_it_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """QMD_REMOTE_HOME=~/x works where no shell expanded it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / "x" / "run" == paths.run_dir({"QMD_REMOTE_HOME": "~/x"})


def test_a_relative_home_means_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative QMD_REMOTE_HOME becomes absolute, since services work in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "here" / "run" == paths.run_dir({"QMD_REMOTE_HOME": "here"})


def test_each_service_has_its_log(tmp_path: Path):
    """A log file is named after its service."""
    assert tmp_path / "log" / "embed.log" == paths.log_file("embed", {"QMD_REMOTE_HOME": str(tmp_path)})


def test_our_folders_are_private(tmp_path: Path):
    """A folder of ours is made with its parents, is readable by its owner alone, and is kept when it exists."""
    folder = tmp_path / "a" / "b"
    assert folder == paths.make_private(folder)
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    (folder / "kept").touch()
    paths.make_private(folder)
    assert (folder / "kept").exists()


@pytest.mark.parametrize(
    ("env", "index", "expected"),
    [
        ({}, "index", "HOME/.config/qmd/index.yml"),
        ({}, "work", "HOME/.config/qmd/work.yml"),
        ({"XDG_CONFIG_HOME": "/xdg"}, "index", "/xdg/qmd/index.yml"),
        ({"XDG_CONFIG_HOME": ""}, "index", "HOME/.config/qmd/index.yml"),
        ({"QMD_CONFIG_DIR": "/own", "XDG_CONFIG_HOME": "/xdg"}, "index", "/own/index.yml"),
        ({"QMD_CONFIG_DIR": "/own"}, "work", "/own/work.yml"),
        ({"QMD_CONFIG_DIR": "", "XDG_CONFIG_HOME": "/xdg"}, "index", "/xdg/qmd/index.yml"),
    ],
)
def test_qmd_s_file_is_found_by_qmd_s_rule(
    env: dict[str, str], index: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """$QMD_CONFIG_DIR, else $XDG_CONFIG_HOME/qmd, else ~/.config/qmd, and the index's name decides the file's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expected.replace("HOME", str(tmp_path)) == str(paths.qmd_config_file(index, env))
