"""Each finding about a file for a family of clients: the file that provokes it, and its fix."""

from __future__ import annotations

import pytest

from qmd_remote.client.families import Family
from qmd_remote.errors import Exit
from tests.client.family_files import EACH, LLM, SECRET, E, G, judge, made, of, problems


@pytest.mark.parametrize(
    ("name", "text", "severity", "line", "words"),
    [
        ("llm-provider", "llm:\n  baseUrl: http://b\n", "error", 2, "`llm.provider` is missing"),
        ("llm-provider", "llm:\n  provider: openai-compatible\n", "error", 2, "`llm.baseUrl` is missing"),
        ("llm-provider", "llm:\n  provider: openai-compatible\n  baseUrl: ''\n", "error", 2, "`llm.baseUrl` is empty"),
        ("llm-provider", "llm:\n  baseUrl: ~\n  provider: openai-compatible\n", "error", 3, "`llm.baseUrl` is empty"),
        ("llm-provider", "llm:\n  baseUrl: http://b\n", "warning", 2, "`models.embed` is missing"),
        (
            "api-urls",
            "models:\n  embed_api_url: http://b/v1\n",
            "warning",
            2,
            "`models.rerank_api_url` is missing; the variable QMD_RERANK_API_URL may have it",
        ),
        ("wei840222", "models:\n  embed:\n    model: m\n", "error", 3, "`models.embed.endpoint` is missing"),
        ("wei840222", "models:\n  embed:\n    provider: openai\n", "warning", 3, "`models.embed.model` is missing"),
        ("olyashok", '{"remote": {\n"embedUrl": "http://b"}}', "error", 2, "`remote.rerankUrl` is missing"),
    ],
)
def test_half_a_setting(name: str, text: str, severity: str, line: int, words: str):
    """What is missing or empty beside what is there; a URL may also come from a variable, where the family has some."""
    halves = [finding for finding in judge(name, text).findings if finding.code == "client.half"]
    found = next(finding for finding in halves if finding.message == words)
    assert (severity, line) == (found.severity, found.line)
    assert f"qmd-remote config write --client {name}" == found.fix


def test_an_empty_switch_is_missing_and_no_other_one():
    """One finding for one place."""
    checked = judge("llm-provider", LLM.format(E, "''").replace("openai-compatible", "''"))
    assert ["client.half"] == [finding.code for finding in problems(checked)]


def test_a_task_that_has_nothing_is_none():
    """A provider for one model asks for none for the other, and a family without any key has no halves."""
    one = "models:\n  embed:\n    provider: openai\n    endpoint: http://b/v1\n    model: m\n"
    checked = judge("wei840222", one)
    assert ([], ("embed",)) == (problems(checked), checked.roles)
    assert "client.half" not in {finding.code for finding in judge("api-urls", "models:\n  embed: x\n").findings}


@pytest.mark.parametrize(
    ("name", "text", "line", "words"),
    [
        ("api-urls", "models:\n  embed_api_url: [http://b/v1]\n", 2, "list"),
        ("api-urls", "models:\n  embed_api_key: 12345\n", 2, "number"),
        ("wei840222", "models:\n  embed:\n    model: true\n", 3, "truth value"),
        ("model-urls", "models:\n  embed: {a: b}\n", 2, "mapping"),
        ("olyashok", '{"remote":\n{"embedUrl": 1}}', 2, "number"),
        ("olyashok", '{"remote":\n{"embedUrl": [1]}}', 2, "list"),
        ("olyashok", '{"remote":\n{"embedUrl": {}}}', 2, "mapping"),
        ("olyashok", '{"remote":\n{"embedUrl": false}}', 2, "truth value"),
    ],
)
def test_a_value_that_is_no_text(name: str, text: str, line: int, words: str):
    """Said as QMD takes it, with its line."""
    found = of(judge(name, text), "value.not_text")
    assert ("error", line) == (found.severity, found.line)
    assert words in found.message


