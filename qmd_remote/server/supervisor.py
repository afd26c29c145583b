"""`qmd-remote serve`: the parent that holds the listening socket and keeps one worker process alive."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import os
import sys
from contextlib import ExitStack

from qmd_remote import services
from qmd_remote.reach import connect_host, is_loopback, require_safe_bind
from qmd_remote.settings import Settings
from qmd_remote.supervision import Child, Supervisor, answers_ok, listen, python_module, turn_away

log = logging.getLogger("qmd_remote.serve")


def serve(settings: Settings, *, managed: bool = False, as_json: bool = False) -> int:
    """Listen on the settings' address, run the worker behind it, and return the exit code when all is over.

    `managed` is how `up` starts it: the service then registers itself for `status` and `down`. Raises ConfigError or
    PrerequisiteError when it cannot listen.
    """
    # read here, once: a key that cannot be read is an error of this command, not of a worker's log
    has_key = bool(settings.key)
    require_safe_bind(settings)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if settings.insecure_no_auth and not has_key and not is_loopback(settings.host):
        log.warning("everybody who can reach %s:%d is served without a key", settings.host, settings.port)
    socket = listen(settings.host, settings.port, holder=services.port_holder)
    port = socket.getsockname()[1]
    url = f"http://{connect_host(settings.host)}:{port}"
    log.info("embed server on %s", url)
    child = Child(
        name="embed worker",
        argv=python_module("qmd_remote.server.worker", str(socket.fileno()), "--json" if as_json else "--text"),
        env={**os.environ, **settings.to_env()},
        ready=functools.partial(answers_ok, url),
        pass_fds=[socket.fileno()],
    )
    with ExitStack() as stack:
        stack.enter_context(socket)
        if managed:
            stack.enter_context(
                services.registered(services.EMBED, settings, url=url, model=settings.embed_model, program="qmd-remote")
            )
        return asyncio.run(Supervisor(child).run(lambda delay: turn_away(socket, delay, "the embed server")))


def missing_module() -> str:
    """The first module of the server's extra that is not installed; empty when all are."""
    for module in ("fastapi", "uvicorn", "orjson", "torch", "sentence_transformers"):
        if importlib.util.find_spec(module) is None:
            return module
    return ""
