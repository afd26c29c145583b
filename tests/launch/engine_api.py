"""A stand-in of the engine's HTTP API on a unix socket, for what the real engine of the tests cannot be: Podman, or
one that hangs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

CONTAINER = {
    "Id": "c" * 64,
    "Name": "/qmd-vllm",
    "Config": {"Image": "vllm", "Labels": {}, "Tty": False},
    "State": {"Status": "running", "StartedAt": "2026-11-23T05:05:01.123456789Z"},
}
INFO = {"ServerVersion": "5.4.0", "Architecture": "aarch64", "Runtimes": {"crun": {}, "nvidia": {}}}
VERSION = {"ApiVersion": "1.41", "MinAPIVersion": "1.24", "Version": "5.4.0"}
PODMAN = {**VERSION, "Components": [{"Name": "Podman Engine"}]}


class EngineApi(ThreadingMixIn, UnixStreamServer):
    """Answers by the end of the path. `answers` holds more of them: a value, or a function of the request's handler."""

    daemon_threads = True

    def __init__(self, folder: Path, version: dict[str, Any] = VERSION) -> None:
        self.answers: dict[str, Any] = {
            "/_ping": "OK",
            "/version": version,
            "/info": INFO,
            "/containers/create": {"Id": CONTAINER["Id"]},
            f"/containers/{CONTAINER['Id']}/json": CONTAINER,
            f"/containers/{CONTAINER['Id']}/start": "",
        }
        self.bodies: dict[str, Any] = {}
        self.left = threading.Event()
        super().__init__(str(folder / "engine.sock"), _handler(self))
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        """What points a client here."""
        return {"DOCKER_HOST": f"unix://{self.server_address}"}

    def close(self) -> None:
        self.left.set()
        self.shutdown()
        self.server_close()


def _handler(api: EngineApi) -> type[BaseHTTPRequestHandler]:
    class OneRequest(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "unix"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            name = "/" + path.lstrip("/").partition("/")[2] if path.startswith("/v1.") else path
            api.bodies[name] = json.loads(raw) if raw else None
            answer = api.answers.get(name)
            if isinstance(answer, Callable):
                answer(self)
                return
            if answer is None:  # of images the client wants to hear just this
                told = json.dumps({"message": f"No such {name.split('/')[1].removesuffix('s')}"})
            else:
                told = answer if isinstance(answer, str) else json.dumps(answer)
            data = told.encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return OneRequest
