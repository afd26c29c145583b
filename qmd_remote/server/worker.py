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
from qmd_remote.output import Output
from qmd_remote.server.app import create_app

KEEP_ALIVE_S = (
    75  # longer than the idle time-outs of HTTP clients, so that the client closes first and never meets a reset
)
SHUTDOWN_S = 25  # inside the supervisor's grace


def main(argv: list[str]) -> int:
    """Serve on the inherited socket until told to stop; returns the exit code."""
    listener = socket.socket(fileno=int(argv[0]))
    settings = settings_module.resolve()
    app = create_app(settings)
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
    if engine.failure is None:
        return 0
    return Output("serve", as_json="--json" in argv).fail(engine.failure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
