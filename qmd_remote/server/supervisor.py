"""`qmd-remote serve`: the parent that holds the listening socket and keeps one worker process alive."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import logging
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from qmd_remote import logbook, paths, services
from qmd_remote.errors import ConfigError
from qmd_remote.reach import is_loopback, require_safe_bind, server_tls, trusting
from qmd_remote.reception import refuse_waiting, turn_away
from qmd_remote.server import orphans
from qmd_remote.server.orphans import Orphans
from qmd_remote.settings import Settings
from qmd_remote.supervision import GPU_ORDER, Child, Supervisor, answers_ok, listen, python_module

log = logging.getLogger("qmd_remote.serve")

WHAT = "the embed server"
TIDY_UP_S = 10.0  # for a worker that has drained: answers on their way out, the batch that is being computed


def serve(settings: Settings, *, managed: bool = False, as_json: bool = False) -> int:
    """Listen on the settings' address, run the worker behind it, and return the exit code when all is over.

    `managed` is how `up` starts it: the service then registers itself for `status` and `down`. Raises ConfigError or
    PrerequisiteError when it cannot listen.
    """
    # read here, once: a key that cannot be read is an error of this command, not of a worker's log
    has_key = bool(settings.key)
    require_safe_bind(settings)
    tls = server_tls(settings)
    book = logbook.take_over(paths.log_file(services.EMBED)) if managed else None
    if book is None:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=logbook.WITH_TIME)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if settings.insecure_no_auth and not has_key and not is_loopback(settings.host):
        log.warning("everybody who can reach %s:%d is served without a key", settings.host, settings.port)
    listener = listen(settings.host, settings.port, holder=services.port_holder)
    url = dataclasses.replace(settings, port=listener.getsockname()[1]).url
    log.info("embed server on %s", url)
    kept = Orphans(listener) if orphans.possible(tls=tls is not None) else None
    env = {**GPU_ORDER, **os.environ, **settings.to_env(), **(kept.env if kept else {})}

    def crashed() -> None:
        env.pop(services.AFTER_GENERATION, None)  # generation was started once, and its restarts wait for nobody
        if kept:
            kept.adopt()

    child = Child(
        name="embed worker",
        argv=python_module("qmd_remote.server.worker", str(listener.fileno()), "--json" if as_json else "--text"),
        env=env,
        ready=_probe(url, settings.tls_cert),
        pass_fds=[listener.fileno(), *([kept.fd] if kept else [])],
        grace_s=settings.shutdown_limit_s + TIDY_UP_S,
    )
    supervisor = Supervisor(child, book=book, after_crash=crashed)
    with ExitStack() as stack:
        stack.enter_context(supervisor.wish.heeded())
        stack.enter_context(listener)
        if managed:
            stack.enter_context(
                services.registered(services.EMBED, settings, url=url, model=settings.embed_model, program="qmd-remote")
            )
        return asyncio.run(_supervise(supervisor, listener, tls, kept))


async def _supervise(
    supervisor: Supervisor, listener: socket.socket, tls: ssl.SSLContext | None, kept: Orphans | None
) -> int:
    if kept:
        kept.open()
    code = await supervisor.run(lambda delay: turn_away(listener, delay, WHAT, tls))
    await asyncio.gather(refuse_waiting(listener, WHAT, tls), *([kept.close()] if kept else []))
    return code


def _probe(url: str, certificate: str) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        try:
            # read each time: certificates are renewed while servers run
            return await answers_ok(url, trusting(certificate))
        except ConfigError:
            return False

    return ready


def missing_module() -> str:
    """The first module of the server's extra that is not installed; empty when all are."""
    for module in ("fastapi", "uvicorn", "orjson", "prometheus_client", "torch", "sentence_transformers"):
        if importlib.util.find_spec(module) is None:
            return module
    return ""
