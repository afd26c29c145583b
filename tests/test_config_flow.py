"""`config write`, `show` and `path`: which block is written, from whom its values come, and what is never shown."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmd_remote import config_flow
from qmd_remote.client.remote_block import KEEP, RemoteBlock
from qmd_remote.errors import UsageError
from qmd_remote.output import Output
from qmd_remote.presets import DESIGN_EMBED, DESIGN_GENERATION, DESIGN_RERANK
from qmd_remote.services import EMBED, GENERATION

Run = Callable[..., Any]
KEY = "s3cret-of-the-test"
DESIGN = {"embed": DESIGN_EMBED, "generate": DESIGN_GENERATION, "rerank": DESIGN_RERANK}
REAL = {"embed": "real/embed", "generate": "real/first", "rerank": "real/rerank"}


@pytest.fixture
def file(cli_home: Path) -> Path:
    """QMD's file; its folder exists."""
    path = cli_home / "qmd" / "index.yml"
    path.parent.mkdir()
    return path


@pytest.fixture
def block(cli_home: Path) -> Callable[..., tuple[RemoteBlock, list[str]]]:
    """The block that would be written, and the warnings, for what the test names."""

    def call(**given: Any) -> tuple[RemoteBlock, list[str]]:
        out = Output("config write", as_json=True)
        nothing = {"url": None, "embed_url": None, "generation_url": None, "key_variable": None, "literal": False}
        wanted = config_flow.wanted_block(out, **{**nothing, **given})
        return wanted, [warning["message"] for warning in out.warnings]

    return call


def remote(path: Path) -> Any:
    """The block in a file, by an independent parser."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["remote"]


# which block


def test_the_running_services_are_written(qmd_remote: Run, runs: Run, stand_in: Run, file: Path):
    """Without URLs that of the running embed server is written, which passes generation on, with the names it gives."""
    embed = stand_in()
    runs(EMBED, embed.url)
    runs(GENERATION, stand_in().url)
    done = qmd_remote("config", "write", "--json")
    said = done.envelope()
    assert (0, [], True, True) == (done.code, said["warnings"], said["data"]["written"], said["data"]["created"])
    assert {"url": embed.url, "models": REAL} == remote(file)


def test_nobody_answers(block: Run, nobody: str):
    """The design's names are written then, both services are warned about, and the key is left as it is."""
    wanted, warnings = block(embed_url=nobody, generation_url=nobody)
    assert (DESIGN, KEEP) == (vars(wanted.models), wanted.api_key)
    assert 2 == len(warnings)
    assert nobody in warnings[0] and "design" in warnings[0]


@pytest.mark.parametrize(
    ("host", "words"), [("127.0.0.1", "qmd-remote up"), ("box.invalid", "start it on box.invalid")]
)
def test_a_silent_server_is_started_where_it_is(qmd_remote: Run, file: Path, stand_in: Run, host: str, words: str):
    """The hint of the warning speaks of this machine only where it is meant."""
    done = qmd_remote("config", "write", "--url", f"http://{host}:9", "--dry-run", "--json")
    assert words in done.envelope()["warnings"][0]["hint"]


def test_one_url_for_all(block: Run, stand_in: Run):
    """--url is written as QMD's `url`, without the /v1 that QMD adds."""
    server = stand_in()
    wanted, warnings = block(url=server.url + "/v1/")
    assert (server.url, None, None, []) == (wanted.url, wanted.embed_url, wanted.generation_url, warnings)


@pytest.mark.parametrize("given", ["embed_url", "generation_url"])
def test_one_of_two_urls_is_warned_about(block: Run, stand_in: Run, given: str):
    """QMD needs both, so the other one is the local one, and the warning names it."""
    wanted, warnings = block(**{given: stand_in().url})
    default = {"embed_url": "http://127.0.0.1:8000", "generation_url": "http://127.0.0.1:8001"}[given]
    assert any("both URLs" in text and default in text for text in warnings)
    assert default == (wanted.generation_url if given == "embed_url" else wanted.embed_url)


def test_generation_that_is_off_changes_nothing(block: Run, runs: Run, stand_in: Run):
    """The one URL stands for it, too, and says then that it is off."""
    server = stand_in()
    runs(EMBED, server.url, beside={"engine": "off", "url": ""})
    wanted, _ = block()
    assert (server.url, None, None) == (wanted.url, wanted.embed_url, wanted.generation_url)