URL_CASES = [
    ("url.v1_missing", "api-urls", f"{E}", f"embed_api_url: {E}/v1"),
    ("url.v1_missing", "api-urls", f"{E}/qmd/", f"embed_api_url: {E}/qmd/v1"),
    ("url.v1_missing", "model-urls", f"{E}#a/b", f"embed: {E}/v1#a/b"),
    ("url.v1", "api-urls", f"{E}/v1/v1", f"embed_api_url: {E}/v1"),
    ("url.v1", "llm-provider", f"{E}/v1/v1/", f"baseUrl: {E}/v1"),
    ("url.v1", "olyashok", f"{E}/v1", f'"embedUrl": "{E}"'),
    ("url.v1", "model-urls", f"{E}/v1/v1#m", f"embed: {E}/v1#m"),
    ("url.no_model", "model-urls", f"{E}/v1", f"embed: {E}/v1#MODEL"),
    ("url.no_model", "model-urls", f"{E}#", f"embed: {E}/v1#MODEL"),
    ("url.variable", "api-urls", "http://${HOST}/v1", "embed_api_url: http://HOST:PORT/v1"),
    ("url.variable", "model-urls", "${URL}#m", "embed: http://HOST:PORT/v1#MODEL"),
    ("url.credentials", "api-urls", f"http://me:{SECRET}@box/v1", "embed_api_url: http://HOST:PORT/v1"),
    ("url.credentials", "api-urls", f"http://me:{SECRET}/x@box/v1", "embed_api_url: http://HOST:PORT/v1"),
    ("url.credentials", "model-urls", f"http://me:{SECRET}#x@box/v1", "embed: http://HOST:PORT/v1#MODEL"),
    ("url.unusable", "olyashok", "box:8001", '"embedUrl": "http://HOST:PORT"'),
    ("url.unusable", "api-urls", f"http://box:{SECRET}/v1", "embed_api_url: http://HOST:PORT/v1"),
    ("url.unusable", "api-urls", f"{E}/v1?key={SECRET}", "embed_api_url: http://HOST:PORT/v1"),
    ("url.unusable", "llm-provider", f"{E}/v1#m", "baseUrl: http://HOST:PORT/v1"),
    ("url.unusable", "model-urls", "hf:a/b/c.gguf", "embed: http://HOST:PORT/v1#MODEL"),
    ("url.spaces", "api-urls", f"{E}/v1 ", f"embed_api_url: {E}/v1"),
    ("url.spaces", "olyashok", f" {E}", f'"embedUrl": "{E}"'),
]


def with_url(name: str, url: str) -> str:
    """A file that is sound but for the first URL in it, which stands on line 2."""
    text = {
        "api-urls": f'models:\n  embed_api_url: "{url}"\n  rerank_api_url: {E}/v1\n  expand_api_url: {G}/v1\n'
        "  embed_api_model: e\n  rerank_api_model: r\n  expand_api_model: g\n",
        "llm-provider": f'llm:\n  baseUrl: "{url}"\n  provider: openai-compatible\n'
        "models:\n  embed: e\n  generate: g\n  rerank: r\n",
        "model-urls": f'models:\n  embed: "{url}"\n',
        "olyashok": f'{{"remote": {{\n"embedUrl": "{url}", "rerankUrl": "{E}", "generateUrl": "{G}", '
        '"generateModel": "g"}}',
    }
    return text[name]


@pytest.mark.parametrize(("code", "name", "url", "fix"), URL_CASES)
def test_a_url_that_does_not_work(code: str, name: str, url: str, fix: str):
    """One error for one URL, and the fix is the line to write, in the file's own language."""
    checked = judge(name, with_url(name, url))
    assert [(code, "error", 2)] == [(finding.code, finding.severity, finding.line) for finding in problems(checked)]
    assert f"write on line 2: {fix}" == of(checked, code).fix
    assert Exit.CONFIGURATION == checked.exit_code


