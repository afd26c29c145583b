"""The settings file as one of the layers, and its changes: which value counts, and which bytes stay."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from qmd_remote import settings_edit, settings_file
from qmd_remote.errors import ConfigError
from qmd_remote.presets import PRESETS
from qmd_remote.setting_values import MOST, to_text
from qmd_remote.settings import declared, handed_over, names, resolve
from qmd_remote.settings_file import FileLayer

FIELDS = {f.name: f for f in declared() if f.name != "preset"}
NAMES = st.sampled_from(sorted(FIELDS))
FILE = Path("config.toml")
NO_FILE = FileLayer(FILE)
SECRET = "k3y-that-nobody-may-read"
PLAIN_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30)
PRESET = st.sampled_from(["", *PRESETS])


@pytest.fixture(scope="module", autouse=True)
def a_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings file of the developer counts here, and locks lie in a folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(folder))
        patch.setenv("QMD_REMOTE_HOME", str(folder / "ours"))
        yield


def values_of(f: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    """Every value that a field may have."""
    low, default = f.metadata["low"], f.default
    if f.metadata["secret"]:
        return st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
    if f.metadata["choices"]:
        return st.sampled_from([choice for choice in f.metadata["choices"] if choice])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(math.ceil(low), min(65535, MOST.get(f.name, 65535)))
    if isinstance(default, float):
        return st.floats(low, 1e300)
    if isinstance(default, tuple):
        return st.lists(PLAIN_TEXT.filter(lambda text: "," not in text), max_size=3).map(tuple)
    return PLAIN_TEXT


def some_values() -> st.SearchStrategy[dict[str, Any]]:
    """Values for some of the settings."""
    return st.fixed_dictionaries({}, optional={name: values_of(f) for name, f in FIELDS.items()})


def as_text(value: Any) -> str:
    """A value as a person writes it into a variable."""
    if isinstance(value, bool):
        return "yes" if value else "off"
    return to_text(value)


def as_layer(values: dict[str, Any]) -> FileLayer:
    """What is read from a file that holds these values, by way of its text."""
    return settings_file.parse_text(FILE, tomlkit.dumps(values), names())


# which value counts


@pytest.mark.parametrize("name", FIELDS)
@examples(max_examples=20, deadline=None)
@given(data=st.data(), preset=PRESET)
def test_flag_beats_environment_beats_file_beats_preset_beats_default(name: str, data: st.DataObject, preset: str):
    """Every declared field takes the nearest value that is given, and tells where it came from."""
    f = FIELDS[name]
    variable, strategy = f.metadata["env"], values_of(f)
    flag, in_environment, in_file = (
        data.draw(strategy),
        data.draw(strategy.filter(lambda value: as_text(value) != "")),
        data.draw(strategy),
    )
    env, file = {variable: as_text(in_environment)}, as_layer({name: in_file})

    def settled(flags: dict[str, Any], env: dict[str, str], file: FileLayer) -> tuple[Any, str]:
        found = resolve(flags, env, preset=preset, file=file)
        return getattr(found, name), found.origins[name]

    assert (flag, "flag") == settled({name: flag}, env, file)
    assert (in_environment, f"environment ({variable})") == settled({name: None}, env, file)
    for empty in ({}, {variable: ""}):
        assert (in_file, "file (config.toml)") == settled({}, empty, file)
        if preset and name in PRESETS[preset].values:
            expected = (PRESETS[preset].values[name], f"preset ({preset})")
        else:
            expected = (f.default, "default")
        assert expected == settled({}, empty, NO_FILE)


@examples(max_examples=60, deadline=None)
@given(flags=some_values(), variables=some_values(), lines=some_values(), preset=PRESET)
def test_the_layers_mix_field_by_field(
    flags: dict[str, Any], variables: dict[str, Any], lines: dict[str, Any], preset: str
):
    """Whatever is given in which layer: each field is settled alone, apart from the key and the file that holds it."""
    env = {FIELDS[name].metadata["env"]: as_text(value) for name, value in variables.items() if as_text(value)}
    found = resolve(flags, env, preset=preset, file=as_layer(lines))
    for name, f in FIELDS.items():
        chain = [
            (flags.get(name), "flag"),
            (variables.get(name) if f.metadata["env"] in env else None, f"environment ({f.metadata['env']})"),
            (lines.get(name), "file (config.toml)"),
            (PRESETS[preset].values.get(name) if preset else None, f"preset ({preset})"),
            (f.default, "default"),
        ]
        value, origin = next((value, origin) for value, origin in chain if value is not None)
        if name != "api_key":
            assert (name, value, origin) == (name, getattr(found, name), found.origins[name])
        elif found.api_key:
            assert (value, origin) == (found.api_key, found.origins[name])


@pytest.mark.parametrize(
    ("flag", "variable", "line", "expected", "origin"),
    [
        ("gpu", "cpu", "mini", "gpu", "flag"),
        ("", "cpu", "mini", "cpu", "environment (QMD_REMOTE_PRESET)"),
        (None, "", "mini", "mini", "file (config.toml)"),
        ("", "", "", "gpu", "hardware"),
    ],
)
def test_an_empty_preset_names_none(flag: str | None, variable: str, line: str, expected: str, origin: str):
    """A preset that is empty in one layer is looked for in the next, and models and origin agree about which it is."""
    found = resolve({"preset": flag}, {"QMD_REMOTE_PRESET": variable}, preset="gpu", file=as_layer({"preset": line}))
    assert (expected, origin) == (found.preset, found.origins["preset"])
    assert PRESETS[expected].values["generation_model"] == found.generation_model


@examples(max_examples=60, deadline=None)
@given(flags=some_values(), preset=PRESET, lines=some_values())
def test_settings_survive_the_way_to_a_child_process(
    flags: dict[str, Any], preset: str, lines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
):
    """What `to_env` writes, `handed_over` reads back, whatever a settings file says meanwhile."""
    home = tmp_path_factory.mktemp("parent")
    (home / "config").mkdir()
    file = home / "config" / "config.toml"
    file.write_text(tomlkit.dumps(lines), encoding="utf-8")
    file.chmod(0o600)
    settings = resolve(flags, {}, preset=preset, file=NO_FILE)
    env = {**settings.to_env(), "QMD_REMOTE_HOME": str(home)}
    assert settings == handed_over(env)
    assert {f.metadata["env"] for f in declared()} == set(settings.to_env())


# what a file may not say


def refusal(text: str) -> ConfigError:
    """How a file with this text is refused."""
    with pytest.raises(ConfigError) as caught:
        settings_edit.check(FILE, text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "words", "code"),
    [
        ("port = 1\nprot = 1\n", 2, "did you mean port?", "settings.unknown"),
        ("# c\n\nembed-model = 'x'", 3, "did you mean embed_model?", "settings.unknown"),
        ("generation = 'off'", 1, "did you mean generation_engine?", "settings.unknown"),
        ("QMD_REMOTE_TLS_CERT = 'x'", 1, "did you mean tls_cert?", "settings.unknown"),
        ("trust_remote_code = [\n'a',\n\n'b']\nzzz = 1", 5, "no setting 'zzz'", "settings.unknown"),
        ("device = '''\nport = 1\n'''\nport = 70000", 4, "at most 65535", "config"),
        ("port = 1.5", 1, "a whole number", "config"),
        ("port = true", 1, "port = true: must be a number", "config"),
        ("max_body_mb = inf", 1, "a finite number", "config"),
        ("port = [1]", 1, "one value, not a list", "config"),
        ("embed_model = 5", 1, "must be text, in quotes", "config"),
        ("host = ''", 1, "needs a value", "config"),
        ('tls_key = "a\\u0000b"', 1, "must be text", "config"),
        ("trust_remote_code = [1]", 1, "a list of texts", "config"),
        ("access_log = 2", 1, "1 or 0", "config"),
        ("\nport = 1979-05-27", 2, "text, a number, true or false", "settings.type"),
        ("preset = 'minni'", 1, "did you mean mini?", "config"),
        ("generation_engine = 'externl'", 1, "did you mean external?", "config"),
        ("a = 1\nport = = 2", 2, "no TOML", "settings.toml"),
        ("api_key = 'two words'", 1, "api_key must hold one key", "key.invalid"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(text: str, line: int, words: str, code: str):
    """Who writes the file by hand reads which line is wrong, what is wrong with it, and what was meant."""
    error = refusal(text)
    assert f"line {line}" in error.message
    assert (words in error.message, code) == (True, error.code), error.message


def test_brackets_without_end_are_no_crash():
    """A file that no parser can hold is told like every other mistake."""
    assert "settings.toml" == refusal("port = " + "[" * 100_000).code


def test_a_secret_is_not_in_the_message():
    """A wrong key in the file is told without the key."""
    assert SECRET not in str(refusal(f"api_key = '{SECRET} {SECRET}'").as_dict())


@pytest.mark.parametrize(("mode", "allowed"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_a_key_in_a_file_that_others_can_read_is_refused(mode: int, allowed: bool, tmp_path: Path):
    """A key may stand in the file only when nobody else can read it; the way out is a command."""
    file = tmp_path / "config.toml"
    file.write_text(f"api_key = '{SECRET}'\n", encoding="utf-8")
    file.chmod(mode)
    if allowed:
        assert SECRET == resolve({}, {}, file=settings_file.read(file, names())).key
        return
    with pytest.raises(ConfigError) as caught:
        settings_file.read(file, names())
    assert ("settings.readable", f"chmod 600 {file}") == (caught.value.code, caught.value.hint)


def test_a_file_that_is_no_text_is_told_with_its_line(tmp_path: Path):
    """Bytes that are no UTF-8 are an error that names the line."""
    file = tmp_path / "config.toml"
    file.write_bytes(b"port = 1\n# caf\xe9\n")
    with pytest.raises(ConfigError, match="line 2: this is not UTF-8"):
        settings_file.read(file, names())


def test_a_folder_in_its_place_is_an_error_of_configuration(tmp_path: Path):
    """A settings file that cannot be read is never taken for none."""
    with pytest.raises(ConfigError, match="cannot be read"):
        settings_file.read(tmp_path, names())


# which bytes stay


@st.composite
def written_files(draw: st.DrawFn) -> str:
    """A file as people write them, with comments, blank lines, their own spacing and line ends."""
    space, comment = st.sampled_from(["", " ", "   ", "\t"]), st.text("abc #='\"[]é\t", max_size=12)
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    lines = draw(st.lists(st.one_of(st.just(""), space, comment.map("# {}".format)), max_size=4))
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        value = draw(values_of(FIELDS[name]))
        literal = tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string()
        key = draw(st.sampled_from([name, f'"{name}"', f"'{name}'"]))
        tail = draw(st.one_of(st.just(""), comment.map(" # {}".format)))
        lines.append(f"{draw(space)}{key}{draw(space)}={draw(space)}{literal}{draw(space)}{tail}")
        lines += draw(st.lists(st.one_of(st.just(""), comment.map("#{}".format)), max_size=2))
    return newline.join(lines) + draw(st.sampled_from(["", newline]))


def by_name(text: str) -> dict[str, str]:
    """The lines that hold settings, by name."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return {name: line for line in lines for name in tomllib.loads(line)}


