"""QMD's configuration file: what QMD would see in it, and writing it safely."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qmd_remote.client import qmd_config
from qmd_remote.client.qmd_config import apply, normalise_url, plan_write, read
from qmd_remote.client.remote_block import KEEP, ModelNames, RemoteBlock
from qmd_remote.errors import ConfigError, UsageError

WANTED = RemoteBlock(url="http://box:8001", api_key="${QMD_REMOTE_API_KEY}")
LITERAL = RemoteBlock(url="http://box:8001", api_key="sk-new")
WRITTEN = 'remote:\n  url: http://box:8001\n  api_key: "${QMD_REMOTE_API_KEY}"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A path, in a folder that is not there yet."""
    return tmp_path / "qmd" / "index.yml"


@pytest.fixture
def existing(file: Path) -> Path:
    """A file with line ends of its own and an unusual mode."""
    file.parent.mkdir()
    file.write_bytes(b"# notes\r\ncollections: {}\r\n")
    file.chmod(0o640)
    return file


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://box:8001", "http://box:8001"),
        (" http://box:8001/ ", "http://box:8001"),
        ("http://box:8001/v1", "http://box:8001"),
        ("http://box:8001/v1/", "http://box:8001"),
        ("http://box:8001//v1//", "http://box:8001"),
        ("http://box/v1/v1", "http://box"),
        ("https://box.example/qmd/v1", "https://box.example/qmd"),
        ("http://[::1]:8001/v1", "http://[::1]:8001"),
        ("HTTP://Box:8001", "http://Box:8001"),
        ("http://box/v10", "http://box/v10"),
    ],
)
def test_a_url_is_brought_into_the_form_qmd_needs(given, url):
    """Slashes and a /v1 at the end go, since QMD adds /v1 itself; doing so twice changes nothing."""
    assert url == normalise_url(given)
    assert url == normalise_url(url)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "begins with http"),
        ("box", "begins with http"),
        ("box:8001", "begins with http"),
        ("ftp://box", "begins with http"),
        ("http://", "names no host"),
        ("http:///v1", "names no host"),
        ("http://:8001", "names no host"),
        ("http://box:99999", "cannot be read"),
        ("http://box:port", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://me:sk-1@box", "user name"),
        ("http://sk-1@box", "user name"),
        ("http://box/?key=sk-1", "no ? and no #"),
        ("http://box/#sk-1", "no ? and no #"),
        ("http://box?", "no ? and no #"),
        ("http://a b", "no spaces"),
        ("http://box\n:1", "no spaces"),
    ],
)
def test_a_url_that_qmd_could_not_use_is_refused(given, words):
    """The refusal says what to change and repeats no secret."""
    with pytest.raises(UsageError) as caught:
        normalise_url(given)

    assert words in caught.value.message
    assert caught.value.hint
    assert "sk-1" not in caught.value.message + caught.value.hint


def test_a_url_without_its_scheme_is_completed_in_the_hint():
    """Whoever forgets http:// gets the line to copy."""
    with pytest.raises(UsageError) as caught:
        normalise_url("box:8001")

    assert "http://box:8001" in caught.value.hint


def test_read_fills_in_urls_and_variables(existing):
    """`url` stands in for a missing one, and ${NAME} is filled in for the key only."""
    existing.write_text(
        'remote:\n  url: "http://${HOST}:1"\n  embed_url: http://e:2\n'
        '  api_key: "${A}${B}${A}"\n  models: {embed: 1.10, rerank: ~}\n'
    )
    config = read(existing, {"A": "x", "HOST": "never"})

    assert (True, True, "") == (config.exists, config.present, config.problem)
    assert ("http://e:2", "http://${HOST}:1") == (config.embed_url, config.generation_url)
    assert ("xx", "${A}${B}${A}", ("B",)) == (config.api_key, config.api_key_shown, config.unset)
    assert ModelNames(embed="1.10") == config.models


def test_read_hides_a_literal_key(existing):
    """A key in the file is there for requests, and not for showing."""
    existing.write_text("remote:\n  url: http://a\n  api_key: sk-secret\n")
    config = read(existing, {})

    assert ("sk-secret", "(hidden)") == (config.api_key, config.api_key_shown)
    assert "sk-secret" not in repr(config)


def test_read_follows_an_alias(existing):
    """QMD resolves aliases, so reading does too."""
    existing.write_text("x: &x {url: http://a}\nremote: *x\n")

    assert read(existing, {}).url == "http://a"


