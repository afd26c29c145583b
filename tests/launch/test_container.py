"""A container as data: its hash, its labels, the `docker run` line, and what an image's entrypoint is given."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd_remote.errors import ConfigError
from qmd_remote.launch.container import Container, Mount, Ulimit, arguments, docker_run, owner_of, published

SECRET = "s3cret-that-nobody-may-read"
COMMAND = ("vllm", "serve", "acme/own", "--port", "8000")
BASE = Container(
    name="qmd-vllm",
    service="generation",
    image="registry.example/vllm:1",
    command=COMMAND,
    owner="0123456789ab",
    version="1.0",
    env={"A": "1", "B": "2"},
    secret_env={"VLLM_API_KEY": SECRET},
    mounts=(Mount("/data", "/data"), Mount("cache", "/cache", kind="volume")),
    publish=("127.0.0.1", 8000, 8000),
    ulimits=(Ulimit("memlock", -1, -1),),
    shm_bytes=1 << 30,
)


def test_the_hash_is_stable():
    """The same container has the same hash, whatever the order of its environment, and in every release."""
    assert BASE.spec_hash == replace(BASE, env={"B": "2", "A": "1"}).spec_hash
    assert BASE.spec_hash == replace(BASE, version="2.0").spec_hash
    assert 12 == len(BASE.spec_hash)
    assert int(BASE.spec_hash, 16) >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"image": "registry.example/vllm:2"},
        {"command": (*COMMAND, "--seed", "1")},
        {"gpus": "0"},
        {"env": {"A": "1", "B": "3"}},
        {"env": {"A": "1"}},
        {"secret_env": {"VLLM_API_KEY": "another"}},
        {"secret_env": {}},
        {"mounts": (Mount("/data", "/data", read_only=True), Mount("cache", "/cache", kind="volume"))},
        {"publish": ("127.0.0.1", 8001, 8000)},
        {"publish": None},
        {"ulimits": ()},
        {"shm_bytes": 2 << 30},
        {"user": "1000:1000"},
        {"log_files": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_hash_tells_drift(change: dict[str, object]):
    """Whatever a running container would have to be remade for changes the hash."""
    assert BASE.spec_hash != replace(BASE, **change).spec_hash


def test_how_the_weights_get_there_is_no_drift():
    """A token, or being offline, matters for the download: what serves the weights already is kept."""
    fetching = replace(BASE, secret_env={**BASE.secret_env, "HF_TOKEN": "t"}, env={**BASE.env, "HF_HUB_OFFLINE": "1"})
    assert BASE.spec_hash == fetching.spec_hash


def test_the_labels_tell_whose_it_is():
    """Owner, service, hash and version are the labels, and none of them holds a secret."""
    assert {"0123456789ab", "generation", BASE.spec_hash, "1.0"} == set(BASE.labels.values())
    assert SECRET not in json.dumps(BASE.as_dict()) + repr(BASE)
    assert ["VLLM_API_KEY"] == BASE.as_dict()["secret_env"]


def test_two_installations_are_two_owners(tmp_path: Path):
    """An installation's state folder names its containers; another one's are not touched."""
    assert owner_of(tmp_path / "a") != owner_of(tmp_path / "b")
    assert owner_of(tmp_path / "a") == owner_of(tmp_path / "a")


@pytest.mark.parametrize(
    ("entrypoint", "expected"),
    [
        (["/opt/nvidia/nvidia_entrypoint.sh"], list(COMMAND)),
        ([], list(COMMAND)),
        (["vllm", "serve"], list(COMMAND[2:])),
        (["/usr/local/bin/vllm", "serve"], list(COMMAND[2:])),
        (["/usr/local/bin/vllm"], list(COMMAND[1:])),
        (["tini", "--", "vllm", "serve"], list(COMMAND[2:])),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], ["--model", *COMMAND[2:]]),
        (["/bin/sh", "-c"], list(COMMAND)),
    ],
)
def test_what_an_entrypoint_is_given(entrypoint: list[str], expected: list[str]):
    """NVIDIA's wrapper runs the whole command; an entrypoint that says its first words already gets the others."""
    assert expected == arguments(COMMAND, entrypoint)


