"""Settings: one frozen value, from flag > environment > preset > default, with the origin of every field.

Each field declares its environment variable and its meaning once; parsing, the hand-over to worker processes and
the reference page (docs/settings.md) all read that declaration.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.presets import DESIGN_EMBED, DESIGN_GENERATION, DESIGN_RERANK, PRESETS

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off", ""})


def _setting(
    default: Any, env: str, about: str, *, choices: tuple[str, ...] = (), low: float = 0, secret: bool = False
) -> Any:
    return field(
        default=default,
        repr=not secret,
        metadata={"env": env, "about": about, "choices": choices, "low": low, "secret": secret},
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that changes what the services do. Build it with `resolve`, not by hand, outside tests."""

    embed_model: str = _setting(DESIGN_EMBED, "EMBED_MODEL", "Embedding model: a hub id or a local folder.")
    rerank_model: str = _setting(
        DESIGN_RERANK,
        "RERANK_MODEL",
        "Reranking model: a hub id or a local folder. A bi-encoder works too: its cosine is mapped to [0, 1].",
    )
    device: str = _setting(
        "auto",
        "DEVICE",
        "cuda, cuda:N, mps or cpu; auto takes the best there is. One named and absent is an error.",
    )
    max_batch_size: int = _setting(
        64,
        "MAX_BATCH_SIZE",
        "Texts in one forward pass. Requests may be larger: they are split inside.",
        low=1,
    )
    host: str = _setting("127.0.0.1", "QMD_REMOTE_HOST", "Address the embed server listens on.")
    port: int = _setting(8001, "QMD_REMOTE_PORT", "Port of the embed server.")
    api_key: str = _setting(
        "", "QMD_REMOTE_API_KEY", "Key that clients send as `Authorization: Bearer KEY`.", secret=True
    )
    api_key_file: str = _setting("", "QMD_REMOTE_API_KEY_FILE", "File that holds the key, instead of the variable.")
    insecure_no_auth: bool = _setting(
        False, "QMD_REMOTE_INSECURE_NO_AUTH", "Allow an address other than loopback without a key."
    )
    max_body_mb: float = _setting(10.0, "QMD_REMOTE_MAX_BODY_MB", "Largest request body, in MB (10⁶ bytes).", low=0.001)
    max_queue: int = _setting(
        16384,
        "QMD_REMOTE_MAX_QUEUE",
        "Texts that may wait for the model; beyond it requests wait, then get a 503.",
        low=1,
    )
    queue_wait_s: float = _setting(
        30.0, "QMD_REMOTE_QUEUE_WAIT_S", "Seconds a request waits for room in a full queue before its 503."
    )
    ready_wait_s: float = _setting(
        60.0,
        "QMD_REMOTE_READY_WAIT_S",
        "Seconds a request waits for models that load, or for a worker that restarts.",
    )
    trust_remote_code: tuple[str, ...] = _setting(
        (),
        "QMD_REMOTE_TRUST_REMOTE_CODE",
        "Models, by name and comma-separated, that may run code of their own.",
    )
    generation_engine: str = _setting(
        "process",
        "QMD_REMOTE_GENERATION",
        "process (a supervised `vllm serve` or `transformers serve`), external (a URL) or off.",
        choices=("process", "external", "off"),
    )
    generation_model: str = _setting(
        DESIGN_GENERATION, "QMD_REMOTE_GENERATION_MODEL", "Generation model: a hub id or a local folder."
    )
    generation_command: str = _setting(
        "auto",
        "QMD_REMOTE_GENERATION_COMMAND",
        "What the process engine runs; auto takes vllm where it is installed with a GPU, else transformers.",
        choices=("auto", "vllm", "transformers"),
    )
    generation_port: int = _setting(8000, "QMD_REMOTE_GENERATION_PORT", "Port of the generation service, on 127.0.0.1.")
    generation_url: str = _setting("", "QMD_REMOTE_GENERATION_URL", "The service to use with the external engine.")
    stall_limit_s: float = _setting(
        300.0,
        "QMD_REMOTE_STALL_LIMIT_S",
        "Seconds without any progress after which a wait ends with its cause.",
        low=1,
    )
    start_limit_s: float = _setting(3600.0, "QMD_REMOTE_START_LIMIT_S", "Seconds a start may take in all.", low=1)
    preset: str = _setting("", "QMD_REMOTE_PRESET", "Named set of models: gpu, cpu or mini.", choices=("", *PRESETS))
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """The API key, from the variable or its file; empty when there is none."""
        return self.api_key or (read_key_file(self.api_key_file) if self.api_key_file else "")

    def to_env(self) -> dict[str, str]:
        """The settings as environment variables, for a child process; `resolve({}, that)` gives them back.

        The key travels only this way: never in argv, where every user of the machine could read it.
        """
        return {f.metadata["env"]: _to_text(getattr(self, f.name)) for f in declared()}


def declared() -> list[dataclasses.Field[Any]]:
    """The settings' fields in order, without the book-keeping."""
    return [f for f in fields(Settings) if f.name != "origins"]


