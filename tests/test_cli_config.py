"""`config check`, `remove` and `edit` as they are typed: what they say, exit with, leave behind, repeat in hints."""

from __future__ import annotations

import json
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote.output import Output

Run = Callable[..., Any]
KEY = "s3cret-of-the-test"
NAMES = "  models: {embed: real/embed, generate: real/first, rerank: real/rerank}\n"


@pytest.fixture
def file(cli_home: Path) -> Path:
    """QMD's file; its folder exists."""
    path = cli_home / "qmd" / "index.yml"
    path.parent.mkdir()
    return path


def block(url: str, more: str = "") -> str:
    """A file with one URL for all and the stand-in's names."""
    return f"collections: {{}}\nremote:\n  url: {url}\n{more}{NAMES}"


def codes(data: dict[str, Any]) -> list[str]:
    """The codes of the findings."""
    return [finding["code"] for finding in data["findings"]]


# check


def test_nothing_to_correct(qmd_remote: Run, file: Path, stand_in: Run):
    """What `config write` wrote passes: one sentence, no finding, exit code 0."""
    server = stand_in(key=KEY)
    assert 0 == qmd_remote("config", "write", "--url", server.url, QMD_REMOTE_API_KEY=KEY).code
    done = qmd_remote("config", "check", QMD_REMOTE_API_KEY=KEY)
    sentence = f"QMD sends everything to {server.url}, with the key from ${{QMD_REMOTE_API_KEY}}"
    assert (0, [sentence, f"  {file}, chosen by QMD_CONFIG_DIR"]) == (done.code, done.stdout.splitlines())
    assert "nothing to correct" in done.stderr
    assert "@tobilu/qmd from npm has none" in done.stderr
    assert KEY in server.keys_sent


def test_the_envelope(qmd_remote: Run, file: Path, stand_in: Run):
    """--json tells path, verdict, URLs, the key's reference and each finding in full."""
    server = stand_in()
    file.write_text(block(server.url, "  api_key: ${BOX_KEY}\n"), encoding="utf-8")
    said = qmd_remote("config", "check", "--json").envelope()
    finding = {
        "severity": "warning",
        "code": "key.unset",
        "line": 4,
        "message": "`api_key` refers to BOX_KEY, which has no value here; without one QMD sends no key",
        "fix": "export BOX_KEY=… where QMD runs",
    }
    assert None is said["error"]
    assert said["data"] == {
        "path": str(file),
        "client": "chronologos",
        "chosen_by": "QMD_CONFIG_DIR",
        "verdict": "remote",
        "reason": "",
        "embed_url": server.url,
        "generation_url": server.url,
        "api_key": "${BOX_KEY}",
        "asked": True,
        "findings": [finding],
    }


def test_a_file_that_leaves_qmd_local(qmd_remote: Run, file: Path):
    """Exit code 4; problems come first, each with its line and its fix, and hints repeat the file that was named."""
    file.write_text("remote:\n  timeout: 5\n  embed_url: http://box:1\n", encoding="utf-8")
    done = qmd_remote("config", "check", "--file", file)
    lines = done.stdout.splitlines()
    assert 4 == done.code
    assert "QMD uses its local models, because the `remote:` block lacks generation_url" == lines[0]
    assert (f"  {file}, named by --file", "error ", "warning") == (lines[1], lines[2][:6], lines[4][:7])
    assert "line 1: " in lines[2] and f"qmd-remote config write --file {file}" in lines[3]
    assert "line 2: " in lines[4]
    assert done.stderr.rstrip().endswith(f"qmd-remote config check --file {file}")


def test_the_error_of_the_envelope(qmd_remote: Run, file: Path):
    """The first problem is the envelope's error, and the data say the rest."""
    file.write_text("remote:\n  url: http://me:hunter2@box/v1\n  api_key: $X\n", encoding="utf-8")
    done = qmd_remote("config", "check", "--json", "--index", "index")
    said = done.envelope()
    assert (4, "config_check.url.credentials") == (done.code, said["error"]["code"])
    assert ("remote", ["url.credentials", "key.not_expanded"]) == (said["data"]["verdict"], codes(said["data"]))
    assert ("http://box/v1", "(hidden)", False) == tuple(said["data"][k] for k in ("embed_url", "api_key", "asked"))
    assert "hunter2" not in done.stdout + done.stderr


def test_a_server_is_asked(qmd_remote: Run, file: Path, stand_in: Run, nobody: str):
    """A refused key is exit code 1; a service that is down and other names are warnings; --offline asks nobody."""
    server = stand_in(key=KEY)
    file.write_text(block(server.url, "  api_key: ${BOX_KEY}\n"), encoding="utf-8")
    refused = qmd_remote("config", "check", "--json", BOX_KEY="wrong")
    assert (1, ["server.unauthorized"]) == (refused.code, codes(refused.envelope()["data"]))
    assert "wrong" not in refused.stdout

    text = f"remote:\n  embed_url: {server.url}\n  generation_url: {nobody}\n  api_key: ${{BOX_KEY}}\n"
    file.write_text(text + "  models: {embed: other}\n", encoding="utf-8")
    done = qmd_remote("config", "check", "--json", BOX_KEY=KEY)
    assert (0, ["server.refused", "models.differ"]) == (done.code, codes(done.envelope()["data"]))
    server.keys_sent.clear()
    offline = qmd_remote("config", "check", "--json", "--offline", BOX_KEY=KEY).envelope()["data"]
    assert ([], [], False) == (codes(offline), server.keys_sent, offline["asked"])


