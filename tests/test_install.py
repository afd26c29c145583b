"""The base wheel in a fresh environment, as `pipx install .` makes one."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A fresh virtual environment that holds the built wheel and what it requires."""
    folder = tmp_path_factory.mktemp("base")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("qmd_remote-*.whl")
    home = folder / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    target = [*pip, "--python", str(python), "install", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(target, check=True)
    return home


def run(base: Path, *words: str, **env: str):
    """Run the installed console script with nothing of the outer environment's Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "VIRTUAL"))}
    return subprocess.run(
        [base / "bin" / "qmd-remote", *words], capture_output=True, text=True, env={**kept, **env}, timeout=60
    )


def test_the_base_install_is_light(base):
    """A workstation's install stays below 60 MB and brings no torch, no fastapi and no transformers."""
    (site,) = (base / "lib").glob("python*/site-packages")
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size < 60e6
    names = {path.name.lower() for path in site.iterdir()}
    assert not {"torch", "fastapi", "transformers", "sentence_transformers"} & names


def test_the_console_script_answers(base):
    """`qmd-remote --help` works in the base install and names the commands of daily use."""
    done = run(base, "--help")
    assert 0 == done.returncode
    for command in ("up", "test", "config"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", [["serve"], ["up"]])
def test_a_server_command_without_its_extra_says_how_to_install_it(base, command, tmp_path):
    """Without torch, `serve` and `up` exit with 5 and give the pipx, uv and pip commands."""
    done = run(base, *command, QMD_REMOTE_HOME=str(tmp_path))
    assert 5 == done.returncode
    for form in ("pipx install", "uv tool install", "pip install"):
        assert form in done.stderr
    assert "qmd-remote[server]" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_write_works_without_the_server_parts(base, tmp_path):
    """A workstation can write QMD's config for a box that is not reachable now."""
    urls = ["--embed-url", "http://127.0.0.1:9", "--generation-url", "http://127.0.0.1:10"]
    done = run(base, "config", "write", *urls, "--json", QMD_CONFIG_DIR=str(tmp_path), QMD_REMOTE_HOME=str(tmp_path))
    assert 0 == done.returncode, done.stderr
    assert json.loads(done.stdout)["ok"]
    assert "embed_url: http://127.0.0.1:9\n" in (tmp_path / "index.yml").read_text()
