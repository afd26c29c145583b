"""The splice, case by case: what it writes, what it keeps, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from qmd_remote.client.remote_block import KEEP, ModelNames, RemoteBlock
from qmd_remote.client.yaml_document import parse
from qmd_remote.client.yaml_splice import _is_as_wanted, splice
from qmd_remote.errors import ConfigError, UsageError

ONE_URL = RemoteBlock(url="http://box:8001")
FULL = RemoteBlock(
    embed_url="http://box:8001",
    generation_url="http://box:8000",
    api_key="${QMD_REMOTE_API_KEY}",
    models=ModelNames(embed="nomic-ai/e", generate="Qwen/q", rerank="BAAI/r"),
)
FULL_TEXT = """\
remote:
  embed_url: http://box:8001
  generation_url: http://box:8000
  api_key: "${QMD_REMOTE_API_KEY}"
  models:
    embed: nomic-ai/e
    generate: Qwen/q
    rerank: BAAI/r
"""
LINE = "remote:\n  url: http://box:8001\n"


@pytest.mark.parametrize("before", ["", "# only a comment\n", "---\n", "a: b\n", "models:\n", "a: |+\n  x\n\n\n"])
def test_a_missing_block_comes_at_the_end(before: str) -> None:
    """A file without the block gets it appended, and nothing else."""
    assert before + FULL_TEXT == splice(before, FULL)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: b", f"a: b\n{LINE}"),
        ("# c", f"# c\n{LINE}"),
        ("--- # c", f"--- # c\n{LINE}"),
        ("a: b\n...\n# end", f"a: b\n{LINE}...\n# end"),
        ("a: |-\n  x", f"a: |-\n  x\n{LINE}"),
        ("z: 1\na: |\n  x", f"z: 1\n{LINE}a: |\n  x"),
        ("a: |\n  x", f"{LINE}a: |\n  x"),
        ("  a: b\n", "  a: b\n  remote:\n    url: http://box:8001\n"),
        ("\ufeffa: b\r\n", "\ufeffa: b\r\nremote:\r\n  url: http://box:8001\r\n"),
    ],
)
def test_appending_copes_with_every_end_of_file(before: str, after: str) -> None:
    """The block goes where no other value changes, with the file's own line ends and indentation."""
    assert after == splice(before, ONE_URL)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("remote:", LINE),
        ("remote: ~ # c\nb: 1\n", "remote: # c\n  url: http://box:8001\nb: 1\n"),
        ("a: 1\n'remote': null\n", "a: 1\n'remote':\n  url: http://box:8001\n"),
        ("remote: # c\n  # url: x\nb: 1\n", "remote: # c\n  url: http://box:8001\n  # url: x\nb: 1\n"),
    ],
)
def test_an_empty_block_is_filled(before: str, after: str) -> None:
    """A `remote:` that holds nothing gets its keys, and its comments stay."""
    assert after == splice(before, ONE_URL)


def test_quotes_comments_unknown_keys_and_indentation_survive_in_the_block() -> None:
    """Only the values that differ are replaced, in the quotes they had."""
    before = (
        "# top\n"
        "remote:   # the box\n"
        "      # one box\n"
        "      embed_url: 'http://old:1'  # why\n"
        "      generation_url: http://box:8000\n"
        "      timeout: 12:30 # mine\n"
        "\n"
        "      models:\n"
        '         embed: "old" # e\n'
        "         other: [a, b]\n"
        "# next\n"
        "collections: {}\n"
    )
    after = (
        "# top\n"
        "remote:   # the box\n"
        "      # one box\n"
        "      embed_url: 'http://box:8001'  # why\n"
        "      generation_url: http://box:8000\n"
        '      api_key: "${QMD_REMOTE_API_KEY}"\n'
        "      timeout: 12:30 # mine\n"
        "\n"
        "      models:\n"
        '         embed: "nomic-ai/e" # e\n'
        "         generate: Qwen/q\n"
        "         rerank: BAAI/r\n"
        "         other: [a, b]\n"
        "# next\n"
        "collections: {}\n"
    )

    assert after == splice(before, FULL)
    assert after == splice(after, FULL)


def test_two_urls_take_the_place_of_one_and_back() -> None:
    """`url` goes when both others are written, and they go when `url` is."""
    assert splice("remote:\n  url: http://old # c\n", FULL) == FULL_TEXT
    kept = FULL_TEXT.replace(
        "  embed_url: http://box:8001\n  generation_url: http://box:8000\n", "  url: http://box:8001\n"
    )

    assert kept == splice(FULL_TEXT, ONE_URL)


