"""What the engine's API answers, as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.launch import docker_facts
from qmd_remote.launch.container import OWNER_LABEL, SERVICE_LABEL, SPEC_LABEL
from qmd_remote.launch.engine import Published

STARTED = "2026-11-23T05:05:01.5Z"
BEFORE = "2026-11-23T05:05:01.2Z"
AFTER = "2026-11-23T05:07:00Z"
NEVER = "0001-01-01T00:00:00Z"


def test_a_container_is_read_with_our_labels():
    """State, labels and policy come from where the engine keeps them."""
    found = docker_facts.found(
        {
            "Id": "1",
            "Name": "/qmd-vllm",
            "RestartCount": 2,
            "Config": {"Image": "vllm", "Labels": {OWNER_LABEL: "us", SERVICE_LABEL: "generation", SPEC_LABEL: "abc"}},
            "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True, "StartedAt": STARTED, "Error": "x"},
            "HostConfig": {"RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0}},
        }
    )
    assert ("qmd-vllm", "us", "generation", "abc") == (found.name, found.owner, found.service, found.spec_hash)
    assert ("exited", 137, True, 2, "x") == (
        found.state,
        found.exit_code,
        found.oom_killed,
        found.restarts,
        found.error,
    )
    assert "unless-stopped" == found.restart_policy


def test_a_container_without_labels_or_policy_is_read_as_foreign():
    """What an engine leaves out is empty: nobody's, and never restarted."""
    found = docker_facts.found(
        {"Id": "1", "Name": "/x", "Config": {"Labels": None}, "HostConfig": {"RestartPolicy": {}}}
    )
    assert ("", "", "no", 0) == (found.owner, found.service, found.restart_policy, found.exit_code)


@pytest.mark.parametrize(
    ("entrypoint", "expected"), [(None, ()), ("vllm", ("vllm",)), (["vllm", "serve"], ("vllm", "serve"))]
)
def test_an_image_is_read_with_its_entrypoint_and_digest(entrypoint, expected):
    """An entrypoint may be missing, a word or a list; the digest is the registry's, without the name."""
    image = docker_facts.image_facts(
        {"Id": "sha256:1", "Config": {"Entrypoint": entrypoint}, "RepoDigests": ["h:5000/vllm@sha256:2"], "Size": 7}
    )
    assert (expected, "sha256:2", 7) == (image.entrypoint, image.digest, image.size_bytes)


def test_an_image_built_here_has_no_digest():
    """No registry knows it."""
    assert "" == docker_facts.image_facts({"Id": "1", "RepoDigests": None, "Config": None}).digest


def test_an_engine_is_read_with_what_it_offers_for_gpus():
    """Runtimes, device specifications and the names of architectures that images use."""
    info = {
        "ServerVersion": "28.1",
        "Architecture": "aarch64",
        "Runtimes": {"runc": {}, "nvidia": {}},
        "CDISpecDirs": ["/etc/cdi"],
        "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
        "DockerRootDir": "/var/lib/docker",
    }
    facts = docker_facts.engine_facts("unix:///x", info, {"Components": [{"Name": "Engine"}]})
    assert ("arm64", ("nvidia", "runc"), ("/etc/cdi",)) == (facts.architecture, facts.runtimes, facts.cdi)
    assert (True, False, "/var/lib/docker") == (facts.rootless, facts.podman, facts.root_dir)


def test_ports_are_read_with_their_containers():
    """Only ports of the host count, and only TCP."""
    listed = [
        {
            "Names": ["/web"],
            "Labels": {OWNER_LABEL: "us", SERVICE_LABEL: "embed"},
            "Ports": [
                {"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": 8001, "Type": "tcp"},
                {"PrivatePort": 90, "Type": "tcp"},
                {"IP": "0.0.0.0", "PrivatePort": 53, "PublicPort": 53, "Type": "udp"},
            ],
        },
        {"Names": ["/other"], "Ports": None},
    ]
    assert (Published("web", "127.0.0.1", 8001, "us", "embed"),) == docker_facts.published(listed)


@pytest.mark.parametrize(
    ("ended", "since", "expected"),
    [
        (NEVER, STARTED, None),  # the first run, which goes on
        (BEFORE, STARTED, docker_facts.moment(BEFORE)),  # a later run: from the end of the one before
        (AFTER, STARTED, docker_facts.moment(STARTED) - docker_facts.START_SLACK_S),  # it ended meanwhile
        (AFTER, "", None),
        (AFTER, NEVER, None),
    ],
)
def test_the_lines_of_a_run_begin_where_the_run_before_ended(ended, since, expected):
    """A run's first lines are older than the start that the engine notes, and are not left out."""
    assert expected == docker_facts.log_start({"State": {"FinishedAt": ended}}, since)


def test_moments_are_read_to_the_microsecond():
    """Engines write nanoseconds, and whole seconds without a point."""
    assert 0.123456 == pytest.approx(docker_facts.moment("1970-01-01T00:00:00.123456789Z"))
    assert 1 == docker_facts.moment("1970-01-01T00:00:01Z")


@given(st.text(max_size=40))
def test_any_text_is_a_moment_or_none(text):
    """What is no time is none, and no error."""
    moment = docker_facts.moment(text)
    assert moment is None or isinstance(moment, float)
