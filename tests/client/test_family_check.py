"""What is written for a family of clients is sound; what a file tells of its families, and never of its secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.client import families
from qmd_remote.client.config_check import Facts
from qmd_remote.client.families import Family
from qmd_remote.client.family_check import entries, families_of, others_there, unreadable
from qmd_remote.client.family_edits import written
from qmd_remote.client.qmd_config import HIDDEN
from qmd_remote.client.remote_block import Tree
from qmd_remote.client.yaml_document import Refused
from qmd_remote.errors import Exit
from tests.client.family_files import EACH, JUDGED, LLM, SECRET, E, G, judge, made, problems

# what is written is sound


HOSTS = st.sampled_from(["box", "127.0.0.1", "[fd00::1]", "box.local", "10.0.0.7", "BOX"])
URLS = st.builds(
    "{}://{}{}{}".format, st.just("http"), HOSTS, st.sampled_from(["", ":1", ":65535"]), st.sampled_from(["", "/qmd"])
)


@given(st.sampled_from(JUDGED), URLS, URLS, st.none() | st.sampled_from([SECRET, "12345", "a#b: c", "é"]))
def test_what_is_written_is_sound(family: Family, embed: str, generation: str, key: str | None):
    """No error and no warning, for any family and any servers, and the URLs come back as they were given."""
    checked = judge(family.name, made(family, embed, generation, key))
    assert [] == problems(checked)
    assert ("remote", Exit.OK, family.name) == (checked.verdict, checked.exit_code, checked.client)
    assert family.roles == checked.roles
    assert embed == checked.embed_url
    if "expand" in family.roles:
        assert (embed if family.one_url else generation) == checked.generation_url
    else:
        assert None is checked.generation_url
    has_place = any(template == "{key}" for _, template in family.file_keys)
    assert (key if has_place and key else "") == checked.key
    assert (HIDDEN if has_place and key else None) == checked.api_key


@EACH
def test_a_sound_file_of_one_family_is_none_of_another(family: Family):
    """The family that wrote it is the only one found there."""
    found = entries(made(family), "f", as_json=family.file == "json")
    assert [family] == families_of(found, as_json=family.file == "json")
    assert [] == list(others_there(found, family.name, as_json=family.file == "json"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "api-urls",
            f"QMD sends embedding and reranking to {E} and query expansion to {G}, without a key",
        ),
        ("llm-provider", f"QMD sends everything to {E}, without a key"),
        ("model-urls", f"QMD sends embedding to {E}, without a key"),
        ("wei840222", f"QMD sends embedding and reranking to {E}, without a key"),
    ],
)
def test_the_sentence_tells_what_goes_where(name: str, sentence: str):
    """Only tasks that the family sends anywhere."""
    assert sentence == judge(name, made(families.find(name))).sentence


def test_the_sentence_tells_no_more_than_the_file_has():
    """A task without a URL, and one whose URL is another than the one that is told, are not spoken of."""
    text = "models:\n  embed_api_url: http://e/v1\n  rerank_api_url: http://r/v1\n"
    checked = judge("api-urls", text)
    assert (("embed",), "http://e", None) == (checked.roles, checked.embed_url, checked.generation_url)
    checked = judge("api-urls", "models:\n  rerank_api_url: http://r/v1\n  expand_api_url: http://x/v1\n")
    assert (("rerank", "expand"), "http://r", "http://x") == (checked.roles, checked.embed_url, checked.generation_url)


def test_the_lines_of_what_was_found():
    """For findings about what the servers say."""
    text = "# c\n" + LLM.format(f"{E}/v1", SECRET)
    assert {"embed_url": 4, "generation_url": 4, "api_key": 5} == judge("llm-provider", text).lines


# several families


def test_the_families_of_a_file():
    """Each that has a key of its own there, the default one first; names of local models belong to none."""
    text = (
        f"llm: {{}}\nmodels:\n  embed: {E}/v1#m\n  rerank_api_url: {E}/v1\n"
        f"  rerank: {{provider: openai}}\nremote: {{url: {E}}}\n"
    )
    names = [family.name for family in families_of(entries(text, "f", as_json=False), as_json=False)]
    assert ["chronologos", "api-urls", "llm-provider", "model-urls", "wei840222"] == names
    for local in ("hf:a/b.gguf", "https://hub/a/b.gguf", "a/b"):
        found = entries(f"models:\n  embed: {local}\n  rerank: {local}\n", "f", as_json=False)
        assert [] == families_of(found, as_json=False)
    for text in ("", "- a\n", "# c\n", "x\n"):
        assert [] == families_of(entries(text, "f", as_json=False), as_json=False)
    found = entries('{"remote": {"embedUrl": "x"}}', "f", as_json=True)
    assert ["olyashok"] == [family.name for family in families_of(found, as_json=True)]
    for text in ("", "\ufeff \n", "{}", '{"remote": {"url": "x"}}', '{"remote": 1}'):
        assert [] == families_of(entries(text, "f", as_json=True), as_json=True)


def test_what_else_a_file_holds():
    """A remark for each other family, whose fix is the command that judges the file for it."""
    found = entries(f"llm: {{}}\nremote: {{url: {E}}}\n", "f", as_json=False)
    (one,) = others_there(found, "chronologos", as_json=False)
    assert ("info", "client.other") == (one.severity, one.code)
    assert "llm-provider" in one.message
    assert "qmd-remote config check --client llm-provider" == one.fix
    assert ["qmd-remote config check --client chronologos"] == [
        other.fix for other in others_there(found, "llm-provider", as_json=False)
    ]


# reading


def test_keys_are_found_as_qmd_reads_them():
    """Aliases filled in, quotes taken off, three levels, with lines; what is no text has none."""
    text = "a: &x\n  'b':\n    c: {d: e}\n    n: 12\n    t: \"12\"\nz: *x\nnull_: ~\n"
    found = entries(text, "f", as_json=False)
    assert ("12", "text", 5) == (found[("z", "b", "t")].text, found[("z", "b", "t")].what, found[("z", "b", "t")].line)
    assert ("", "number") == (found[("a", "b", "n")].text, found[("a", "b", "n")].what)
    assert ("", "nothing") == (found[("null_",)].text, found[("null_",)].what)
    assert "mapping" == found[("a", "b", "c")].what
    assert ("a", "b", "c", "d") not in found
    same = entries('\ufeff{"a": {"b":\n{"t": "12", "n": 12, "c": {"d": 1}}}, "x": null}', "f", as_json=True)
    assert ("12", 2) == (same[("a", "b", "t")].text, same[("a", "b", "t")].line)
    assert ("number", "mapping", "nothing") == tuple(
        same[path].what for path in (("a", "b", "n"), ("a", "b", "c"), ("x",))
    )


def test_an_alias_of_itself_has_an_end():
    """A tree without one is read three levels deep."""
    assert ("a", "a", "a") in entries("a: &a\n  a: *a\n", "f", as_json=False)


@pytest.mark.parametrize(
    ("text", "as_json", "line"),
    [
        ("a: 1\n\tb: 2\n", False, 2),
        ("a: 1\na: 2\n", False, 2),
        ('{\n"a": 1,}', True, 2),
        ('{"remote": {"a": 1,\n"a": 2}}', True, 2),
        ("[1]", True, 1),
    ],
)
def test_a_file_that_cannot_be_read(text: str, as_json: bool, line: int):
    """Refused with its line; the judgement on it is that QMD stays local."""
    with pytest.raises(Refused) as caught:
        entries(text, "f", as_json=as_json)
    checked = unreadable(Facts(path=Path("f"), text=text), "olyashok", caught.value)
    (found,) = checked.findings
    assert ("error", "file.unreadable", line) == (found.severity, found.code, found.line)
    assert ("local", Exit.CONFIGURATION, "olyashok") == (checked.verdict, checked.exit_code, checked.client)
    assert f"line {line}" in checked.reason


# secrets


SHAPES = [
    "{}",
    "http://{}@box/v1",
    "http://me:{}@box",
    "http://me:{}/x@box",
    "http://me:{}#x@box",
    "http://me#{}@box",
    "http://me:a#b@{}@box/v1",
    "http://box:{}",
    "http://box/v1?key={}",
    "http://box/?{}#x",
    "//{}@box",
    "{}${{X}}",
    " {} ",
    "sk\\{}",
]


@EACH
@pytest.mark.parametrize("shape", SHAPES)
def test_no_finding_repeats_a_secret(family: Family, shape: str):
    """Wherever somebody writes one: a key in any place, a password in any URL."""
    for path, _ in family.paths:
        tree: Tree = {path[-1]: shape.format(SECRET)}
        for name in reversed(path[1:-1]):
            tree = {name: tree}
        text = written(made(family, key="k"), family, {path[0]: tree}, name="f")
        checked = judge(family.name, text, mode=0o644)
        found = entries(text, "f", as_json=family.file == "json")
        assert SECRET not in f"{checked.findings}{checked.reason}{checked.sentence}{checked}{found}"