def test_an_entrypoint_of_another_program_is_a_wrapper():
    """The embed image's entrypoint is its program: it is given the rest."""
    assert ["serve"] == arguments(("qmd-remote", "serve"), ["qmd-remote"])
    assert ["qmd-remote", "serve"] == arguments(("qmd-remote", "serve"), ["tini", "--"])


def words_of(container: Container) -> list[str]:
    """The `docker run` line as a shell reads it: what docker would be given, after "docker" itself."""
    script = f"docker() {{ printf '%s\\0' \"$@\"; }}\n{docker_run(container)}"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
    return ["docker", *done.stdout.decode().split("\0")[:-1]]


def test_the_docker_run_line():
    """The line does what we do: GPUs, shared memory, limits, labels, mounts, environment, address, command."""
    words = words_of(BASE)
    assert ["docker", "run", "-d", "--name", "qmd-vllm", "--init", "--gpus", "all"] == words[:8]
    assert ["registry.example/vllm:1", *COMMAND] == words[-6:]
    assert str(1 << 30) == words[words.index("--shm-size") + 1]
    assert "memlock=-1:-1" == words[words.index("--ulimit") + 1]
    assert "127.0.0.1:8000:8000" == words[words.index("-p") + 1]
    assert ["/data:/data", "cache:/cache"] == [words[at + 1] for at, word in enumerate(words) if word == "-v"]
    assert ["A=1", "B=2", "VLLM_API_KEY"] == [words[at + 1] for at, word in enumerate(words) if word == "-e"]
    assert 4 == words.count("--label")


def test_the_docker_run_line_without_what_is_not_wanted():
    """No GPUs, the host's network, numbered GPUs, an IPv6 address and a user are told as docker wants them."""
    assert "--gpus" not in words_of(replace(BASE, gpus="none"))
    words = words_of(replace(BASE, gpus="0,1", publish=("::1", 8000, 8000), user="1000:1000"))
    assert '"device=0,1"' == words[words.index("--gpus") + 1]
    assert "[::1]:8000:8000" == words[words.index("-p") + 1]
    assert "1000:1000" == words[words.index("--user") + 1]
    host = words_of(replace(BASE, publish=None))
    assert "host" == host[host.index("--network") + 1]
    assert "-p" not in host


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", {"127.0.0.1:8000:80", "[::1]:8000:80"}), ("::1", {"[::1]:8000:80"}), ("[::1]", {"[::1]:8000:80"})],
)
def test_an_address_is_published_in_digits_and_brackets_once(host: str, expected: set[str]):
    """Docker refuses a name, and brackets within brackets, in `-p`."""
    words = words_of(replace(BASE, publish=(host, 8000, 80)))
    assert words[words.index("-p") + 1] in expected
    assert published((host, 8000, 80)) in expected


def test_a_name_that_is_no_address_is_refused_as_by_up():
    """The line would not work either."""
    with pytest.raises(ConfigError) as caught:
        docker_run(replace(BASE, publish=("no such host", 8000, 80)))
    assert "bind.address" == caught.value.code


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1)


@settings(deadline=None)
@given(TEXT, TEXT, TEXT, TEXT)
def test_a_shell_reads_the_line_as_it_is_meant(folder: str, argument: str, setting: str, image: str):
    """Whatever stands in folders, options and variables comes through a shell unchanged, and secrets stay out."""
    made = replace(
        BASE,
        image=image,
        command=(*COMMAND, argument),
        env={"A": setting},
        mounts=(Mount(f"/{folder}", "/data", read_only=True),),
    )
    words = words_of(made)
    assert words == shlex.split(docker_run(made).replace(" \\\n  ", " "))
    assert [image, *COMMAND, argument] == words[-7:]
    assert f"/{folder}:/data:ro" == words[words.index("-v") + 1]
    assert f"A={setting}" == words[words.index("-e") + 1]
    assert SECRET not in docker_run(made)
