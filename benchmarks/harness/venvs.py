"""Environments of the peers, made from PyPI on the first run and kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

INFINITY = "infinity-emb[torch,server]==0.0.78"
SAME = ("torch", "transformers", "sentence-transformers", "fastapi", "uvicorn")
INSTALL_LIMIT_S = 1800


def requirements(name: str) -> list[str]:
    """What a peer's environment gets. torch is the same release as here in all of them."""
    here = {package: metadata.version(package).partition("+")[0] for package in SAME}
    if name == "infinity-emb":
        return [INFINITY, f"torch=={here['torch']}"]
    return [f"{package}=={version}" for package, version in here.items()]


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, made in `folder` unless it is there."""
    home = folder / name
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        wanted = requirements(name)
        print(f"making the environment of {name}: {' '.join(wanted)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=INSTALL_LIMIT_S)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True, timeout=INSTALL_LIMIT_S)
        (home / "done").touch()
    return python
