"""`config … --client`, `--print-env` and `--openclaw-agent`: every family of QMD's clients gets its own form."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmd_remote.client.families import FAMILIES, Family

Run = Callable[..., Any]
WITH_YAML = [family for family in FAMILIES if family.file == "yaml" and family.name != "chronologos"]
WITH_VARIABLES = [family for family in FAMILIES if family.variables and family.served]
BEFORE = "# mine\ncollections:\n  notes:\n    path: ~/notes   # all of them\n"
SECRET = "s3cret-of-the-box"


def named(family: Family) -> str:
    """How a case is called."""
    return family.name


@pytest.fixture
def file(cli_home: Path) -> Path:
    """QMD's file, with a comment and a collection."""
    path = cli_home / "qmd" / "index.yml"
    path.parent.mkdir()
    path.write_text(BEFORE, encoding="utf-8")
    return path


@pytest.fixture
def agents(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OpenClaw's folder with two agents that have a QMD, and one that has none."""
    home = cli_home / "openclaw"
    for name in ("main", "work"):
        (home / "agents" / name / "qmd").mkdir(parents=True)
    (home / "agents" / "idle").mkdir()
    monkeypatch.setenv("OPENCLAW_STATE_DIR", str(home))
    return home / "agents"


def of_agent(agents: Path, name: str) -> Path:
    """The file of an agent's QMD."""
    return agents / name / "qmd" / "xdg-config" / "qmd" / "index.yml"


@pytest.mark.parametrize("family", WITH_YAML, ids=named)
def test_write_check_and_remove(family: Family, qmd_remote: Run, file: Path, stand_in: Run):
    """The box is written, found right, and taken out again; of what was there before not one byte changes."""
    server = stand_in()
    line = ("--client", family.name)
    done = qmd_remote("config", "write", *line, "--url", server.url, "--json")
    assert (0, family.name) == (done.code, done.envelope()["data"]["client"])
    written = file.read_text(encoding="utf-8")
    assert written.startswith(BEFORE)
    assert server.url + family.base_path in written
    assert "real/embed" in written or family.base_path == ""
    checked = qmd_remote("config", "check", "--json").envelope()
    assert (0, family.name, True) == (checked["exit_code"], checked["data"]["client"], checked["data"]["asked"])
    assert {"info"} >= {finding["severity"] for finding in checked["data"]["findings"]}
    assert server.url == checked["data"]["embed_url"]
    again = qmd_remote("config", "write", *line, "--url", server.url, "--json").envelope()
    assert not again["data"]["changed"]
    assert 0 == qmd_remote("config", "remove", *line).code
    assert BEFORE == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("client", ["llm-provider", "model-urls", "wei840222"])
def test_a_value_that_gave_way_comes_back(client: str, qmd_remote: Run, file: Path, stand_in: Run):
    """However often the box is written and taken out: the user's own names are back, and every copy is kept."""
    mine = f"{BEFORE}models:\n  embed: hf:x/y\n  generate: hf:g/h\n  mine: z\n"
    file.write_text(mine, encoding="utf-8")
    for _ in range(2):
        for url in (stand_in().url, stand_in().url):
            assert 0 == qmd_remote("config", "write", "--client", client, "--url", url).code
            assert "embed: hf:x/y" not in file.read_text(encoding="utf-8")
        done = qmd_remote("config", "remove", "--client", client)
        assert (0, True) == (done.code, "models.embed" in done.stderr)
        assert f"{file}.bak" in done.stderr.replace("\n", "")
        assert yaml.safe_load(mine) == yaml.safe_load(file.read_text(encoding="utf-8"))
    assert mine == file.with_name("index.yml.bak").read_text(encoding="utf-8")


def test_the_json_file(qmd_remote: Run, cli_home: Path, stand_in: Run, monkeypatch: pytest.MonkeyPatch):
    """It lies in QMD's cache folder; what else it holds stays as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cli_home / "cache"))
    path = cli_home / "cache" / "qmd" / "config.json"
    path.parent.mkdir(parents=True)
    before = '{\n    "other": {"a": 1}\n}\n'
    path.write_text(before, encoding="utf-8")
    server = stand_in()
    line = ("--client", "olyashok")
    assert f"{path}\n" == qmd_remote("config", "path", *line).stdout
    assert 0 == qmd_remote("config", "write", *line, "--url", server.url).code
    wanted = {"embedUrl": server.url, "rerankUrl": server.url, "generateUrl": server.url, "generateModel": "real/first"}
    assert {"other": {"a": 1}, "remote": wanted} == json.loads(path.read_text(encoding="utf-8"))
    checked = qmd_remote("config", "check", *line, "--json").envelope()
    assert (0, server.url) == (checked["exit_code"], checked["data"]["generation_url"])
    assert 0 == qmd_remote("config", "check", "--file", path).code
    assert 0 == qmd_remote("config", "remove", *line).code
    assert {"other": {"a": 1}} == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", WITH_VARIABLES, ids=named)
def test_variables_for_a_shell(family: Family, qmd_remote: Run, stand_in: Run, monkeypatch: pytest.MonkeyPatch):
    """A shell that reads the lines has each variable, the key through the one that holds it; nothing is written."""
    takes_key = any(template == "{key}" for _, template in family.variables)
    server = stand_in(key=SECRET if takes_key else "")
    monkeypatch.setenv("BOX_KEY", SECRET)
    line = ("config", "write", "--client", family.name, "--url", server.url, "--print-env")
    named_key = ("--api-key-env", "BOX_KEY")
    done = qmd_remote(*line, *(named_key if takes_key else ()))
    assert 0 == done.code
    if not takes_key:
        assert 4 == qmd_remote(*line, *named_key).code
    assert SECRET not in done.stdout + done.stderr
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{done.stdout}\nenv"], env={"BOX_KEY": SECRET}, capture_output=True, text=True, check=True
    )
    found = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    wanted = {name for name, _ in family.variables}
    assert wanted <= set(found)
    for name, template in family.variables:
        if template == "{key}":
            assert SECRET == found[name]
        if "_url}" in template:
            assert server.url + family.base_path == found[name]


def test_a_family_without_a_file_is_told_the_way(qmd_remote: Run, file: Path):
    """`write`, `check` and `remove` name the option that prints its variables."""
    for command in ("write", "remove", "check"):
        done = (
            qmd_remote("config", command, "--client", "pr575", "--url", "http://b:1")
            if command == "write"
            else (qmd_remote("config", command, "--client", "pr575"))
        )
        assert (2, True) == (done.code, "--client remote-urls --print-env" in done.stderr)
    assert BEFORE == file.read_text(encoding="utf-8")


def test_a_family_with_a_file_only_has_no_variables(qmd_remote: Run, file: Path):
    """--print-env names the command that writes its file, and asks no server before it does."""
    done = qmd_remote("config", "write", "--client", "pr619", "--url", "http://b:1", "--print-env")
    assert (2, "") == (done.code, done.stdout)
    assert "warning" not in done.stderr
    assert "qmd-remote config write --client llm-provider" in done.stderr.replace("\n", " ")


def test_a_protocol_that_is_not_served_is_refused(qmd_remote: Run, file: Path):
    """No file and no variable points such a client to a server that cannot answer it."""
    for more in ([], ["--print-env"]):
        done = qmd_remote("config", "write", "--client", "#511", "--url", "http://b:1", *more, "--json")
        assert (4, "client.not_served") == (done.code, done.envelope()["error"]["code"])


def test_an_unknown_family(qmd_remote: Run, file: Path):
    """The error repeats it, and lists the names and their aliases."""
    done = qmd_remote("config", "write", "--client", "acme", "--url", "http://b:1")
    assert (2, True) == (done.code, "'acme'" in done.stderr)
    assert all(name in done.stderr for family in FAMILIES for name in (family.name, *family.aliases))


# the key


def test_a_key_gets_into_a_file_only_as_itself_and_when_asked_for(
    qmd_remote: Run, file: Path, stand_in: Run, monkeypatch: pytest.MonkeyPatch
):
    """Without --api-key-literal it stays out, and the user is told so; with it the file is private."""
    monkeypatch.setenv("BOX_KEY", SECRET)
    line = ("config", "write", "--client", "pr619", "--url", stand_in(key=SECRET).url, "--api-key-env", "BOX_KEY")
    done = qmd_remote(*line, "--json")
    assert (0, True) == (done.code, "no key was written" in done.envelope()["warnings"][-1]["message"])
    assert "apiKey" not in file.read_text(encoding="utf-8")
    done = qmd_remote(*line, "--api-key-literal", "--diff")
    assert (0, False) == (done.code, SECRET in done.stdout + done.stderr)
    assert SECRET == yaml.safe_load(file.read_text(encoding="utf-8"))["llm"]["apiKey"]
    assert 0o600 == file.stat().st_mode & 0o777


def test_a_client_without_a_place_for_a_key(qmd_remote: Run, cli_home: Path, stand_in: Run):
    """It could not reach such a server, so nothing is written."""
    path = cli_home / "config.json"
    done = qmd_remote("config", "write", "--client", "325", "--url", stand_in(key=SECRET).url, "--file", path, "--json")
    assert (4, "client.no_key") == (done.code, done.envelope()["error"]["code"])
    assert not path.exists()


@pytest.mark.parametrize("line", [("ollama", "--print-env"), ("remote-mode", "--print-env"), ("model-urls",)])
def test_a_key_that_a_client_has_no_place_for(line: tuple[str, ...], qmd_remote: Run, file: Path, nobody: str):
    """The option is what is refused: a server that nobody reached wants nothing."""
    done = qmd_remote("config", "write", "--url", nobody, "--api-key-env", "K", "--json", "--client", *line)
    error = done.envelope()["error"]
    assert (4, "client.no_key", []) == (done.code, error["code"], done.envelope()["warnings"])
    assert "--api-key-env cannot be used" in error["message"]
    assert "server wants" not in error["message"]
    assert BEFORE == file.read_text(encoding="utf-8")


# URLs


def test_without_urls_those_of_the_file_stay(qmd_remote: Run, file: Path, nobody: str):
    """A box that does not answer now stays the box."""
    line = ("config", "write", "--client", "pr705")
    assert 0 == qmd_remote(*line, "--embed-url", nobody, "--generation-url", "http://127.0.0.1:1").code
    done = qmd_remote(*line, "--json")
    assert (0, False) == (done.code, done.envelope()["data"]["changed"])
    found = yaml.safe_load(file.read_text(encoding="utf-8"))["models"]
    assert (f"{nobody}/v1", "http://127.0.0.1:1/v1") == (found["embed_api_url"], found["expand_api_url"])


def test_one_url_where_there_is_room_for_one(qmd_remote: Run, file: Path, nobody: str):
    """Two are refused, and the way out is named."""
    line = ("config", "write", "--client", "pr619", "--embed-url", nobody)
    done = qmd_remote(*line, "--generation-url", "http://127.0.0.1:1")
    assert (2, True) == (done.code, "--url" in done.stderr)
    assert 0 == qmd_remote(*line).code
    assert f"{nobody}/v1" == yaml.safe_load(file.read_text(encoding="utf-8"))["llm"]["baseUrl"]


# checking


def test_the_family_shows_in_the_file(qmd_remote: Run, file: Path, nobody: str):
    """`config check` names it, says where what goes, and what is wrong with its line."""
    file.write_text(f"models:\n  embed: {nobody}#acme/embed\n", encoding="utf-8")
    done = qmd_remote("config", "check", "--offline")
    assert 4 == done.code
    assert "for model-urls" in done.stdout
    assert f"embedding to {nobody}" in done.stdout
    assert "line 2" in done.stdout and "/v1" in done.stdout


def test_a_file_for_two_families(qmd_remote: Run, file: Path, nobody: str):
    """The one with the `remote:` block is judged, the other one is told of, and --client judges that."""
    assert 0 == qmd_remote("config", "write", "--url", nobody).code
    assert 0 == qmd_remote("config", "write", "--client", "pr705", "--url", nobody).code
    data = qmd_remote("config", "check", "--offline", "--json").envelope()["data"]
    assert ("chronologos", ["client.other"]) == (data["client"], [one["code"] for one in data["findings"]])
    data = qmd_remote("config", "check", "--client", "pr705", "--offline", "--json").envelope()["data"]
    assert "api-urls" == data["client"]


def test_a_broken_json_file(qmd_remote: Run, cli_home: Path):
    """The line is named, and nothing is written into it."""
    path = cli_home / "config.json"
    path.write_text('{\n  "remote": {,}\n}\n', encoding="utf-8")
    done = qmd_remote("config", "check", "--file", path, "--json")
    assert (4, 2) == (done.code, done.envelope()["data"]["findings"][0]["line"])
    done = qmd_remote("config", "write", "--client", "olyashok", "--url", "http://b:1", "--file", path)
    assert (4, True) == (done.code, "line 2" in done.stderr)
    assert '{\n  "remote": {,}\n}\n' == path.read_text(encoding="utf-8")


# OpenClaw


def test_every_agent(qmd_remote: Run, agents: Path, stand_in: Run):
    """`all` writes, checks and clears the file of each agent that has a QMD."""
    server = stand_in()
    line = ("--openclaw-agent", "all", "--json")
    done = qmd_remote("config", "write", "--url", server.url, *line)
    wanted = [of_agent(agents, "main"), of_agent(agents, "work")]
    assert wanted == [Path(one["path"]) for one in done.envelope()["data"]["files"]]
    assert all(server.url == yaml.safe_load(path.read_text(encoding="utf-8"))["remote"]["url"] for path in wanted)
    assert not (agents / "idle" / "qmd").exists()
    checked = qmd_remote("config", "check", *line).envelope()
    assert ["agent main", "agent work"] == [one["chosen_by"] for one in checked["data"]["files"]]
    assert (0, True) == (checked["exit_code"], all(one["asked"] for one in checked["data"]["files"]))
    assert 0 == qmd_remote("config", "remove", *line).code
    assert all("remote" not in path.read_text(encoding="utf-8") for path in wanted)


def test_one_agent(qmd_remote: Run, agents: Path, nobody: str):
    """Only its file is written, and hints name that file."""
    assert 0 == qmd_remote("config", "write", "--url", nobody, "--openclaw-agent", "work").code
    path = of_agent(agents, "work")
    assert (True, False) == (path.exists(), of_agent(agents, "main").exists())
    path.write_text("remote:\n", encoding="utf-8")
    done = qmd_remote("config", "check", "--openclaw-agent", "work")
    assert (4, True) == (done.code, f"config write --file {path}" in done.stderr)
    assert f"{path}\n" == qmd_remote("config", "path", "--openclaw-agent", "work").stdout


def test_one_file_of_several_that_cannot_be_edited(qmd_remote: Run, agents: Path, nobody: str):
    """Nothing is written to any of them."""
    of_agent(agents, "work").parent.mkdir(parents=True)
    of_agent(agents, "work").write_text("a: 1\na: 2\n", encoding="utf-8")
    done = qmd_remote("config", "write", "--url", nobody, "--openclaw-agent", "all")
    assert (4, False) == (done.code, of_agent(agents, "main").exists())


@pytest.mark.parametrize(
    "line", [("idle",), ("../work",), ("all", "--file", "x.yml"), ("work", "--client", "olyashok")]
)
def test_agents_that_are_not_meant(qmd_remote: Run, agents: Path, line: tuple[str, ...]):
    """One without a QMD, one that is none, and options that name another file: each is refused with a way out."""
    done = qmd_remote("config", "write", "--url", "http://b:1", "--openclaw-agent", *line)
    assert (done.code in {2, 4}, 2) == (True, len(done.stderr.strip().splitlines()))


def test_no_openclaw(qmd_remote: Run, cli_home: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder that was looked at is named."""
    monkeypatch.setenv("OPENCLAW_STATE_DIR", str(cli_home / "none"))
    done = qmd_remote("config", "write", "--url", "http://b:1", "--openclaw-agent", "all")
    assert (4, True) == (done.code, str(cli_home / "none" / "agents") in done.stderr)
