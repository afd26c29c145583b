"""The arrows between the packages, and what the command line may import to start quickly."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qmd_remote

PACKAGE = Path(qmd_remote.__file__).parent
LAYERS = {"server", "launch", "client"}
FOUNDATION = (
    *("expansion", "expansion_request", "expansion_repair"),
    *("errors", "paths", "output", "atomic", "editor", "presets", "catalogue", "hub_cache"),
    *("settings", "setting_values", "settings_file", "settings_edit", "keys", "reach", "options", "cli_run"),
    *("services", "supervision", "leash", "stop_wish", "turn", "reception", "logbook"),
)


def imported(path: Path) -> set[str]:
    """Every qmd_remote module a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.startswith("qmd_remote.")}


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_layers_do_not_import_each_other(layer):
    """server, launch and client know nothing of each other."""
    for path in (PACKAGE / layer).rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[1] not in LAYERS - {layer}, f"{path.name} imports {name}"


def test_the_foundation_knows_no_layer():
    """What all layers stand on imports none of them: settings, paths, output, services, supervision and their parts."""
    for name in FOUNDATION:
        assert not {one.split(".")[1] for one in imported(PACKAGE / f"{name}.py")} & LAYERS, name


@pytest.mark.parametrize("command", [["--help"], ["up", "--help"], ["config", "path"], ["config", "--help"]])
def test_light_commands_import_nothing_heavy(command, tmp_path):
    """--help and config start without docker, fastapi, httpx' server side, numpy or torch."""
    code = (
        "import sys; sys.argv = ['qmd-remote', *sys.argv[1:]]\n"
        "from qmd_remote.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'docker', 'fastapi', 'torch', 'numpy', 'transformers', 'psutil'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "QMD_CONFIG_DIR": str(tmp_path), "QMD_REMOTE_HOME": str(tmp_path)},
    )
    assert (0, "") == (done.returncode, done.stderr)
