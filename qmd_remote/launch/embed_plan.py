"""The embed server as a container: the image of our Dockerfile with this installation's settings. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from qmd_remote.launch.container import Container, Mount, require_name
from qmd_remote.launch.vllm_plan import endpoint
from qmd_remote.services import EMBED
from qmd_remote.settings import Settings, declared

# as the Dockerfile has them
HUB = "/cache/huggingface"
OURS = "/cache/qmd-remote"
PORT = 8001

CACHE = "qmd-embed-cache"  # the volume of a project of compose

KEY = "QMD_REMOTE_API_KEY"
ALWAYS = ("embed_model", "rerank_model", "device", "max_batch_size")
NEVER = frozenset({"api_key", "api_key_file", "preset", "embed_engine", "embed_image", "embed_container", "gpus"})
# what lies on the host, or is decided by how the container is published
PLACES = frozenset({"host", "port", "insecure_no_auth"})
GENERATION = frozenset(
    {"generation_engine", "generation_url", "generation_host", "generation_port", "generation_model"}
)
SHM_BYTES = 1 << 30
NOTHING: Mapping[str, str] = MappingProxyType({})


def embed_container(
    settings: Settings,
    *,
    hub: Path,
    ours: Path,
    owner: str,
    version: str,
    cache: Path | None = None,
    user: str = "",
    gpu: bool = True,
    env: Mapping[str, str] = NOTHING,
) -> Container:
    """The container that `up --embed-engine docker` runs, with the host's own network.

    There it listens where the process would, and reaches generation on the host's loopback, whoever runs that. `hub`
    is the hub's home (HF_HOME), `cache` its cache where that is not below it, `ours` a folder for converted models;
    local models are mounted where they lie. `user` (UID:GID) keeps what is written there the caller's. `env` is the
    user's environment.
    """
    told = environment(settings) | endpoint(env)
    # the image listens everywhere and needs no key, since it does not know where it is published; here we do
    told |= {"QMD_REMOTE_HOST": settings.host, "QMD_REMOTE_INSECURE_NO_AUTH": str(int(settings.insecure_no_auth))}
    elsewhere = [Mount(str(cache), f"{HUB}/hub")] if cache not in (None, hub / "hub") else []
    return Container(
        name=require_name(settings.embed_container, "embed_container"),
        service=EMBED,
        image=settings.embed_image,
        command=("qmd-remote", "serve"),
        owner=owner,
        version=version,
        gpus=settings.gpus if gpu else "none",
        env=told,
        secret_env={
            name: value for name, value in ((KEY, settings.key), ("HF_TOKEN", env.get("HF_TOKEN", ""))) if value
        },
        mounts=(Mount(str(hub), HUB), *elsewhere, Mount(str(ours), OURS), *_local(settings)),
        user=user,
        shm_bytes=SHM_BYTES,
    )


def composed(settings: Settings, *, generation: tuple[str, int], version: str) -> Container:
    """The container in a project of compose, beside the service `generation` (its name and port there).

    Its models lie in a volume: it does not run as root, and could not write where vLLM's container, which does, has
    made the folders.
    """
    name, port = generation
    beside = replace(settings, generation_engine="docker", generation_host=name, generation_port=port)
    return Container(
        name=require_name(settings.embed_container, "embed_container"),
        service=EMBED,
        image=settings.embed_image,
        command=("qmd-remote", "serve"),
        owner="",
        version=version,
        gpus="none" if settings.device == "cpu" else settings.gpus,
        env=environment(beside, but=PLACES),
        secret_env={KEY: "", "HF_TOKEN": ""},
        mounts=(Mount(CACHE, HUB, kind="volume"), *_local(settings)),
        publish=(settings.host.strip("[]"), settings.port, PORT),
        shm_bytes=SHM_BYTES,
    )


def environment(settings: Settings, but: frozenset[str] = frozenset()) -> dict[str, str]:
    """The design's four variables, and those whose value is not the default, without secrets."""
    told = settings.to_env()
    return {
        f.metadata["env"]: told[f.metadata["env"]]
        for f in declared()
        if f.name not in NEVER | but
        and (f.name in GENERATION or not f.name.startswith("generation_"))
        and (f.name in ALWAYS or f.name == "generation_engine" or getattr(settings, f.name) != f.default)
    }


def _local(settings: Settings) -> Iterator[Mount]:
    """Local models and certificates, where they lie."""
    models = [name for name in (settings.embed_model, settings.rerank_model) if name.startswith("/")]
    for name in dict.fromkeys([*models, settings.tls_cert, settings.tls_key]):
        if name:
            yield Mount(name, name, read_only=True)
