"""Editing one object of a JSON file: what changes, what stays, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd_remote.client import json_splice
from qmd_remote.client.json_splice import masked, read, splice
from qmd_remote.client.remote_block import Tree
from qmd_remote.client.yaml_document import Refused
from qmd_remote.errors import ConfigError

NEW: Tree = {"embedUrl": "http://box:8001", "generateModel": 'm"\\é'}
GONE: Tree = dict.fromkeys(NEW)
BOM = "\ufeff"


# examples


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '{\n  "r": {\n    "a": "x"\n  }\n}\n'),
        (" \n", '{\n  "r": {\n    "a": "x"\n  }\n}\n'),
        (BOM, BOM + '{\n  "r": {\n    "a": "x"\n  }\n}\n'),
        ("{}", '{\n  "r": {\n    "a": "x"\n  }\n}'),
        ('{"k": 1}', '{"k": 1, "r": {\n    "a": "x"\n  }}'),
        ('{\n\t"k": [1,\t2]\n}\n', '{\n\t"k": [1,\t2],\n\t"r": {\n\t\t"a": "x"\n\t}\n}\n'),
        ('{\r\n    "k": 1\r\n}', '{\r\n    "k": 1,\r\n    "r": {\r\n        "a": "x"\r\n    }\r\n}'),
        ('{"r":{}}', '{"r":{\n    "a": "x"\n}}'),
        ('{\n  "r": {}\n}\n', '{\n  "r": {\n    "a": "x"\n  }\n}\n'),
        ('{"r": {"b": 1.50}}', '{"r": {"b": 1.50, "a": "x"}}'),
        ('{"r": {"b": 1 , "c": 2}}', '{"r": {"b": 1 , "c": 2,  "a": "x"}}'),
        ('{"r": {\n  "b": 1\n  , "c": 2\n}}', '{"r": {\n  "b": 1\n  , "c": 2,\n   "a": "x"\n}}'),
        ('{"r": {"a": "old", "b": null}, "z": "\\u00e9"}', '{"r": {"a": "x", "b": null}, "z": "\\u00e9"}'),
        ('{"r": {"a" :\n {"deep": [1]} }}', '{"r": {"a" :\n "x" }}'),
        ('{"r": {"\\u0061": 1}}', '{"r": {"\\u0061": "x"}}'),
        ('{"r": {"a": "\\u0078"}}', '{"r": {"a": "\\u0078"}}'),
        ('{"s": "\\"r\\": {", "r": {"a": "x"}}', '{"s": "\\"r\\": {", "r": {"a": "x"}}'),
    ],
)
def test_only_the_key_that_is_wanted_changes(before: str, after: str):
    """Indentation, line ends, byte order mark, odd spaces and other values stay; a second time changes nothing."""
    assert after == splice(before, "r", {"a": "x"})
    assert after == splice(after, "r", {"a": "x"})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"r": {"a": "x", "b": null}}', '{"r": {"b": null}}'),
        ('{"r": {"b": 1, "a": "x"}}', '{"r": {"b": 1}}'),
        ('{\n  "k": 1,\n  "r": {\n    "a": "x"\n  }\n}\n', '{\n  "k": 1\n}\n'),
        ('{\n  "r": { "a": {"deep": 1} },\n  "k": 1\n}\n', '{\n  "k": 1\n}\n'),
        ('{"r": {"a": 1}}\n', "{}\n"),
        ('{"k": 1}', '{"k": 1}'),
        ("", ""),
    ],
)
def test_none_takes_a_key_out_and_the_object_with_its_last_one(before: str, after: str):
    """What else the object holds, a null too, keeps it there."""
    assert after == splice(before, "r", {"a": None})


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"a": 1', 1, "not JSON"),
        ('{\n  "a": 1\n  "b": 2\n}', 3, "not JSON"),
        ('{\n  // note\n  "a": 1\n}', 2, "not JSON"),
        ('{\n  "a": 1,\n}', 3, "not JSON"),
        ('{\n  "NaN": "a \\" NaN",\n  "a": NaN\n}', 3, "NaN"),
        ('{"a": [\n-Infinity]}', 2, "Infinity"),
        ('{"a": "x\ny"}', 1, "not JSON"),
        ("[1]", 1, "no object"),
        ('"text"', 1, "no object"),
        ('{"r": {}}{}', 1, "not JSON"),
        ('{\n  "a": 1,\n  "a": 2\n}', 3, "second time"),
        ('{"r": {\n  "b": 1,\n  "\\u0062": 2}}', 3, "second time"),
        ('{\n  "r": [1]}', 2, "no object"),
        ('{\n  "r": null}', 2, "no object"),
        ("\ufeff\ufeff{}", 1, "not JSON"),
        (f'{{"a": {"[" * 100_000}', 1, "too deep"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_its_line(text: str, line: int, words: str):
    """QMD's JSON.parse could not read most of these; no edit must guess."""
    with pytest.raises(Refused, match=words) as caught:
        splice(text, "r", {"a": "x"}, name="config.json")
    assert line == caught.value.line
    assert f"config.json, line {line}: " in caught.value.message
    assert caught.value.hint


def test_numbers_of_any_length_are_none_of_our_business():
    """JSON has no limit of digits, and the digits stay."""
    text = f'{{"n": {"1" * 5000}, "e": 1e999}}'
    assert splice(text, "r", {"a": "x"}).startswith(text[:-1])


