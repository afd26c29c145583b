"""Settings: the preset, parsing, keys, and who may be served without one; test_settings_file.py has the layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.errors import ConfigError, QmdRemoteError, UsageError
from qmd_remote.keys import read_file as read_key_file
from qmd_remote.presets import PRESETS
from qmd_remote.reach import is_loopback, require_safe_bind
from qmd_remote.settings import Settings, declared, resolve

FIELDS = {f.name: f for f in declared() if f.name != "preset"}
SECRET = "k3y-that-nobody-may-read"


@pytest.fixture(scope="module", autouse=True)
def no_settings_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings file of the developer counts here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if isinstance(f.default, str) and f.default])
def test_a_flag_without_a_value_is_refused(name: str):
    """`--host ""` says nothing usable, and would silently become the default in the child process."""
    with pytest.raises(UsageError):
        resolve({name: ""}, {})


def test_variables_are_declared_once_and_explained():
    """No two settings share a variable, and each says what it means."""
    variables = [f.metadata["env"] for f in declared()]
    assert len(set(variables)) == len(variables)
    assert all(f.metadata["about"] for f in declared())


def test_settings_cannot_be_changed():
    """Settings are a value: whoever holds them can rely on them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve({}, {}).port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "env", "default", "expected"),
    [
        ({"preset": "gpu"}, {"QMD_REMOTE_PRESET": "cpu"}, "mini", "gpu"),
        ({}, {"QMD_REMOTE_PRESET": "cpu"}, "mini", "cpu"),
        ({}, {}, "mini", "mini"),
        ({}, {}, "", ""),
    ],
)
def test_the_preset_itself_follows_the_same_order(
    flags: dict[str, str], env: dict[str, str], default: str, expected: str
):
    """A preset named by flag beats one named by variable beats the one chosen for the machine."""
    settings = resolve(flags, env, preset=default)
    assert expected == settings.preset
    if expected:
        assert PRESETS[expected].values["embed_model"] == settings.embed_model


@pytest.mark.parametrize(
    ("flags", "env", "kind"),
    [({"preset": "minni"}, {}, UsageError), ({}, {"QMD_REMOTE_PRESET": "minni"}, ConfigError)],
)
def test_an_unknown_preset_names_the_nearest(flags: dict[str, str], env: dict[str, str], kind: type[QmdRemoteError]):
    """A typing error in the preset's name is answered with the name that was meant, and with all there are."""
    with pytest.raises(kind) as caught:
        resolve(flags, env)
    assert "'minni'" in caught.value.message
    assert "did you mean mini?" in caught.value.message
    assert all(name in caught.value.hint for name in PRESETS)


@pytest.mark.parametrize(
    ("variable", "text", "limit"),
    [
        ("MAX_BATCH_SIZE", "0", "at least 1"),
        ("MAX_BATCH_SIZE", "1.5", "a whole number"),
        ("MAX_BATCH_SIZE", "many", "a whole number"),
        ("QMD_REMOTE_PORT", "65536", "at most 65535"),
        ("QMD_REMOTE_PORT", "-1", "at least 0"),
        ("QMD_REMOTE_GENERATION_PORT", "65536", "at most 65535"),
        ("QMD_REMOTE_MAX_BODY_MB", "0", "at least 0.001"),
        ("QMD_REMOTE_MAX_QUEUE", "0", "at least 1"),
        ("QMD_REMOTE_QUEUE_WAIT_S", "-0.1", "at least 0"),
        ("QMD_REMOTE_QUEUE_WAIT_S", "soon", "a number"),
        ("QMD_REMOTE_READY_WAIT_S", "nan", "at least 0"),
        ("QMD_REMOTE_STALL_LIMIT_S", "0.5", "at least 1"),
        ("QMD_REMOTE_START_LIMIT_S", "0", "at least 1"),
        ("QMD_REMOTE_INSECURE_NO_AUTH", "perhaps", "1 or 0"),
    ],
)
def test_a_bad_value_names_its_variable_and_its_limit(variable: str, text: str, limit: str):
    """Who sets a variable wrongly reads its name, what stands there, what may stand there, and what it is for."""
    with pytest.raises(ConfigError) as caught:
        resolve({}, {variable: text})
    assert f"{variable}='{text}'" in caught.value.message
    assert limit in caught.value.message
    assert caught.value.hint


def test_an_endless_limit_is_refused_as_what_it_is():
    """Infinity is refused, and the message does not claim that it was too small."""
    with pytest.raises(ConfigError) as caught:
        resolve({}, {"QMD_REMOTE_STALL_LIMIT_S": "inf"})
    assert "at least" not in caught.value.message


def test_a_bad_flag_names_the_flag():
    """A wrong flag is named as it was typed, and is an error of usage."""
    with pytest.raises(UsageError) as caught:
        resolve({"max_batch_size": 0}, {"MAX_BATCH_SIZE": "7"})
    assert "--max-batch-size 0: must be at least 1" == caught.value.message


def test_the_flag_that_is_named_exists():
    """The flag for the generation engine is --generation, and the message about a wrong value says so."""
    with pytest.raises(UsageError) as caught:
        resolve({"generation_engine": "externl"}, {})
    assert "--generation 'externl'" in caught.value.message
    assert "did you mean external?" in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("TRUE", True), ("on", True), ("yes", True), ("0", False), ("No", False)]
)
def test_a_switch_takes_the_usual_words(text: str, expected: bool):
    """1, true, yes and on switch on; 0, false, no and off switch off, in any case of letters."""
    assert expected is resolve({}, {"QMD_REMOTE_INSECURE_NO_AUTH": text}).insecure_no_auth


