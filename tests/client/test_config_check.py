"""What `config check` finds in a file: every finding has a file that provokes it, and a sound file has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd_remote.client.causes import Cause
from qmd_remote.client.config_check import Answers, Checked, Facts, check_answers, check_file, without_secrets
from qmd_remote.client.config_values import MODEL_KEYS
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.errors import Exit

PATH = Path("/somewhere/my index.yml")
URLS = "remote:\n  embed_url: http://box:8001\n  generation_url: http://box:8000\n"
SOUND = (
    f'# mine\ncollections: {{}}\n{URLS}  api_key: "${{BOX_KEY}}"\n  models: {{embed: a/b, generate: c/d, rerank: e}}\n'
)
SECRET = "hunter2"


def judge(text: str | None, **facts) -> Checked:
    """The judgement of a text, with a value for BOX_KEY and a private file unless the test says otherwise."""
    return check_file(Facts(**{"path": PATH, "text": text, "mode": 0o600, "env": {"BOX_KEY": "k"}, **facts}))


def only(checked: Checked):
    """The one finding."""
    assert 1 == len(checked.findings), checked.findings
    return checked.findings[0]


# what QMD does, in a sentence


def test_a_sound_file_has_no_findings():
    """Both URLs, a reference with a value, and names: nothing to say, and the sentence says it all."""
    checked = judge(SOUND)
    assert ((), "remote", Exit.OK, True) == (checked.findings, checked.verdict, checked.exit_code, checked.sound)
    assert checked.sentence == (
        "QMD sends embedding and reranking to http://box:8001 and query expansion to http://box:8000, "
        "with the key from ${BOX_KEY}"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("remote: {url: http://box}\n", "QMD sends everything to http://box, without a key"),
        (
            "a: &a {url: http://box, api_key: sk}\nremote: *a\n",
            "QMD sends everything to http://box, with the key that stands in the file",
        ),
        (
            "remote: {url: box:1}\n",
            "QMD tries to send everything to box:1, without a key, and fails",
        ),
        (None, "QMD uses its local models, because there is no file /somewhere/my index.yml"),
        (
            "remote: {embed_url: http://box}\n",
            "QMD uses its local models, because the `remote:` block lacks generation_url",
        ),
    ],
)
def test_the_sentence_says_what_qmd_does(text, sentence):
    """Where texts go and with which key, or why they stay here."""
    assert sentence == judge(text).sentence


# why QMD stays local


@pytest.mark.parametrize(
    ("text", "code", "line", "words"),
    [
        (None, "file.missing", None, "no file"),
        ("", "remote.missing", None, "no `remote:` block"),
        ("collections: {}\n", "remote.missing", None, "no `remote:` block"),
        ("a: 1\nRemote:\n  url: http://h\n", "remote.missing", 2, "named `Remote`"),
        ("- a\n", "file.no_mapping", 1, "key: value"),
        ("a: 1\nremote:\n", "remote.empty", 2, "empty"),
        ("remote:\nurl: http://h\n", "remote.empty", 1, "empty"),
        ("remote: http://h\n", "remote.no_mapping", 1, "holds a text"),
        ("remote:\n- url\n", "remote.no_mapping", 1, "holds a list"),
        ("remote: {embed_url: http://h}\n", "remote.half", 1, "generation_url"),
        ("a: 1\nremote: {generation_url: http://h}\n", "remote.half", 2, "embed_url"),
        ("remote:\n  embed_url:\n  api_key: ${BOX_KEY}\n", "remote.half", 1, "`embed_url` and `generation_url` are"),
        ("a: b: c\n", "yaml.unreadable", 1, "not valid YAML"),
        ("a: 1\n---\nb: 1\n", "yaml.unreadable", 2, "second document"),
        ("a: 1\nb: 1\na: 2\n", "yaml.unreadable", 3, "second time"),
        ("a:\n\tb: 1\n", "yaml.unreadable", 2, "tab"),
        ("a: *b\n", "yaml.unreadable", 1, "alias"),
    ],
)
def test_why_qmd_uses_local_models(text, code, line, words):
    """One error with its line, the verdict `local`, exit code 4, and no question to a server."""
    checked = judge(text)
    found = only(checked)
    assert ("error", code, line) == (found.severity, found.code, found.line)
    assert words in found.message
    assert found.fix
    assert ("local", Exit.CONFIGURATION, False) == (checked.verdict, checked.exit_code, checked.sound)
    assert checked.reason


def test_a_file_that_cannot_be_read():
    """It is an error, with the reason of the system."""
    checked = judge(None, unreadable="index.yml cannot be read: Permission denied")
    assert ("file.unreadable", Exit.CONFIGURATION) == (only(checked).code, checked.exit_code)
    assert "Permission denied" in checked.sentence


def test_keys_that_lost_their_indentation_are_named():
    """An empty block above URLs at the margin is an indentation lost."""
    assert "indent url and api_key" in only(judge("remote:\nurl: http://h\napi_key: k\n")).fix


# URLs


@pytest.mark.parametrize(
    ("value", "code", "fix"),
    [
        ("http://box:1/v1", "url.v1", "url: http://box:1"),
        ("http://box:1/v1/", "url.v1", "url: http://box:1"),
        ("box:8001", "url.no_scheme", "url: http://box:8001"),
        ("ftp://box", "url.no_scheme", "url: http://HOST:PORT"),
        (f"http://me:{SECRET}@box:1", "url.credentials", "url: http://box:1"),
        (f"http://me:{SECRET}/x@box:1", "url.credentials", "url: http://box:1"),
        (f"http://me:{SECRET}@[::1", "url.credentials", "url: http://HOST:PORT"),
        (f"me:{SECRET}@box", "url.credentials", "api_key"),
        ("'http://box:1 '", "url.spaces", "url: http://box:1"),
        ("http://${HOST}:1", "url.variable", "url: http://HOST:PORT"),
        ("http://box:many", "url.unusable", "url: http://HOST:PORT"),
        (f"http://box?k={SECRET}", "url.unusable", "url: http://HOST:PORT"),
        ("8001", "url.not_text", "url: http://HOST:PORT"),
        ("true", "url.not_text", "url: http://HOST:PORT"),
        ("[http://box]", "url.not_text", "url: http://HOST:PORT"),
        ("{a: b}", "url.not_text", "url: http://HOST:PORT"),
    ],
)
def test_a_url_that_qmd_cannot_use(value, code, fix):
    """One error names the line and the line to write instead, and repeats no secret."""
    checked = judge(f"remote:\n  url: {value}\n")
    found = only(checked)
    assert ("error", code, 2, Exit.CONFIGURATION) == (found.severity, found.code, found.line, checked.exit_code)
    assert fix in found.fix
    assert SECRET not in found.message + found.fix + checked.sentence


@pytest.mark.parametrize("value", ["'8001'", "!!str 8001"])
def test_a_quoted_number_is_a_text(value):
    """What QMD reads as a text is judged as one."""
    assert "url.no_scheme" == only(judge(f"remote:\n  url: {value}\n")).code


@pytest.mark.parametrize(
    ("host", "clear"),
    [
        ("127.0.0.1:1", False),
        ("[::1]:1", False),
        ("10.0.0.7", False),
        ("192.168.1.9:8001", False),
        ("100.64.3.4", False),
        ("spark:8001", False),
        ("spark.local", False),
        ("box.tail1.ts.net", False),
        ("8.8.8.8", True),
        ("[2606:4700::1]:1", True),
        ("box.example.com", True),
    ],
)
def test_a_key_in_clear_over_a_public_network(host, clear):
    """http with a key to an address that is not private is a warning, and keeps the check from sending the key."""
    text = "remote:\n  url: {}://{}\n  api_key: ${{BOX_KEY}}\n"
    checked = judge(text.format("http", host))
    assert (["url.cleartext"] if clear else []) == [found.code for found in checked.findings]
    assert (Exit.OK, not clear) == (checked.exit_code, checked.sound)
    assert () == judge(text.format("https", host)).findings
    assert () == judge(f"remote: {{url: 'http://{host}'}}\n").findings


# the key


@pytest.mark.parametrize(
    ("value", "severity", "code", "words"),
    [
        ("${NO_KEY}", "warning", "key.unset", "NO_KEY"),
        ("", "warning", "key.empty", "empty"),
        ("''", "warning", "key.empty", "empty"),
        ("12345", "error", "key.not_text", "number"),
        ("[a]", "error", "key.not_text", "list"),
        ("$BOX_KEY", "error", "key.not_expanded", "${NAME}"),
        ("$(cat key)", "error", "key.not_expanded", "${NAME}"),
        ("${BOX_KEY:-x}", "error", "key.not_expanded", "${NAME}"),
        ("'{{ BOX_KEY }}'", "error", "key.not_expanded", "${NAME}"),
        ("two words", "error", "key.not_sendable", "spaces"),
        ("ключ", "error", "key.not_sendable", "ASCII"),
        ("${BAD_KEY}", "error", "key.not_sendable", "control"),
    ],
)
def test_a_key_that_qmd_cannot_send(value, severity, code, words):
    """Each is found on its line; only what depends on the place where QMD runs is a mere warning."""
    checked = judge(f"{URLS}  api_key: {value}\n", env={"BAD_KEY": "k\n"})
    found = only(checked)
    assert (severity, code, 4) == (found.severity, found.code, found.line)
    assert words in found.message
    assert (Exit.OK if severity == "warning" else Exit.CONFIGURATION) == checked.exit_code


def test_a_variable_without_a_value_is_named_once_each():
    """Two variables are two findings, each with the command that sets it."""
    found = judge(f"{URLS}  api_key: ${{A}}${{B}}${{A}}\n").findings
    assert ["export A=… where QMD runs", "export B=… where QMD runs"] == [one.fix for one in found]


@pytest.mark.parametrize(("mode", "codes"), [(0o600, []), (0o640, ["key.readable"]), (0o604, ["key.readable"])])
def test_a_literal_key_in_a_file_that_others_can_read(mode, codes):
    """The fix is the command to type, and the key is not repeated."""
    checked = judge(f"{URLS}  api_key: {SECRET}\n", mode=mode)
    assert codes == [found.code for found in checked.findings]
    assert ["chmod 600 '/somewhere/my index.yml'"][: len(codes)] == [found.fix for found in checked.findings]
    assert SECRET not in repr(checked)
    assert () == judge(SOUND, mode=mode).findings


# names


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("  timeout: 5\n", "remove it; QMD knows url"),
        ("  apikey: k\n", "rename it to api_key"),
        ("  embedUrl: http://h\n", "remove it, since embed_url is there too"),
        ("  models: {embedding: x}\n", "rename it to embed"),
    ],
)
def test_an_unknown_key(line, words):
    """QMD does not read it: a warning, with the key that was probably meant."""
    found = only(judge(URLS + line))
    assert ("warning", "key.unknown", 4) == (found.severity, found.code, found.line)
    assert words in found.fix


def test_a_misspelt_half_gives_both_findings():
    """The missing key is the error, the misspelt one is how it came."""
    codes = [found.code for found in judge("remote:\n  embed_url: http://h\n  generationUrl: http://h\n").findings]
    assert ["remote.half", "key.unknown"] == codes


@pytest.mark.parametrize(
    ("line", "code"),
    [("  models: a/b\n", "models.no_mapping"), ("  models: {embed: 1.5}\n", "models.not_text")],
)
def test_models_that_are_none(line, code):
    """Names have to be texts under models:."""
    found = only(judge(URLS + line))
    assert ("warning", code, 4) == (found.severity, found.code, found.line)


@pytest.mark.parametrize("name", MODEL_KEYS)
def test_a_model_that_the_server_does_not_have(name):
    """Both names are told, with the line of ours; names that agree or are not known are no finding."""
    checked = judge(SOUND)
    found = only(check_answers(checked, Answers({}, ModelNames(**{name: "real\x1b/one"}))))
    assert ("warning", "models.differ", 7) == (found.severity, found.code, found.line)
    assert "real?/one" in found.message
    assert () == check_answers(checked, Answers({}, checked.models)).findings


# servers


def test_a_server_that_refuses_the_key():
    """It is an error with exit code 1; without the variable's value here it says nothing about QMD."""
    cause = Cause("unauthorized", "no", "fix")
    answers = Answers({"http://box:8001": cause}, ModelNames())
    for text, fix in [
        (SOUND, "set ${BOX_KEY}"),
        (f"{URLS}  api_key: sk\n", "on line 4"),
        (URLS, "config write --api-key-env"),
    ]:
        checked = check_answers(judge(text), answers)
        assert ("error", "server.unauthorized") == (only(checked).severity, only(checked).code)
        assert fix in only(checked).fix
        assert Exit.FAILED == checked.exit_code
    assert ["key.unset"] == [found.code for found in check_answers(judge(SOUND, env={}), answers).findings]


