"""Settings: one frozen value, from flag > environment > file > preset > default, with the origin of every field.

Each field declares its environment variable and its meaning once; parsing, the hand-over to worker processes and
the reference page (docs/settings.md) all read that declaration.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qmd_remote import keys, paths, settings_file
from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.presets import DESIGN_EMBED, DESIGN_GENERATION, DESIGN_RERANK, PRESETS, VLLM_IMAGE
from qmd_remote.reach import connect_host
from qmd_remote.setting_values import did_you_mean, flag_of, parse, to_text
from qmd_remote.settings_file import FileLayer

NO_PRESET = ("preset", "")  # named in no layer: an empty name leaves the choice to the layers below


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
        "cuda, cuda:N (by nvidia-smi's numbers), mps or cpu; auto takes the best there is. One named and absent is an "
        "error.",
    )
    backend: str = _setting(
        "auto",
        "QMD_REMOTE_BACKEND",
        "torch or openvino (CPU only); auto takes openvino on a CPU where it is installed, else torch.",
        choices=("auto", "torch", "openvino"),
    )
    dtype: str = _setting(
        "auto",
        "QMD_REMOTE_DTYPE",
        "Precision of the models: float16, bfloat16 or float32; auto takes the fastest that keeps the answers.",
        choices=("auto", "float16", "bfloat16", "float32"),
    )
    prompts: bool = _setting(
        True,
        "QMD_REMOTE_PROMPTS",
        "Replace the prefixes of QMD's clients by the embedding model's own prompts; off takes texts as they come.",
    )
    default_role: str = _setting(
        "document",
        "QMD_REMOTE_DEFAULT_ROLE",
        "What a text is taken for when neither its prefix nor its request says so: document or query.",
        choices=("document", "query"),
    )
    echo_model: bool = _setting(
        False,
        "QMD_REMOTE_ECHO_MODEL",
        "Answer with the model name of the request, for clients that compare it, instead of the real one.",
    )
    threads: int = _setting(
        0,
        "QMD_REMOTE_THREADS",
        "CPU threads that compute, at most 1024; 0 takes as many as the cores that this process may use.",
    )
    max_batch_size: int = _setting(
        64,
        "MAX_BATCH_SIZE",
        "Texts in one forward pass. Requests may be larger: they are split inside.",
        low=1,
    )
    max_batch_tokens: int = _setting(
        0,
        "QMD_REMOTE_MAX_BATCH_TOKENS",
        "Tokens in one forward pass, padding included; a longer text runs alone. 0 leaves it to the device.",
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
    tls_cert: str = _setting(
        "", "QMD_REMOTE_TLS_CERT", "Certificate (PEM, with its chain) for HTTPS on the embed server's port."
    )
    tls_key: str = _setting("", "QMD_REMOTE_TLS_KEY", "Private key (PEM) of that certificate.")
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
    shutdown_limit_s: float = _setting(
        30.0, "QMD_REMOTE_SHUTDOWN_LIMIT_S", "Seconds that running requests get to finish when a service is stopped."
    )
    access_log: bool = _setting(
        True, "QMD_REMOTE_ACCESS_LOG", "Log a line per request: path, status, time and sizes, no texts and no keys."
    )
    trust_remote_code: tuple[str, ...] = _setting(
        (),
        "QMD_REMOTE_TRUST_REMOTE_CODE",
        "Models, by name and comma-separated, that may run code of their own.",
    )
    generation_engine: str = _setting(
        "process",
        "QMD_REMOTE_GENERATION",
        "docker (the vLLM container), process (a supervised `vllm serve` or `transformers serve`), external (a URL) "
        "or off.",
        choices=("docker", "process", "external", "off"),
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
    generation_port: int = _setting(8000, "QMD_REMOTE_GENERATION_PORT", "Port of the generation service.")
    generation_host: str = _setting(
        "127.0.0.1",
        "QMD_REMOTE_GENERATION_HOST",
        "Address on which the generation container is published; the embed server passes requests on to it anyway.",
    )
    generation_image: str = _setting(VLLM_IMAGE, "QMD_REMOTE_GENERATION_IMAGE", "Image of the generation container.")
    generation_container: str = _setting(
        "qmd-vllm", "QMD_REMOTE_GENERATION_CONTAINER", "Name of the generation container."
    )
    generation_context: int = _setting(
        8192, "QMD_REMOTE_GENERATION_CONTEXT", "Tokens of prompt and answer together that vLLM makes room for.", low=256
    )
    generation_sequences: int = _setting(
        8, "QMD_REMOTE_GENERATION_SEQUENCES", "Requests that vLLM works on at once.", low=1
    )
    generation_gpu_share: float = _setting(
        0.0,
        "QMD_REMOTE_GENERATION_GPU_SHARE",
        "Share of the GPU's memory for vLLM, 0.01 to 0.95; 0 leaves it to the memory plan.",
    )
    generation_args: str = _setting(
        "", "QMD_REMOTE_GENERATION_ARGS", "More options for `vllm serve`, as on a shell's line; they win over ours."
    )
    generation_url: str = _setting("", "QMD_REMOTE_GENERATION_URL", "The service to use with the external engine.")
    repair_expansions: bool = _setting(
        True,
        "QMD_REMOTE_REPAIR_EXPANSIONS",
        "Hold answers to QMD's query expansions to the form its clients accept; off passes them on as they are.",
    )
    gpus: str = _setting(
        "all", "QMD_REMOTE_GPUS", "GPUs for our containers: all, none (for CPU images), or numbers such as 0,1."
    )
    embed_engine: str = _setting(
        "process",
        "QMD_REMOTE_EMBED_ENGINE",
        "process (a supervised `qmd-remote serve`) or docker (the same server in a container).",
        choices=("process", "docker"),
    )
    embed_image: str = _setting(
        "qmd-embed-rerank", "QMD_REMOTE_EMBED_IMAGE", "Image of the embed container: docker build -t qmd-embed-rerank ."
    )
    embed_container: str = _setting("qmd-embed-rerank", "QMD_REMOTE_EMBED_CONTAINER", "Name of the embed container.")
    hang_limit_s: float = _setting(
        120.0,
        "QMD_REMOTE_HANG_LIMIT_S",
        "A generation engine that says it is well and completes nothing for so many seconds is restarted.",
        low=1,
    )
    stall_limit_s: float = _setting(
        300.0,
        "QMD_REMOTE_STALL_LIMIT_S",
        "Seconds without any progress after which a wait ends with its cause.",
        low=1,
    )
    start_limit_s: float = _setting(3600.0, "QMD_REMOTE_START_LIMIT_S", "Seconds a start may take in all.", low=1)
    preset: str = _setting(
        "", "QMD_REMOTE_PRESET", f"Named set of models: {', '.join(PRESETS)}.", choices=("", *PRESETS)
    )
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """The API key, from the variable or its file; empty when there is none."""
        return self.api_key or (keys.read_file(self.api_key_file) if self.api_key_file else "")

    @property
    def url(self) -> str:
        """Where this machine itself reaches the embed server."""
        return f"http{'s' if self.tls_cert else ''}://{connect_host(self.host)}:{self.port}"

    @property
    def generation_at(self) -> str:
        """Where generation is for the embed server and for this machine; empty where it is off."""
        if self.generation_engine == "docker":
            return f"http://{connect_host(self.generation_host)}:{self.generation_port}"
        if self.generation_engine == "process":
            return f"http://127.0.0.1:{self.generation_port}"
        return self.generation_url.rstrip("/") if self.generation_engine == "external" else ""

    def to_env(self) -> dict[str, str]:
        """The settings as environment variables, for a child process; `handed_over(that)` gives them back.

        The key travels only this way: never in argv, where every user of the machine could read it.
        """
        return {f.metadata["env"]: to_text(getattr(self, f.name)) for f in declared()}


def declared() -> list[dataclasses.Field[Any]]:
    """The settings' fields in order, without the book-keeping."""
    return [f for f in fields(Settings) if f.name != "origins"]


