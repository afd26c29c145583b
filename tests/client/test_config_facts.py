"""What `config check` finds on disk, and the keys that a misspelt one stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmd_remote.client.config_facts import gather, indexes_without_block, project_file
from qmd_remote.client.config_values import KEYS, nearest


def test_the_project_file_that_qmd_takes(tmp_path: Path):
    """The nearest above the folder, .yaml before .yml; the file itself is not another one."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / ".qmd").mkdir()
    own = tmp_path / ".qmd" / "index.yml"
    assert None is project_file(below, tmp_path / "index.yml")
    own.touch()
    assert (own, None) == (project_file(below, tmp_path / "index.yml"), project_file(below, own))
    own.with_suffix(".yaml").touch()
    assert own.with_suffix(".yaml") == project_file(below, tmp_path / "index.yml")


def test_index_files_beside_this_one(tmp_path: Path):
    """Only those that can be read, are files and have no block, whatever its quotes."""
    for name, text in {"index": "", "work": "a: 1\n", "home": "remote:\n", "odd": '"remote" :\n'}.items():
        (tmp_path / f"{name}.yml").write_text(text)
    (tmp_path / "folder.yml").mkdir()
    (tmp_path / "gone.yml").symlink_to("nowhere")
    assert ("work",) == indexes_without_block(tmp_path / "index.yml")


def test_what_is_on_disk(tmp_path: Path):
    """No file is no text, a folder cannot be read, a file has text and mode."""
    file = tmp_path / "index.yml"
    facts = gather(file, {})
    assert (None, "", None) == (facts.text, facts.unreadable, facts.mode)
    assert "is not a file" in gather(tmp_path, {}).unreadable
    file.write_text("a: 1\n")
    file.chmod(0o640)
    facts = gather(file, {})
    assert ("a: 1\n", 0o640) == (facts.text, facts.mode)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("embedUrl", "embed_url"),
        ("embed-url", "embed_url"),
        ("generationUrl", "generation_url"),
        ("generate_url", "generation_url"),
        ("rerank_url", "embed_url"),
        ("apikey", "api_key"),
        ("apiKey", "api_key"),
        ("URL", "url"),
        ("modles", "models"),
        ("timeout", None),
    ],
)
def test_the_nearest_key(key, meant):
    """Other spellings and other clients' names lead to QMD's."""
    assert meant == nearest(key, KEYS)