@examples(max_examples=200, deadline=None)
@given(file=written_files(), name=NAMES, data=st.data())
def test_setting_a_value_changes_its_line_alone(file: str, name: str, data: st.DataObject):
    """Every other byte stays: comments, also that of the line itself, order, spacing, quotes and line ends."""
    text = file
    value = data.draw(values_of(FIELDS[name]))
    native = list(value) if isinstance(value, tuple) else value
    after = settings_edit.with_values(text, {name: native})
    before_lines, lines = by_name(text), by_name(after)
    new = lines.pop(name)
    old = before_lines.pop(name, None)
    assert native == tomllib.loads(new)[name]
    assert before_lines == lines
    assert list(before_lines) == list(lines)
    if old is not None:
        # all of the line but its value
        assert after.replace(new, old, 1) == text
    else:
        end = "\r\n" if "\r\n" in text else "\n"
        assert after.replace(f"{new}{end}", "", 1) in {text, f"{text}{end}"}
    assert ("\r\n" in text) <= (after.count("\n") == after.count("\r\n"))
    assert after == settings_edit.with_values(after, {name: native})


@examples(max_examples=200, deadline=None)
@given(file=written_files(), data=st.data())
def test_taking_a_setting_out_removes_its_line_alone(file: str, data: st.DataObject):
    """`unset` takes the line and leaves every other, in order."""
    text = file
    assume(by_name(text))
    name = data.draw(st.sampled_from(sorted(by_name(text))))
    kept = [line for line in text.split("\n") if name not in tomllib.loads(line.removesuffix("\r"))]
    after = settings_edit.without(text, [name]).split("\n")
    assert "\n".join(kept).rstrip("\r\n") == "\n".join(after).rstrip("\r\n")


@examples(max_examples=100, deadline=None)
@given(values=some_values())
def test_what_is_set_is_read_back(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory):
    """A value goes from the command line into the file and comes back the same, as the type that it has."""
    values.pop("api_key", None)
    values.pop("device", None)
    path = tmp_path_factory.mktemp("set") / "config.toml"
    words = [f"{name}={as_text(value)}" for name, value in values.items()]
    assume(words)
    # what is a local file or folder here would be stored in full
    parts = [part for word in words for part in word.split("=", 1)[1].split(",")]
    assume(not any(part.startswith("~") or (part and Path(part).exists()) for part in parts))
    asked = settings_edit.read_pairs(words)
    assert set(values) == set(settings_edit.store(path, asked))
    found = resolve({}, {}, file=settings_file.read(path, names()))
    assert values == {name: getattr(found, name) for name in values}
    before = path.read_bytes()
    assert () == settings_edit.store(path, asked)
    assert before == path.read_bytes()
    assert set(values) == set(settings_edit.remove(path, list(values)))
    assert b"" == path.read_bytes().strip()
