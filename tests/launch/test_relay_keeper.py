"""The end of a keeper while its engine works, as processes."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.launch import test_keeper
from tests.launch.test_keeper import LIMIT_S, gone

keep = test_keeper.keep
SLOW = """
import os, time
from http.server import BaseHTTPRequestHandler
answer = Handler.do_GET
def wait(self):
    while self.path == "/slow" and not os.path.exists(GATE):
        time.sleep(0.02)
    answer(self)
Handler.do_GET = wait
"""


def test_sigterm_lets_a_running_generation_finish(keep, tmp_path, eventually):
    """SIGTERM to the keeper: the engine's running answer arrives, a new request gets a 503, then both are gone."""
    gate = tmp_path / "gate"
    patched = test_keeper.ENGINE.replace(
        "ThreadingHTTPServer((", f"GATE = {str(gate)!r}\n{SLOW}\nThreadingHTTPServer(("
    )
    (tmp_path / "transformers" / "cli" / "transformers.py").write_text(patched)
    kept = keep()
    engine = kept.ask()["pid"]

    def get(path: str) -> httpx.Response:
        return httpx.get(f"{kept.url}{path}", timeout=LIMIT_S, trust_env=False)

    with ThreadPoolExecutor(1) as callers:
        running = callers.submit(get, "/slow")
        eventually(lambda: get("/qmd-remote/status").json()["running"] == 1)
        kept.process.send_signal(signal.SIGTERM)
        eventually(lambda: get("/health").status_code == 503)
        assert "shutting_down" == get("/health").json()["error"]["code"]
        assert not running.done()
        gate.touch()
        assert (200, engine) == (running.result().status_code, running.result().json()["pid"])
    assert 0 == kept.process.wait(LIMIT_S)
    assert gone(engine)
