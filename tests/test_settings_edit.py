"""Changes of the settings file, case by case; test_settings_file.py has the properties."""

from __future__ import annotations

import stat
import threading
import tomllib
from pathlib import Path

import pytest

from qmd_remote import settings_edit
from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.settings import declared


@pytest.fixture(autouse=True)
def a_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks lie in a folder of the test."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path_factory.mktemp("home")))


def test_values_are_stored_as_what_they_are(tmp_path: Path):
    """Numbers are numbers in the file, switches are true or false, lists are lists."""
    path = tmp_path / "config.toml"
    settings_edit.store(
        path, settings_edit.read_pairs(["port=9001", "queue_wait_s=5", "access_log=off", "trust_remote_code=a/b, c/d"])
    )
    expected = 'port = 9001\nqueue_wait_s = 5.0\naccess_log = false\ntrust_remote_code = ["a/b", "c/d"]\n'
    assert expected == path.read_text(encoding="utf-8")


def test_the_same_value_written_otherwise_is_left_alone(tmp_path: Path):
    """A line that says the same already keeps its spelling."""
    path = tmp_path / "config.toml"
    path.write_text('port = "9001"\nqueue_wait_s = 5\n', encoding="utf-8")
    assert () == settings_edit.store(path, {"port": 9001, "queue_wait_s": 5.0})
    assert 'port = "9001"\nqueue_wait_s = 5\n' == path.read_text(encoding="utf-8")


def test_nothing_is_written_when_another_line_is_wrong(tmp_path: Path):
    """A file that is refused as a whole is not touched by `set`."""
    path = tmp_path / "config.toml"
    path.write_text("prot = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean port"):
        settings_edit.store(path, {"port": 2})
    assert "prot = 1\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "name", "left"),
    [
        ("prot = 1\nport = 2\n", "prot", "port = 2\n"),
        ("[server]\nport = 1\n", "server", ""),
        ("port = 2\n[[x]]\na = 1\n[y]\nb = 1\n[[x]]\na = 2\n", "x", "port = 2\n[y]\nb = 1\n"),
        ("a.b = 1\nport = 2\na.c = 3\n", "a", "port = 2\n"),
    ],
)
def test_what_is_no_setting_can_be_taken_out(text: str, name: str, left: str, tmp_path: Path):
    """`unset` mends a file with unknown names and sections, which every other command refuses."""
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    assert (name,) == settings_edit.remove(path, [name])
    assert left == path.read_text(encoding="utf-8")


def test_a_line_that_is_nowhere_names_the_nearest(tmp_path: Path):
    """A name that is neither a setting nor in the file is a typing error; the file's own names count as well."""
    path = tmp_path / "config.toml"
    path.write_text("prrt = 1\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"did you mean prrt\?"):
        settings_edit.remove(path, ["prrrt"])
    with pytest.raises(UsageError, match=r"did you mean device\?"):
        settings_edit.remove(path, ["devise"])


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_a_link_stays_a_link_and_the_file_keeps_its_mode(mode: int, tmp_path: Path):
    """A file kept elsewhere (in a repository of dot files) is changed there."""
    target, link = tmp_path / "dotfiles.toml", tmp_path / "config.toml"
    target.write_text("port = 1\n", encoding="utf-8")
    target.chmod(mode)
    link.symlink_to(target.name)
    settings_edit.store(link, {"port": 2})
    assert (True, "port = 2\n") == (link.is_symlink(), target.read_text(encoding="utf-8"))
    assert mode == stat.S_IMODE(target.stat().st_mode)
    assert {link, target} == set(tmp_path.iterdir())


def test_a_new_file_is_its_owner_s_alone(tmp_path: Path):
    """The first `set` makes folder and file, readable by nobody else."""
    path = tmp_path / "new" / "config.toml"
    settings_edit.store(path, {"port": 2})
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))


def test_a_place_that_cannot_be_written_is_an_error_of_configuration(tmp_path: Path):
    """Where the file cannot be made the error names it, and no half of it is left."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"config\.toml"):
        settings_edit.store(tmp_path / "file" / "config.toml", {"port": 2})


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path):
    """Settings set by several processes at once all arrive."""
    path = tmp_path / "config.toml"
    numbers = [f.name for f in declared() if type(f.default) is int and f.metadata["low"] <= 7]
    threads = [threading.Thread(target=settings_edit.store, args=(path, {name: 7})) for name in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict.fromkeys(numbers, 7) == tomllib.loads(path.read_text(encoding="utf-8"))
