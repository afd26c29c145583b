"""What a request costs the server's process beside its models: CPU time for HTTP, reading, checking and answering.

Starts the app behind uvicorn, as the worker does, with an engine that answers at once with made-up numbers, and asks
it from this process through plain sockets, so that the client's work is not counted:

    python benchmarks/serialisation.py [--rounds 7] [--requests 60] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

TEXT = ("lorem ipsum dolor sit amet, " * 140)[:3600]  # a chunk as QMD cuts them
START_LIMIT_S = 60


@dataclass(frozen=True)
class Case:
    name: str
    path: str
    body: dict[str, Any]
    connections: int = 1


CASES = (
    Case("1 x 384 floats", "/v1/embeddings", {"input": ["a short query"], "model": "small"}),
    Case("1 x 384 floats, 16 clients", "/v1/embeddings", {"input": ["a short query"], "model": "small"}, 16),
    Case("64 x 768 floats", "/v1/embeddings", {"input": [TEXT] * 64, "model": "m"}),
    Case("64 x 768 base64", "/v1/embeddings", {"input": [TEXT] * 64, "model": "m", "encoding_format": "base64"}),
    Case("rerank of 40", "/v1/rerank", {"query": "a short query", "documents": [TEXT] * 40, "model": "m"}),
)


def serve(fd: int) -> None:
    """The server, in a process of its own, on an inherited socket; `/cpu` tells the seconds it has computed."""
    import numpy as np
    import uvicorn
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse

    from qmd_remote.server.app import create_app
    from qmd_remote.server.draining import Draining, Gate
    from qmd_remote.server.engine import Embeddings, Scores
    from qmd_remote.settings import Settings

    made = np.random.default_rng(0).standard_normal((64, 768)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    scores = np.random.default_rng(1).random(1000)

    class StandIn:
        embed_id, rerank_id, dimension, state, failure = "stand-in/embedder", "stand-in/reranker", 768, "ready", None

        def start(self) -> None: ...

        def close(self) -> None: ...

        def facts(self) -> dict[str, object]:
            return {}

        async def ready(self, timeout: float) -> None: ...  # noqa: ASYNC109 - the engine's interface

        async def embed(self, inputs: Sequence[Any]) -> Embeddings:
            if len(inputs) == 1:
                return Embeddings(made[:1, :384], 8)
            return Embeddings(made[: len(inputs)], 900 * len(inputs))

        async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
            return Scores(scores[: len(documents)], 900 * len(documents))

    async def cpu(request: Any) -> PlainTextResponse:
        return PlainTextResponse(repr(time.process_time()))

    logging.basicConfig(stream=sys.stderr, level=logging.INFO)  # the access log belongs to the price
    app = create_app(Settings(generation_engine="off"), engine=StandIn())  # type: ignore[arg-type]
    app.add_route("/cpu", cpu)
    app.user_middleware.append(Middleware(Draining, gate=Gate()))
    config = uvicorn.Config(app, access_log=False, timeout_keep_alive=75, server_header=False, log_config=None)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


@contextmanager
def running() -> Iterator[tuple[str, int]]:
    """The server's address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        fd = listener.fileno()
        command = [sys.executable, os.path.abspath(__file__), "--serve", str(fd)]
        process = subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.DEVNULL)
        try:
            yield listener.getsockname()
        finally:
            process.terminate()
            process.wait(30)


class Connection:
    """One keep-alive connection that reads answers no further than it must."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, START_LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.whole = 0  # bytes of the answer; 0 while its head has not come

    def send(self, request: bytes) -> None:
        self.received.clear()
        self.whole = 0
        self.socket.sendall(request)

    def read(self) -> bool:
        """Take what is there, or wait for something; whether the answer has come to its end."""
        data = self.socket.recv(1 << 20)
        if not data:
            sys.exit("the server has closed the connection")
        self.received += data
        if not self.whole and (head := self.received.find(b"\r\n\r\n")) >= 0:
            fields = bytes(self.received[:head]).lower()
            if b" 200 " not in fields[:16]:
                sys.exit(f"not answered: {bytes(self.received[:500])!r}")
            self.whole = head + 4 + int(fields.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        return len(self.received) == self.whole

    def ask(self, request: bytes) -> bytes:
        self.send(request)
        while not self.read():
            pass
        return bytes(self.received).partition(b"\r\n\r\n")[2]


def request(path: str, body: dict[str, Any] | None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def run(case: Case, connections: Sequence[Connection], requests: int) -> None:
    """Ask `requests` times, on all connections at a time."""
    message = request(case.path, case.body)
    if len(connections) == 1:
        for _ in range(requests):
            connections[0].ask(message)
        return
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(message)
        left, open_ = requests - len(connections), len(connections)
        while open_:
            for key, _ in selector.select():
                if key.data.read():
                    if left > 0:
                        key.data.send(message)
                        left -= 1
                    else:
                        selector.unregister(key.fileobj)
                        open_ -= 1


def measure(rounds: int, requests: int) -> list[dict[str, Any]]:
    """Per case: the median over the rounds of CPU and wall time a request, in microseconds. Cases take turns."""
    cpu: dict[str, list[float]] = {case.name: [] for case in CASES}
    wall: dict[str, list[float]] = {case.name: [] for case in CASES}
    with running() as address, ExitStack() as stack:
        connections = [Connection(address) for _ in range(max(case.connections for case in CASES))]
        for connection in connections:
            stack.callback(connection.socket.close)
        clock = request("/cpu", None)
        for number in range(rounds + 1):
            for case in CASES:
                count = requests * 4 if case.connections > 1 else requests
                before, began = float(connections[0].ask(clock)), time.perf_counter()
                run(case, connections[: case.connections], count)
                took = time.perf_counter() - began
                used = float(connections[0].ask(clock)) - before
                if number:  # the first round warms up
                    cpu[case.name].append(used / count * 1e6)
                    wall[case.name].append(took / count * 1e6)
    return [
        {
            "case": case.name,
            "cpu_us": round(statistics.median(cpu[case.name])),
            "wall_us": round(statistics.median(wall[case.name])),
        }
        for case in CASES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds, the medians over which are shown (default 7)")
    parser.add_argument("--requests", type=int, default=60, help="requests a case and round (default 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    rows = measure(args.rounds, args.requests)
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
    if args.json:
        print(json.dumps({"cases": rows, "machine": machine}))
        return
    print(f"{'a request':<28}{'CPU us':>9}{'wall us':>9}")
    for row in rows:
        print(f"{row['case']:<28}{row['cpu_us']:>9}{row['wall_us']:>9}")


if __name__ == "__main__":
    main()
