"""A stand-in for this Python: runs `-m qmd_remote…` as a small service that does what its model's name says.

acme/fine answers 200 · acme/broken prints an error envelope and exits with 4 · acme/dies raises an unknown error ·
acme/hangs answers 503 for ever.
"""

from __future__ import annotations

import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qmd_remote import services
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings, handed_over


def fail() -> int:
    """End as a server does whose model does not exist."""
    error = {"code": "model.missing", "message": "there is no model acme/broken", "hint": "name another"}
    print(json.dumps({"schema": 1, "command": "serve", "ok": False, "exit_code": 4, "data": {}, "error": error}))
    return 4


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with the status of the day."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        pass


def serve(service: str, settings: Settings) -> int:
    """Be the service."""
    model = settings.generation_model if service == GENERATION else settings.embed_model
    port = settings.generation_port if service == GENERATION else settings.port
    if model == "acme/broken":
        return fail()
    if model == "acme/dies":
        raise ValueError("odd weights")
    Handler.status = 503 if model == "acme/hangs" else 200
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    url = f"http://127.0.0.1:{port}"
    print(f"{model} is here", flush=True)
    with services.registered(service, settings, url=url, model=model, program="stand-in"):
        ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
    return 0


def main() -> int:
    """What the arguments say."""
    module, *arguments = sys.argv[sys.argv.index("-m") + 1 :]
    assert (module, arguments) in (
        ("qmd_remote.launch.keeper", ["generation"]),
        ("qmd_remote", ["serve", "--managed", "--json"]),
    )
    settings = handed_over()
    if module == "qmd_remote.launch.keeper" and settings.generation_engine == "docker":
        from qmd_remote.launch import keeper

        return keeper.main(GENERATION)  # the real one: what it keeps is a stand-in
    return serve(GENERATION if module == "qmd_remote.launch.keeper" else EMBED, settings)


if __name__ == "__main__":
    sys.exit(main())
