"""The parent of a generation engine, or of a container: `python -m qmd_remote.launch.keeper SERVICE`, started by `up`.

For an engine that is a process it holds the public port, relays to the engine's private one, and restarts the engine
by the rules of the embed server. Where its weights have to be downloaded or converted, that comes first, and callers
wait as they do for a restart. Containers publish their port themselves: container_keeper.py. Settings come from the
environment.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qmd_remote import hub_cache, logbook, paths, services, turn
from qmd_remote import settings as settings_module
from qmd_remote.errors import ConfigError, Interrupted, QmdRemoteError
from qmd_remote.launch import containers, conversion, dialect, docker_plan, download, hang, hardware, plan, relay
from qmd_remote.launch.container import Container
from qmd_remote.launch.container_keeper import ContainerKeeper, Service
from qmd_remote.launch.wait import Limits
from qmd_remote.logbook import Logbook
from qmd_remote.output import Output
from qmd_remote.reach import is_loopback
from qmd_remote.settings import Settings
from qmd_remote.stop_wish import StopWish
from qmd_remote.supervision import GPU_ORDER, Child, Supervisor, answers_ok, listen

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


def main(service: str) -> int:
    """Keep a service of the environment's settings; returns the exit code."""
    try:
        settings = settings_module.handed_over()
        # `up` has looked whether it fits, and what runs now may be what it will replace
        planned = plan.make(
            settings, hardware.probe(), paths.cache_dir(), held=dict.fromkeys(services.SERVICES, settings)
        )
        if container := containers.planned(planned).get(service):
            return _keep_container(settings, container)
        generation = planned.generation
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
    with wish.heeded(), listener, services.registered(services.GENERATION, settings, **facts) as place:
        try:
            return asyncio.run(_keep(settings, generation, listener, book, wish))
        except QmdRemoteError as error:
            place.ended = error.message
            return Output("generation", as_json=True).fail(error)


def _keep_container(settings: Settings, container: Container) -> int:
    """Keep a container; what goes wrong before it is ready is told as the last line of the log."""
    engine = containers.connect()
    book = logbook.take_over(paths.log_file(container.service))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    service = container_service(settings, container.service)
    model = settings.generation_model if container.service == services.GENERATION else settings.embed_model
    facts = {"url": service.url, "model": model, "program": containers.DOCKER}
    wish = StopWish()
    with wish.heeded(), services.registered(container.service, settings, **facts) as place:
        try:
            code = asyncio.run(_live(settings, ContainerKeeper(container, service, engine, book, wish)))
        except QmdRemoteError as error:
            place.ended = error.message
            return Output(container.service, as_json=True).fail(error)
        if code:
            place.ended = f"its container {container.name} was stopped or removed by somebody else"
        return code


async def _live(settings: Settings, keeper: ContainerKeeper) -> int:
    """Have image and model here, then keep the container: it then needs no token, and no rights on the hub's cache.

    The image comes first: whether it is there at all is known at once, and the model may be many gigabytes.
    """
    generation = keeper.container.service == services.GENERATION
    if not generation:
        with keeper.wish.heeded_in_loop(), suppress(Interrupted):
            await asyncio.to_thread(turn.wait_for_generation, settings, _reporter(keeper))
    if generation and docker_plan.to_download(settings) and download.possible():
        with keeper.wish.heeded_in_loop():
            await keeper.bring_image()
            if keeper.wish.asked.is_set() or not await download.ensure(
                settings.generation_model, keeper.book, keeper.wish
            ):
                return 0
        # it is here now, and the container needs to know
        planned = plan.make(
            settings, hardware.probe(), paths.cache_dir(), held=dict.fromkeys(services.SERVICES, settings)
        )
        keeper.container = planned.generation.container or keeper.container
    return await keeper.run()


def _reporter(keeper: ContainerKeeper) -> Callable[[str, float | None], None]:
    """Says a phase once; raises Interrupted when the keeper is told to stop."""
    said: set[str] = set()

    def report(phase: str, _: float | None) -> None:
        if keeper.wish.asked.is_set():
            raise Interrupted(phase)
        if phase not in said:
            keeper.book.say(f"phase: {phase}")
        said.add(phase)

    return report


def container_service(settings: Settings, name: str) -> Service:
    """What a container of these settings offers, seen from this machine."""
    limits = Limits(settings.stall_limit_s, settings.start_limit_s)
    if name == services.EMBED:
        return Service(
            "embed server", settings.url, limits, settings.hang_limit_s, key=settings.key, certificate=settings.tls_cert
        )
    key = "" if is_loopback(settings.generation_host) else settings.key
    fills: tuple[Path, ...] = ()
    if docker_plan.to_download(settings):
        # the hub's library may collect the parts of a file in a folder of its own first
        xet = docker_plan.hf_home(os.environ) / "xet"
        fills = (hub_cache.model_folder(settings.generation_model, hub_cache.folder()), xet)
    return Service(
        "generation engine",
        settings.generation_at,
        limits,
        settings.hang_limit_s,
        model=settings.generation_model,
        key=key,
        fills=fills,
    )


async def _keep(
    settings: Settings, generation: plan.GenerationPlan, listener: socket.socket, book: Logbook, wish: StopWish
) -> int:
    port = free_port()
    env = {**PATIENT_THREADS, **GPU_ORDER, **os.environ, **QUIET, **generation.env}
    # the engine listens on loopback for the relay only; our key is not its business
    env.pop("QMD_REMOTE_API_KEY", None)
    watch = functools.partial(hang.until_hung, f"http://127.0.0.1:{port}", generation.model, settings.hang_limit_s)
    child = Child(
        name=f"generation engine ({generation.program})",
        argv=[str(port) if part == plan.PORT else part for part in generation.argv],
        env=env,
        ready=functools.partial(answers_ok, f"http://127.0.0.1:{port}"),
        grace_s=ENGINE_GRACE_S,
        # only vLLM counts its tokens, by which a long queue is told from a standstill
        until_hung=watch if generation.program == "vllm" else None,
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
            # engines download, too, but say little, begin anew after a break, and take minutes to give up
            elif docker_plan.to_download(settings) and not await download.ensure(generation.model, book, wish):
                return 0
            return await supervisor.run()
    finally:
        await server.close()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
