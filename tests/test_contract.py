"""The contract with scripts: every command, its options for output, and its one JSON document.

A command that is missing in the table below fails these tests.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from qmd_remote import cli, services, settings
from qmd_remote.launch.up import absolute
from qmd_remote.presets import MINI_EMBED

Run = Callable[..., Any]
HELP_WIDTH = 80
SAYS = frozenset({"--quiet"})  # more than its result
TELLS = frozenset({"--quiet", "--verbose"})  # details, too
STILL: frozenset[str] = frozenset()  # its result alone


class World:
    """A machine on which nothing of ours runs, and a server elsewhere that answers for everything."""

    def __init__(self, home: Path, url: str, runs: Run) -> None:
        self.home = home
        self.url = url
        self.runs = runs
        self.variables = {"EDITOR": "true", "VISUAL": ""}

    def embed_runs(self) -> list[str]:
        """An embed server as this `up` would start it."""
        port = self.url.rpartition(":")[2]
        flags = {"preset": "mini", "generation_engine": "external", "generation_url": self.url, "port": int(port)}
        self.runs("embed", self.url, spec=services.spec_of("embed", absolute(settings.resolve(flags))))
        return ["--preset", "mini", "--generation", "external", "--generation-url", self.url, "--port", port]

    def service_runs(self) -> list[str]:
        """Any embed server."""
        self.runs("embed", self.url)
        return []

    def logged(self) -> list[str]:
        """A service that said something once."""
        log = self.home / "home" / "log" / "embed.log"
        log.parent.mkdir(parents=True)
        log.write_text("a line\n", encoding="utf-8")
        return []

    def configured(self) -> list[str]:
        """A configuration of QMD that names the server."""
        file = self.home / "qmd" / "index.yml"
        file.parent.mkdir(parents=True)
        file.write_text(f"remote:\n  url: {self.url}\n", encoding="utf-8")
        return []

    def with_key(self) -> list[str]:
        """A key as `up --host` makes it."""
        file = self.home / "home" / "config" / "api-key"
        file.parent.mkdir(parents=True)
        file.write_text("s3cret\n", encoding="utf-8")
        return []

    def apart(self) -> list[str]:
        """Neither the hub nor the usual ports, which somebody else may have."""
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            ports = [str(server.getsockname()[1]) for server in (one, other)]
        names = ("QMD_REMOTE_PORT", "QMD_REMOTE_GENERATION_PORT")
        self.variables |= {"HF_HUB_OFFLINE": "1", **dict(zip(names, ports, strict=True))}
        return []

    def at_url(self) -> list[str]:
        """Nothing to prepare: the server is named."""
        return ["--url", self.url]


def as_it_is(world: World) -> list[str]:
    """Nothing to prepare."""
    return []


@dataclass(frozen=True)
class Contract:
    """What a command promises.

    `wrong` is a line that fails, with its exit code; None where only a wrong command line can. `right` is a line that
    succeeds after `given`, which may add to it, with the members of its data; None where that takes real models, and
    other tests do it.
    """

    options: frozenset[str]
    wrong: tuple[str, int] | None
    right: str | None = None
    data: str = ""
    given: Callable[[World], list[str]] = as_it_is


CHANGE = "path client changed created written backup diff"
SETTINGS = "settings preset_reason path exists"
STORED = "path changed settings restart"
CHECKED = "path client verdict reason embed_url generation_url api_key findings chosen_by asked"

COMMANDS = {
    "up": Contract(TELLS, ("--preset gpuu", 2), "", "preset services checks", World.embed_runs),
    "status": Contract(SAYS, ("", 3), "", "services", World.service_runs),
    "logs": Contract(SAYS, ("", 3), "embed -n 5", "logs", World.logged),
    "restart": Contract(TELLS, ("embed", 3)),
    "down": Contract(TELLS, None, "", "stopped"),
    "service install": Contract(SAYS, ("--preset gpuu", 2), "--print", "path unit"),
    "service uninstall": Contract(SAYS, None),
    "service status": Contract(STILL, None),
    "serve": Contract(STILL, ("--api-key-file /nope", 4)),
    "compose": Contract(STILL, ("--preset gpuu", 2), "--preset spark --no-probe", "compose"),
    "doctor": Contract(SAYS, ("--preset gpuu", 2), "--preset mini", "checks seconds", World.apart),
    "test": Contract(TELLS, ("", 3), "", "target checks total_s", World.at_url),
    "bench": Contract(SAYS, ("", 3), "--only rerank --seconds 0.1", "target server work client results", World.at_url),
    "config write": Contract(SAYS, ("--url h:1", 2), "", CHANGE, World.at_url),
    "config remove": Contract(SAYS, ("--index ../x", 2), "", CHANGE, World.configured),
    "config check": Contract(TELLS, ("", 4), "", CHECKED, World.configured),
    "config edit": Contract(SAYS, ("", 4), "", CHECKED, World.configured),
    "config show": Contract(
        STILL, ("", 4), "", "path embed_url generation_url api_key models unset_variables", World.configured
    ),
    "config path": Contract(STILL, ("--index ../x", 2), "", "path exists"),
    "settings": Contract(SAYS, ("--preset nano", 2), "", SETTINGS),
    "settings show": Contract(SAYS, ("--preset nano", 2), "--changed", SETTINGS),
    "settings set": Contract(SAYS, ("prot=1", 2), "port=9001", STORED),
    "settings unset": Contract(SAYS, ("prot", 2), "port", STORED),
    "settings edit": Contract(SAYS, None, "", STORED),
    "settings path": Contract(STILL, None, "", "path exists"),
    "models": Contract(SAYS, ("nosuch", 2), "", "models"),
    "pull": Contract(TELLS, ("a/b --preset mini", 2), MINI_EMBED, "models"),
    "key show": Contract(STILL, ("", 4), "", "key path origin", World.with_key),
    "key rotate": Contract(SAYS, None, "", "path restart_needed"),
    "key path": Contract(STILL, None, "", "path exists"),
    "completion": Contract(STILL, ("tcsh", 2), "bash", "shell script"),
}
LINES = {line: contract.right for line, contract in COMMANDS.items() if contract.right is not None}
WRONG = {line: contract.wrong for line, contract in COMMANDS.items() if contract.wrong}
GROUPS = ["", "service", "config", "settings", "key"]


@pytest.fixture
def world(cli_home: Path, stand_in: Run, runs: Run) -> World:
    """See World."""
    return World(cli_home, stand_in().url, runs)


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each line that does something, with its command, in the order of the help."""
    children = getattr(command, "commands", None)
    if words and (children is None or command.invoke_without_command):
        yield " ".join(words), command
    for name in command.list_commands(None) if children else ():
        yield from commands(children[name], (*words, name))


