"""What a client's keys replaced comes back, from copies of the file that no later change overwrites."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from qmd_remote.client import backups, families
from qmd_remote.client.family_edits import Endpoints, removed, trees, written
from qmd_remote.client.remote_block import ModelNames

BOX = "http://box:8001"
ENDPOINTS = Endpoints(embed_url=BOX, generation_url=BOX, models=ModelNames("a/embed", "a/generate", "a/rerank"))
EACH = pytest.mark.parametrize("name", ["llm-provider", "model-urls", "wei840222"])
MINE = "models:\n  embed: hf:x/y.gguf # mine\n  other: z\nb: 1\n"


def write(text: str, name: str) -> str:
    """The text as a client shall find it."""
    family = families.find(name)
    return written(text, family, trees(family, ENDPOINTS), name="index.yml")


def remove(text: str, name: str, *earlier: str) -> str:
    """The text without the client's keys, and with what older ones had."""
    return removed(text, families.find(name), name="index.yml", earlier=earlier) or ""


@pytest.mark.parametrize("name", ["llm-provider", "model-urls"])
def test_a_text_comes_back_in_its_line(name: str):
    """A name of one line stands where it stood, with its comment; quotes that were needed meanwhile may stay."""
    assert MINE == remove(write(MINE, name), name, MINE).replace('"', "")


@EACH
@pytest.mark.parametrize("text", [MINE, "models:\n  embed: hf:x/y\n", "models:\n  rerank: 'r.gguf'\n  embed: e.gguf\n"])
def test_each_value_comes_back(name: str, text: str):
    """Also where the file had nothing else in its block, and nothing of ours stays."""
    assert yaml.safe_load(text) == yaml.safe_load(remove(write(text, name), name, text))


def test_keys_below_a_key_come_back():
    """Of another provider's block each line that gave way has its value again, and one that was new is gone."""
    text = "models:\n  embed:\n    provider: local\n    model: m\n    x: y\n"
    assert yaml.safe_load(text) == yaml.safe_load(remove(write(text, "wei840222"), "wei840222", text))


def test_another_clients_values_are_not_the_users():
    """Where one client of ours followed another one, the value from before both comes back."""
    first = write(MINE, "model-urls")
    assert yaml.safe_load(MINE) == yaml.safe_load(remove(write(first, "wei840222"), "wei840222", first, MINE))


@EACH
def test_the_last_word_of_the_user_counts(name: str):
    """What the user changed by hand, or took out, is not undone by an older file."""
    newer = MINE.replace("hf:x/y.gguf", "hf:new/one")
    assert "hf:new/one" in remove(write(newer, name), name, newer, MINE)
    without = "models:\n  other: z\nb: 1\n"
    assert without == remove(write(without, name), name, without, MINE)
    by_hand = write(MINE, name).replace("  other: z\n", "  other: w\n")
    assert "other: w" in remove(by_hand, name, MINE)


@EACH
@pytest.mark.parametrize(
    "odd", ["a: 1\na: 2\n", "models: [x]\n", "models:\n  embed: |\n    a\n    b\n", "models:\n  embed: [x]\n"]
)
def test_what_cannot_come_back_is_passed_over(name: str, odd: str):
    """A file that cannot be read, or a value that no line holds, does not stop the removal."""
    text = "models:\n  other: z\n"
    assert text == remove(write(text, name), name, odd)


# the copies


def test_no_copy_is_overwritten_by_another_text(tmp_path: Path):
    """Each text has a name of its own, and one that is there already keeps it."""
    file = tmp_path / "index.yml"
    for text, name in [
        ("a", "index.yml.bak"),
        ("b", "index.yml.bak2"),
        ("a", "index.yml.bak"),
        ("c", "index.yml.bak3"),
    ]:
        path = backups.place(file, text)
        assert name == path.name
        path.write_text(text, encoding="utf-8")
    os.utime(tmp_path / "index.yml.bak", ns=(1, 2**62))
    assert ["a", "c", "b"] == [backup.text for backup in backups.newest_first(file)]


def test_a_copy_that_cannot_be_read_stays(tmp_path: Path):
    """It is neither taken for a copy of the file nor overwritten."""
    (tmp_path / "index.yml.bak").write_bytes(b"\xff")
    (tmp_path / "index.yml.bak2").symlink_to(tmp_path / "nowhere")
    assert "index.yml.bak3" == backups.place(tmp_path / "index.yml", "a").name
    assert [] == backups.newest_first(tmp_path / "index.yml")
