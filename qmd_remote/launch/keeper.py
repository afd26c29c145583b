"""The parent of a generation engine: `python -m qmd_remote.launch.keeper`, started by `up`.

It holds the public port, relays to the engine's private one, and restarts the engine by the rules of the embed server.
Where the engine needs converted weights, it has them converted first, and callers wait as they do for a restart.
Settings come from the environment.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import sys

from qmd_remote import logbook, paths, services
from qmd_remote import settings as settings_module
from qmd_remote.errors import ConfigError, QmdRemoteError
from qmd_remote.launch import conversion, dialect, hardware, plan, relay
from qmd_remote.logbook import Logbook
from qmd_remote.output import Output
from qmd_remote.settings import Settings
from qmd_remote.stop_wish import StopWish
from qmd_remote.supervision import Child, Supervisor, answers_ok, listen

# OpenMP threads that spin while they wait are ruinous where another process wants their core, as the embed server does:
# measured on 2 busy cores, 2.6 against 12.6 tokens/s
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

# it has no request left when it is told to end
ENGINE_GRACE_S = 15.0

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
    try:
        settings = settings_module.handed_over()
        generation = plan.make(settings, hardware.probe(), paths.cache_dir()).generation
        if generation.engine != "process":
            raise ConfigError(f"there is no engine to keep: generation is {generation.engine} {generation.reason}")
        listener = listen("127.0.0.1", settings.generation_port, holder=services.port_holder, flag="--generation-port")
    except QmdRemoteError as error:
        return Output("generation", as_json=True).fail(error)
    # until here stdout is the log, as `up` made it; from here on it is the log as it is rotated
    book = logbook.take_over(paths.log_file(services.GENERATION))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    facts = {"url": generation.url, "model": generation.model, "program": generation.program}
    wish = StopWish()
    with wish.heeded(), listener, services.registered(services.GENERATION, settings, **facts):
        return asyncio.run(_keep(settings, generation, listener, book, wish))


async def _keep(
    settings: Settings, generation: plan.GenerationPlan, listener: socket.socket, book: Logbook, wish: StopWish
) -> int:
    port = free_port()
    env = {**PATIENT_THREADS, **os.environ, **QUIET, **generation.env}
    # the engine listens on loopback for the relay only; our key is not its business
    env.pop("QMD_REMOTE_API_KEY", None)
    child = Child(
        name=f"generation engine ({generation.program})",
        argv=[str(port) if part == plan.PORT else part for part in generation.argv],
        env=env,
        ready=functools.partial(answers_ok, f"http://127.0.0.1:{port}"),
        grace_s=ENGINE_GRACE_S,
    )
    supervisor = Supervisor(child, book=book, wish=wish)
    adapt = dialect.ADAPT.get(generation.program, dialect.unchanged)
    door = relay.Door(port, adapt, settings.ready_wait_s, lambda: supervisor.restarts)
    server = await relay.serve_relay(listener, door)
    supervisor.before_stop = functools.partial(server.drain, settings.shutdown_limit_s)
    try:
        with wish.heeded_in_loop():
            if generation.conversion is not None:
                code = await conversion.ensure(generation.conversion, book, wish)
                if code or wish.asked.is_set():
                    return code
            return await supervisor.run()
    finally:
        await server.close()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
