"""Record what the commands show in a terminal, as docs/recordings/*.svg: `python scripts/record.py`.

The `qmd-remote` beside this Python is run in a pseudo-terminal, with a home folder of its own and the preset `mini`.
The ports 8000 and 8001 must be free. Takes about two minutes.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = ROOT / "docs" / "recordings"
COLUMNS, ROWS = 120, 50
PROMPT = "\x1b[1;32m$\x1b[0;1m {}\x1b[0m"
FONT = 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace'

# what a config looks like whose owner wonders why QMD does not use the box
WRONG = """\
collections: {}
remote:
  embed_url: http://127.0.0.1:8001/v1
  generation_url: http://127.0.0.1:8001
  api_key: "$QMD_REMOTE_API_KEY"
  rerank_modle: BAAI/bge-reranker-v2-m3
"""

_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """The lines of a terminal of `columns` columns and as many rows as it takes.

    It knows the control sequences that rich writes and raises ValueError for any other. Every character is as wide as
    one column: no others are recorded.
    """

    def __init__(self, columns: int = COLUMNS) -> None:
        self._columns = columns
        self._lines: list[list[tuple[str, str]]] = [[]]  # of (character, the sequences that style it)
        self._row = self._column = 0
        self._style = ""

    def feed(self, output: str) -> None:
        """Draw what a program wrote."""
        at = 0
        while at < len(output):
            if sequence := _SEQUENCE.match(output, at):
                self._control(sequence[1], sequence[2])
                at = sequence.end()
            else:
                self._draw(output[at])
                at += 1

    def lines(self) -> list[str]:
        """What is to be seen, with the sequences of its styles; no empty lines at the end."""
        drawn = [_styled(line) for line in self._lines]
        while drawn and not drawn[-1]:
            drawn.pop()
        return drawn

    def _draw(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._move(1)
        elif character < " ":
            raise ValueError(f"a control character that this screen does not know: {character!r}")
        else:
            if self._column == self._columns:
                self._column = 0
                self._move(1)
            line = self._lines[self._row]
            line += [(" ", "")] * (self._column + 1 - len(line))
            line[self._column] = (character, self._style)
            self._column += 1

    def _control(self, parameters: str, final: str) -> None:
        if final == "m":
            self._style = "" if parameters in {"", "0"} else f"{self._style}\x1b[{parameters}m"
        elif final == "A":
            self._move(-int(parameters or 1))
        elif final == "K" and parameters == "2":
            self._lines[self._row] = []
        elif (final, parameters) not in {("h", "?25"), ("l", "?25")}:  # the cursor is not drawn
            raise ValueError(f"a control sequence that this screen does not know: ESC[{parameters}{final}")

    def _move(self, rows: int) -> None:
        self._row = max(0, self._row + rows)
        while len(self._lines) <= self._row:
            self._lines.append([])


def _styled(line: Iterable[tuple[str, str]]) -> str:
    text, style = "", ""
    for character, wanted in line:
        if wanted != style:
            text, style = f"{text}\x1b[0m{wanted}", wanted
        text += character
    return f"{text}\x1b[0m" if style else text.rstrip()


def run(command: str, environment: dict[str, str]) -> str:
    """Run a command line in a terminal; returns all that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command.split(),
        env=environment,
        cwd=environment["HOME"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = bytearray()
    while chunk := _read(ours):
        written += chunk
    os.close(ours)
    print(f"{command}: exit code {process.wait()}")
    return written.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # so Linux says that nobody holds the other end any more
        return b""


def drawing(title: str, lines: Iterable[str]) -> str:
    """The SVG of a terminal with these lines, which contacts nobody for its fonts."""
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, color_system="truecolor", force_terminal=True)
    console.print(Text("\n").join(map(Text.from_ansi, lines)), no_wrap=True, overflow="ignore", highlight=False)
    svg = console.export_svg(title=title, unique_id=re.sub(r"\W+", "-", title))
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*;", f"font-family: {FONT};", svg)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def record(name: str, commands: Iterable[str], environment: dict[str, str]) -> None:
    """Run commands one after the other, and draw them as one recording."""
    commands = list(commands)
    lines: list[str] = []
    for command in commands:
        screen = Screen()
        # before it is drawn, so that lines break where they would break for a reader
        written = run(command, environment).replace(environment["HOME"], "~")
        screen.feed(written.replace(sysconfig.get_path("purelib"), "…").replace(sys.prefix, "…"))
        lines += ["", PROMPT.format(command), *screen.lines()]
    svg = drawing(commands[0], lines[1:])
    for private in (str(ROOT), str(Path.home()), str(Path(sys.prefix)), socket.gethostname()):
        if private in svg:
            at = svg.index(private)
            sys.exit(f"{name}: what was recorded tells of this machine: {svg[max(0, at - 200) : at + 80]}")
    (RECORDINGS / f"{name}.svg").write_text(svg, encoding="utf-8")


def main() -> None:
    """Record everything; the services that this starts are stopped again."""
    RECORDINGS.mkdir(exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="qmd-home-"))
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # nothing else of this environment: neither settings nor colours
    environment = {"HOME": str(home), "PATH": programs, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    wrong = home / ".config" / "qmd" / "work.yml"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(WRONG)
    try:
        record("up", ["qmd-remote up --preset mini"], environment)
        run("qmd-remote config write", environment)
        record("test", ["qmd-remote test"], environment)
        record("status", ["qmd-remote status"], environment)
        record("config-check", ["qmd-remote config check", "qmd-remote config check --index work"], environment)
    finally:
        run("qmd-remote down", environment)
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