def resolve(
    flags: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ, *, preset: str = ""
) -> Settings:
    """Settle every field: flag > environment > preset > default.

    `flags` holds field names; None stands for "not given". `preset` is the one to use when neither flag nor
    environment names one. Raises ConfigError (a value from the environment) or UsageError (a flag), naming both the
    value and what it should be.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    chosen = _one_of("preset", given.get("preset") or env.get("QMD_REMOTE_PRESET") or preset, given)
    for f in declared():
        variable = f.metadata["env"]
        if f.name in given:
            values[f.name], origins[f.name] = _parse(f, given[f.name], UsageError), "flag"
        elif env.get(variable, "") != "":
            values[f.name], origins[f.name] = (
                _parse(f, env[variable], ConfigError),
                f"environment ({variable})",
            )
        elif chosen and f.name in PRESETS[chosen].values:
            values[f.name], origins[f.name] = PRESETS[chosen].values[f.name], f"preset ({chosen})"
        else:
            values[f.name], origins[f.name] = f.default, "default"
    values["preset"] = chosen
    if origins["api_key_file"] == "flag" and origins["api_key"] != "flag":
        values["api_key"] = ""  # a key's file on the command line wins over a key in the environment
    if values["api_key"] and not _is_sendable(values["api_key"]):
        raise ConfigError("QMD_REMOTE_API_KEY must hold one key: ASCII, no spaces inside", code="key.invalid")
    return Settings(**values, origins=origins)


def require_device_name(name: str) -> None:
    """Refuse a device that can be on no machine, before anything is started. Raises ConfigError."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name.strip().lower()):
        raise ConfigError(
            f"there is no device '{name}'", hint="the devices are: auto, cuda, cuda:N, mps, cpu", code="device.unknown"
        )


def require_safe_bind(settings: Settings) -> None:
    """Refuse to serve strangers without a key.

    Raises ConfigError for an address other than loopback when there is neither a key nor `insecure_no_auth`.
    """
    if is_loopback(settings.host) or settings.insecure_no_auth or settings.key:
        return
    raise ConfigError(
        f"{settings.host} can be reached from other machines, and no API key is set",
        hint="write a key to a file of mode 0600 and add --api-key-file FILE, or set QMD_REMOTE_API_KEY; "
        "--insecure-no-auth serves everybody",
        code="bind.no_key",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_key_file(path: str) -> str:
    """The key in a file: its text without white space around it. Raises ConfigError when there is none."""
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: ~name of nobody
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"the API key file {path} cannot be read: {reason}", code="key.unreadable") from error
    if not _is_sendable(key):
        raise ConfigError(
            f"the API key file {path} must hold one key: ASCII, no spaces inside",
            hint=f"python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > {path} && chmod 600 {path}",
            code="key.invalid",
        )
    return key


def _is_sendable(key: str) -> bool:
    """Whether an HTTP header can carry the key."""
    return key.isascii() and key.isprintable() and " " not in key and key != ""


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def _one_of(name: str, value: str, given: Mapping[str, Any]) -> str:
    if not value or value in PRESETS:
        return value
    near = difflib.get_close_matches(value, PRESETS, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    kind = UsageError if name in given else ConfigError
    raise kind(f"there is no preset '{value}'{guess}", hint=f"the presets are: {', '.join(PRESETS)}")


def _parse(f: dataclasses.Field[Any], raw: Any, kind: type[ConfigError] | type[UsageError]) -> Any:
    """`raw` (text, or a flag's typed value) as the field's type, checked against its limits."""
    shown = "(hidden)" if f.metadata["secret"] else repr(raw)
    where = f"{f.metadata['env']}={shown}" if kind is ConfigError else f"{flag_of(f.name)} {shown}"
    text = _to_text(raw).strip()
    try:
        if isinstance(f.default, bool):
            return _as_bool(text)
        if isinstance(f.default, int | float):
            number = type(f.default)(text)
            if number == math.inf:
                raise ValueError("must be a finite number")
            if not number >= f.metadata["low"]:
                raise ValueError(f"must be at least {f.metadata['low']}")
            if f.name.endswith("port") and number > 65535:
                raise ValueError("must be at most 65535")
            return number
        if isinstance(f.default, tuple):
            return tuple(part.strip() for part in text.split(",") if part.strip())
    except ValueError as error:
        wanted = "a whole number" if type(f.default) is int else "a number"
        reason = str(error) if "must" in str(error) else f"must be {wanted}"
        raise kind(f"{where}: {reason}", hint=f.metadata["about"]) from None
    if not text and f.default:
        raise kind(f"{where}: needs a value", hint=f.metadata["about"])
    choices = f.metadata["choices"]
    if choices and text not in choices:
        near = difflib.get_close_matches(text, choices, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise kind(f"{where}: must be one of {', '.join(c for c in choices if c)}{guess}", hint=f.metadata["about"])
    return text


def flag_of(name: str) -> str:
    """The command line's option for a setting."""
    return "--generation" if name == "generation_engine" else f"--{name.replace('_', '-')}"


def _as_bool(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError("must be 1 or 0")
