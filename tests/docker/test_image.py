"""The Dockerfile: built on a base made here, and one request of each kind to its container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from packaging.requirements import Requirement

from tests.conftest import PROGRAM
from tests.docker import images
from tests.server.tiny_models import mini_folder

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "sentence-transformers")  # the base has them, as NVIDIA's images have a torch of their own
KEY = "k3y-of-this-test"
START_S = 120.0
Start = Callable[..., "Server"]


class Server:
    """A container of the image, published on a free port of this machine."""

    def __init__(self, container: Any) -> None:
        self.container = container
        container.reload()
        (at,) = container.ports["8001/tcp"]
        self.url = f"http://{at['HostIp']}:{at['HostPort']}"

    def until_healthy(self) -> None:
        """Wait for what the image's own health check says."""
        end = time.monotonic() + START_S
        while self.container.attrs["State"]["Health"]["Status"] != "healthy":
            assert self.container.status == "running", self.log()
            assert time.monotonic() < end, f"{self.container.attrs['State']['Health']}\n{self.log()}"
            time.sleep(0.2)
            self.container.reload()

    def log(self) -> str:
        """All that it has written."""
        return str(self.container.logs().decode())

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """Its answer to one request."""
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def image(engine_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Dockerfile's image, from wheels and without any network."""
    folder = tmp_path_factory.mktemp("image")
    wheels = folder / "wheels"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *(line for line in _required(project["project"]) if Requirement(line).name not in HEAVY),
        *project["build-system"]["requires"],
        "setuptools",  # torch's own requirement; a new environment of Python 3.11 has an old one
    ]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "-d", wheels]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", *wanted], check=True)
    name = f"qmd-test-image-{uuid.uuid4().hex[:8]}"
    base = images.build_python(engine_client, f"{name}-base", packages=HEAVY, wheels=wheels, folder=folder)
    try:
        build(engine_client, name, BASE=base, PIP="--no-index --find-links /wheels")
        yield name
        engine_client.images.remove(name, force=True)
    finally:
        engine_client.images.remove(base, force=True)


def build(client: docker.DockerClient, name: str, **arguments: str) -> None:
    """`docker build -t NAME .` of the repository; what it said where it fails."""
    try:
        client.images.build(path=str(ROOT), tag=name, buildargs=arguments, rm=True, forcerm=True)
    except docker.errors.BuildError as error:
        pytest.fail("".join(str(line.get("stream", line)) for line in error.build_log))


def _required(project: dict[str, Any]) -> list[str]:
    return [*project["dependencies"], *project["optional-dependencies"]["server"]]


@pytest.fixture
def start(engine_client: docker.DockerClient, image: str, prefix: str) -> Start:
    """Run the image with the miniature model, as the Dockerfile's own line does."""

    def run(user: str = "", **variables: str) -> Server:
        model = "/models/mini"
        container = engine_client.containers.run(
            image,
            name=f"{prefix}-{uuid.uuid4().hex[:4]}",
            detach=True,
            user=user or None,
            ports={"8001/tcp": ("127.0.0.1", None)},
            volumes={str(mini_folder()): {"bind": model, "mode": "ro"}},
            environment={"EMBED_MODEL": model, "RERANK_MODEL": model, "DEVICE": "cpu", **variables},
        )
        return Server(container)

    return run


def test_the_image_serves_as_it_is(start: Start):
    """Healthy, both endpoints, not as root, and a warning that everybody is served."""
    server = start()
    server.until_healthy()
    embedded = server.post("/v1/embeddings", {"model": "any", "input": ["a passport", "a bill"]})
    assert 200 == embedded.status_code, embedded.text
    assert [384, 384] == [len(one["embedding"]) for one in embedded.json()["data"]]
    ranked = server.post("/v1/rerank", {"model": "any", "query": "passport", "documents": ["a bill", "a passport"]})
    assert 200 == ranked.status_code, ranked.text
    assert 1 == ranked.json()["results"][0]["index"]
    _, user = server.container.exec_run(["python3", "-c", "import os; print(os.getuid())"])
    assert "10001" == user.decode().strip()
    assert "is served without a key" in server.log()


def test_with_a_key_it_refuses_those_without(start: Start):
    """401 without it, 200 with it, and no warning; any other user may run it, too."""
    server = start(user="12345:12345", QMD_REMOTE_API_KEY=KEY)
    server.until_healthy()
    body = {"model": "any", "input": "a passport"}
    assert 401 == server.post("/v1/embeddings", body).status_code
    assert 200 == server.post("/v1/embeddings", body, Authorization=f"Bearer {KEY}").status_code
    assert "without a key" not in server.log()
    assert KEY not in server.log()


def test_the_image_holds_no_weights_and_little_else(engine_client: docker.DockerClient, image: str):
    """Of the checkout there is the package alone, below the virtual environment."""
    script = (
        "import os, pathlib; print([*os.listdir('/src'), *os.listdir('/cache/huggingface')], "
        "*[p for p in pathlib.Path('/opt').rglob('*.safetensors')])"
    )
    said = engine_client.containers.run(image, ["-c", script], entrypoint="python3", remove=True)
    assert "[]" == said.decode().strip()


def test_up_runs_the_image(engine_client: docker.DockerClient, image: str, prefix: str, home: Path, free_port):
    """`up --embed-engine docker` serves on this machine's loopback, `down` takes the container away."""
    name, port = f"{prefix}-embed", free_port()
    env = {
        **{variable: value for variable, value in os.environ.items() if not variable.startswith("QMD_")},
        "QMD_REMOTE_HOME": str(home / "home"),
        "QMD_REMOTE_EMBED_CONTAINER": name,
        "HF_HOME": str(home / "hf"),
    }
    mini = str(mini_folder())

    def run(*words: str) -> dict[str, Any]:
        done = subprocess.run(
            [PROGRAM, *words, "--json"], env=env, capture_output=True, text=True, timeout=180, cwd=home
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        return dict(json.loads(done.stdout)["data"])

    models = ("--embed-model", mini, "--rerank-model", mini, "--device", "cpu")
    engine = ("--embed-engine", "docker", "--embed-image", image)
    try:
        run("up", "--preset", "cpu", "--generation", "off", "--port", str(port), *models, *engine)
        assert 200 == httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code
        told = engine_client.api.inspect_container(name)
        assert f"{os.getuid()}:{os.getgid()}" == told["Config"]["User"]
        assert "host" == told["HostConfig"]["NetworkMode"]
    finally:
        run("down")
    with pytest.raises(docker.errors.NotFound):
        engine_client.api.inspect_container(name)
