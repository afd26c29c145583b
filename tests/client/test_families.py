"""The table of QMD's remote clients: whole, without contradictions, and found by every name."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from qmd_remote.client import families
from qmd_remote.client.families import DEFAULT, EVERYTHING, FAMILIES, LOCAL_NAME, Family
from qmd_remote.client.own_values import is_server
from qmd_remote.errors import UsageError

PARTS = {"{embed_url}", "{generation_url}", "{embed}", "{rerank}", "{generate}", "{key}"}
EACH = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])


def test_a_name_means_one_family():
    """No name and no alias is there twice, and all are as `find` looks for them."""
    names = [name for family in FAMILIES for name in (family.name, *family.aliases)]
    assert [] == [name for name, times in Counter(names).items() if times > 1]
    assert names == [name.strip().lower() for name in names]


@EACH
def test_a_family_is_told_its_server_somewhere(family: Family):
    """Keys of a file, which has a kind then, or variables; one of them takes a URL."""
    assert bool(family.file) == bool(family.file_keys)
    assert any("_url}" in template for _, template in (*family.file_keys, *family.variables))
    for entries in (family.file_keys, family.variables):
        assert [] == [place for place, times in Counter(place for place, _ in entries).items() if times > 1]


@EACH
def test_templates_have_known_parts_only(family: Family):
    """A part that nobody fills in would be left out without a word."""
    for _, template in (*family.file_keys, *family.variables):
        assert set(re.findall(r"\{.*?\}", template)) <= PARTS
        assert template


@EACH
def test_places_can_be_written(family: Family):
    """A key stands one or two levels below a block, a variable is one to a shell, and no key lies below a value."""
    paths = [path for path, _ in family.paths]
    assert all(len(path) in {2, 3} and all(path) for path in paths)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name, _ in family.variables)
    assert not {path[:2] for path in paths if len(path) == 3} & {path for path in paths if len(path) == 2}
    if family.file == "json":
        assert {("remote", 2)} == {(path[0], len(path)) for path in paths}


@EACH
def test_a_key_and_the_variable_beside_it_hold_the_same(family: Family):
    """Where a family has both, the check tells which variable stands in for a key."""
    if family.file_keys and family.variables:
        assert [template for _, template in family.file_keys] == [template for _, template in family.variables]


@EACH
def test_limits_are_told(family: Family):
    """Who cannot move every task says so, who cannot move any is not served, and a note has its fix behind a colon."""
    assert (family.roles != EVERYTHING) == bool(family.limits)
    assert family.served == bool(family.roles)
    assert not family.note or ": " in family.note


@pytest.mark.parametrize("name", ["pr705", "#705", "705", "PR705", " #pr705 ", "api-urls", "API-URLS"])
def test_numbers_of_pull_requests_are_found_as_people_write_them(name: str):
    """With `pr`, with `#`, bare, in any case, or by the family's name."""
    assert "api-urls" == families.find(name).name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("remote", "chronologos"),
        ("517", "api-urls"),
        ("629", "api-urls"),
        ("771", "api-urls"),
        ("575", "remote-urls"),
        ("446", "remote-urls"),
        ("619", "llm-provider"),
        ("289", "remote-mode"),
        ("306", "remote-mode"),
        ("325", "olyashok"),
        ("cellect-ai", "olyashok"),
        ("511", "own-protocol"),
        ("663", "own-protocol"),
        ("927", "own-protocol"),
        ("720", "api-formats"),
        ("761", "model-urls"),
        ("769", "ollama"),
        ("902", "wei840222"),
        ("zeattacker", "zeattacker"),
    ],
)
def test_aliases(alias: str, name: str):
    """Each pull request and fork that is known leads to its family."""
    assert name == families.find(alias).name


@pytest.mark.parametrize("name", ["", "#", "pr", "1", "²", "pr706", "sk-secret", "secret" * 3, "705x"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name: str):
    """The error repeats what was given, unless that may be a key in the wrong place."""
    with pytest.raises(UsageError) as caught:
        families.find(name)
    assert all(family.name in caught.value.hint for family in FAMILIES)
    assert "secret" not in caught.value.message + caught.value.hint
    assert (f"'{name}'" in caught.value.message) == (name != "" and "secret" not in name)


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("olama", "ollama"),
        ("LLM-provder", "llm-provider"),
        ("cellect", "cellect-ai"),
        ("pr706", ""),
        ("", ""),
        ("zzz", ""),
    ],
)
def test_a_guess_for_a_mistyped_name(name: str, guess: str):
    """The nearest word is named; the number of another pull request is not."""
    with pytest.raises(UsageError) as caught:
        families.find(name)
    assert (f"did you mean {guess}?" in caught.value.message) if guess else ("mean" not in caught.value.message)


def test_completion_offers_every_name():
    """Names with what they are, aliases with what they stand for; all can be found."""
    offered = dict(families.names())
    assert {name for family in FAMILIES for name in (family.name, *family.aliases)} == set(offered)
    assert "the same as api-urls" == offered["pr705"]
    assert families.find(DEFAULT).about == offered[DEFAULT]


def test_one_url():
    """Families without a place for a URL of generation's own, whose one server answers for everything they ask."""
    one = {family.name for family in FAMILIES if family.one_url}
    assert {"chronologos", "llm-provider", "own-protocol", "model-urls", "ollama"} == one


def test_pull_requests():
    """Aliases that are no numbers are none."""
    assert ("pr325",) == families.find("olyashok").pull_requests


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("hf:ggml-org/embeddinggemma-300M-GGUF/embeddinggemma-300M-Q8_0.gguf", True),
        ("huggingface:a/b:Q4", True),
        ("huggingface.co/a/b", True),
        ("/models/a.gguf", True),
        ("/models/a.GGUF", True),
        ("https://hub/a/b/resolve/main/x.gguf?download=true", True),
        ("https://hub/a/x.gguf.part1of2", True),
        ("http://box:8001/v1#served.gguf", False),
        ("nomic-ai/nomic-embed-text-v1.5", False),
        ("a/b-GGUF", False),
        ("http://box:8001/v1#m", False),
    ],
)
def test_names_of_local_models(name: str, local: bool):
    """What QMD loads itself: files of the hub, of the disk, of the web."""
    assert local == bool(re.fullmatch(LOCAL_NAME, name))


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("http://box/v1#m", True),
        ("HTTPS://box", True),
        ("http://box/v1#served.gguf", True),
        ("https://hub/x.gguf", False),
        ("https://hub/x.gguf?download=true", False),
        ("hf:a/b", False),
        ("", False),
    ],
)
def test_a_server_in_the_place_of_a_model(text: str, server: bool):
    """A URL is one, unless it is that of a file which QMD fetches."""
    assert server == is_server(text)
