"""The process behind the supervisor that loads the models and answers: `python -m qmd_remote.server.worker FD`.

Settings come from the environment; the listening socket is inherited as file descriptor FD. When the models cannot be
loaded, the cause is printed and its exit code returned, so that the supervisor knows that a restart would not help.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from starlette.middleware import Middleware

from qmd_remote import logbook, reach
from qmd_remote import settings as settings_module
from qmd_remote.errors import QmdRemoteError
from qmd_remote.output import Output
from qmd_remote.server import safekeeping
from qmd_remote.server.app import create_app
from qmd_remote.server.draining import Draining, DrainingServer, Gate
from qmd_remote.server.safekeeping import Safekeeping
from qmd_remote.settings import Settings

# longer than the idle time-outs of HTTP clients, so that the client closes first and never meets a reset
KEEP_ALIVE_S = 75


def main(argv: list[str]) -> int:
    """Serve on the inherited socket until told to stop; returns the exit code."""
    out = Output("serve", as_json="--json" in argv)
    listener = socket.socket(fileno=int(argv[0]))
    gate = Gate()
    try:
        settings = settings_module.handed_over()
        reach.server_tls(settings)  # for its errors: they may have been replaced since the supervisor looked
        app = create_app(settings)
    except QmdRemoteError as error:
        return out.fail(error)
    # behind all others: refusals are counted, logged, and given to those with a key only, as other answers
    app.user_middleware.append(Middleware(Draining, gate=gate))
    safe = safekeeping.inherited()
    if safe:
        app.user_middleware.append(Middleware(Safekeeping, safe=safe))
    config = uvicorn.Config(
        app,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
        log_config=None,
        **_tls(settings),
    )
    if safe:
        config.load()
        config.http_protocol_class = safekeeping.introducing(config.http_protocol_class)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=logbook.line_format())
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the access log has a line for each already
    engine = app.state.engine
    server = DrainingServer(config, gate, engine, limit_s=settings.shutdown_limit_s)

    def settled() -> None:
        if engine.failure is not None:
            server.should_exit = True

    engine.on_settled(settled)
    server.run(sockets=[listener])
    code = out.fail(engine.failure) if engine.failure else 0
    if server.cut_short or engine.working:
        _leave(0 if server.cut_short else code)
    return code


def _tls(settings: Settings) -> dict[str, Any]:
    if not settings.tls_cert:
        return {}
    return {
        "ssl_certfile": str(Path(settings.tls_cert).expanduser()),
        "ssl_keyfile": str(Path(settings.tls_key).expanduser()),
    }


def _leave(code: int) -> None:
    """End at once: an orderly end would wait for threads that nobody waits for, in a download or inside the model."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
