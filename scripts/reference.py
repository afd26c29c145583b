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
from qmd_remote.presets import PRESETS
from qmd_remote.settings import declared
from qmd_remote.views_settings import as_text

DOCS = Path(__file__).resolve().parent.parent / "docs"


def settings_page() -> str:
    """What the settings are, where they come from, and the tables of all settings and presets."""
    lines = [
        SETTINGS_INTRO,
        "## All settings",
        "",
        "| setting | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    for field in declared():
        default = _cell(as_text(list(field.default) if isinstance(field.default, tuple) else field.default))
        about = field.metadata["about"].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{field.metadata['env']}` | {default} | {about} |")
    lines += ["", "## Presets", "", PRESETS_INTRO]
    named = list(dict.fromkeys(name for preset in PRESETS.values() for name in preset.values))
    lines += [f"| preset | for | {' | '.join(f'`{name}`' for name in named)} |", "|---" * (len(named) + 2) + "|"]
    for preset in PRESETS.values():
        values = " | ".join(_cell(as_text(preset.values.get(name, ""))) for name in named)
        lines.append(f"| `{preset.name}` | {preset.summary} | {values} |")
    return "\n".join([*lines, "", OTHER_VARIABLES])


def _cell(text: str) -> str:
    return text if text == "–" else f"`{text}`"


SETTINGS_INTRO = """# Settings

Every setting has a value without your doing. What you give wins in this order, each setting for itself:

1. a flag of the command: `--port 9001`
2. an environment variable: `QMD_REMOTE_PORT=9001`
3. the settings file: `port = 9001`
4. the preset: the models for this machine
5. the default

```sh
qmd-remote settings                          # every setting, its value and where that comes from
qmd-remote settings show --changed           # only those that are not the default
qmd-remote settings set port=9001 device=cpu
qmd-remote settings unset port
qmd-remote settings edit                     # $VISUAL or $EDITOR; the file is checked afterwards
qmd-remote settings path
```

`settings` shows what `up` would use, with the preset that it would choose. Services that run keep what they were
started with: `qmd-remote up` restarts those whose settings changed.

## The file

`~/.config/qmd-remote/config.toml` (`$XDG_CONFIG_HOME/qmd-remote/config.toml` where that is set, and
`$QMD_REMOTE_HOME/config/config.toml` where that is), on every system. One `name = value` a line, without sections:

```toml
# the box in the cellar
host = "0.0.0.0"
port = 9001
embed_model = "BAAI/bge-m3"
access_log = false
trust_remote_code = ["nomic-ai/nomic-embed-text-v2-moe"]
```

- `settings set` and `unset` change the lines meant; comments, order and all other bytes stay. A link stays a link.
- A name that does not exist, or a value that cannot be, is an error with its line and the nearest name. Nothing is
  ignored, and `set` writes nothing unless the whole file is valid.
- Write files and folders in full: a relative path means the folder in which a command is typed. `settings set` stores
  those that exist in full.
- The API key belongs in a file of its own (`qmd-remote key rotate`, or `api_key_file`). `settings set api_key` is
  refused, since others can read a command line; a config.toml with `api_key` in it is refused unless its mode is 0600.
  A key wins over a key file in the same place, and either over both in a place further down the list.
"""

PRESETS_INTRO = """A preset names models. Where none is named, `up` stays with that of the services that run;
else it chooses by the hardware, and says which and why. It never chooses `mini` by itself.
"""

OTHER_VARIABLES = """## Variables of the whole tool

`QMD_REMOTE_HOME` moves settings, state, logs and cache into one folder, `QMD_REMOTE_DEBUG=1` shows tracebacks, and
`HF_TOKEN` is read by the hub's library for gated models.
"""


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
    """The words of every visible command, the root's first, in the order of the help."""
    yield words
    children = getattr(command, "commands", {})
    for name in command.list_commands(None) if children else ():
        if not children[name].hidden:
            yield from command_paths(children[name], (*words, name))


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
