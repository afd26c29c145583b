"""Record `up` with generation in a container: docs/recordings/up-container.svg. `python scripts/record_container.py`

Needs a container engine, Debian's docker-registry and the preset `mini`. The image is the tests' stand-in for vLLM,
which says the real one's words while it starts; the registry, the pull, the engine and everything of ours are real. The
ports 8000 and 8001 must be free.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import docker

from scripts.record import record, run
from tests.docker import images, registry

MODEL = "Qwen/Qwen2.5-3B-Instruct"
PORT = 5000
IMAGE = f"127.0.0.1:{PORT}/vllm:stand-in"
UP = "qmd-remote up -v --preset mini --generation docker"


def main() -> None:
    """Make the image, push it, forget it, and record how `up` fetches and starts it."""
    client = docker.from_env()
    home = Path(tempfile.mkdtemp(prefix="qmd-home-"))
    snapshot = home / ".cache/huggingface/hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("main")
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "QMD_REMOTE_GENERATION_IMAGE": IMAGE,
        "QMD_REMOTE_GENERATION_MODEL": MODEL,
        "QMD_REMOTE_GPUS": "none",
        **({"DOCKER_HOST": os.environ["DOCKER_HOST"]} if "DOCKER_HOST" in os.environ else {}),
    }
    base = images.build_base(client, "qmd-record-base")
    with registry.serving(home / "registry", PORT):
        standin = images.build_standin(client, base, "qmd-record-vllm:1", mode="slow")
        # something to wait for
        images.build_random(client, standin, IMAGE, sizes=(90_000_000, 160_000_000))
        client.images.push(IMAGE)
        for name in (IMAGE, standin, base):
            client.images.remove(name, force=True)
        try:
            record("up-container", [UP], environment)
        finally:
            run("qmd-remote down", environment)
            client.images.remove(IMAGE, force=True)
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
