"""Thousands of odd files: only the `remote:` block changes, and into what was wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import Any

import yaml
from hypothesis import given, note, settings
from hypothesis import strategies as st

from qmd_remote.client.remote_block import KEEP, ModelNames, RemoteBlock
from qmd_remote.client.yaml_cut import cut
from qmd_remote.client.yaml_splice import splice
from qmd_remote.errors import ConfigError

# BaseLoader gives every scalar as its text. libyaml's parser is not the one the splice uses: an independent judge.
JUDGE = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

LINES = [
    "# a note",
    "#",
    "#remote: old",
    "# ünïcödé 文字 😀",
    "# 'quote \" here",
    "  # indented: {[",
    "# tab\there",
    "",
]
COMMENTS = ["", "", *(f"{line}\n" for line in LINES), *(f"{a}\n{b}\n" for a in LINES for b in LINES)]
TRAILERS = ["", "", "", " # why: 'x", "   ", "  #"]
TEXTS = [
    "notes",
    '"12:30"',
    "12:30",
    "2024-01-01",
    "yes",
    "~/notes # a comment",
    "'it''s'",
    '"a \\"b\\" \\u00e9 \\\\ # no"',
    "http://h:1/x#y",
    "日本語 テキスト",
    "*.md".join('""'),
    "0o17",
    "null",
    "~",
    "",
    "!!str 5",
    "[a, 'b: c', {d: e}]",
    '{a: 1, "b": [x, y]}',
    "{}",
    '"folded\n  over lines"',
    "plain\n  over lines",
]
BLOCK_SCALARS = [
    "|\n    one\n    # no comment\n    remote: no",
    "|+\n    kept\n\n",
    "|-\n    stripped\n",
    ">\n    folded\n    text\n\n    more",
    ">-\n    x",
    ">+\n    y\n\n",
    "|2\n      indented\n    less",
]
COLLECTIONS = [
    "collections:\n  notes:\n    path: ~/notes\n    pattern: '**/*.md'\n    ignore:\n    - a\n    - \"b\"\n",
    'collections:\n  \'odd name\':\n    path: "/x y"\n    context:\n      /: root\n      "/sub": |\n        text\n',
    "collections: {n: {path: /x, ignore: [a, b], includeByDefault: false}}\n",
    "collections:\n    deep:\n        update: git pull\n        context: {}\n        includeByDefault: yes # 1.1?\n",
    "collections:\n  a: &a\n    path: x\n  b: *a\n",
    "collections:\n",
    "collections:\n- a\n- b: c\n  d: e\n",
]
MODELS = [
    "models:\n  embed: hf:x/y\n  rerank: 'a'\n",
    "models: {embed: a, generate: b}\n",
    "models:\n",
    "models:\n   embed: 1.10\n",
]
OLD_VALUES = [
    "http://old:1",
    "'http://old:1'",
    '"http://old:1"',
    "",
    "~",
    "12:30",
    "null",
    "|-\n{deep}block",
    ">\n{deep}folded\n{deep}text",
    '"over\n{deep}lines"',
    "plain\n{deep}lines",
    "\n{deep}below",
    "${VAR}",
    "http://box:8001",
]
UNKNOWN = [
    "[1, 2]",
    "{a: b}",
    "12:30",
    "|+\n{deep}kept\n\n",
    "\n{deep}x: y\n{deep}z: no",
    "'q'",
    "",
    "\n{deep}- a\n{deep}- b",
]
WANTED_TEXTS = [
    "http://box:8001",
    "a/b-c_d:e",
    "yes",
    "12:30",
    "1e3",
    "0o7",
    "x y",
    "é文",
    "it's",
    'q"\\',
    "a: b #c",
    "null",
    "/m/x",
]


def orders(*names: str, least: int) -> list[tuple[str, ...]]:
    """Every order of every choice of at least `least` names."""
    return [order for length in range(least, len(names) + 1) for order in permutations(names, length)]


ORDERS = orders("global_context", "editor_uri", "models", "collections", "'x-own'", least=0)
MODEL_ORDERS = orders("embed", "generate", "rerank", "other", least=1)
REMOTE_ORDERS = orders("url", "embed_url", "generation_url", "api_key", "models", "timeout", "x-own", least=1)


@dataclass(frozen=True)
class Case:
    """A file in three parts, `block` being empty where there is no `remote:`, and what is wanted in it."""

    before: str
    block: str
    after: str
    wanted: RemoteBlock

    @property
    def text(self) -> str:
        return self.before + self.block + self.after


def comments(rng: Random) -> str:
    """No, one or two comment lines."""
    return rng.choice(COMMENTS)


def entries(rng: Random) -> list[str]:
    """The file's other top-level keys, each as whole lines with comments above."""
    found = []
    for key in rng.choice(ORDERS):
        if key == "models":
            body = rng.choice(MODELS)
        elif key == "collections":
            body = rng.choice(COLLECTIONS)
        elif key == "global_context":
            body = f"{key}: {rng.choice(BLOCK_SCALARS)}\n"
        else:
            body = f"{key}: {rng.choice(TEXTS)}\n"
        found.append(comments(rng) + body)
    return found