@pytest.mark.parametrize(("code", "name", "url", "fix"), [case for case in URL_CASES if "HOST" not in case[3]])
def test_the_fix_of_a_url_is_one(code: str, name: str, url: str, fix: str):
    """Who writes what the fix says has nothing left to correct."""
    value = fix.partition(": ")[2].strip('"')
    assert [] == problems(judge(name, with_url(name, value)))


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("llm-provider", E),
        ("llm-provider", f"{E}/v1"),
        ("api-urls", f"{E}/v1/"),
        ("api-urls", f"{E}/qmd/v1"),
        ("olyashok", f"{E}/"),
        ("olyashok", f"{E}/v1x"),
        ("model-urls", f"{E}/v1#m@q4"),
    ],
)
def test_urls_that_work(name: str, url: str):
    """With or without a slash, with a path, with /v1 or not where the family takes both."""
    assert [] == problems(judge(name, with_url(name, url)))


def test_a_file_without_a_usable_url_stays_local():
    """The reason is told, beside the finding that says why."""
    for name, url in (("model-urls", "hf:a/b.gguf"), ("llm-provider", "box:1")):
        checked = judge(name, with_url(name, url))
        assert ("local", None, None) == (checked.verdict, checked.embed_url, checked.generation_url)
        assert f"it has no URL that {name} can use" == checked.reason


@pytest.mark.parametrize("text", ["", "a: 1\n", "models:\n  embed_api_model: m\n", "models:\n  embed_api_url: ''\n"])
def test_a_file_without_any_url(text: str):
    """One error says so, since warnings alone would not tell why QMD stays local."""
    checked = judge("api-urls", text)
    found = of(checked, "client.missing")
    assert ("local", "error", None) == (checked.verdict, found.severity, found.line)
    assert "qmd-remote config write --client api-urls" == found.fix
    assert found == checked.findings[0]


def test_a_key_that_refers_to_a_variable():
    """Families other than the default one are not known to fill in ${NAME}."""
    checked = judge("llm-provider", LLM.format(E, "${BOX_KEY}"), env={"BOX_KEY": SECRET})
    found = of(checked, "key.reference")
    assert ("warning", 4, "${BOX_KEY}") == (found.severity, found.line, checked.api_key)


def test_a_key_that_others_can_read():
    """The fix is the command, quoted for a shell; a private file is well."""
    text = LLM.format(E, SECRET)
    found = of(judge("llm-provider", text, mode=0o644), "key.readable")
    assert ("warning", 4, "chmod 600 '/somewhere/my file.yaml'") == (found.severity, found.line, found.fix)
    assert "0644" in found.message
    for mode in (0o600, 0o400, None):
        assert [] == problems(judge("llm-provider", text, mode=mode))
    assert [] == problems(judge("llm-provider", LLM.format(E, "''"), mode=0o644))


def test_a_key_that_crosses_the_internet_in_clear():
    """Only with a key, and not with https."""
    found = of(judge("llm-provider", LLM.format("http://box.example.com/v1", SECRET)), "url.cleartext")
    assert ("warning", 3) == (found.severity, found.line)
    for url, key in (("https://box.example.com/v1", SECRET), ("http://box.example.com/v1", "''")):
        assert [] == problems(judge("llm-provider", LLM.format(url, key)))


@pytest.mark.parametrize(
    ("name", "text", "line", "fix"),
    [
        ("llm-provider", LLM.format(E, "''").replace("openai-compatible", SECRET), 2, "provider: openai-compatible"),
        ("wei840222", "models:\n  rerank:\n    provider: ollama\n", 3, "provider: openai"),
    ],
)
def test_another_provider(name: str, text: str, line: int, fix: str):
    """The switch that turns the family's own client on has another value."""
    found = of(judge(name, text), "provider.other")
    assert ("error", line, f"write on line {line}: {fix}") == (found.severity, found.line, found.fix)


@EACH
def test_what_a_family_cannot_do_and_what_it_needs(family: Family):
    """Remarks that change no verdict."""
    checked = judge(family.name, made(family))
    assert bool(family.limits) == ("client.limits" in {finding.code for finding in checked.findings})
    assert bool(family.note) == ("client.note" in {finding.code for finding in checked.findings})
    if family.limits:
        assert family.limits == of(checked, "client.limits").message
    if family.note:
        found = of(checked, "client.note")
        assert family.note == f"{found.message}: {found.fix}"