def names() -> list[str]:
    """The settings' names in order."""
    return [f.name for f in declared()]


def field_of(name: str) -> dataclasses.Field[Any]:
    """The declaration of a setting. Raises UsageError, with the nearest name, when there is none."""
    for f in declared():
        if f.name == name:
            return f
    raise UsageError(
        f"there is no setting '{name}'{did_you_mean(name, names())}",
        hint="all settings: qmd-remote settings",
        code="settings.unknown",
    )


def resolve(
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] = os.environ,
    *,
    preset: str = "",
    preset_origin: str = "hardware",
    file: FileLayer | None = None,
) -> Settings:
    """Settle every field: flag > environment > file > preset > default.

    `flags` holds field names; None stands for "not given". `preset` is the one to use when nothing else names one;
    `file` stands for the user's settings file, which is read when it is None. Raises ConfigError (a value from the
    environment or the file) or UsageError (a flag), naming both the value and what it should be.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None and (name, value) != NO_PRESET}
    if file is None:
        file = settings_file.read(paths.settings_file(env), names())
    chosen = _preset(given, env, file, preset)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for f in declared():
        values[f.name], origins[f.name] = _settle(f, given, env, file, chosen)
    if chosen and origins["preset"] == "default":
        values["preset"], origins["preset"] = chosen, preset_origin
    # a key's file in one layer wins over a key in a layer below it
    if _rank(origins["api_key_file"]) > _rank(origins["api_key"]):
        values["api_key"], origins["api_key"] = "", origins["api_key_file"]
    if values["api_key"] and not keys.is_sendable(values["api_key"]):
        where = f"{file.where('api_key')}api_key" if origins["api_key"].startswith("file") else "QMD_REMOTE_API_KEY"
        raise ConfigError(
            f"{where} must hold one key: ASCII, no spaces inside",
            hint="correct it; qmd-remote key rotate makes a new one in qmd-remote's own file",
            code="key.invalid",
        )
    return Settings(**values, origins=origins)


def handed_over(env: Mapping[str, str] = os.environ) -> Settings:
    """The settings that a parent process settled and handed over by `to_env`: no file is read again."""
    return resolve({}, env, file=FileLayer(paths.settings_file(env)))


def _settle(
    f: dataclasses.Field[Any], given: Mapping[str, Any], env: Mapping[str, str], file: FileLayer, preset: str
) -> tuple[Any, str]:
    """A field's value and its origin."""
    name, variable = f.name, f.metadata["env"]
    if name in given:
        return parse(f, given[name], where=f"{flag_of(name)} ", kind=UsageError), "flag"
    if env.get(variable, "") != "":
        return parse(f, env[variable], where=f"{variable}=", kind=ConfigError), f"environment ({variable})"
    if name in file.values and (name, file.values[name]) != NO_PRESET:
        where = f"{file.where(name)}{name} = "
        return parse(f, file.values[name], where=where, kind=ConfigError), f"file ({file.path})"
    if preset and name in PRESETS[preset].values:
        return PRESETS[preset].values[name], f"preset ({preset})"
    return f.default, "default"


def _preset(given: Mapping[str, Any], env: Mapping[str, str], file: FileLayer, otherwise: str) -> str:
    """The name of the preset to use, or empty. Raises UsageError or ConfigError for one that does not exist."""
    flag, variable, line = given.get("preset"), env.get("QMD_REMOTE_PRESET"), file.values.get("preset")
    name = str(flag or variable or line or otherwise)
    if not name or name in PRESETS:
        return name
    where = file.where("preset") if not (flag or variable) and line else ""
    raise (UsageError if flag else ConfigError)(
        f"{where}there is no preset '{name}'{did_you_mean(name, PRESETS)}",
        hint=f"the presets are: {', '.join(PRESETS)}",
    )


def _rank(origin: str) -> int:
    """How near to the user a value's origin is."""
    return ["default", "preset", "file", "environment", "flag"].index(origin.partition(" ")[0])


def require_device_name(name: str) -> None:
    """Refuse a device that can be on no machine, before anything is started. Raises ConfigError."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name.strip().lower()):
        raise ConfigError(
            f"there is no device '{name}'", hint="the devices are: auto, cuda, cuda:N, mps, cpu", code="device.unknown"
        )
