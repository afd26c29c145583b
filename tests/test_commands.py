"""What `test` tests, and with which key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import commands
from qmd_remote.client import qmd_config
from qmd_remote.client.checks import Target
from qmd_remote.errors import ConfigError, NotRunning, UsageError
from qmd_remote.output import Output
from qmd_remote.reach import require_safe_bind
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings

Run = Callable[..., Any]
LOCAL, OTHER = "http://127.0.0.1:7001", "http://127.0.0.1:7000"


@pytest.fixture
def find(cli_home: Path) -> Callable[..., Target]:
    """find_target with nothing given but what the test names; QMD's file is `qmd/index.yml`."""

    def call(**given: Any) -> Target:
        nothing = {"url": None, "embed_url": None, "generation_url": None, "api_key": None}
        return commands.find_target(**{**nothing, "config_file": cli_home / "qmd" / "index.yml", **given})

    return call


@pytest.fixture
def config(cli_home: Path) -> Callable[[str], Path]:
    """Write QMD's file."""

    def write(text: str) -> Path:
        path = cli_home / "qmd" / "index.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def urls(target: Target) -> tuple[str | None, str | None]:
    """Both places that a target names."""
    return target.embed_url, target.generation_url


# which services


def test_flags_come_before_config_and_config_before_what_runs(find: Run, config: Run, runs: Run):
    """URLs of the command line win over QMD's file, and that wins over running services."""
    runs(EMBED, LOCAL)
    runs(GENERATION, OTHER)
    assert (LOCAL, LOCAL) == urls(find())
    config("remote:\n  embed_url: http://c:1\n  generation_url: http://c:2\n")
    assert ("http://c:1", "http://c:2") == urls(find())
    flagged = find(embed_url="http://f:1/v1/")
    assert ("http://f:1", None) == urls(flagged)
    assert "--generation-url" in flagged.generation_reason


def test_nothing_to_test(find: Run, config: Run):
    """Neither URLs nor a remote block nor a running service: not running, also where QMD's file has other things."""
    config("collections: {}\n")
    with pytest.raises(NotRunning) as caught:
        find()
    assert "qmd-remote up" in caught.value.hint


@pytest.mark.parametrize("other", ["embed_url", "generation_url"])
def test_one_url_for_both_and_one_for_each_contradict(find: Run, other: str):
    """--url stands for both services."""
    with pytest.raises(UsageError):
        find(url=LOCAL, **{other: OTHER})


@pytest.mark.parametrize("spelt", [LOCAL, "http://localhost:7001/v1", "http://[::1]:7001/"])
def test_the_url_of_the_local_server_knows_generation_behind_it(find: Run, runs: Run, spelt: str):
    """--url with any name of this machine's embed server tests generation behind that door, of which more is known."""
    runs(EMBED, LOCAL)
    runs(GENERATION, OTHER, program="transformers", model="its/model")
    target = find(url=spelt)
    assert qmd_config.normalise_url(spelt) == target.embed_url == target.generation_url
    assert (False, "its/model") == (target.generation_constrained, target.models.generate)


def test_generation_alone_is_asked_at_its_own_port(find: Run, runs: Run):
    """Where no embed server runs there is no door that passes requests on."""
    runs(GENERATION, OTHER)
    assert OTHER == find().generation_url


def test_any_other_url_answers_for_everything(find: Run, runs: Run):
    """--url of a server that is not ours is asked for generation too."""
    runs(EMBED, LOCAL)
    assert ("http://box:7001", "http://box:7001") == urls(find(url="http://box:7001"))
    assert ("http://127.0.0.1:9", "http://127.0.0.1:9") == urls(find(url="http://127.0.0.1:9/"))


def test_generation_that_is_off_is_skipped_with_a_reason(find: Run, runs: Run):
    """A running server whose generation is off gives a target without generation."""
    runs(EMBED, LOCAL, beside={"engine": "off", "url": ""})
    target = find()
    assert (None, "generation is off") == (target.generation_url, target.generation_reason)


def test_a_block_that_qmd_ignores_is_an_error(find: Run, config: Run):
    """With one URL only QMD uses local models: testing anything else would hide that."""
    config("remote:\n  embed_url: http://c:1\n")
    with pytest.raises(ConfigError, match="generation_url") as caught:
        find()
    assert caught.value.code == "config.incomplete"


def test_what_the_engine_can_do_is_known_where_config_names_our_own(find: Run, config: Run, runs: Run):
    """The config's generation URL is ours under another name of loopback; elsewhere the engine is not known."""
    runs(GENERATION, OTHER, program="vllm")
    config("remote:\n  embed_url: http://c:1\n  generation_url: http://localhost:7000\n")
    assert find().generation_constrained is True
    config("remote:\n  embed_url: http://c:1\n  generation_url: http://c:7000\n")
    assert find().generation_constrained is None


