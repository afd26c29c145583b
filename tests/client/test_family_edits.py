"""The edits of each family's file, and the lines for a shell: exactly what is wanted, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.client import families
from qmd_remote.client.families import FAMILIES, Family
from qmd_remote.client.family_edits import Endpoints, removed, trees, written
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.errors import ConfigError, UsageError

# BaseLoader gives every scalar as its text. libyaml's parser is not the one the edits use: an independent judge.
JUDGE = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
E, G = "http://box:8001", "http://box:8000"
MODELS = ModelNames(embed="a/embed", rerank="a/rerank", generate="a/generate")
TWO = Endpoints(embed_url=E, generation_url=G, models=MODELS, key="sk-1")
ONE = Endpoints(embed_url=E, generation_url=E, models=MODELS, key="sk-1")
WITH_FILE = [family for family in FAMILIES if family.file]
EACH = pytest.mark.parametrize("family", WITH_FILE, ids=[family.name for family in WITH_FILE])
LOCAL = "hf:ggml-org/embeddinggemma-300M-GGUF/embeddinggemma-300M-Q8_0.gguf"

WANTED: dict[str, dict[str, Any]] = {
    "chronologos": {"remote": {"url": E, "api_key": "sk-1"}},
    "api-urls": {
        "models": {
            "embed_api_url": f"{E}/v1",
            "rerank_api_url": f"{E}/v1",
            "expand_api_url": f"{G}/v1",
            "embed_api_model": "a/embed",
            "rerank_api_model": "a/rerank",
            "expand_api_model": "a/generate",
            "embed_api_key": "sk-1",
            "rerank_api_key": "sk-1",
            "expand_api_key": "sk-1",
        }
    },
    "llm-provider": {
        "llm": {"provider": "openai-compatible", "baseUrl": f"{E}/v1", "apiKey": "sk-1"},
        "models": {"embed": "a/embed", "generate": "a/generate", "rerank": "a/rerank"},
    },
    "olyashok": {"remote": {"embedUrl": E, "rerankUrl": E, "generateUrl": G, "generateModel": "a/generate"}},
    "model-urls": {"models": {"embed": f"{E}/v1#a/embed"}},
    "wei840222": {
        "models": {
            "embed": {"provider": "openai", "endpoint": f"{E}/v1", "model": "a/embed"},
            "rerank": {"provider": "openai", "endpoint": f"{E}/v1", "model": "a/rerank"},
        }
    },
}
YAML_FILES = {
    "comments": "# mine\ncollections:\n  notes: {path: ~/notes} # here\n\n# the end\n",
    "models": f"models: # local\n  # a note\n  other: '{LOCAL}'   # kept\neditor_uri: 12:30\n",
    "crlf": "a: yes\r\nmodels:\r\n    other: x\r\nb: 1.50\r\n",
    "mark": "\ufeffa: |\n  text\n  # text too\n",
    "remote": "llm2: x\nremote:\n  models: {embed: m}\n",
    "end": "---\na: [x, y]\n...\n",
    "block": "llm:\n  timeout: 5\nmodels:\n  other: x\n",
}
JSON_FILES = {
    "others": '{\n\t"a": 1.50,\n\t"remote": {"timeout": null},\n\t"b": "\\u00e9"\n}\n',
    "crlf": '{\r\n    "a": [1, 2]\r\n}\r\n',
    "mark": '\ufeff{"a": "é"}',
}


def endpoints(family: Family) -> Endpoints:
    """Two servers, where the family has places for two."""
    return ONE if family.one_url else TWO


def write(text: str | None, family: Family) -> str:
    """The text as it is with everything that is known."""
    return written(text, family, trees(family, endpoints(family)), name=f"file.{family.file}")


def remove(text: str | None, family: Family) -> str | None:
    """The text without the family's keys."""
    return removed(text, family, name=f"file.{family.file}")


def load(text: str, family: Family) -> Any:
    """What a text holds, read by others than those that write it."""
    bare = text.removeprefix("\ufeff")
    return json.loads(bare) if family.file == "json" else (yaml.load(bare, JUDGE) or {})


def merged(one: Any, other: Any) -> Any:
    """Two trees in one."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return {key: merged(one.get(key), other[key]) if key in other else one[key] for key in {**one, **other}}


def files(family: Family) -> dict[str, str]:
    """Files of the family's kind."""
    return JSON_FILES if family.file == "json" else YAML_FILES