def test_the_key_is_kept_removed_or_replaced_as_told() -> None:
    """KEEP leaves the key, None removes its line, a text replaces it in double quotes."""
    before = f"{LINE}  api_key: old # c\nb: 1\n"

    assert before == splice(before, RemoteBlock(url="http://box:8001", api_key=KEEP))
    assert f"{LINE}b: 1\n" == splice(before, RemoteBlock(url="http://box:8001", api_key=None))
    assert f'{LINE}  api_key: "n\\"ew" # c\nb: 1\n' == splice(
        before, RemoteBlock(url="http://box:8001", api_key='n"ew')
    )


@pytest.mark.parametrize("odd", ["x\ty", "x \t y z", "x\u2028y", "x\u2029y", "x\x85y", '"x\ty"', "'x\u2028y'"])
def test_what_qmd_writes_into_values_is_no_obstacle(odd: str):
    """Tabs between words, and line ends of older YAML: QMD writes them as they are, and reads them back."""
    text = f"a:\n  b: {odd}\n  c: 2 # {odd}\n"
    assert splice(text, RemoteBlock(url="http://b:1")) == f"{text}remote:\n  url: http://b:1\n"
    root = parse(text).root
    assert root and root.pairs[0][1].pairs[0][1].value == odd.strip("\"'")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("|-\n    http://old\n", "http://box:8001\n"),
        (">\n    http://\n    old\n", "http://box:8001\n"),
        ('"http:\n    old" # c\n', "http://box:8001 # c\n".replace("http://box:8001", '"http://box:8001"')),
        ("# c\n", "http://box:8001 # c\n"),
        ("~\n", "http://box:8001\n"),
        ("'http://box:8001'\n", "'http://box:8001'\n"),
    ],
)
def test_old_values_of_every_style_are_replaced(old: str, new: str) -> None:
    """A value over several lines, an empty one and a null become the one text that is wanted."""
    assert f"remote:\n  url: {new}  x: |\n    y\nb: 1\n" == splice(
        f"remote:\n  url: {old}  x: |\n    y\nb: 1\n", ONE_URL
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("nomic-ai/nomic-embed-text-v1.5", "nomic-ai/nomic-embed-text-v1.5"),
        ("hf:ggml-org/x:Q8_0", "hf:ggml-org/x:Q8_0"),
        ("/models/e5", "/models/e5"),
        ("yes", '"yes"'),
        ("Null", '"Null"'),
        ("12:30", '"12:30"'),
        ("1e3", '"1e3"'),
        ("0x1f", '"0x1f"'),
        ("a: b", '"a: b"'),
        ("a #b", '"a #b"'),
        ("x:", '"x:"'),
        ('q"\\', '"q\\"\\\\"'),
        ("modèle 文", '"modèle 文"'),
    ],
)
def test_a_name_is_quoted_where_yaml_could_read_it_as_something_else(name: str, written: str) -> None:
    """A name is plain only where YAML 1.1 and 1.2 both read that text."""
    wanted = RemoteBlock(url="http://box:8001", models=ModelNames(embed=name))

    assert f"{LINE}  models:\n    embed: {written}\n" == splice("", wanted)