def models_block(rng: Random, outer: str) -> str:
    """A `models:` key inside the block, whose keys are indented by `outer`."""
    inner = outer + " " * rng.choice([1, 2, 4, 8])
    shape = rng.choice(["null", "none", "keys"])
    if shape == "null":
        return f"{outer}models:{rng.choice(TRAILERS)}\n"
    lines = ""
    for key in rng.choice(MODEL_ORDERS):
        lines += f"{inner}{key}: {rng.choice(['a/b', '~', chr(39) + 'q' + chr(39), '1.5', ''])}{rng.choice(TRAILERS)}\n"
    return f"{outer}'models':\n{lines}" if shape == "keys" else f"{outer}models: null\n"


def remote_block(rng: Random) -> str:
    """The `remote:` key and what it holds, as whole lines."""
    key = rng.choice(["remote:", '"remote":', "'remote' :"]) + rng.choice(TRAILERS)
    if rng.randint(0, 5) == 0:
        return rng.choice(
            [f"{key}\n", "remote: ~\n", "remote: null # x\n", "remote:\n  ~\n", "remote: # x\n  # y: z\n"]
        )
    outer = " " * rng.randint(1, 8)
    lines = ""
    for name in rng.choice(REMOTE_ORDERS):
        if rng.randint(0, 3) == 0:
            lines += f"{outer}{rng.choice(['# inside', '#', '# url: http://x'])}\n"
        if name == "models":
            lines += models_block(rng, outer)
            continue
        value = rng.choice(UNKNOWN if name in {"timeout", "x-own"} else OLD_VALUES).replace("{deep}", outer + "  ")
        value = f" {value}" if value and not value.startswith("\n") else value
        tail = "" if "\n" in value or value.startswith(" |") else rng.choice(TRAILERS)
        lines += f"{outer}{rng.choice(['{}', chr(34) + '{}' + chr(34)]).format(name)}:{value}{tail}\n"
    return f"{key}\n{lines}"


def wanted_block(rng: Random) -> RemoteBlock:
    """What the block shall hold."""
    names = ModelNames(*(rng.choice([None, *WANTED_TEXTS]) for _ in range(3)))
    api_key = rng.choice([KEEP, None, "${VAR}", *WANTED_TEXTS])
    if rng.random() < 0.5:
        return RemoteBlock(url=rng.choice(WANTED_TEXTS), api_key=api_key, models=names)
    embed_url, generation_url = rng.choice(WANTED_TEXTS), rng.choice(WANTED_TEXTS)
    return RemoteBlock(embed_url=embed_url, generation_url=generation_url, api_key=api_key, models=names)


def indented(text: str, by: int) -> str:
    """Every line that is not blank moved to the right."""
    return "".join(f"{' ' * by}{line}" if line.strip() else line for line in text.splitlines(keepends=True))


def odd_file(rng: Random) -> Case:
    """A whole file, around and with its block."""
    others = entries(rng)
    where = rng.randint(0, len(others))
    block = remote_block(rng) if rng.randint(0, 3) else ""
    by = rng.choice([0, 0, 0, 2, 3])
    lead = comments(rng) if block else ""
    before, block = indented("".join(others[:where]) + lead, by), indented(block, by)
    after = indented(comments(rng) + "".join(others[where:]) + comments(rng), by)
    before = rng.choice(["", "", "", "---\n", "# top\n---\n", "--- # top\n", "%YAML 1.2\n---\n"]) + before
    if rng.randint(0, 9) == 0 and (others or block):
        after += rng.choice(["...\n", "...\n# end", "..."])
    elif rng.randint(0, 4) == 0 and after:
        after = after.removesuffix("\n")
    if rng.randint(0, 9) == 0 and by == 0:
        before = "\ufeff" + before
    if rng.randint(0, 4) == 0:
        before, block, after = (part.replace("\n", "\r\n") for part in (before, block, after))
    return Case(before, block, after, wanted_block(rng))


