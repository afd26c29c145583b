"""Pulls from a real registry on loopback: progress, passwords, and what can go wrong."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from qmd_remote.errors import Exit, Interrupted, QmdRemoteError
from qmd_remote.launch import docker_engine
from qmd_remote.launch.engine import PullProgress
from tests.docker import need
from tests.docker import registry as registries

USER, PASSWORD = "reader", "s3cret"
HTPASSWD = f"{USER}:$2b$04$u.M3EfVFNDwJofwydItsXef8AiWPH0bLYjMuB/vWL6QOpSROFLr3."
LAYERS, LAYER_BYTES = 3, 12 << 20


class Registry:
    """A registry that wants a password, with one image of a few random layers."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.image = f"{host}/acme/llm:1"

    def fill(self, client: docker.DockerClient) -> None:
        """Push the image, and forget it."""
        recipe = ["FROM scratch"]
        with tarfile.open(fileobj=(context := io.BytesIO()), mode="w") as tar:
            for number in range(LAYERS):
                recipe.append(f"COPY {number} /{number}")
                _add(tar, str(number), os.urandom(LAYER_BYTES))
            _add(tar, "Dockerfile", "\n".join([*recipe, 'ENTRYPOINT ["vllm", "serve"]']).encode())
        context.seek(0)
        client.images.build(fileobj=context, custom_context=True, tag=self.image, rm=True)
        said = client.api.push(self.image, auth_config={"username": USER, "password": PASSWORD})
        assert "error" not in said, said
        self.forget(client)

    def forget(self, client: docker.DockerClient) -> None:
        """Take the image from the engine."""
        for image in client.images.list(self.image):
            client.images.remove(image.id, force=True)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def filled(
    engine_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory, free_port_once: int
) -> Iterator[Registry]:
    """The registry, with its image."""
    if registries.PROGRAM is None:
        need.missing("docker-registry is not installed")
    with registries.serving(tmp_path_factory.mktemp("registry"), free_port_once, HTPASSWD + "\n") as host:
        one = Registry(host)
        one.fill(engine_client)
        yield one
        one.forget(engine_client)


@pytest.fixture(scope="module")
def free_port_once() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry(filled: Registry, engine_client: docker.DockerClient) -> Registry:
    """The registry, with nothing of it in the engine."""
    filled.forget(engine_client)
    return filled


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write what `docker login` writes, into a configuration folder of the test's own."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(host: str, password: str = PASSWORD, **more: object) -> None:
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}, **more}))

    return write


def pull(name: str, tell: Callable[[PullProgress], None] = lambda _: None):
    """Pull with a client that reads the configuration of now."""
    return docker_engine.connect().pull(name, tell, lambda: False)


def failing(name: str) -> QmdRemoteError:
    """The error of a pull that must fail."""
    with pytest.raises(QmdRemoteError) as told:
        pull(name)
    assert docker_engine.connect().image(name) is None
    return told.value


def test_a_pull_tells_its_progress_and_gives_the_image(registry, login):
    """All bytes of all layers are counted once, downloads before what is unpacked; the image's facts are its own."""
    login(registry.host)
    seen: list[PullProgress] = []
    image = pull(registry.image, seen.append)
    assert (("vllm", "serve"), LAYERS) == (image.entrypoint, seen[-1].layers_total)
    assert image.digest.startswith("sha256:")
    assert image.size_bytes >= LAYERS * LAYER_BYTES
    assert {"downloading", "unpacking", "verifying"} <= {one.step for one in seen}
    steps = [one.step for one in seen]
    assert steps.index("downloading") < steps.index("unpacking") < steps.index("verifying")
    assert seen[-1].layers_done == LAYERS
    assert LAYERS * LAYER_BYTES <= max(one.total for one in seen) < 1.1 * LAYERS * LAYER_BYTES
    assert any(one.layers for one in seen)


def test_a_pull_of_what_is_here_is_quick_and_says_so(registry, login):
    """A second pull fetches nothing."""
    login(registry.host)
    first = pull(registry.image)
    seen: list[PullProgress] = []
    assert first == pull(registry.image, seen.append)
    assert all(one.done == one.total == 0 for one in seen)


def test_a_pull_that_was_called_off_goes_on_where_it_was(registry, login):
    """The wish is heeded at once; the next pull ends with the whole image."""
    login(registry.host)
    seen: list[PullProgress] = []
    with pytest.raises(Interrupted):
        docker_engine.connect().pull(registry.image, seen.append, lambda: any(one.done for one in seen))
    assert pull(registry.image).size_bytes >= LAYERS * LAYER_BYTES


def test_passwords_of_docker_login_are_used_and_needed(registry, login):
    """Without one, and with a wrong one, the registry's refusal is told with what to do."""
    login("127.0.0.1:1")
    without = failing(registry.image)
    login(registry.host, "wrong")
    wrong = failing(registry.image)
    for error in (without, wrong):
        assert ("image.auth", Exit.PREREQUISITE) == (error.code, error.exit_code), error.message
        assert "docker login" in error.hint
        assert PASSWORD not in error.message
    login(registry.host)
    pull(registry.image)


def test_a_helper_that_is_not_installed_is_told(registry, login):
    """A configuration from another machine may name a keeper of passwords that this one has not."""
    login(registry.host, credsStore="nosuch")
    error = failing(registry.image)
    assert "image.auth" == error.code
    assert "credsStore" in error.hint
    login(registry.host, credHelpers={"registry.example": "nosuch"})
    pull(registry.image)


def test_an_image_or_tag_that_is_not_there_is_told(registry, login):
    """The registry knows neither."""
    login(registry.host)
    for name in (f"{registry.host}/acme/llm:2", f"{registry.host}/acme/none:1"):
        error = failing(name)
        assert ("image.missing", Exit.CONFIGURATION) == (error.code, error.exit_code), error.message


def test_a_name_that_cannot_be_one_is_told(engine_client):
    """No registry is asked."""
    for name in ("Acme/LLM:1", "http://127.0.0.1:1/llm"):
        with pytest.raises(QmdRemoteError) as told:
            pull(name)
        assert "image.missing" == told.value.code, told.value.message