@pytest.mark.parametrize(
    ("text", "present", "words"),
    [
        (None, False, "no such file"),
        ("", False, "no `remote:` block"),
        ("remote:\n", False, "no `remote:` block"),
        ("remote: http://a\n", False, "no `remote:` block"),
        ("remote:\n  embed_url: http://a\n", True, "lacks generation_url"),
        ("remote:\n  generation_url: http://a\n", True, "lacks embed_url"),
        ("remote:\n  api_key: x\n", True, "lacks embed_url and generation_url"),
    ],
)
def test_read_says_why_qmd_would_use_local_models(file, text, present, words):
    """No file, no block or only one URL: QMD goes local without a word, so we say it."""
    if text is not None:
        file.parent.mkdir()
        file.write_text(text)
    config = read(file, {})

    assert present == config.present
    assert words in config.problem


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "remote:\n\turl: x\n", "a: 1\n---\nb: 2\n", "a: [\n"])
def test_read_refuses_what_qmd_cannot_parse(existing, text):
    """A file that QMD fails to parse is an error here, with its line."""
    existing.write_text(text)
    with pytest.raises(ConfigError, match=r"index\.yml, line \d"):
        read(existing, {})


def test_a_new_file_is_private_and_its_folders_are_made(file):
    """Without a file the block becomes one, of mode 0600, with no backup."""
    change = plan_write(file, WANTED)
    assert (True, True, None) == (change.created, change.changed, change.backup)
    assert not file.exists()

    apply(change)
    assert WRITTEN == file.read_text()
    assert 0o600 == mode(file)
    assert ["index.yml"] == [path.name for path in file.parent.iterdir()]


def test_a_change_keeps_bytes_mode_and_a_backup(existing):
    """Bytes outside the block, line ends and mode stay; the old file is beside the new one, with its mode."""
    before = existing.read_bytes()
    apply(plan_write(existing, WANTED))

    assert before + WRITTEN.replace("\n", "\r\n").encode() == existing.read_bytes()
    assert before == existing.with_name("index.yml.bak").read_bytes()
    assert [0o640, 0o640] == [mode(existing), mode(existing.with_name("index.yml.bak"))]
    assert {"index.yml", "index.yml.bak"} == {path.name for path in existing.parent.iterdir()}


def test_writing_twice_changes_nothing(existing):
    """The second write leaves file, time stamp and backup as they are."""
    apply(plan_write(existing, WANTED))
    backup, stamp = existing.with_name("index.yml.bak").read_bytes(), existing.stat().st_mtime_ns

    change = plan_write(existing, WANTED)
    assert (False, None, "") == (change.changed, change.backup, change.diff)
    apply(change)
    assert (backup, stamp) == (existing.with_name("index.yml.bak").read_bytes(), existing.stat().st_mtime_ns)


def test_a_literal_key_makes_the_file_private(existing):
    """It can be read by its owner alone, even when its text needs no change, and so can the old one with its key."""
    apply(plan_write(existing, LITERAL))
    assert [0o600, 0o600] == [mode(existing), mode(existing.with_name("index.yml.bak"))]

    existing.chmod(0o644)
    apply(plan_write(existing, LITERAL))
    assert 0o600 == mode(existing)


def test_links_stay_links(tmp_path, file):
    """The file behind a link is replaced, and the link still leads to it."""
    real = tmp_path / "dotfiles" / "qmd.yml"
    real.parent.mkdir()
    real.write_text("a: 1\n")
    file.parent.mkdir()
    file.symlink_to(Path("..") / "dotfiles" / "qmd.yml")
    apply(plan_write(file, WANTED))

    assert file.is_symlink()
    assert "a: 1\n" + WRITTEN == real.read_text()
    assert "a: 1\n" == file.with_name("index.yml.bak").read_text()
    assert [real] == list(real.parent.iterdir())


def test_a_link_to_nothing_gets_its_file(tmp_path, file):
    """A link to a missing file is filled, not replaced."""
    file.parent.mkdir()
    file.symlink_to(tmp_path / "later" / "qmd.yml")
    apply(plan_write(file, WANTED))

    assert file.is_symlink()
    assert WRITTEN == (tmp_path / "later" / "qmd.yml").read_text()


def test_a_file_that_changed_meanwhile_is_planned_anew(existing):
    """What another program wrote between plan and apply survives."""
    change = plan_write(existing, WANTED)
    existing.write_text("b: 2\n")
    written = apply(change)

    assert "b: 2\n" + WRITTEN == existing.read_text() == written.after
    assert "b: 2\n" == existing.with_name("index.yml.bak").read_text()


def test_a_file_that_became_unsafe_meanwhile_is_left_alone(existing):
    """The new plan may be a refusal."""
    change = plan_write(existing, WANTED)
    existing.write_text("remote: {url: x}\n")
    with pytest.raises(ConfigError, match="braces"):
        apply(change)

    assert "remote: {url: x}\n" == existing.read_text()