def load(text: str) -> dict[str, Any]:
    """Every value as its text, aliases resolved."""
    return yaml.load(text.removeprefix("\ufeff"), Loader=JUDGE) or {}


def expected_remote(old: Any, wanted: RemoteBlock) -> dict[str, Any]:
    """What the block must hold, told again without the code under test."""
    new = dict(old) if isinstance(old, dict) else {}
    for key in ("url", "embed_url", "generation_url"):
        new.pop(key, None)
        if getattr(wanted, key):
            new[key] = getattr(wanted, key)
    if wanted.api_key is None:
        new.pop("api_key", None)
    elif wanted.api_key is not KEEP:
        new["api_key"] = wanted.api_key
    names = {key: value for key, value in vars(wanted.models).items() if value}
    if names:
        models = new.get("models")
        new["models"] = {**(models if isinstance(models, dict) else {}), **names}
    return new


def assert_outside_unchanged(case: Case, after: str) -> None:
    """The bytes before and after the block are those of the file."""
    if case.block:
        assert after.startswith(case.before)
        assert after.endswith(case.after)
        return
    newline = "\r\n" if "\r\n" in case.text else "\n"
    bom = "\ufeff" if case.text.startswith("\ufeff") else ""
    lines = after.removeprefix(bom).splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.strip() == "remote:")
    column = len(lines[first]) - len(lines[first].lstrip())
    last = first + 1
    while last < len(lines) and lines[last].strip() and len(lines[last]) - len(lines[last].lstrip()) > column:
        last += 1
    rest = bom + "".join(lines[:first] + lines[last:])
    assert rest in {case.text, case.text + newline}


@settings(max_examples=2200, deadline=None)
@given(st.randoms(use_true_random=True))
def test_only_the_block_changes_and_into_what_was_wanted(rng: Random) -> None:
    """Bytes outside the block stay, both YAML parsers agree on the result, and a second splice changes nothing."""
    case = odd_file(rng)
    note(case)

    try:
        after = splice(case.text, case.wanted)
    except ConfigError as error:
        # A key that ends a `|+` text above it cannot go: the blank lines below would become part of that text.
        assert "|+" in case.block
        assert "cannot be edited safely" in error.message
        return

    assert_outside_unchanged(case, after)
    old, new = load(case.text), load(after)
    assert expected_remote(old.pop("remote", None), case.wanted) == new.pop("remote")
    assert old == new
    assert after == splice(after, case.wanted)


@settings(max_examples=800, deadline=None)
@given(st.randoms(use_true_random=True))
def test_write_then_remove_gives_back_the_file(rng: Random) -> None:
    """In a file that had no block not one byte is left of it; only a line end that the write had to add stays."""
    case = odd_file(rng)
    while case.block:
        case = odd_file(rng)
    note(case)
    newline = "\r\n" if "\r\n" in case.text else "\n"

    after = cut(splice(case.text, case.wanted))

    assert after in {case.text, case.text + newline}


@settings(max_examples=1200, deadline=None)
@given(st.randoms(use_true_random=True))
def test_only_the_block_goes(rng: Random) -> None:
    """Every line before the block stays, and below it all but comments of the block; every other value is as it was."""
    case = odd_file(rng)
    note(case)

    try:
        after = cut(case.text)
    except ConfigError as error:
        # A text that keeps its last blank lines would take in what followed, and `...` needs something to end.
        assert "|+" in case.before or ">+" in case.before or "..." in case.after
        assert "cannot be taken out safely" in error.message
        return

    old = load(case.text)
    old.pop("remote", None)
    assert (old, after) == (load(after), cut(after))
    assert after.startswith(case.before)
    below = after.removeprefix(case.before)
    assert case.text.endswith(below)
    gone = case.text[len(case.before) : len(case.text) - len(below)]
    assert not re.search(r"^ *[^# \r\n]", gone[len(case.block) :], re.MULTILINE)