CASES = [
    pytest.param(family, text, id=f"{family.name}-{name}")
    for family in WITH_FILE
    for name, text in files(family).items()
]


# writing


@EACH
@pytest.mark.parametrize("text", [None, ""])
def test_a_new_file_has_the_keys_that_are_wanted(family: Family, text: str | None):
    """Each place of the family with its URL, model or key, and nothing more."""
    assert WANTED[family.name] == load(write(text, family), family)


@pytest.mark.parametrize(("family", "text"), CASES)
def test_a_file_keeps_all_else(family: Family, text: str):
    """Other keys have their values, and every byte of the old text stands in the new one, in its order."""
    after = write(text, family)
    assert merged(load(text, family), WANTED[family.name]) == load(after, family)
    rest = iter(after)
    assert all(byte in rest for byte in text)
    lines = iter(after.splitlines(keepends=True))
    assert family.file == "json" or all(line in lines for line in text.splitlines(keepends=True))
    assert ("\r\n" in text) == ("\r\n" in after)
    assert after.count("\n") == after.count("\r\n") or "\r\n" not in after


@pytest.mark.parametrize(("family", "text"), CASES)
def test_a_second_time_changes_nothing(family: Family, text: str):
    """What is as it should be is left alone."""
    after = write(text, family)
    assert after == write(after, family)


@EACH
def test_what_is_not_known_is_left_out(family: Family):
    """Without names and a key, no place for one is written; a URL that needs a name is refused, with a way on."""
    bare = Endpoints(embed_url=E, generation_url=E)
    if family.name == "model-urls":
        with pytest.raises(ConfigError, match=r"models\.embed") as caught:
            trees(family, bare)
        assert "client.no_model" == caught.value.code
        assert caught.value.hint
        return
    tree = json.dumps(trees(family, bare))
    assert E in tree
    assert "null" not in tree
    assert not any(word in tree for word in ('Model"', '_model"', '"model"', "key", "Key"))


@pytest.mark.parametrize("family", ["llm-provider", "chronologos"])
def test_one_url_cannot_stand_for_two_servers(family: str):
    """The refusal says how to name the one that answers for both."""
    with pytest.raises(UsageError, match="one URL") as caught:
        trees(families.find(family), TWO)
    assert "--url" in caught.value.hint


def test_a_family_that_asks_for_one_task_needs_the_one_url_only():
    """The other server is none of its business."""
    tree = trees(families.find("model-urls"), TWO)
    assert {"models": {"embed": f"{E}/v1#a/embed"}} == tree


@pytest.mark.parametrize("name", ["model-urls", "llm-provider", "wei840222"])
def test_a_local_model_gives_way(name: str):
    """Where a family takes the place of a local model's name, the comment behind it stays."""
    family = families.find(name)
    after = write(f"models:\n  embed: {LOCAL} # note\n  other: x\n", family)
    assert WANTED[name]["models"]["embed"] == load(after, family)["models"]["embed"]
    assert "# note" in after
    assert LOCAL not in after