def test_a_file_that_changes_all_the_time_is_given_up(existing, monkeypatch):
    """Three plans overtaken by another program are enough; nothing is written."""
    texts = iter(f"a: {number}\n" for number in range(100))
    monkeypatch.setattr(qmd_config, "read_text", lambda _: next(texts))
    with pytest.raises(ConfigError, match="changes all the time"):
        apply(plan_write(existing, WANTED))

    assert b"# notes\r\ncollections: {}\r\n" == existing.read_bytes()


def test_the_owner_is_kept_where_that_is_allowed(existing, monkeypatch):
    """Root writing a user's file leaves it the user's; who may not give files away writes it all the same."""
    asked = []

    def refuse(_: int, *owner: int) -> None:
        asked.append(owner)
        raise PermissionError

    monkeypatch.setattr(os, "geteuid", lambda: existing.stat().st_uid + 1)
    monkeypatch.setattr(os, "fchown", refuse)
    apply(plan_write(existing, WANTED))

    assert [(existing.stat().st_uid, existing.stat().st_gid)] * 2 == asked


def test_a_failed_write_leaves_the_old_file_and_no_litter(existing, monkeypatch):
    """When the disk fails in the middle, the old file is whole and no temporary file stays."""
    before = existing.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        apply(plan_write(existing, WANTED))

    assert before == existing.read_bytes()
    assert [existing] == list(existing.parent.iterdir())


def test_what_is_no_readable_file_is_named(tmp_path):
    """A folder, a file where a folder should be, and a file that is not UTF-8 are told apart."""
    (tmp_path / "index.yml").mkdir()
    with pytest.raises(ConfigError, match="is not a file"):
        plan_write(tmp_path / "index.yml", WANTED)

    (tmp_path / "plain").write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        plan_write(tmp_path / "plain" / "index.yml", WANTED)

    (tmp_path / "latin.yml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yml, line 2: this is not UTF-8"):
        plan_write(tmp_path / "latin.yml", WANTED)


def test_a_read_only_file_is_not_replaced(existing, monkeypatch):
    """A file that its owner made read-only stays, though its folder would allow a replacement."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, which may run the tests, can write everything
    with pytest.raises(ConfigError, match="read-only"):
        apply(plan_write(existing, WANTED))

    assert b"# notes\r\ncollections: {}\r\n" == existing.read_bytes()


def test_the_diff_shows_the_block_and_hides_keys(existing):
    """A unified diff in which references are shown, and old and new keys are told apart without being shown."""
    existing.write_text(
        "# was: api_key: sk-comment\n"
        "llm:\n  apiKey: sk-other\n"
        "remote:\n  url: http://old # c\n  api_key: |-\n    sk-old\n  models:\n    embed: a\n"
    )
    diff = plan_write(existing, LITERAL).diff

    assert "-  url: http://old # c\n" in diff
    assert "+  url: http://box:8001 # c\n" in diff
    assert "-  api_key: (hidden)\n" in diff
    assert "+  api_key: (hidden, new)\n" in diff
    assert not any(secret in diff for secret in ("sk-old", "sk-new", "sk-other", "sk-comment"))
    assert '+  api_key: "${QMD_REMOTE_API_KEY}"\n' in plan_write(existing, WANTED).diff


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("authorization: Bearer sk-1", "authorization: (hidden)"),
        ("headers: {x-api-key: sk-1, Accept: a}", "headers: {x-api-key: (hidden), Accept: a}"),
        ("# Authorization: Bearer sk-1", "# Authorization: Bearer (hidden)"),
        ("# 'x-api-key': 'sk-1' b", "# 'x-api-key': '(hidden) b"),
        ('# api_key: "${KEY}" b', '# api_key: "${KEY}" b'),
        ("authorize: sk-1", "authorize: sk-1"),
    ],
)
def test_the_diff_hides_other_secrets(existing, line, shown):
    """What stands around the change is shown, but for what a header carries, in a comment too."""
    existing.write_text(f"{line}\nremote:\n  url: http://old\n")

    assert f"\n {shown}\n" in plan_write(existing, WANTED).diff


def test_the_diff_of_a_new_file_starts_from_nothing(file):
    """A file to be created is shown against /dev/null."""
    diff = plan_write(file, WANTED).diff

    assert diff.startswith(f"--- /dev/null\n+++ {file}\n@@ -0,0 +1,3 @@\n")


def test_an_unchanged_key_is_no_change_in_the_diff(existing):
    """A key that stays is hidden, and not called new."""
    existing.write_text("remote:\n  url: http://old\n  api_key: sk-old\n")
    diff = plan_write(existing, RemoteBlock(url="http://new", api_key=KEEP)).diff

    assert "   api_key: (hidden)\n" in diff
    assert "new)" not in diff
