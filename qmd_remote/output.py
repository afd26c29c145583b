"""The only module that prints.

Data goes to stdout; progress, warnings and errors go to stderr. In JSON mode stdout gets exactly one envelope:

    {"schema": 1, "command", "ok", "exit_code", "data",
     "error": null | {"code", "message", "hint"}, "warnings": [{"message", "hint"}]}
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmd_remote.errors import Exit, Interrupted, QmdRemoteError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.status import Status
    from rich.text import Text

SCHEMA = 1
_ABOUT_A_FILE = re.compile(
    r"qmd-remote (?:config (?:write|show|check|remove|edit)|test)(?![\w-])"
    r"(?! --(?:file|index|url|embed-url|generation-url)\b)"
)
_OUR_COMMAND = re.compile(r"(?<![\w/.-])(?<!runpip )qmd-remote(?= [a-z])")
LOG_STYLE = {"generation": "cyan", "embed": "magenta"}
PIPED_WIDTH = 240  # a file has no edge: rows of a table stay on one line


class Output:
    """What one command has to say, in the mode the user asked for."""

    def __init__(
        self,
        command: str,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        again: str = "",
        given: str = "",
    ) -> None:
        """Hints repeat what the user typed, quoted for the shell.

        `again` says which file is meant, and is for every command about such a file; `given` is for this command.
        """
        self.command = command
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.again = again
        self.given = given
        self.warnings: list[dict[str, str]] = []
        self._status: Status | None = None
        self._phase = ""

    def _console(self, *, stderr: bool) -> Console:
        from rich.console import Console

        console = Console(stderr=stderr, highlight=False, emoji=False)
        if not console.is_terminal:
            console.width = PIPED_WIDTH
        return console

    def show(self, what: RenderableType) -> None:
        """Show data (stdout) to a person; JSON mode shows data in the envelope instead."""
        if not self.as_json:
            self._console(stderr=False).print(what, soft_wrap=isinstance(what, str))

    def raw(self, text: str) -> None:
        """Write text to stdout as it is: a log, a file, a diff. JSON mode shows data in the envelope instead."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def note(self, text: str, *, here: bool = True) -> None:
        """Tell a person what is going on (stderr). With `here` off its commands are for another machine."""
        if not (self.as_json or self.quiet):
            self._console(stderr=True).print(self.typed(text) if here else text, markup=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Tell what only matters to who asked for more with --verbose (stderr)."""
        if self.verbose:
            self.note(text)

    def log_line(self, service: str, text: str) -> None:
        """A line of a service's log beside the progress, by name and colour (stdout)."""
        if not self.quiet:
            self.labelled(service, text)

    def labelled(self, service: str, text: str) -> None:
        """A line of one of several logs, as data: by name, and on a terminal by colour (stdout)."""
        if not self._data_console.is_terminal:
            self.raw(f"{service:<10} | {text}\n")
        elif not self.as_json:
            from rich.text import Text

            label = Text(f"{service:<10} | ", style=LOG_STYLE.get(service, ""))
            self._data_console.print(label + Text(text), soft_wrap=True)

    @functools.cached_property
    def _data_console(self) -> Console:
        return self._console(stderr=False)  # kept, since a log has many lines

    def warn(self, message: str, hint: str = "") -> None:
        """Say what is not as it should be, without failing."""
        self.warnings.append({"message": message, "hint": self.about(hint)})
        if not self.as_json:
            console = self._console(stderr=True)
            console.print(_labelled("warning:", "yellow", message), soft_wrap=True)
            if hint:
                console.print(f"  {self.typed(hint)}", markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, first: str) -> Iterator[None]:
        """A live line on a terminal, plain lines elsewhere, until the block ends; `phase` changes it."""
        if self.as_json or self.quiet:
            yield
            return
        console = self._console(stderr=True)
        if self.verbose or not console.is_terminal:
            self.note(first)
            yield
            return
        with console.status(_plain(first)) as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None

    @contextmanager
    def live(self) -> Iterator[Callable[[RenderableType], None]]:
        """A view that is drawn again and again (stdout): in place on a terminal, elsewhere only when it has changed."""
        console = self._console(stderr=False)
        if console.is_terminal:
            from rich.live import Live

            with Live(console=console, auto_refresh=False) as view:
                yield lambda what: view.update(what, refresh=True)
            return
        last = ""

        def show(what: RenderableType) -> None:
            nonlocal last
            with console.capture() as captured:
                console.print(what)
            if captured.get() != last:
                last = captured.get()
                self.raw(last)

        yield show

    def phase(self, text: str, *, detail: str = "") -> None:
        """Name what a long wait is doing now. `detail` (a percentage, say) is shown on terminals only."""
        if self._status is not None:
            self._status.update(_plain(f"{text} {detail}".rstrip()))
        elif text != self._phase:
            self.note(text)
        self._phase = text

    def typed(self, text: str) -> str:
        """Commands in a text as this user has to type them, about the file that this user means."""
        return as_typed(self.about(text))

    def about(self, text: str) -> str:
        """Commands in a text with what this user gave: the same command's own options, and which file is meant."""
        if self.given:
            text = re.sub(rf"(qmd-remote {self.command}(?![\w-]))([^;`\n]*)", self._with_given, text)
        return _ABOUT_A_FILE.sub(lambda found: f"{found[0]} {self.again}", text) if self.again else text

    def _with_given(self, found: re.Match[str]) -> str:
        """A command of this one's kind with what the user gave, but for the options that it names itself.

        One that names a preset says something else.
        """
        command, rest = found.groups()
        named = set(re.findall(r"(?<!\S)--[\w-]+", rest))
        if "--preset" in named:
            return found[0]
        kept: list[str] = []
        dropping = False
        for word in shlex.split(self.given):
            dropping = word in named if word.startswith("--") else dropping
            kept += [] if dropping or word in rest.split() else [word]
        return f"{command} {shlex.join(kept)}{rest}" if kept else found[0]

    def finish(self, data: Mapping[str, Any], *, exit_code: int = Exit.OK) -> int:
        """End a command that did its work: the envelope in JSON mode. Returns the exit code."""
        if self.as_json:
            self._envelope(data, None, exit_code)
        return int(exit_code)

    def fail(self, error: QmdRemoteError, data: Mapping[str, Any] | None = None) -> int:
        """End a command with an error: what and why, then the next command. Returns the exit code."""
        if self.as_json:
            self._envelope(data or {}, {**error.as_dict(), "hint": self.about(error.hint)}, error.exit_code)
        else:
            console = self._console(stderr=True)
            # who says stop has made no mistake
            label = ("stopped:", "yellow") if isinstance(error, Interrupted) else ("error:", "bold red")
            console.print(_labelled(*label, error.message), soft_wrap=True)
            if error.hint:
                console.print(f"  {self.typed(error.hint)}", markup=False, soft_wrap=True)
        return int(error.exit_code)

    def _envelope(self, data: Mapping[str, Any], error: Mapping[str, Any] | None, exit_code: int) -> None:
        envelope = {
            "schema": SCHEMA,
            "command": self.command,
            "ok": error is None and exit_code == Exit.OK,
            "exit_code": int(exit_code),
            "data": data,
            "error": error,
            "warnings": self.warnings,
        }
        sys.stdout.write(json.dumps(envelope, default=str) + "\n")
        sys.stdout.flush()


def as_typed(text: str) -> str:
    """Commands in a text as this user has to type them: by its path where the program is not on PATH."""
    return _OUR_COMMAND.sub(lambda _: _program(), text)


@functools.cache
def _program() -> str:
    this = Path(sys.argv[0])
    found = shutil.which("qmd-remote")
    if this.name != "qmd-remote" or (found and Path(found).resolve() == this.resolve()):
        return "qmd-remote"
    here = Path.cwd()
    return str(this.relative_to(here) if this.is_relative_to(here) else this)


def _plain(text: str) -> Text:
    """Square brackets in messages are text, not rich's markup."""
    from rich.text import Text

    return Text(text)


def _labelled(label: str, style: str, message: str) -> Text:
    from rich.text import Text

    return Text.assemble((label, style), " ", message)