FOUND = dict(commands(typer.main.get_command(cli.app)))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command line by the entry point, in this process: (exit code, what was captured)."""
    before = signal.getsignal(signal.SIGTERM)

    def call(line: str, *more: str) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["qmd-remote", *line.split(), *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, before)


# the table


def test_every_command_is_in_the_table():
    """The program has the commands of this table, and no others."""
    assert set(COMMANDS) == set(FOUND)


@pytest.mark.parametrize("line", FOUND)
def test_every_command_has_its_options_for_output(line: str):
    """--json everywhere; --quiet where more is said than the result, --verbose where there are details; one meaning."""
    options = {name: parameter for parameter in FOUND[line].params for name in parameter.opts}
    assert "--json" in options
    assert COMMANDS[line].options == {"--quiet", "--verbose"} & set(options)
    assert ("-q" in options, "-v" in options) == ("--quiet" in options, "--verbose" in options)
    for name in {"--json", "--quiet", "--verbose"} & set(options):
        assert (
            options[name].help == {parameter.help for parameter in FOUND["up"].params if name in parameter.opts}.pop()
        )


@pytest.mark.parametrize("line", FOUND)
def test_every_command_shows_how_it_is_used(line: str):
    """Each help has a short line for the list, and examples, which begin with the program's name or a variable."""
    command = FOUND[line]
    assert command.short_help
    _, _, examples = command.help.partition("Example")
    used = [text for text in examples.splitlines()[1:] if text.strip()]
    assert used
    assert all(re.search(r"\bqmd-remote\b", text) for text in used)


@pytest.mark.parametrize("line", FOUND)
def test_an_option_that_does_not_exist_is_one_envelope(line: str, in_process: Run):
    """A wrong option names its command, ends with 2, and leads to that command's help."""
    code, captured = in_process(f"{line} --nosuch --json")
    said = json.loads(captured.out)
    assert (line, 2, 2, "usage") == (said["command"], said["exit_code"], code, said["error"]["code"])
    assert "--nosuch" in said["error"]["message"]
    assert said["error"]["hint"] == f"qmd-remote {line} --help"