def test_a_server_without_the_key_that_it_wants(qmd_remote: Run, file: Path, stand_in: Run):
    """A block without a key gets the command that adds one."""
    file.write_text(block(stand_in(key=KEY).url), encoding="utf-8")
    done = qmd_remote("config", "check")
    assert 1 == done.code
    assert "qmd-remote config write --api-key-env NAME" in done.stdout


def test_a_project_file_and_other_indexes(qmd_remote: Run, cli_home: Path, file: Path):
    """A project's file wins where QMD is called without --index; indexes beside this one are mentioned."""
    file.write_text(block("http://127.0.0.1:1"), encoding="utf-8")
    file.with_name("work.yml").write_text("collections: {}\n", encoding="utf-8")
    (cli_home / ".qmd").mkdir()
    (cli_home / ".qmd" / "index.yml").write_text("{}\n", encoding="utf-8")
    done = qmd_remote("config", "check", "--offline")
    assert f"qmd-remote config check --file {cli_home / '.qmd' / 'index.yml'}\n" in done.stdout
    assert "qmd-remote config write --index work\n" in done.stdout
    assert 0 == done.code
    named = qmd_remote("config", "check", "--offline", "--json", "--file", file).envelope()["data"]
    assert [] == named["findings"]
    other = qmd_remote("config", "check", "--offline", "--json", "--index", "work").envelope()
    assert "qmd-remote config write --index work" in other["error"]["hint"]


@pytest.mark.parametrize(
    ("variables", "chosen"),
    [
        ({"QMD_CONFIG_DIR": "", "XDG_CONFIG_HOME": "xdg"}, "XDG_CONFIG_HOME"),
        ({"QMD_CONFIG_DIR": "", "XDG_CONFIG_HOME": "", "HOME": "home"}, "default"),
    ],
)
def test_which_rule_chose_the_file(qmd_remote: Run, cli_home: Path, variables: dict[str, str], chosen: str):
    """The rule is told with the path, also when there is no file."""
    there = {name: value and str(cli_home / value) for name, value in variables.items()}
    data = qmd_remote("config", "check", "--json", **there).envelope()["data"]
    assert (chosen, ["file.missing"]) == (data["chosen_by"], codes(data))


# remove


def test_remove_undoes_write(qmd_remote: Run, file: Path, nobody: str):
    """The old bytes are back, the mode stays, the removed block is in the backup, and a second time does nothing."""
    old = b"# mine\r\ncollections:\r\n  n: {path: '~/n'}   # odd\r\n"
    file.write_bytes(old)
    file.chmod(0o640)
    assert 0 == qmd_remote("config", "write", "--url", nobody).code
    written = file.read_bytes()
    done = qmd_remote("config", "remove", "--diff")
    assert (0, old, 0o640) == (done.code, file.read_bytes(), stat.S_IMODE(file.stat().st_mode))
    assert written == file.with_name("index.yml.bak2").read_bytes()
    assert f"-  url: {nobody}\n" in done.stdout
    assert "local models" in done.stderr
    again = qmd_remote("config", "remove", "--json").envelope()["data"]
    assert (False, False, None, "") == (again["changed"], again["written"], again["backup"], again["diff"])
    assert old == file.read_bytes()


def test_remove_leaves_an_empty_file(qmd_remote: Run, file: Path, nobody: str):
    """A file that only held the block is empty then, which QMD reads as no settings; `write` fills it again."""
    assert 0 == qmd_remote("config", "write", "--url", nobody).code
    written = file.read_bytes()
    assert 0 == qmd_remote("config", "remove").code
    assert b"" == file.read_bytes()
    assert 0 == qmd_remote("config", "write", "--url", nobody).code
    assert written == file.read_bytes()


def test_remove_where_there_is_nothing(qmd_remote: Run, file: Path):
    """No file is nothing to remove, and none is made."""
    done = qmd_remote("config", "remove")
    assert (0, "") == (done.code, done.stdout)
    assert "nothing to remove" in done.stderr
    assert [] == list(file.parent.iterdir())


def test_a_dry_run_removes_nothing(qmd_remote: Run, file: Path):
    """--dry-run shows the diff, without a literal key, and leaves the file."""
    text = f"remote:\n  url: http://box:1\n  api_key: {KEY}\n"
    file.write_text(text, encoding="utf-8")
    done = qmd_remote("config", "remove", "--dry-run")
    assert (0, text) == (done.code, file.read_text(encoding="utf-8"))
    assert "-  api_key: (hidden)\n" in done.stdout and KEY not in done.stdout
    assert not file.with_name("index.yml.bak").exists()