def test_a_list_is_split_at_commas():
    """Models that may run their own code are named with commas between; space around a name does not count."""
    settings = resolve({}, {"QMD_REMOTE_TRUST_REMOTE_CODE": " a/b , ,c/d "})
    assert ("a/b", "c/d") == settings.trust_remote_code


# keys


@given(bad=st.sampled_from(sorted(FIELDS)), value=st.sampled_from(["", "-1", "nonsense", "1e999"]))
def test_the_key_is_never_shown(bad: str, value: str):
    """Neither the settings' own text nor an error about another setting shows the key."""
    env = {FIELDS[bad].metadata["env"]: value, "QMD_REMOTE_API_KEY": SECRET}
    try:
        shown = repr(resolve({}, env)) + str(resolve({}, env).origins)
    except QmdRemoteError as error:
        shown = str(error.as_dict())
    assert SECRET not in shown


def key_file(folder: Path, content: bytes) -> str:
    """A key file with this content."""
    path = folder / "key"
    path.write_bytes(content)
    return str(path)


def test_a_key_file_holds_one_key(tmp_path: Path):
    """White space around the key in a file, as every editor leaves it, is no part of the key."""
    assert SECRET == read_key_file(key_file(tmp_path, f"  {SECRET}\r\n".encode()))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "key.invalid"),
        (b" \n", "key.invalid"),
        (b"aaa bbb", "key.invalid"),
        (b"ccc\nddd", "key.invalid"),
        ("schlüssel".encode(), "key.invalid"),
        (b"\xff\xfe", "key.unreadable"),
    ],
)
def test_a_file_without_exactly_one_key_is_refused(content: bytes, code: str, tmp_path: Path):
    """A file that holds no key, several, or one that no HTTP header can carry is named, and its content is not."""
    path = key_file(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        resolve({"api_key_file": path}, {}).key  # noqa: B018 - reading the key is what is tested
    assert code == caught.value.code
    assert path in caught.value.message
    for word in content.decode("latin-1").split():
        assert word not in caught.value.message.replace(path, "").split()


@pytest.mark.parametrize("path", ["missing/key", ".", "~nobody-has-this-name/key"])
def test_an_unreadable_key_file_is_named(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A key file that is missing, is a folder, or lies in nobody's home is an error of configuration, with its name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_key_file(path)
    assert (path in caught.value.message, "key.unreadable") == (True, caught.value.code)


def test_a_key_file_given_as_flag_beats_a_key_in_the_environment(tmp_path: Path):
    """Flag > environment holds for the key as well: a forgotten variable does not shut out the key just named."""
    settings = resolve({"api_key_file": key_file(tmp_path, b"from-file")}, {"QMD_REMOTE_API_KEY": "from-env"})
    assert "from-file" == settings.key
    assert "from-file" == resolve({}, settings.to_env()).key


def test_a_key_in_the_environment_beats_a_file_named_there(tmp_path: Path):
    """Where both come from the environment the key itself counts, and the file is not even read."""
    assert "k" == resolve({}, {"QMD_REMOTE_API_KEY": "k", "QMD_REMOTE_API_KEY_FILE": str(tmp_path / "none")}).key


@pytest.mark.parametrize("key", ["schlüssel", "two words"])
def test_a_key_that_no_header_can_carry_is_refused_from_the_environment_too(key: str):
    """The rule for keys in files holds for the variable; otherwise every client would get a 401 without a reason."""
    with pytest.raises(ConfigError) as caught:
        resolve({}, {"QMD_REMOTE_API_KEY": key}).key  # noqa: B018 - reading the key is what is tested
    assert key not in caught.value.message


# who may be served without a key


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.5", False),
        ("fe80::1", False),
        ("box", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("1", False),
    ],
)
def test_what_counts_as_loopback(host: str, expected: bool):
    """Loopback is what only this machine can reach; every other name or address counts as reachable."""
    assert expected is is_loopback(host)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (Settings(), True),
        (Settings(host="::1"), True),
        (Settings(host="0.0.0.0"), False),
        (Settings(host="box.lan"), False),
        (Settings(host="0.0.0.0", api_key=SECRET), True),
        (Settings(host="0.0.0.0", insecure_no_auth=True), True),
    ],
)
def test_strangers_are_served_only_with_a_key_or_on_demand(settings: Settings, allowed: bool):
    """An address that others reach needs a key, or the flag that says one means it; the refusal tells both ways out."""
    if allowed:
        require_safe_bind(settings)
        return
    with pytest.raises(ConfigError) as caught:
        require_safe_bind(settings)
    assert "bind.no_key" == caught.value.code
    assert settings.host in caught.value.message
    for way in ("--api-key-file", "QMD_REMOTE_API_KEY", "--insecure-no-auth"):
        assert way in caught.value.hint


def test_an_empty_key_file_does_not_open_the_door(tmp_path: Path):
    """A key file that holds nothing refuses the start instead of serving everybody."""
    with pytest.raises(ConfigError):
        require_safe_bind(Settings(host="0.0.0.0", api_key_file=key_file(tmp_path, b"\n")))
