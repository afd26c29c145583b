"""A vLLM that is a process and hangs: its keeper restarts it, as it does with a container's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from qmd_remote import paths
from qmd_remote.launch.keeper import free_port
from qmd_remote.services import GENERATION
from tests.launch.test_keeper import cache_model

# found before a real vllm, as `python -m vllm.entrypoints.cli.main serve MODEL …`; the first one completes nothing
ENGINE = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
been = Path(os.environ["BEEN_HERE"])
first = not been.exists()
been.touch()
class Handler(BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(b"vllm:generation_tokens_total 5\\n" if self.path == "/metrics" else b"{}")
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if first:
            time.sleep(600)
        self.answer(b"{}")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_a_process_of_vllm_that_hangs_is_restarted(
    home: Path, tmp_path: Path, eventually: Callable[..., None], still_running: Callable[[], list[str]]
):
    """Well by its health check, with its tokens at a standstill: it is ended, and the next one completes."""
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for folder in (package, *package.parents[:2]):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(ENGINE)
    cache_model(tmp_path / "hf" / "hub", "acme/small")
    port = free_port()
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "BEEN_HERE": str(tmp_path / "been-here"),
        "HF_HOME": str(tmp_path / "hf"),
        "QMD_REMOTE_GENERATION_COMMAND": "vllm",
        "QMD_REMOTE_GENERATION_MODEL": "acme/small",
        "QMD_REMOTE_GENERATION_PORT": str(port),
        "QMD_REMOTE_HANG_LIMIT_S": "1",
    }
    log = paths.make_private(paths.log_dir()) / paths.log_file(GENERATION).name
    command = [sys.executable, "-P", "-m", "qmd_remote.launch.keeper", "generation"]
    keeper = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: log.exists() and "completes nothing: it is ended" in log.read_text(), within_s=30)
        eventually(lambda: log.read_text().count("ready after") == 2, within_s=30)
        asked = {"model": "acme/small", "prompt": "a"}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=asked, timeout=20, trust_env=False)
        assert 200 == answer.status_code
    finally:
        keeper.send_signal(signal.SIGTERM)
        assert 0 == keeper.wait(30)
    assert [] == still_running()
