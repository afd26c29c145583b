"""The containers of a plan as a compose file: the same images, commands, mounts and limits.

Pure, but for the look-up of an address that is a name.
"""

from __future__ import annotations

from typing import Any

from qmd_remote.launch.container import Container, published
from qmd_remote.launch.embed_plan import KEY
from qmd_remote.reach import is_loopback
from qmd_remote.services import EMBED, GENERATION

VLLM_KEY = "VLLM_API_KEY"
NAMES = {GENERATION: "vllm", EMBED: "embed"}
START_PERIOD = {GENERATION: "60m", EMBED: "30m"}  # an image is there by then; a model may have to be downloaded first
# not urllib, which would ask a proxy that the engine tells all its containers of
ASK = (
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', {port}, timeout=5); "
    "c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"
)


def compose(generation: Container, embed: Container, *, keyless: bool = False) -> dict[str, Any]:
    """A compose file's content. The embed server starts when generation is ready: the larger tenant of a GPU first.

    What other machines can reach does not start without a key, unless `keyless`.
    """
    services = {NAMES[one.service]: _service(one, keyless=keyless) for one in (generation, embed)}
    services[NAMES[EMBED]]["depends_on"] = {NAMES[GENERATION]: {"condition": "service_healthy"}}
    volumes = [one.source for one in (*generation.mounts, *embed.mounts) if one.kind == "volume"]
    return {"name": "qmd-remote", "services": services, "volumes": {name: {} for name in volumes}}


def _service(container: Container, *, keyless: bool) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": container.image,
        "container_name": container.name,
        "command": [_literal(word) for word in container.command],
        "init": True,
        "restart": "unless-stopped",
        "security_opt": ["no-new-privileges:true"],
    }
    if container.service == EMBED:
        service["build"] = "."
        service["command"] = ["serve"]  # its entrypoint is qmd-remote
    service["environment"] = {
        **{name: _literal(value) for name, value in container.env.items()},
        **_secrets(container, keyless=keyless),
    }
    if container.publish is not None:
        service["ports"] = [published(container.publish)]
    service["volumes"] = [f"{one.source}:{one.target}" + (":ro" if one.read_only else "") for one in container.mounts]
    service["shm_size"] = container.shm_bytes
    if container.ulimits:
        service["ulimits"] = {one.name: {"soft": one.soft, "hard": one.hard} for one in container.ulimits}
    service["healthcheck"] = _healthcheck(container)
    service["logging"] = {
        "driver": "json-file",
        "options": {"max-size": container.log_max_size, "max-file": str(container.log_files)},
    }
    if container.gpus != "none":
        which = {"count": "all"} if container.gpus == "all" else {"device_ids": container.gpus.split(",")}
        device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _literal(text: str) -> str:
    """A text in which compose replaces nothing."""
    return text.replace("$", "$$")


def _secrets(container: Container, *, keyless: bool) -> dict[str, str]:
    """Where secrets come from: the shell, or a file .env beside this one. Both services have the same key."""
    published = container.publish is not None and not is_loopback(container.publish[0])
    found = {}
    for name in container.secret_env:
        if name not in {KEY, VLLM_KEY}:
            found[name] = f"${{{name}:-}}"
        elif published and not keyless:
            found[name] = f"${{{KEY}:?other machines can reach it, so it needs a key}}"
        else:
            found[name] = f"${{{KEY}:-}}"
    return found


def _healthcheck(container: Container) -> dict[str, Any]:
    # the port inside: where it is published does not matter there
    port = container.publish[2] if container.publish else 0
    ask = ["-m", "qmd_remote.server.probe"] if container.service == EMBED else ["-c", ASK.format(port=port)]
    return {
        "test": ["CMD", "python3", *ask],
        "interval": "10s",
        "timeout": "10s",
        "retries": 3,
        "start_period": START_PERIOD[container.service],
    }