# which key


def test_the_configs_urls_get_the_configs_key(find: Run, config: Run, runs: Run, monkeypatch: pytest.MonkeyPatch):
    """QMD sends the key of its file, so the test does, whatever the variable of our own servers holds."""
    monkeypatch.setenv("QMD_REMOTE_API_KEY", "ours")
    monkeypatch.setenv("BOX_KEY", "boxs")
    config("remote:\n  url: http://c:1\n  api_key: ${BOX_KEY}\n")
    assert "boxs" == find().key
    config("remote:\n  url: http://c:1\n")
    assert "" == find().key
    assert "asked" == find(api_key="asked").key


def test_our_own_servers_and_urls_of_flags_get_the_environments_key(
    find: Run, runs: Run, monkeypatch: pytest.MonkeyPatch
):
    """QMD_REMOTE_API_KEY is for the running services and for URLs given; an option's key wins."""
    monkeypatch.setenv("QMD_REMOTE_API_KEY", "ours")
    runs(EMBED, LOCAL)
    assert ["ours", "ours", "ours"] == [find().key, find(url="http://b:1").key, find(embed_url="http://b:1").key]
    assert "asked" == find(url=LOCAL, api_key="asked").key


def test_a_variable_without_a_value_is_named(find: Run, config: Run):
    """QMD would send no key then, and be refused; an option's key makes the variable unnecessary."""
    config("remote:\n  url: http://c:1\n  api_key: ${BOX_KEY}\n")
    with pytest.raises(ConfigError, match="BOX_KEY"):
        find()
    assert "asked" == find(api_key="asked").key


def test_the_key_of_an_option(cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """A variable's name or a file give the key; without either there is none; an unset variable is an error."""
    monkeypatch.setenv("BOX_KEY", "boxs")
    path = cli_home / "key"
    path.write_text("filed\n", encoding="utf-8")
    assert ["boxs", "filed", None] == [
        commands.key_from("BOX_KEY", None),
        commands.key_from(None, path),
        commands.key_from(None, None),
    ]
    for value in ("", None):
        monkeypatch.setenv("BOX_KEY", value) if value is not None else monkeypatch.delenv("BOX_KEY")
        with pytest.raises(ConfigError, match="BOX_KEY"):
            commands.key_from("BOX_KEY", None)


# the command


def test_both_services_are_good(qmd_remote: Run, stand_in: Run):
    """A server that does what QMD needs passes: exit code 0 and no failed row."""
    done = qmd_remote("test", "--url", stand_in().url, "--json")
    data = done.envelope()["data"]
    assert (0, []) == (done.code, [row for row in data["checks"] if row["status"] == "fail"])
    assert data["target"]["with_key"] is False


def test_a_key_in_a_file_opens_the_server(qmd_remote: Run, stand_in: Run, cli_home: Path):
    """--api-key-file is sent; without it the test fails with 1 and the cause."""
    server = stand_in(key="s3cret")
    (cli_home / "key").write_text("s3cret\n", encoding="utf-8")
    assert 0 == qmd_remote("test", "--url", server.url, "--api-key-file", "key").code
    done = qmd_remote("test", "--url", server.url, "--json")
    assert (1, "unauthorized") == (done.code, done.envelope()["error"]["code"])
    assert "s3cret" in server.keys_sent


def test_nobody_answers(qmd_remote: Run, nobody: str):
    """A refused connection is exit code 1 under its own code, with the rows as data; people see a table."""
    done = qmd_remote("test", "--url", nobody, "--json")
    said = done.envelope()
    assert (1, "refused", True) == (done.code, said["error"]["code"], bool(said["data"]["checks"]))
    assert "check" in qmd_remote("test", "--url", nobody).stdout


def test_a_password_in_the_configs_url_is_never_shown(config: Run, nobody: str, capsys: pytest.CaptureFixture[str]):
    """QMD's file may hold user:password@; neither the note nor the envelope repeats it."""
    with_password = nobody.replace("//", "//user:hunter2@")
    for as_json in (False, True):
        out = Output("test", as_json=as_json)
        assert 1 == commands.test(out, Target(embed_url=with_password, generation_url=with_password))
        captured = capsys.readouterr()
        assert "hunter2" not in captured.out + captured.err
        assert nobody in captured.out + captured.err
    assert json.loads(captured.out)["data"]["target"]["embed_url"] == nobody


# up


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "box.example"])
def test_strangers_are_served_only_with_a_key_or_on_demand(host: str):
    """An address other than loopback needs a key, or --insecure-no-auth."""
    with pytest.raises(ConfigError) as caught:
        require_safe_bind(Settings(host=host))
    assert caught.value.exit_code == 4
    require_safe_bind(Settings(host=host, insecure_no_auth=True))
    require_safe_bind(Settings(host=host, api_key="k"))
