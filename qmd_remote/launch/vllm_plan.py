"""The container of vLLM from settings and facts: image, command, mounts, environment, share of the GPU. Pure."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.launch.container import VLLM_SERVE, Container, Mount, Ulimit, require_name
from qmd_remote.reach import is_loopback
from qmd_remote.services import GENERATION
from qmd_remote.settings import Settings
from qmd_remote.supervision import GPU_ORDER

PORT = 8000  # inside the container
HUB = "/root/.cache/huggingface"
COMPILED = "/root/.cache/vllm"
MODELS = "/models"
SHM_BYTES = 8 << 30  # the engine's own default of 64 MB makes vLLM exit; it is memory only as far as it is used
ULIMITS = (Ulimit("memlock", -1, -1), Ulimit("stack", 67108864, 67108864))
QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1"}
CPU_KV_CACHE_GIB = 4
SHARE, CONTEXT, SEQUENCES = "--gpu-memory-utilization", "--max-model-len", "--max-num-seqs"
NAME, SPLIT = "--served-model-name", "--tensor-parallel-size"
SHORT = {"-tp": SPLIT}
# what would leave vLLM where nobody looks for it, or show a secret to every user of the machine → what to do instead
OURS = {
    "--host": "use --generation-host instead",
    "--port": "use --generation-port instead",
    "--uds": "use --generation-port instead",
    "--headless": "leave it out: vLLM would not listen",
    "--grpc": "leave it out: vLLM would not answer over HTTP",
    "--model": "use --generation-model instead",
    "--api-key": "use QMD_REMOTE_API_KEY instead",
    "--hf-token": "use HF_TOKEN instead",
}
SSL = "--ssl-", "--enable-ssl-"  # how such options begin; vLLM is asked without TLS
TLS = "use --tls-cert and --tls-key instead: the embed server passes requests on, and vLLM need not be reached"


@dataclass(frozen=True)
class Place:
    """Where things are on this machine: the hub's home (HF_HOME) and whether the model is in its cache already.

    `hub` is its cache where that is not HF_HOME/hub.
    """

    hf_home: Path
    hub: Path
    cached: bool


@dataclass(frozen=True)
class Room:
    """What vLLM is told to make room for, by the user's own options first; `gpus` share the weights and the cache."""

    context: int
    sequences: int
    gpus: int = 1


def vllm_container(
    settings: Settings,
    place: Place,
    *,
    share: float,
    owner: str,
    version: str,
    env: Mapping[str, str],
    kv_gib: int = CPU_KV_CACHE_GIB,
) -> Container:
    """The container of these settings.

    `share` is vLLM's of the GPU's memory, `kv_gib` the KV cache of an image for CPUs, `env` the user's environment.
    Raises ConfigError when it would be published to other machines without a key, UsageError for options of vLLM that
    are no options, or not theirs to choose.
    """
    local = settings.generation_model.startswith("/")
    secret = {}
    if not (local or place.cached) and env.get("HF_TOKEN"):
        secret["HF_TOKEN"] = env["HF_TOKEN"]
    if key := published_key(settings):
        secret["VLLM_API_KEY"] = key
    hub = {"HF_HUB_OFFLINE": "1"} if local or place.cached else endpoint(env)
    # the memory plan is made for the first GPU by nvidia-smi's numbers
    device = {"VLLM_CPU_KVCACHE_SPACE": str(kv_gib)} if settings.gpus == "none" else GPU_ORDER
    return Container(
        name=require_name(settings.generation_container, "--generation-container"),
        service=GENERATION,
        image=settings.generation_image,
        command=(*VLLM_SERVE, *command(settings, share)),
        owner=owner,
        version=version,
        gpus=settings.gpus,
        env={**QUIET, **device, **hub},
        secret_env=secret,
        mounts=tuple(_mounts(settings, place)),
        publish=(settings.generation_host, settings.generation_port, PORT),
        ulimits=ULIMITS,
        shm_bytes=SHM_BYTES,
    )


