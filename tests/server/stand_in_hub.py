"""A model hub on loopback: the few endpoints that a download needs, and the ways in which a real one fails."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandInHub:
    """What it holds and how it behaves. `refusals` maps a model to (status, X-Error-Code) for every request.

    Files from `large_from` bytes on are in large-file storage: their ETag is their SHA-256.

    `cut_at` is the number of bytes after which the body of a file breaks off, once for each name in it; `hold_at` the
    number after which it stays silent until `go_on` is set. `refuse_ranges` answers 500 to every attempt to resume,
    `ignore_ranges` sends the whole file instead. Of the files in `damaged` the first byte is another one than it should
    be. `storage` is the URL of another server to which requests for large files are redirected.

    `asked` lists (method, path, Range), `keys` the Authorization of each request.
    """

    models: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut_at: dict[str, int] = field(default_factory=dict)
    hold_at: dict[str, int] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)
    refuse_ranges: bool = False
    ignore_ranges: bool = False
    damaged: set[str] = field(default_factory=set)
    large_from: int = 100_000
    storage: str = ""
    keys: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, folder: Path) -> None:
        """Offer the files of `folder` as the model `name`."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.models[name] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def got(self, file: str) -> list[str]:
        """The Range headers of the requests for the content of `file`, "" for a whole one."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(f"/{file}")]


@contextmanager
def serving(hub: StandInHub) -> Iterator[StandInHub]:
    """The hub on a free port of 127.0.0.1, until the block ends."""

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: StandInHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append((self.command, path, self.headers.get("Range", "")))
        self.state.keys.append(self.headers.get("Authorization", ""))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, file = "/".join(parts[2:4]), ""
        else:  # ORGANISATION/MODEL/resolve/COMMIT/FILE
            name, file = "/".join(parts[:2]), "/".join(parts[4:])
        if name in self.state.refusals:
            status, code = self.state.refusals[name]
            self._send(status, b"", {"X-Error-Code": code} if code else {})
        elif name not in self.state.models:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif not file:
            self._send(200, self._describe(name), {"Content-Type": "application/json"})
        elif file not in self.state.models[name]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self._send_file(file, self.state.models[name][file], with_body=with_body)

    def _describe(self, name: str) -> bytes:
        files = [
            {"rfilename": file, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            for file, content in self.state.models[name].items()
        ]
        return json.dumps({"_id": "1", "id": name, "sha": COMMIT, "private": False, "siblings": files}).encode()

    def _send_file(self, file: str, content: bytes, *, with_body: bool) -> None:
        large = len(content) >= self.state.large_from
        etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if large and self.state.storage:
            linked = {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
            self._send(302, b"", {**headers, **linked, "Location": self.state.storage + self.path})
            return
        if file in self.state.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        span = "" if self.state.ignore_ranges else self.headers.get("Range", "")
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        if start and self.state.refuse_ranges:
            self._send(500, b"", {})
            return
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.state.cut_at.pop(file, None) if with_body else None
        hold = self.state.hold_at.get(file) if with_body else None
        self._send(206 if span else 200, content[start:], headers, cut=cut, hold=hold)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, cut: int | None = None, hold: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that was killed
            if self.command == "GET" and hold is not None:
                self.wfile.write(body[:hold])
                self.state.go_on.wait()
                body = body[hold:]
            if self.command == "GET":
                self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
