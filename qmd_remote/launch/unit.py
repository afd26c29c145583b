"""The systemd user unit that runs `qmd-remote up --foreground`, as text. Pure."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qmd_remote.errors import ConfigError, Exit
from qmd_remote.setting_values import flag_of, to_text
from qmd_remote.settings import Settings, declared

NAME = "qmd-remote.service"
MARKER = "# Made by `qmd-remote service install`, which replaces it; `qmd-remote service uninstall` removes it."

# what a shell and a service manager tell a program differently; settings come on top
FOLDERS = frozenset(
    {
        *("QMD_REMOTE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"),
        *("HF_HOME", "HF_HUB_CACHE", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    }
)
SEARCHED = frozenset({"PATH", "LD_LIBRARY_PATH"})
WORDS = frozenset(
    {
        *("HF_HUB_OFFLINE", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
        *("NO_PROXY", "no_proxy"),
    }
)
ADDRESSES = frozenset(
    {
        *("DOCKER_HOST", "HF_ENDPOINT"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    }
)
KEPT = FOLDERS | SEARCHED | WORDS | ADDRESSES
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # looked for, to say that they stay behind

# what no repetition mends. A prerequisite may only be late at boot: Docker, the GPU's driver, the network
NOT_AGAIN = (Exit.USAGE, Exit.CONFIGURATION)
RESTART_S = 30
STARTS, STARTS_WITHIN_S = 10, 3600

_BARE = re.compile(r"[\w@:,+=./-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What the unit runs. `program` are the words before `up`, the first one an absolute path.

    `arguments` come behind `up --foreground`. `prepare` is a command that is run before each start with the rights of
    its file, and that may fail. `stop_limit_s` is how long an orderly end may take in all.
    """

    program: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    stop_limit_s: float


def text(unit: Unit) -> str:
    """The unit file."""
    up = (*unit.program, "up", "--foreground", *unit.arguments)
    service = [
        "# started is started: an image may be pulled for an hour, and `qmd-remote status` tells how far it is",
        "Type=exec",
        *([f"ExecStartPre=-+{_command(*unit.prepare)}"] if unit.prepare else []),
        f"ExecStart={_command(*up)}",
        *(f"Environment={_assignment(name, value)}" for name, value in sorted(unit.env.items())),
        "",
        "# a wrong setting is not tried again; what may be late at boot (Docker, a driver, the network) is",
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        f"RestartPreventExitStatus={' '.join(str(int(code)) for code in NOT_AGAIN)}",
        "# stopped while it still started",
        f"SuccessExitStatus={int(Exit.INTERRUPTED)}",
        "",
        "# it stops its services itself, with time for the requests that run",
        "KillMode=mixed",
        f"TimeoutStopSec={unit.stop_limit_s:.0f}",
        "# and restarts those that the kernel killed for their memory",
        "OOMPolicy=continue",
        "",
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
    ]
    sections = (
        [
            "[Unit]",
            "Description=Models for QMD (qmd-remote)",
            "# a rootless engine is a unit of the user; any other one is not, and is waited for by starting again",
            "After=docker.service podman.socket",
            f"StartLimitIntervalSec={STARTS_WITHIN_S}",
            f"StartLimitBurst={STARTS}",
        ],
        ["[Service]", *service],
        ["[Install]", "WantedBy=default.target"],
    )
    return "\n\n".join([MARKER, *("\n".join(section) for section in sections)]) + "\n"


def is_ours(content: str) -> bool:
    """Whether the content of a unit file was made here."""
    return content.startswith(MARKER)


def arguments(settings: Settings, given: Iterable[str]) -> tuple[str, ...]:
    """The options of `up` for the settings of these names. Raises ConfigError for one that holds a secret.

    Others on this machine can read a command line.
    """
    words: list[str] = []
    for name in given:
        value = getattr(settings, name)
        _refuse_secret(name, value)
        if isinstance(value, bool):
            words += [flag_of(name)] if value else []
        else:
            for one in value if isinstance(value, tuple) else [value]:
                # an option's value that begins with a dash
                words += [f"{flag_of(name)}={one}"] if str(one).startswith("-") else [flag_of(name), str(one)]
    return tuple(words)


def environment(settings: Settings, env: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the unit keeps of a shell's environment, and the variables left out since they hold a secret.

    Kept are the settings that come from variables, and what says where things are found. Raises ConfigError when the
    API key is only there.
    """
    if settings.origins.get("api_key", "").startswith("environment"):
        raise ConfigError(
            "the API key is in this shell's QMD_REMOTE_API_KEY alone, and a unit is no place for it",
            hint="put it into a file: (umask 077; printenv QMD_REMOTE_API_KEY > ~/.qmd-remote-key), "
            "and then: qmd-remote service install --api-key-file ~/.qmd-remote-key",
            code="unit.secret",
        )
    there = {name: env[name] for name in sorted(KEPT & env.keys()) if env[name]}
    secret = [name for name in SECRETS if env.get(name)]
    secret += [name for name in there if name in ADDRESSES and _holds_password(there[name])]
    kept = {name: _in_full(name, value) for name, value in there.items() if name not in secret}
    for f in declared():
        if settings.origins.get(f.name, "").startswith("environment") and not f.metadata["secret"]:
            _refuse_secret(f.name, getattr(settings, f.name))
            kept[f.metadata["env"]] = to_text(getattr(settings, f.name))
    return kept, tuple(secret)


def _in_full(name: str, value: str) -> str:
    """A variable's value for a program that runs in another folder."""
    if name in FOLDERS:
        # not resolved: what a link leads to may be replaced; ~name of nobody is kept
        return os.path.abspath(os.path.expanduser(value))  # noqa: PTH100, PTH111
    if name in SEARCHED:
        return os.pathsep.join(dict.fromkeys(one for one in value.split(os.pathsep) if one.startswith("/")))
    return value


SECRET = frozenset({"--api-key", "--hf-token"})


def _refuse_secret(name: str, value: object) -> None:
    words = _split(value) if name == "generation_args" and isinstance(value, str) else [value]
    if any(
        isinstance(one, str) and (_holds_password(one) or one.split("=")[0].replace("_", "-") in SECRET)
        for one in words
    ):
        raise ConfigError(
            f"{flag_of(name)} holds a key or a password, and everybody here could read it in the list of processes",
            hint="leave it out of there",
            code="unit.secret",
        )


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that does not end: told by who runs it
        return line.split()


def _holds_password(value: str) -> bool:
    """Whether a URL holds a password, or over HTTP a user name, which may be a token."""
    try:
        parts = urlsplit(value)
        return bool(parts.password) or (parts.scheme in {"http", "https"} and "@" in parts.netloc)
    except ValueError:
        return "@" in value


def _command(*words: str) -> str:
    # variables are replaced in the words of a command, and not in the path that is its first
    return " ".join(_quoted(word.replace("$", "$$") if at else word) for at, word in enumerate(words))


def _assignment(name: str, value: str) -> str:
    return _quoted(f"{name}={value}")


def _quoted(word: str) -> str:
    """A word as systemd.syntax(7) reads it: percent signs are specifiers, quotes and backslashes as in C."""
    word = word.replace("%", "%%")
    if _BARE.fullmatch(word):
        return word
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        word = word.replace(character, escaped)
    return f'"{word}"'
