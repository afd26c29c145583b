"""The parent of a generation engine: `python -m qmd_remote.launch.keeper`, started by `up`.

It holds the public port, relays to the engine's private one, and restarts the engine by the rules of the embed server.
Settings come from the environment.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import sys

from qmd_remote import paths, services
from qmd_remote import settings as settings_module
from qmd_remote.errors import ConfigError, QmdRemoteError
from qmd_remote.launch import dialect, hardware, plan, relay
from qmd_remote.output import Output
from qmd_remote.settings import Settings
from qmd_remote.supervision import Child, Supervisor, answers_ok, listen

# OpenMP threads that spin while they wait are ruinous where another process wants their core, as the embed server does:
# measured on 2 busy cores, 2.6 against 12.6 tokens/s
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

# the engines are other people's programs: tell them not to phone home, and not to look for updates
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> int:
    """Keep the engine of the environment's settings; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = settings_module.handed_over()
        generation = plan.make(settings, hardware.probe(), paths.cache_dir()).generation
        if generation.engine != "process":
            raise ConfigError(f"there is no engine to keep: generation is {generation.engine} {generation.reason}")
        listener = listen("127.0.0.1", settings.generation_port, holder=services.port_holder, flag="--generation-port")
    except QmdRemoteError as error:
        return Output("generation", as_json=True).fail(error)
    facts = {"url": generation.url, "model": generation.model, "program": generation.program}
    with listener, services.registered(services.GENERATION, settings, **facts):
        return asyncio.run(_keep(settings, generation, listener))


async def _keep(settings: Settings, generation: plan.GenerationPlan, listener: socket.socket) -> int:
    port = free_port()
    env = {**PATIENT_THREADS, **os.environ, **QUIET, **generation.env}
    # the engine listens on loopback for the relay only; our key is not its business
    env.pop("QMD_REMOTE_API_KEY", None)
    child = Child(
        name=f"generation engine ({generation.program})",
        argv=[str(port) if part == plan.PORT else part for part in generation.argv],
        env=env,
        ready=functools.partial(answers_ok, f"http://127.0.0.1:{port}"),
    )
    adapt = dialect.ADAPT.get(generation.program, dialect.unchanged)
    server = await relay.serve_relay(listener, relay.Door(port, adapt, settings.ready_wait_s))
    try:
        return await Supervisor(child).run()
    finally:
        server.close()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