@pytest.mark.parametrize(
    "given",
    [
        {"url": "http://a", "embed_url": "http://b"},
        {"url": "http://a", "generation_url": "http://b"},
        {"url": "a:80"},
        {"embed_url": "http://a?x=1"},
    ],
)
def test_contradicting_or_unusable_urls(block: Run, given: dict[str, str]):
    """They are refused as usage errors."""
    with pytest.raises(UsageError):
        block(**given)


# which key


def test_a_server_that_needs_a_key_gets_a_reference(block: Run, stand_in: Run, monkeypatch: pytest.MonkeyPatch):
    """A 401 without the key writes ${QMD_REMOTE_API_KEY}; with its value here, the real names are learnt."""
    server = stand_in(key=KEY)
    wanted, warnings = block(url=server.url)
    assert ("${QMD_REMOTE_API_KEY}", DESIGN) == (wanted.api_key, vars(wanted.models))
    assert "with a key only" in warnings[0]
    monkeypatch.setenv("QMD_REMOTE_API_KEY", KEY)
    wanted, warnings = block(url=server.url)
    assert ("${QMD_REMOTE_API_KEY}", REAL, []) == (wanted.api_key, vars(wanted.models), warnings)


def test_a_server_that_needs_no_key_loses_it(block: Run, stand_in: Run):
    """A server that answers without a key has its key removed from the file, unless a variable is named."""
    server = stand_in()
    assert None is block(url=server.url)[0].api_key
    assert "${BOX_KEY}" == block(url=server.url, key_variable="BOX_KEY")[0].api_key


def test_a_named_variable_is_referred_to_and_used(block: Run, stand_in: Run, monkeypatch: pytest.MonkeyPatch):
    """--api-key-env NAME is written as ${NAME}, and its value asks the server, not QMD_REMOTE_API_KEY's."""
    monkeypatch.setenv("QMD_REMOTE_API_KEY", "another")
    monkeypatch.setenv("BOX_KEY", KEY)
    server = stand_in(key=KEY)
    wanted, _ = block(url=server.url, key_variable="BOX_KEY")
    assert ("${BOX_KEY}", REAL) == (wanted.api_key, vars(wanted.models))
    assert "another" not in server.keys_sent


@pytest.mark.parametrize("name", ["my-own-key", "1KEY", "$KEY"])
def test_a_name_that_qmd_cannot_look_up_is_refused(block: Run, nobody: str, name: str):
    """QMD fills in ${NAME} for proper names only, and the key itself, given by mistake, is not repeated."""
    with pytest.raises(UsageError, match="--api-key-env") as caught:
        block(url=nobody, key_variable=name)
    assert name not in caught.value.message + caught.value.hint


def test_a_literal_key_makes_the_file_private(qmd_remote: Run, file: Path, nobody: str):
    """--api-key-literal copies the key, sets mode 0600, and shows the key nowhere."""
    file.write_text("collections: {}\n", encoding="utf-8")
    file.chmod(0o644)
    done = qmd_remote(
        "config", "write", "--url", nobody, "--api-key-literal", "--api-key-env", "BOX_KEY", "--diff", BOX_KEY=KEY
    )
    assert (0, KEY, 0o600) == (done.code, remote(file)["api_key"], stat.S_IMODE(file.stat().st_mode))
    assert KEY not in done.stdout + done.stderr


def test_a_key_is_kept_where_nobody_says_whether_it_is_needed(qmd_remote: Run, file: Path, nobody: str):
    """A server that is down does not cost the file its key."""
    file.write_text("remote:\n  url: http://old\n  api_key: ${OLD_KEY}  # mine\n", encoding="utf-8")
    assert 0 == qmd_remote("config", "write", "--url", nobody).code
    assert (nobody, "${OLD_KEY}") == (remote(file)["url"], remote(file)["api_key"])


# writing


def test_a_dry_run_writes_nothing_and_shows_the_change(qmd_remote: Run, file: Path, nobody: str):
    """--dry-run shows the diff on stdout and leaves no file."""
    done = qmd_remote("config", "write", "--url", nobody, "--dry-run")
    assert (0, []) == (done.code, list(file.parent.iterdir()))
    assert f"+  url: {nobody}\n" in done.stdout
    data = qmd_remote("config", "write", "--url", nobody, "--dry-run", "--json").envelope()["data"]
    assert (True, False, done.stdout) == (data["changed"], data["written"], data["diff"])


def test_only_the_diff_is_on_stdout(qmd_remote: Run, file: Path, nobody: str):
    """--diff prints the change and makes it; without it stdout stays empty."""
    done = qmd_remote("config", "write", "--url", nobody, "--diff")
    assert done.stdout.startswith("--- /dev/null\n")
    assert nobody == remote(file)["url"]
    assert "" == qmd_remote("config", "write", "--url", nobody).stdout


