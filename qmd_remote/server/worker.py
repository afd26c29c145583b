"""The process behind the supervisor that loads the models and answers: `python -m qmd_remote.server.worker FD`.

Settings come from the environment; the listening socket is inherited as file descriptor FD. When the models cannot be
loaded, the cause is printed and its exit code returned, so that the supervisor knows that a restart would not help.
"""

from __future__ import annotations

import logging
import socket
import sys

import uvicorn

from qmd_remote import settings as settings_module
from qmd_remote.errors import QmdRemoteError
from qmd_remote.output import Output
from qmd_remote.server.app import create_app

# longer than the idle time-outs of HTTP clients, so that the client closes first and never meets a reset
KEEP_ALIVE_S = 75
SHUTDOWN_S = 25  # inside the supervisor's grace


def main(argv: list[str]) -> int:
    """Serve on the inherited socket until told to stop; returns the exit code."""
    out = Output("serve", as_json="--json" in argv)
    listener = socket.socket(fileno=int(argv[0]))
    try:
        app = create_app(settings_module.handed_over())
    except QmdRemoteError as error:
        return out.fail(error)
    config = uvicorn.Config(
        app,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
        log_config=None,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    server = uvicorn.Server(config)
    engine = app.state.engine

    def settled() -> None:
        if engine.failure is not None:
            server.should_exit = True

    engine.on_settled(settled)
    server.run(sockets=[listener])
    return out.fail(engine.failure) if engine.failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