def command(settings: Settings, share: float) -> list[str]:
    """What follows `vllm serve`. The user's own options come last, and ours that they name are left out.

    Raises UsageError.
    """
    model = settings.generation_model
    # published is the container's port, and where that can be reached from is another matter
    where = ["--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104
    served = options(settings, share if settings.gpus != "none" else 0)
    return [_inside(model) if model.startswith("/") else model, *where, *served]


def options(settings: Settings, share: float = 0) -> list[str]:
    """The options of `vllm serve` but for its address; `share` of the GPU's memory, 0 for what a person chose or none.

    Raises UsageError.
    """
    model, share = settings.generation_model, share or chosen_share(settings)
    theirs = extra(settings.generation_args)
    named = dict(_options(theirs))
    _require_theirs(model, named)
    # no --kv-cache-memory-bytes: older images refuse what they do not know, and vLLM's check of what is free goes by
    # the share even where it is given
    ours = [
        (NAME, model),
        (CONTEXT, str(settings.generation_context)),
        (SEQUENCES, str(settings.generation_sequences)),
    ]
    if share:
        ours.append((SHARE, f"{share:.2f}" if round(share, 2) == share else str(share)))
    return [*(word for option, value in ours if option not in named for word in (option, value)), *theirs]


def extra(line: str) -> list[str]:
    """The user's own options of `vllm serve`. Raises UsageError for a line that no shell would read."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(
            f"the options for vLLM cannot be read: {error}", hint="--generation-args '--dtype half --seed 1'"
        ) from None
    if words and not words[0].startswith("-"):
        raise UsageError(
            f"the options for vLLM begin with '{words[0]}', which is none",
            hint="--generation-args '--dtype half'; the model is named by --generation-model",
        )
    return words


def room(settings: Settings) -> Room:
    """What vLLM will make room for. An option whose value only vLLM understands leaves ours. Raises UsageError."""
    named = dict(_options(extra(settings.generation_args)))
    return Room(
        _tokens(named.get(CONTEXT, [])) or settings.generation_context,
        _tokens(named.get(SEQUENCES, [])) or settings.generation_sequences,
        _tokens(named.get(SPLIT, [])) or 1,
    )


def chosen_share(settings: Settings) -> float:
    """The share of the GPU's memory that a person chose for vLLM; 0 leaves it to the plan. Raises UsageError."""
    text = " ".join(dict(_options(extra(settings.generation_args))).get(SHARE, []))
    try:
        share = float(text) if text else settings.generation_gpu_share
    except ValueError:
        share = -1.0
    if (share or text) and not 0.01 <= share <= 0.95:
        raise UsageError(
            f"vLLM's share of the GPU's memory is {text or share}, and must be between 0.01 and 0.95",
            hint="--generation-gpu-share 0.3; 0 leaves it to the memory plan",
        )
    return share


def planned_share(settings: Settings) -> str:
    """What to type so that the memory plan chooses vLLM's share; empty where it does already."""
    words = extra(settings.generation_args)
    kept = [word for option, value in _split(words) if _long(option) != SHARE for word in (option, *value)]
    parts = ["--generation-gpu-share 0"] if settings.generation_gpu_share else []
    if kept != [word for option, value in _split(words) for word in (option, *value)]:
        parts.append(f"--generation-args {shlex.quote(shlex.join(kept))}")
    return " ".join(parts)


def published_key(settings: Settings) -> str:
    """The key that vLLM asks for: ours, where other machines can reach it. Raises ConfigError when there is none."""
    if is_loopback(settings.generation_host):
        return ""
    if not settings.key and not settings.insecure_no_auth:
        raise ConfigError(
            f"generation on {settings.generation_host} can be reached from other machines, and no API key is set",
            hint="leave it on 127.0.0.1, since the embed server passes requests on; or: qmd-remote key rotate",
            code="bind.no_key",
        )
    return settings.key


def endpoint(env: Mapping[str, str]) -> dict[str, str]:
    """The hub that the user named instead of the public one, for a container that may download."""
    return {"HF_ENDPOINT": env["HF_ENDPOINT"]} if env.get("HF_ENDPOINT") else {}


def _require_theirs(model: str, named: Mapping[str, Sequence[str]]) -> None:
    """Refuse options that are ours to give, and a name under which nobody would ask. Raises UsageError."""
    for option in named:
        if instead := OURS.get(option) or (TLS if option.startswith(SSL) else ""):
            raise UsageError(f"{option} is not for the options of vLLM", hint=instead)
    if NAME in named and model not in named[NAME]:
        raise UsageError(
            f"{NAME} in the options for vLLM does not name {model}, which is what clients ask for",
            hint=f"--generation-args '{NAME} {model} {' '.join(named[NAME])}'; or leave it out",
        )


def _split(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option as it was written, with the words that follow it."""
    starts = [at for at, word in enumerate(words) if re.match(r"--?[A-Za-z]", word)]
    for start, end in itertools.pairwise([*starts, len(words)]):
        yield words[start], list(words[start + 1 : end])


def _options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(option, values) of a command line, in vLLM's own spelling."""
    for option, values in _split(words):
        _, equals, value = option.partition("=")
        yield _long(option), [value] if equals else values


def _long(option: str) -> str:
    """An option's name; vLLM takes underscores for hyphens."""
    name = option.partition("=")[0]
    return SHORT.get(name, name).replace("_", "-")


def _tokens(values: Sequence[str]) -> int:
    """A count as vLLM reads it, 8192, 8k (8,000) or 8K (8,192); 0 where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", values[0]) if values else None
    each = {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 2**20}
    return int(float(found[1]) * each[found[2]]) if found else 0


def _inside(folder: str) -> str:
    """Where the container sees a folder of models. One in the hub's cache holds links, and is seen with all of it."""
    path = Path(folder)
    home = _home(path)
    return f"{MODELS}/{home.name}" + (f"/{path.relative_to(home)}" if path != home else "")


def _home(path: Path) -> Path:
    in_cache = path.parent.name == "snapshots" and path.parents[1].name.startswith("models--")
    return path.parents[1] if in_cache else path


def _mounts(settings: Settings, place: Place) -> Iterator[Mount]:
    yield Mount(str(place.hf_home), HUB)
    if place.hub != place.hf_home / "hub":
        yield Mount(str(place.hub), f"{HUB}/hub")
    yield Mount(f"{settings.generation_container}-cache", COMPILED, kind="volume")
    if settings.generation_model.startswith("/"):
        home = _home(Path(settings.generation_model))
        yield Mount(str(home), f"{MODELS}/{home.name}", read_only=True)