def test_remove_refuses_what_it_cannot_take_out_safely(qmd_remote: Run, file: Path):
    """The refusal names the line, and the file stays."""
    file.write_text("remote: {url: http://box:1}\n", encoding="utf-8")
    done = qmd_remote("config", "remove", "--json")
    assert (4, "config_file.unsafe") == (done.code, done.envelope()["error"]["code"])
    assert "line 1" in done.envelope()["error"]["message"]
    assert "remote: {url: http://box:1}\n" == file.read_text(encoding="utf-8")


# edit


@pytest.fixture
def editor(cli_home: Path) -> Callable[[str], str]:
    """An editor's command line, with a quoted word in it, that writes a text and prints a line."""
    script = cli_home / "my editor.py"
    script.write_text("import sys, pathlib; pathlib.Path(sys.argv[2]).write_text(sys.argv[1]); print('edited')")
    return lambda text: shlex.join([sys.executable, str(script), text])


def test_edit_checks_what_came_of_it(qmd_remote: Run, file: Path, editor: Run):
    """$VISUAL goes before $EDITOR; what it left is checked, and its words stay off the envelope."""
    file.write_text(block("http://127.0.0.1:1"), encoding="utf-8")
    bad = editor("remote: {embed_url: x}\n")
    done = qmd_remote("config", "edit", "--offline", "--json", VISUAL=bad, EDITOR="/no/such/editor")
    assert (4, ["remote.half", "url.no_scheme"]) == (done.code, codes(json.loads(done.stdout)["data"]))
    assert "config edit" == done.envelope()["command"]
    assert "edited" in done.stderr
    done = qmd_remote("config", "edit", "--offline", VISUAL="", EDITOR=editor(block("http://127.0.0.1:1")))
    assert (0, "edited") == (done.code, done.stdout.splitlines()[0])
    assert "QMD sends everything to http://127.0.0.1:1" in done.stdout


def test_edit_without_an_editor(qmd_remote: Run, file: Path):
    """The error names the path, so that another program can open it."""
    file.touch()
    done = qmd_remote("config", "edit", "--file", file, VISUAL="", EDITOR="")
    assert 5 == done.code
    assert "EDITOR=nano " in done.stderr
    assert f"qmd-remote config edit --file {file}; or open {file}\n" in done.stderr


@pytest.mark.parametrize(
    ("editor", "code", "words"),
    [("/no/such/editor", 5, "cannot be started"), ("false", 1, "exit code 1"), ("'open", 2, "no command")],
)
def test_an_editor_that_does_not_work(qmd_remote: Run, file: Path, editor: str, code: int, words: str):
    """It is told what failed; no check follows."""
    file.touch()
    done = qmd_remote("config", "edit", VISUAL=editor)
    assert (code, "") == (done.code, done.stdout)
    assert words in done.stderr


def test_edit_without_a_file(qmd_remote: Run, file: Path, editor: Run):
    """There is nothing to edit before `config write`."""
    done = qmd_remote("config", "edit", "--index", "work", VISUAL=editor("x"))
    assert 4 == done.code
    assert "qmd-remote config write --index work" in done.stderr
    assert not file.with_name("work.yml").exists()


# hints


@pytest.mark.parametrize(
    ("again", "hint", "typed"),
    [
        ("--file x", "qmd-remote config write", "qmd-remote config write --file x"),
        ("--file x", "qmd-remote config write --api-key-env N", "qmd-remote config write --file x --api-key-env N"),
        (
            "--file x",
            "qmd-remote config check --file y; qmd-remote up",
            "qmd-remote config check --file y; qmd-remote up",
        ),
        ("--index w", "a, then: qmd-remote test", "a, then: qmd-remote test --index w"),
        ("--index w", "qmd-remote test --url http://h", "qmd-remote test --url http://h"),
        ("--file 'a\\1'", "qmd-remote config show", "qmd-remote config show --file 'a\\1'"),
        ("", "qmd-remote config write", "qmd-remote config write"),
    ],
)
def test_hints_repeat_which_file_was_meant(capsys: pytest.CaptureFixture[str], again: str, hint: str, typed: str):
    """A command about QMD's file gets the user's own --file or --index, unless it names one."""
    out = Output("config check", as_json=True, again=again)
    out.warn("w", hint)
    out.finish({})
    assert typed == json.loads(capsys.readouterr().out)["warnings"][0]["hint"]
    assert out.typed(hint).endswith(typed.partition("qmd-remote")[2])


def test_write_and_show_repeat_the_file(qmd_remote: Run, cli_home: Path, nobody: str):
    """The next command about the same file can be copied as it is."""
    file = cli_home / "my file.yml"
    quoted = shlex.quote(str(file))
    assert f"config write --file {quoted}" in qmd_remote("config", "show", "--file", file).stderr
    assert f"next: qmd-remote test --file {quoted}" in " ".join(
        qmd_remote("config", "write", "--url", nobody, "--file", file).stderr.split()
    ).replace(str(Path(sys.executable).with_name("qmd-remote")), "qmd-remote")