@pytest.mark.parametrize("line", [line for line, contract in COMMANDS.items() if contract.options == TELLS])
def test_quiet_and_verbose_exclude_each_other(line: str, in_process: Run):
    """In either order they are a usage error."""
    for options in ("-q -v", "--verbose --quiet"):
        code, captured = in_process(f"{line} {options} --json")
        assert 2 == code
        assert "exclude each other" in json.loads(captured.out)["error"]["message"]


# the documents


@pytest.mark.parametrize("line", WRONG)
def test_a_failure_is_one_document(line: str, qmd_remote: Run, world: World):
    """The real program ends with the documented code, one envelope on stdout, and no traceback."""
    wrong = COMMANDS[line].wrong
    assert wrong is not None
    done = qmd_remote(*line.split(), *wrong[0].split(), "--json", **world.variables)
    said = done.envelope()
    assert (1, wrong[1], False) == (said["schema"], done.code, said["ok"])
    assert said["command"] == ("settings" if line == "settings show" else line)
    assert {"code", "message", "hint"} == set(said["error"])
    assert said["error"]["message"]
    assert said["error"]["hint"]


@pytest.mark.parametrize("line", LINES)
def test_a_success_is_one_document(line: str, qmd_remote: Run, world: World):
    """The real program ends with 0, one envelope on stdout with the pinned members of its data, and nothing else."""
    contract = COMMANDS[line]
    assert contract.right is not None
    more = contract.given(world)
    done = qmd_remote(*line.split(), *contract.right.split(), *more, "--json", **world.variables)
    said = done.envelope()
    assert (1, 0, None) == (said["schema"], done.code, said["error"]), said
    assert set(contract.data.split()) == set(said["data"])
    assert "" == done.stderr
    for warning in said["warnings"]:
        assert {"message", "hint"} == set(warning)


@pytest.mark.parametrize("line", [line for line in LINES if COMMANDS[line].options])
def test_a_quiet_success_says_its_result_alone(
    line: str, world: World, in_process: Run, monkeypatch: pytest.MonkeyPatch
):
    """With --quiet stderr has nothing but warnings."""
    contract = COMMANDS[line]
    assert contract.right is not None
    more = contract.given(world)
    for name, value in world.variables.items():
        monkeypatch.setenv(name, value)
    code, said = in_process(f"{line} {contract.right} -q", *more)
    assert 0 == code, said.err
    for text in said.err.splitlines():
        assert text.startswith(("warning: ", "  ")), said.err


@pytest.mark.parametrize(("line", "detail"), [("config check", ": answers"), ("test", "→"), ("pull", "package, after")])
def test_a_verbose_success_says_more(line: str, detail: str, world: World, in_process: Run):
    """With --verbose stderr has the details, which are not there without it."""
    contract = COMMANDS[line]
    more = contract.given(world)
    _, told = in_process(f"{line} {contract.right} -v", *more)
    assert detail in told.err
    _, told = in_process(f"{line} {contract.right}", *more)
    assert detail not in told.err


# the lists of commands


@pytest.mark.parametrize("group", GROUPS)
def test_the_list_of_commands_has_a_whole_line_for_each(group: str, qmd_remote: Run):
    """On a terminal of the usual width no short help is cut or folded."""
    listed = qmd_remote(*group.split(), "--help", COLUMNS=str(HELP_WIDTH)).stdout.partition("Commands:\n")[2]
    rows = listed.splitlines()
    assert rows
    for row in rows:
        assert re.fullmatch(r"  [a-z]+ +[A-Z].*\.", row), row
        assert not row.endswith("...")
        assert len(row) <= HELP_WIDTH


def test_the_commands_stand_in_the_order_of_use(qmd_remote: Run):
    """First what is needed first."""
    listed = qmd_remote("--help").stdout.partition("Commands:\n")[2]
    expected = (
        "up status logs restart down service serve compose test bench doctor config settings models pull key completion"
    )
    assert expected.split() == [row.split()[0] for row in listed.splitlines()]


def test_an_option_before_the_command_says_where_it_belongs(qmd_remote: Run):
    """`qmd-remote --json status` is a slip: the hint has the right order."""
    done = qmd_remote("--json", "status")
    assert (2, "qmd-remote COMMAND --json") == (done.code, done.envelope()["error"]["hint"])
    done = qmd_remote("config", "-q", "check")
    assert (2, "") == (done.code, done.stdout)
    assert "config COMMAND -q" in done.stderr
