"""Where things lie: our own state, logs and cache, and QMD's configuration file.

`QMD_REMOTE_HOME` moves everything of ours into one folder; tests and several installs side by side use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from qmd_remote.errors import ConfigError, QmdRemoteError, UsageError

APP = "qmd-remote"


def _ours(kind: str, default: str, env: Mapping[str, str]) -> Path:
    home = env.get("QMD_REMOTE_HOME")
    # absolute, since services run in a folder of their own
    return Path(home).expanduser().absolute() / kind if home else Path(default)


def run_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Locks, and one record per running service."""
    return _ours("run", platformdirs.user_state_dir(APP), env)


def config_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Our settings file and our key: `~/.config/qmd-remote`, as QMD's own on every system."""
    base = Path(env["XDG_CONFIG_HOME"]) if env.get("XDG_CONFIG_HOME") else Path.home() / ".config"
    return _ours("config", str(base / APP), env)


def settings_file(env: Mapping[str, str] = os.environ) -> Path:
    """The settings file, whether it exists or not."""
    return config_dir(env) / "config.toml"


def key_file(env: Mapping[str, str] = os.environ) -> Path:
    """The API key that `up --host` makes, whether it exists or not."""
    return config_dir(env) / "api-key"


def log_dir(env: Mapping[str, str] = os.environ) -> Path:
    """One log file per service, and the one before it."""
    return _ours("log", platformdirs.user_log_dir(APP), env)


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """What can be made again: converted models."""
    return _ours("cache", platformdirs.user_cache_dir(APP), env)


def home_env(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable that moves everything, for a child that works in another folder."""
    home = env.get("QMD_REMOTE_HOME")
    return {"QMD_REMOTE_HOME": str(Path(home).expanduser().absolute())} if home else {}


def log_file(service: str, env: Mapping[str, str] = os.environ) -> Path:
    """The log of one service ("embed", "generation")."""
    return log_dir(env) / f"{service}.log"


def in_full(text: str, *, follow: bool = False) -> str:
    """The name of a local file or folder that exists, as an absolute path; other names (of models, say) as they are.

    Links in it are kept, since what they lead to may be replaced, unless `follow` says otherwise.
    """
    try:
        path = Path(text).expanduser()
        if not text or not path.exists():
            return text
        return str(path.resolve() if follow else path.absolute())
    except (RuntimeError, OSError):  # ~name of nobody; a name too long for a path
        return text


@contextmanager
def locked(name: str, *, wait_s: float, busy: QmdRemoteError) -> Iterator[None]:
    """Hold the lock of this name, which no two processes have at once. Raises `busy`, or ConfigError."""
    from filelock import FileLock, Timeout

    path = make_private(run_dir()) / f"{name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise busy from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            hint="set QMD_REMOTE_HOME to a folder of yours",
            code="home.unusable",
        ) from None
    try:
        yield
    finally:
        lock.release()


def make_private(folder: Path) -> Path:
    """Create `folder`, readable by its owner alone, and return it. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="set QMD_REMOTE_HOME to a folder of yours",
            code="home.unusable",
        ) from None
    return folder


def qmd_config_file(index: str = "index", env: Mapping[str, str] = os.environ) -> Path:
    """QMD's configuration file by QMD's own rule.

    `$QMD_CONFIG_DIR/<index>.yml`, else `$XDG_CONFIG_HOME/qmd/<index>.yml`, else `~/.config/qmd/<index>.yml`,
    on every system (QMD does not follow macOS' conventions).
    """
    _require_index(index)
    if folder := env.get("QMD_CONFIG_DIR"):
        return Path(folder).expanduser() / f"{index}.yml"
    base = Path(env["XDG_CONFIG_HOME"]) if env.get("XDG_CONFIG_HOME") else Path.home() / ".config"
    return base / "qmd" / f"{index}.yml"


def qmd_json_file(env: Mapping[str, str] = os.environ) -> Path:
    """The file of those clients that keep their settings as JSON: `config.json` in QMD's cache folder."""
    base = Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return base / "qmd" / "config.json"


def openclaw_home(env: Mapping[str, str] = os.environ) -> Path:
    """OpenClaw's folder, which has one of its own for each agent."""
    folder = env.get("OPENCLAW_STATE_DIR")
    return Path(folder).expanduser() if folder else Path.home() / ".openclaw"


def openclaw_agents(env: Mapping[str, str] = os.environ) -> list[str]:
    """The names of OpenClaw's agents that have a QMD of their own, sorted; none where it is not installed."""
    try:
        return sorted(one.name for one in (openclaw_home(env) / "agents").iterdir() if (one / "qmd").is_dir())
    except OSError:
        return []


def openclaw_config_file(agent: str, index: str = "index", env: Mapping[str, str] = os.environ) -> Path:
    """QMD's configuration file for an agent, to whose QMD OpenClaw gives an XDG folder of its own."""
    _require_index(index)
    return openclaw_home(env) / "agents" / agent / "qmd" / "xdg-config" / "qmd" / f"{index}.yml"


def _require_index(index: str) -> None:
    if not index or "/" in index or index in {".", ".."}:
        raise UsageError(f"'{index}' is no index name", hint="name a file with --file PATH")