def test_an_edit_that_would_go_wrong_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The net below: whatever comes out is compared with what was wanted, broken JSON too."""
    for bad in ("{", '{"k": 2, "r": {"a": "x"}}', '{"k": 1, "r": {}}', '{"k": 1}'):
        monkeypatch.setattr(json_splice, "_with_block", lambda *_, bad=bad: bad)
        with pytest.raises(ConfigError, match="edited safely"):
            splice('{"k": 1}', "r", {"a": "x"})


@pytest.mark.parametrize(("text", "found"), [("", {}), (f"{BOM} \n", {}), (f'{BOM}{{"a": "é"}}', {"a": "é"})])
def test_read(text: str, found: dict[str, Any]):
    """An empty file is an empty object."""
    assert found == read(text)


# secrets


@pytest.mark.parametrize(
    "text",
    [
        '{"apiKey": "hunter2"}',
        '{"API_KEY" :\n "hunter2"}',
        '{"openai_api_key": "a\\"hunter2"}',
        '{"clientSecretValue":"hunter2"}',
        '{"password": "x hunter2 y", "a": 1}',
        '{"token": "hunter2"}',
        '{"url": "http://me:hunter2@box/v1"}',
        '{"url": "http://hunter2@box"}',
        '{"url": "http:\\/\\/me:hunter2@box"}',
        '{"url": "http://me:p@ss/hunter2@box"}',
        '{"a":1,"apiKey":"hunter2","b":"c"}',
        '{"authorization": "Bearer hunter2"}',
        '{"Proxy-Authorization":"Basic hunter2"}',
        '{"x-api-key": "hunter2"}',
    ],
)
def test_secrets_are_masked(text: str):
    """Values of keys that sound like secrets, and what stands before the @ of a URL; the text stays JSON."""
    hidden = masked(text, "***")
    assert "hunter2" not in hidden
    assert "***" in hidden
    assert json.loads(hidden).keys() == json.loads(text).keys()


def test_all_else_is_shown():
    """A diff with nothing left in it would tell nothing."""
    text = '{"tokens": 5, "embedUrl": "http://box:8001/a", "mail": "me@box", "note": "apiKey"}'
    assert text == masked(text, "***")


# any object


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=6)
INNER = st.dictionaries(st.sampled_from([*NEW, "b", "é", ""]), VALUES, max_size=5)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A JSON object, with the block `r` or without, written with any spaces."""
    value = draw(st.dictionaries(st.text(max_size=4).filter(lambda key: key != "r"), VALUES, max_size=4))
    if draw(st.booleans()):
        items = list(value.items())
        items.insert(draw(st.integers(0, len(items))), ("r", draw(INNER)))
        value = dict(items)
    if draw(st.booleans()):
        indent = draw(st.sampled_from([None, 0, 1, 2, 4, "\t"]))
        text = json.dumps(value, indent=indent, ensure_ascii=draw(st.booleans()))
    else:
        text = _odd(value, draw(st.lists(st.text(" \t\r\n", max_size=3), min_size=1, max_size=7)))
    text = text.replace("\n", "\r\n") if draw(st.booleans()) else text
    return draw(st.sampled_from(["", BOM])) + text + draw(st.sampled_from(["", "\n"]))


def _odd(value: Any, gaps: list[str]) -> str:
    """A value with these gaps between its tokens, one after the other."""
    count = 0

    def gap() -> str:
        nonlocal count
        count += 1
        return gaps[count % len(gaps)]

    def write(one: Any) -> str:
        if isinstance(one, dict):
            inner = ",".join(
                f"{gap()}{json.dumps(key)}{gap()}:{gap()}{write(below)}{gap()}" for key, below in one.items()
            )
            return f"{{{inner or gap()}}}"
        if isinstance(one, list):
            return f"[{','.join(gap() + write(below) + gap() for below in one) or gap()}]"
        return json.dumps(one, ensure_ascii=False)

    return write(value)


def loaded(text: str) -> dict[str, Any]:
    """What a text holds, by the judge's own reading."""
    return dict(json.loads(text.removeprefix(BOM)))


@settings(max_examples=150)
@given(texts())
def test_any_object_gets_what_is_wanted_and_nothing_else(text: str):
    """The block has the new texts and its other keys, all others are the same, in the same order; twice is once."""
    before = loaded(text)
    after = splice(text, "r", NEW)
    now = loaded(after)
    assert {**before, "r": {**before.get("r", {}), **NEW}} == now
    assert [key for key in before if key != "r"] == [key for key in now if key != "r"]
    assert text.startswith(BOM) == after.startswith(BOM)
    assert after == splice(after, "r", NEW)


@settings(max_examples=150)
@given(texts())
def test_what_was_written_goes_again(text: str):
    """Without the keys the file holds what it held before, less an object that is empty now."""
    before = loaded(text)
    rest = {key: value for key, value in before.get("r", {}).items() if key not in NEW}
    wanted = {key: value for key, value in before.items() if key != "r"} | ({"r": rest} if rest else {})
    assert wanted == loaded(splice(splice(text, "r", NEW), "r", GONE))


@settings(max_examples=150)
@given(texts())
def test_a_file_without_the_block_only_gains_bytes(text: str):
    """All bytes stay, in one piece before and one after the new ones; only the gap in an empty object goes."""
    if loaded(text) and "r" not in loaded(text):
        after = splice(text, "r", NEW)
        start = next((i for i, (old, new) in enumerate(zip(text, after, strict=False)) if old != new), len(text))
        assert after.endswith(text[start:])


@settings(max_examples=200)
@given(st.text('{}[]":,\\ \nraé1', max_size=20))
def test_any_text_is_edited_or_refused(text: str):
    """Nothing else can come out, and what comes out is as wanted."""
    try:
        after = splice(text, "r", NEW)
    except Refused as refused:
        assert 1 <= refused.line <= text.count("\n") + 1
    else:
        assert NEW.items() <= loaded(after)["r"].items()
