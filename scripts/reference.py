"""Write docs/settings.md and docs/cli.md from the code: `python scripts/reference.py --write`.

Without --write it says which page is stale, and exits with 1; a test calls it that way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from qmd_remote.cli import app
from qmd_remote.settings import declared

DOCS = Path(__file__).resolve().parent.parent / "docs"


def settings_page() -> str:
    """The table of all settings."""
    lines = [
        "# Settings",
        "",
        "A flag wins over the environment, the environment over the preset, the preset over the default.",
        "",
        "| setting | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    for field in declared():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = f"`{default}`" if default not in ("", False) else "–"
        about = field.metadata["about"].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{field.metadata['env']}` | {shown} | {about} |")
    lines += [
        "",
        "Three more variables belong to the whole tool: `QMD_REMOTE_HOME` moves state, logs and cache into one folder,",
        "`QMD_REMOTE_DEBUG=1` shows tracebacks, and `HF_TOKEN` is read by the hub's library for gated models.",
        "",
    ]
    return "\n".join(lines)


def cli_page() -> str:
    """Every command's help text."""
    parts = ["# Commands", ""]
    for words in command_paths(typer.main.get_command(app)):
        result = CliRunner().invoke(app, [*words, "--help"], prog_name="qmd-remote", terminal_width=100)
        parts += [f"## qmd-remote {' '.join(words)}".rstrip(), "", "```text", result.output.strip(), "```", ""]
    parts += [EXIT_CODES]
    return "\n".join(parts)


EXIT_CODES = """## JSON

With `--json` a command writes one document to stdout, whatever happens, and its progress nowhere:

```json
{"schema": 1, "command": "status", "ok": false, "exit_code": 3, "data": {"services": []},
 "error": {"code": "not_running", "message": "neither service is running", "hint": "qmd-remote up"}, "warnings": []}
```

`error` is null when all went well; `warnings` holds objects with `message` and `hint`.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | unhealthy, or failed |
| 2 | the command line is wrong |
| 3 | not running |
| 4 | a setting or a file is wrong |
| 5 | the machine lacks something |
| 6 | a wait ended |
| 130 | interrupted |
"""


def command_paths(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every visible command, the root's first."""
    yield words
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from command_paths(child, (*words, name))


def main() -> int:
    """Write or compare the pages; returns the exit code."""
    pages = {DOCS / "settings.md": settings_page(), DOCS / "cli.md": cli_page()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--write" in sys.argv:
            path.write_text(pages[path], encoding="utf-8")
        print(f"{path.name} {'written' if '--write' in sys.argv else 'is stale: make docs'}")
    return 0 if "--write" in sys.argv or not stale else 1


if __name__ == "__main__":
    sys.exit(main())