def test_a_server_that_does_not_answer():
    """It is a warning on the line of its URL: QMD may run when the server does."""
    checked = check_answers(judge(URLS), Answers({"http://box:8000": Cause("refused", "no", "fix")}, ModelNames()))
    found = only(checked)
    assert ("warning", "server.refused", 3, "fix") == (found.severity, found.code, found.line, found.fix)
    assert Exit.OK == checked.exit_code


# around the file


def test_a_project_of_its_own_wins():
    """The file that QMD takes instead is named, with the command that checks it."""
    found = only(judge(SOUND, project_file=Path("/p/.qmd/index.yml")))
    assert ("warning", "file.project") == (found.severity, found.code)
    assert "--file /p/.qmd/index.yml" in found.fix


def test_other_indexes_without_a_block():
    """They are mentioned after all problems, and only where this file has a block."""
    found = only(judge(SOUND, without_block=("work",)))
    assert ("info", "index.local") == (found.severity, found.code)
    assert ["remote.missing"] == [found.code for found in judge("", without_block=("work",)).findings]


# anything


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12), st.sampled_from(":#?[] ")
)
def test_no_password_in_a_url_is_ever_shown(noise: str, odd: str):
    """Whatever stands around it, what comes before the last @ stays hidden, and nothing raises."""
    url = f"http://me{odd}:{SECRET}{noise.replace('@', '')}@box:1"
    quoted = "'" + url.replace("'", "''") + "'"
    checked = judge(f"remote:\n  url: {quoted}\n")
    said = checked.sentence + without_secrets(url) + "".join(one.message + one.fix for one in checked.findings)
    assert SECRET not in said
    assert Exit.CONFIGURATION == checked.exit_code


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=80), st.sampled_from(["", "remote:\n  url: ", "remote:\n  api_key: ", "remote: ", "remote:\n  "])
)
def test_no_text_breaks_the_check(text: str, start: str):
    """Every text gets a judgement; a file that stays local says why."""
    checked = judge(start + text)
    assert ("local" == checked.verdict) == bool(checked.reason)
    assert checked.sentence