def test_a_second_write_changes_no_byte(qmd_remote: Run, file: Path, stand_in: Run):
    """Writing is idempotent, keeps everything outside the block, and backs up only what it changes."""
    text = "# mine\ncollections:\n  notes: {path: '~/n'}   # odd\n"
    file.write_text(text, encoding="utf-8")
    server = stand_in()
    assert 0 == qmd_remote("config", "write", "--url", server.url).code
    written = file.read_bytes()
    assert text in written.decode()
    assert text == file.with_name("index.yml.bak").read_text(encoding="utf-8")
    data = qmd_remote("config", "write", "--url", server.url, "--json").envelope()["data"]
    assert (False, False, None, "") == (data["changed"], data["written"], data["backup"], data["diff"])
    assert written == file.read_bytes()


def test_another_index_or_another_file(qmd_remote: Run, cli_home: Path, nobody: str):
    """--index names a file of QMD's folder, --file any file."""
    assert 0 == qmd_remote("config", "write", "--url", nobody, "--index", "work").code
    assert 0 == qmd_remote("config", "write", "--url", nobody, "--file", cli_home / "own.yml").code
    assert nobody == remote(cli_home / "qmd" / "work.yml")["url"] == remote(cli_home / "own.yml")["url"]


# show and path


def test_show_a_block(qmd_remote: Run, file: Path):
    """URLs, key reference and models as QMD reads them; a variable without a value is a warning."""
    file.write_text("remote:\n  url: http://h:1\n  api_key: ${BOX_KEY}\n  models: {embed: a/b}\n", encoding="utf-8")
    done = qmd_remote("config", "show", "--json")
    said = done.envelope()
    assert ("http://h:1", "http://h:1", "${BOX_KEY}", "a/b", ["BOX_KEY"]) == (
        said["data"]["embed_url"],
        said["data"]["generation_url"],
        said["data"]["api_key"],
        said["data"]["models"]["embed"],
        said["data"]["unset_variables"],
    )
    assert "BOX_KEY" in said["warnings"][0]["message"]
    assert KEY not in qmd_remote("config", "show", BOX_KEY=KEY).stdout


@pytest.mark.parametrize("text", ["", "collections: {}\n", "remote:\n", "remote:\n  embed_url: http://h:1\n"])
def test_show_without_a_block_that_qmd_would_use(qmd_remote: Run, file: Path, text: str):
    """A file without a whole block is exit code 4: QMD stays with local models."""
    file.write_text(text, encoding="utf-8")
    done = qmd_remote("config", "show", "--json")
    assert (4, "config_file.incomplete") == (done.code, done.envelope()["error"]["code"])


@pytest.mark.parametrize("json_mode", [[], ["--json"]])
def test_passwords_and_keys_are_never_shown(qmd_remote: Run, file: Path, nobody: str, json_mode: list[str]):
    """Neither show nor write's diff shows user:password@ or a literal key."""
    file.write_text(f"remote:\n  url: http://user:hunter2@h:1\n  api_key: {KEY}\n", encoding="utf-8")
    shown = qmd_remote("config", "show", *json_mode)
    diff = qmd_remote("config", "write", "--url", nobody, "--dry-run", *json_mode)
    assert "http://h:1" in shown.stdout and "-  url: http://(hidden)@h:1" in diff.stdout
    for done in (shown, diff):
        assert "hunter2" not in done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr


def test_the_path(qmd_remote: Run, file: Path):
    """It is printed bare, whether the file exists or not."""
    assert f"{file}\n" == qmd_remote("config", "path").stdout
    said = qmd_remote("config", "path", "--index", "work", "--json").envelope()
    assert {"path": str(file.with_name("work.yml")), "exists": False} == said["data"]


def test_without_urls_another_machines_urls_stay(qmd_remote: Any, cli_home: Path, nobody: str):
    """Where nothing runs here, `config write` keeps the URL, the key and the names of the block that is there."""
    assert 0 == qmd_remote("config", "write", "--url", nobody, "--api-key-env", "BOX_KEY").code
    path = cli_home / "qmd" / "index.yml"
    path.write_text(path.read_text().replace("Qwen/Qwen2.5-3B-Instruct", "some/model"), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    assert "some/model" in before
    assert 0 == qmd_remote("config", "write").code
    assert before == path.read_text(encoding="utf-8")
