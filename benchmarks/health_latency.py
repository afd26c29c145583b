"""How long /health takes while the server is idle, and while it works on a long embeddings request.

Starts a server of its own with MiniLM on a free loopback port, as `uvicorn --factory` does:

    python benchmarks/health_latency.py [--samples 200] [--texts 256] [--words 250] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from qmd_remote.presets import MINI_EMBED

START_LIMIT_S = 120
PAUSE_S = 0.01  # between two samples, so that the probe itself is no load


@contextmanager
def running_server() -> Iterator[str]:
    """A server with MiniLM that is ready; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "qmd_remote.server.app:create_app", "--port", str(port)]
    with tempfile.TemporaryDirectory() as home, open(os.path.join(home, "server.log"), "w+b") as log:
        env = os.environ | {"EMBED_MODEL": MINI_EMBED, "RERANK_MODEL": MINI_EMBED, "QMD_REMOTE_HOME": home}
        process = subprocess.Popen([*command, "--no-access-log"], env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(url: str, process: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=30, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    log.seek(0)
    sys.exit(f"the server did not become ready in {START_LIMIT_S} s:\n{log.read().decode(errors='replace')}")


def health_times(http: httpx.Client, go_on: Callable[[int], bool]) -> list[float]:
    """Milliseconds of one /health after another, as long as `go_on(how many there are)`."""
    times: list[float] = []
    while go_on(len(times)):
        start = time.perf_counter()
        http.get("/health").raise_for_status()
        times.append((time.perf_counter() - start) * 1000)
        time.sleep(PAUSE_S)
    return times


def measure(url: str, samples: int, texts: int, words: int) -> dict:
    """The idle times, the times during one request of `texts` · `words`, and how long that request took."""
    work = {"input": [" ".join(f"word{n % 97}" for n in range(words))] * texts}
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
        http.post("/v1/embeddings", json={"input": work["input"][:2]}).raise_for_status()  # first-use costs
        idle = health_times(http, lambda count: count < samples)
        took: list[float] = []

        def long_request() -> None:
            start = time.perf_counter()
            httpx.post(f"{url}/v1/embeddings", json=work, timeout=600, trust_env=False).raise_for_status()
            took.append(time.perf_counter() - start)

        thread = threading.Thread(target=long_request)
        thread.start()
        busy = health_times(http, lambda _: thread.is_alive())
        thread.join()
    if not took:
        sys.exit("the long request failed")
    return {"idle": summary(idle), "busy": summary(busy), "long_request_s": round(took[0], 2)}


def summary(times: list[float]) -> dict[str, float]:
    """Count, p50, p95 and maximum, in milliseconds."""
    if len(times) < 2:
        sys.exit("too few samples: ask for more --texts")
    p95 = statistics.quantiles(times, n=20)[-1]
    figures = {"p50_ms": statistics.median(times), "p95_ms": p95, "max_ms": max(times)}
    return {"samples": len(times)} | {name: round(value, 2) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="idle samples (default 200)")
    parser.add_argument("--texts", type=int, default=256, help="texts of the long request (default 256)")
    parser.add_argument("--words", type=int, default=250, help="words a text (default 250)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    with running_server() as url:
        report = measure(url, args.samples, args.texts, args.words)
    report["machine"] = {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
    report["work"] = {"model": MINI_EMBED, "texts": args.texts, "words": args.words}
    if args.json:
        print(json.dumps(report))
        return
    print(f"{'/health':<10}{'samples':>9}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}")
    for name in ("idle", "busy"):
        row = report[name]
        print(f"{name:<10}{row['samples']:>9}{row['p50_ms']:>9}{row['p95_ms']:>9}{row['max_ms']:>9}")
    print(f"the long request: {args.texts} texts of {args.words} words in {report['long_request_s']} s")


if __name__ == "__main__":
    main()
