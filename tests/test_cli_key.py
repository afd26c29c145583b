"""`qmd-remote key …` through the installed program."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import keys, paths

Run = Callable[..., Any]


def test_the_key_is_shown_alone(qmd_remote: Run):
    """`key show` writes the key and a line end to stdout, and nothing else anywhere: it is made for $(…)."""
    path, _ = keys.ensure()
    done = qmd_remote("key", "show")
    assert (0, f"{keys.read_file(path)}\n", "") == (done.code, done.stdout, done.stderr)


def test_the_key_of_the_settings_comes_first(qmd_remote: Run, cli_home: Path):
    """A key file that is configured, and then a variable, win over our own file."""
    keys.ensure()
    other = cli_home / "other"
    other.write_text("from-the-file\n", encoding="utf-8")
    assert "from-the-file\n" == qmd_remote("key", "show", QMD_REMOTE_API_KEY_FILE=str(other)).stdout
    assert "from-the-variable\n" == qmd_remote("key", "show", QMD_REMOTE_API_KEY="from-the-variable").stdout


def test_without_a_key_there_is_a_way_to_one(qmd_remote: Run):
    """Where there is no key, `key show` says which commands make one."""
    said = qmd_remote("key", "show", "--json").envelope()
    assert ("key.none", 4) == (said["error"]["code"], said["exit_code"])
    assert "key rotate" in said["error"]["hint"]


def test_rotate_makes_and_replaces_the_key(qmd_remote: Run):
    """`key rotate` makes the first key and replaces it the next time; the key itself is not said."""
    found = []
    for _ in range(2):
        done = qmd_remote("key", "rotate", "--json")
        assert {"path": str(paths.key_file()), "restart_needed": False} == done.envelope()["data"]
        found.append(keys.read_file(paths.key_file()))
        assert found[-1] not in done.stdout + done.stderr
    assert found[0] != found[1]
    assert 0o600 == stat.S_IMODE(paths.key_file().stat().st_mode)


def test_a_running_server_still_takes_the_old_key(qmd_remote: Run, runs: Run):
    """After a rotation a server that was started with the old key has to be restarted, and that is said."""
    path, _ = keys.ensure()
    runs("embed", "http://127.0.0.1:1", key_file=str(path))
    said = qmd_remote("key", "rotate", "--json").envelope()
    assert said["data"]["restart_needed"]
    assert "qmd-remote restart embed" == said["warnings"][0]["hint"]


def test_a_foreign_key_file_is_not_replaced(qmd_remote: Run, cli_home: Path):
    """A key file that the user keeps is left alone by `key rotate`, which says so."""
    other = cli_home / "other"
    other.write_text("mine\n", encoding="utf-8")
    said = qmd_remote("key", "rotate", "--json", QMD_REMOTE_API_KEY_FILE=str(other)).envelope()
    assert "key.foreign" == said["error"]["code"]
    assert "mine\n" == other.read_text(encoding="utf-8")


@pytest.mark.parametrize("configured", [False, True])
def test_the_path_is_told_whether_there_is_a_key_or_not(configured: bool, qmd_remote: Run, cli_home: Path):
    """`key path` names our own file, or the configured one."""
    variables = {"QMD_REMOTE_API_KEY_FILE": str(cli_home / "other")} if configured else {}
    expected = cli_home / "other" if configured else paths.key_file()
    assert f"{expected}\n" == qmd_remote("key", "path", **variables).stdout
    assert not qmd_remote("key", "path", "--json", **variables).envelope()["data"]["exists"]