def test_a_plain_number_becomes_the_text_that_is_wanted() -> None:
    """QMD would read a plain 1e3 as a number, so the same text is written in quotes."""
    wanted = RemoteBlock(url="http://box:8001", models=ModelNames(embed="1e3"))

    assert f'{LINE}  models:\n    embed: "1e3"\n' == splice(f"{LINE}  models:\n    embed: 1e3\n", wanted)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nremote: {url: x}\n", 2, "braces"),
        ("remote:\n  models: {embed: x}\n", 2, "braces"),
        ("\n{a: b}\n", 2, "braces"),
        ("remote:\n  url: &a x\n", 2, "anchor"),
        ("remote: &a\n  url: x\n", 1, "anchor"),
        ("a: &x {url: y}\nremote: *x\n", 2, "alias"),
        ("a: &x y\nremote:\n  own: [*x]\n", 3, "alias"),
        ("a: &x {url: y}\nremote:\n  <<: *x\n", 3, "merge key"),
        ("remote:\n  own:\n    <<: {a: b}\n", 3, "merge key"),
        ("remote:\n  url: !!str x\n", 2, "tag"),
        ("!!str remote:\n  url: x\n", 1, "tag"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: 1\n---\n", 2, "second document"),
        ("a: 1\nb: 2\n'a': 3\n", 3, "second time (first on line 1)"),
        ("c:\n  - x: 1\n    x: 2\n", 3, "second time"),
        ("c: {x: 1, x: 2}\n", 1, "second time"),
        ("c:\n\tx: 1\n", 2, "tab"),
        ("c:\n  x: 1\n \ty: 1\n", 3, "tab"),
        ("c:\tx\n", 1, "tab"),
        ("a: 1\nb: [c\n", 3, "not valid YAML"),
        ("a: b: c\n", 1, "not valid YAML"),
        ("a: *b\n", 1, "no anchor"),
        ("a: 1\n? b\n: c\n", 2, "`? key`"),
        ("\ufeffa: 1\nb: \ufeffy\n", 2, "U+FEFF"),
        ("a: 1\nb: x\x07\n", 2, "U+0007"),
        ("a: 1\nb: 2\rc: 3\n", 2, "carriage return"),
        ("- a\n", 1, "no mapping"),
        ("just text\n", 1, "no mapping"),
        ("remote: http://x\n", 1, "a single value"),
        ("remote:\n- a\n", 2, "a list"),
        ("remote:\n  models: x\n", 2, "a single value"),
        ("remote:\n  url: [x]\n", 2, "a list"),
        ("remote:\n  api_key:\n    a: b\n", 3, "keys"),
        ("\ufeff  a: 1\n", 1, "byte order mark"),
        ("a:" + " [" * 60 + "]" * 60, 1, "deeper than 50"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    """A refusal names the file, the line, the reason and what to do."""
    wanted = RemoteBlock(url="http://box:8001", api_key="k", models=ModelNames(embed="x"))
    with pytest.raises(ConfigError) as caught:
        splice(text, wanted, name="notes.yml")

    assert caught.value.message.startswith(f"notes.yml, line {line}: ")
    assert words in caught.value.message
    assert caught.value.hint or "not allowed" in caught.value.message


def test_an_edit_that_would_change_another_value_is_refused() -> None:
    """Where removing a line would lengthen the text above it, nothing is written."""
    with pytest.raises(ConfigError, match="cannot be edited safely"):
        splice("remote:\n  url: x\n  own: |+\n    kept\n\n  embed_url: y\n\n# end\n", ONE_URL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("remote:\n  url: http://box:8001\n", "remote:\n  url: http://box:8001"),
        ("url:", "\turl:"),
        ("a: 12:30", "a: '12:30'"),
        ("a: 12:30", "a: 750"),
        ("a: 12:30\n", ""),
        ("b: &x y", "b: y"),
        ("c: *x", "c: *remote"),
        ("own: [1]", "own: [2]"),
        ("own: [1]\n", ""),
        ("url: http://box:8001", "url: http://other"),
        ("url: http://box:8001", "embed_url: http://box:8001"),
        ("embed: e", "embed: 1e3"),
        ("models:", "odd:"),
        ("---\n", ""),
        ("c: *x\n", "c: *x\n...\n"),
        ("---\na: 12:30", "\ufeff---\na: 12:30"),
        (None, ""),
        (None, "- a\n"),
    ],
)
def test_the_net_below_the_splice_catches_every_other_change(old: str | None, new: str) -> None:
    """A result that is not exactly what was wanted is told from one that is."""
    before = "---\na: 12:30\nb: &x y\nz: &remote q\nremote:\n  own: [1]\nc: *x\n"
    wanted = RemoteBlock(url="http://box:8001", models=ModelNames(embed="e"))
    good = splice(before, wanted)
    bad = new if old is None else good.replace(old, new, 1)
    same = bad.removesuffix("\n") == good.removesuffix("\n")

    assert _is_as_wanted(parse(before), good, "remote", wanted.tree())
    assert same == _is_as_wanted(parse(before), bad, "remote", wanted.tree())


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"embed_url": "http://a"},
        {"generation_url": "http://a"},
        {"url": "http://a", "embed_url": "http://b", "generation_url": "http://c"},
        {"url": ""},
        {"url": "http://a", "api_key": "a\nb"},
        {"url": "http://a", "models": ModelNames(embed="\ud83d")},
    ],
)
def test_a_block_that_qmd_would_ignore_or_misread_cannot_be_asked_for(given: dict[str, Any]) -> None:
    """One URL for all or two, and values of one printable line: anything else is a usage error."""
    with pytest.raises(UsageError):
        RemoteBlock(**given)


def test_a_literal_key_is_told_from_a_reference() -> None:
    """Only a key that holds nothing but references to variables is no secret."""
    assert not RemoteBlock(url="http://a", api_key="${QMD_REMOTE_API_KEY}").has_literal_key
    assert RemoteBlock(url="http://a", api_key="${A}x").has_literal_key
    assert RemoteBlock(url="http://a", api_key="sk-1").has_literal_key
    assert not RemoteBlock(url="http://a").has_literal_key