def test_a_part_in_a_value_is_not_filled_in_again():
    """A model's name is text, whatever it looks like."""
    odd = Endpoints(embed_url=E, generation_url=E, models=ModelNames(embed="{key}", rerank="{embed}"), key="sk-1")
    tree = trees(families.find("api-urls"), odd)["models"]
    assert isinstance(tree, dict)
    assert ("{key}", "{embed}") == (tree["embed_api_model"], tree["rerank_api_model"])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("api-urls", "models: {embed: x}\n", "line 1.*braces"),
        ("api-urls", "a: 1\na: 2\n", "line 2.*second time"),
        ("llm-provider", "a: 1\nllm: x\n", "line 2.*single value"),
        ("wei840222", "models:\n  embed: [x]\n", "line 2.*list"),
        ("wei840222", "models:\n  embed: {provider: openai}\n", "line 2.*braces"),
        ("model-urls", "models:\n  embed:\n    provider: openai\n", "line 3.*keys"),
        ("olyashok", '{\n"remote": 1}', "line 2.*no object"),
        ("olyashok", "a: 1\n", "line 1.*not JSON"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused(name: str, text: str, words: str):
    """The refusal names the line."""
    with pytest.raises(ConfigError, match=words):
        write(text, families.find(name))


# taking out


@pytest.mark.parametrize(("family", "text"), CASES)
def test_what_was_written_goes_again(family: Family, text: str):
    """Byte for byte, as long as the file had other lines in its blocks or none of them."""
    assert text == remove(write(text, family), family)


@EACH
def test_a_file_of_its_own_is_empty_then(family: Family):
    """No file stays none, and a file without the keys stays as it is."""
    assert {} == load(remove(write(None, family), family) or "", family)
    assert None is remove(None, family)
    for text in ["", *files(family).values()]:
        assert text == remove(text, family)


@EACH
def test_names_of_local_models_stay(family: Family):
    """They were not written by any family, so none takes them out, and no edit is needed."""
    if family.file == "yaml":
        text = f"models:\n  embed: {LOCAL}\n  rerank: '/models/r.gguf'\n  generate: https://hub/x.gguf?download=true\n"
        assert text == remove(text, family)
        assert text == remove(f"{text}llm:\n  provider: openai-compatible\n", families.find("llm-provider"))


@pytest.mark.parametrize("mine", ["api-urls", "llm-provider", "model-urls", "wei840222"])
@pytest.mark.parametrize("other", ["api-urls", "llm-provider", "model-urls", "wei840222", "chronologos"])
def test_the_keys_of_another_family_stay(mine: str, other: str):
    """Also where both have a place of the same name."""
    if mine != other:
        text = write("a: 1\n", families.find(other))
        assert text == remove(text, families.find(mine))


@pytest.mark.parametrize(
    ("name", "text", "after"),
    [
        ("llm-provider", "llm:\n  baseUrl: x\nmodels:\n  embed: http://h/v1#m\n", "models:\n  embed: http://h/v1#m\n"),
        ("llm-provider", "llm:\n  baseUrl: x\n  timeout: 5\n", "llm:\n  timeout: 5\n"),
        ("llm-provider", "llm: {baseUrl: x}\n", ""),
        ("wei840222", "models:\n  embed:\n    provider: local\n    model: m\n", None),
        ("wei840222", "models:\n  embed:\n    model: m\n", None),
        ("wei840222", "models:\n  embed: {provider: openai, x: y}\n  z: 1\n", "models:\n  z: 1\n"),
        ("model-urls", "models:\n  embed: HTTP://h/v1#m\n  z: 1\n", "models:\n  z: 1\n"),
        ("api-urls", "models:\n  embed_api_model: served.gguf\n  embed_api_url: [x]\n  z: 1\n", "models:\n  z: 1\n"),
        ("llm-provider", "models:\n  embed: a/b\n", None),
        ("llm-provider", "llm:\n  baseUrl: x\nmodels:\n  embed: a/b\n", ""),
        ("olyashok", '{"remote": {}}', None),
        ("olyashok", '{"remote": 1}', None),
        ("olyashok", '{"remote": {"embedUrl": [1]}, "a": 1}', '{"a": 1}'),
        ("api-urls", "models: [x]\n", None),
        ("api-urls", "- x\n", None),
    ],
)
def test_what_belongs_to_a_family(name: str, text: str, after: str | None):
    """Its own keys go whatever they hold; a key that others have too goes if its value is the family's."""
    if name == "llm-provider" and "{" in text:
        with pytest.raises(ConfigError, match="braces"):
            remove(text, families.find(name))
        return
    assert (text if after is None else after) == remove(text, families.find(name))


@given(
    st.sampled_from(WITH_FILE),
    st.dictionaries(
        st.sampled_from(["a", "b c", "é", "llm2", "remotes"]), st.sampled_from(["x", "12:30", "yes", "no # c"])
    ),
    st.lists(st.sampled_from(["", "# note", "#"]), min_size=6, max_size=6),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_file_comes_back(family: Family, keys: dict[str, str], notes: list[str], with_models: bool, newline: str):
    """Writing and taking out again leaves what was there."""
    if family.file == "json":
        text = json.dumps(keys | ({"remote": {"x": None}} if with_models else {}), indent=2)
    else:
        lines = [
            line
            for pair in zip(notes, (f'"{key}": {value}' for key, value in keys.items()), strict=False)
            for line in pair
        ]
        lines += ["models:", "  # local", "  other: x", notes[-1]] if with_models else []
        text = "".join(f"{line}\n" for line in lines)
    text = text.replace("\n", newline)
    after = write(text, family)
    assert merged(load(text, family), WANTED[family.name]) == load(after, family)
    assert load(text, family) == load(remove(after, family) or "", family)
