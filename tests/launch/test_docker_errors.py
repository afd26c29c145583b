"""What an engine complains about, in its words, and what we make of it. The texts marked so are of real engines."""

from __future__ import annotations

import errno

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.errors import Exit, QmdRemoteError
from qmd_remote.launch import docker_errors

# captured from Docker Engine 20.10, unless "documented" stands before them
TEXTS = [
    ('could not select device driver "" with capabilities: [[gpu]]', "gpu.toolkit"),
    # documented
    ("failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=all", "gpu.toolkit"),
    ("failed to discover GPU vendor from CDI: no known GPU vendor found", "gpu.toolkit"),
    # captured
    ("Unknown runtime specified nvidia", "gpu.toolkit"),
    ('could not select device driver "cdi" with capabilities: []', "gpu.toolkit"),
    # documented
    ("unknown or invalid runtime name: nvidia", "gpu.toolkit"),
    (
        "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
        "error during container init: error running hook #0: exit status 1, stderr: nvidia-container-cli: "
        "initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file "
        "or directory: unknown",
        "gpu.library",
    ),
    ("nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown", "gpu.library"),
    ("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch", "gpu.library"),
    (
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please update your driver to a "
        "newer version, or use an earlier cuda container: unknown",
        "gpu.driver_old",
    ),
    ("nvidia-container-cli: device error: 7: unknown device: unknown", "gpu.missing"),
    ("error running hook #0: nvidia-container-cli: mount error: file creation failed", "gpu.toolkit"),
    # captured
    (
        "driver failed programming external connectivity on endpoint qmd-vllm (3f1c): Error starting userland proxy: "
        "listen tcp4 127.0.0.1:8000: bind: address already in use",
        "port.taken",
    ),
    (
        "driver failed programming external connectivity on endpoint qmd-vllm (3f1c): Bind for 127.0.0.1:8000 failed: "
        "port is already allocated",
        "port.taken",
    ),
    # documented
    (
        "failed to set up container networking: driver failed programming external connectivity on endpoint x (1): "
        "failed to bind host port for 127.0.0.1:8000:172.17.0.2:8000/tcp: address already in use",
        "port.taken",
    ),
    # captured
    (
        "driver failed programming external connectivity on endpoint x (1): Error starting userland proxy: "
        "listen tcp4 192.0.2.1:8000: bind: cannot assign requested address",
        "bind.address",
    ),
    # documented
    ("rootlessport cannot expose privileged port 80, you can add 'net.ipv4…'", "port.permission"),
    # captured
    (
        'Conflict. The container name "/qmd-vllm" is already in use by container "8f2a". You have to remove (or '
        "rename) that container to be able to reuse that name.",
        "name.taken",
    ),
    # documented: Podman
    ('the container name "qmd-vllm" is already in use by 8f2a. You have to remove that container', "name.taken"),
    # documented
    ("no matching manifest for linux/arm64/v8 in the manifest list entries", "image.arch"),
    ("no image found in manifest list for architecture arm64, variant v8", "image.arch"),
    ("exec /usr/bin/vllm: exec format error", "image.arch"),
    # captured, from a registry with passwords
    (
        'Head "http://127.0.0.1:5000/v2/llm/manifests/1": no basic auth credentials',
        "image.auth",
    ),
    ("unauthorized: authentication required", "image.auth"),
    # documented
    (
        "pull access denied for llm, repository does not exist or may require 'docker login': denied: requested "
        "access to the resource is denied",
        "image.auth",
    ),
    # captured: the SDK's own
    ("Credentials store error: StoreError('docker-credential-desktop not installed')", "image.auth"),
    # documented
    ("toomanyrequests: You have reached your pull rate limit.", "image.rate"),
    # captured
    ("manifest for 127.0.0.1:5000/llm:2 not found: manifest unknown: manifest unknown", "image.missing"),
    ("No such image: llm:latest", "image.missing"),
    ("invalid reference format: repository name must be lowercase", "image.missing"),
    ("Repository name cannot contain a scheme (http://127.0.0.1:1/llm)", "image.missing"),
    ("failed to register layer: Error processing tar file(exit status 1): write /0: no space left on device",
     "disk.full"),
    ("write /var/lib/docker/overlay2/7364-init/link: no space left on device", "disk.full"),
    (
        'failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: '
        'exec: "vllm": executable file not found in $PATH: unknown',
        "program.missing",
    ),
    ('invalid mount config for type "bind": bind source path does not exist: /nowhere', "mount.missing"),
    # documented: Podman
    ("statfs /nowhere: no such file or directory", "mount.missing"),
    # documented
    ("client version 1.52 is too new. Maximum supported API version is 1.41", "docker.old"),
    # captured: the SDK's own
    ("API versions below 1.24 are no longer supported by this library.", "docker.old"),
    # captured
    ('Get "http://127.0.0.1:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused', "registry.unreachable"),
    (
        'Get "https://registry.invalid/v2/": dial tcp: lookup registry.invalid on 192.0.2.53:53: no such host',
        "registry.unreachable",
    ),
    # documented
    ("net/http: request canceled while waiting for connection (Client.Timeout exceeded)", "registry.unreachable"),
    ('Get "https://registry.local/v2/": x509: certificate signed by unknown authority', "registry.unreachable"),
    ("received unexpected HTTP status: 503 Service Unavailable", "registry.unreachable"),
    ('Get "http://127.0.0.1:5000/v2/": EOF', "registry.unreachable"),
    # documented
    ("fork/exec /usr/bin/runc: cannot allocate memory", "memory.system"),
    # documented: engines with containerd's image store
    (
        'failed to resolve reference "docker.io/library/alpine:nope": docker.io/library/alpine:nope: not found',
        "image.missing",
    ),
    (
        'failed to resolve reference "docker.io/acme/llm:1": pull access denied, repository does not exist or may '
        "require authorization: server message: insufficient_scope: authorization failed",
        "image.auth",
    ),
    ("no match for platform in manifest sha256:8f2a: not found", "image.arch"),
    (
        "no matching manifest for linux/arm64/v8 in the manifest list entries: no match for platform in manifest: "
        "not found",
        "image.arch",
    ),
    (
        'failed to resolve reference "registry.example/llm:1": failed to do request: Head '
        '"https://registry.example/v2/llm/manifests/1": context deadline exceeded',
        "registry.unreachable",
    ),
    ("failed to copy: httpReadSeeker: failed open: context deadline exceeded", "registry.unreachable"),
    (
        'Get "https://registry.example/v2/": context deadline exceeded (Client.Timeout exceeded while awaiting '
        "headers)",
        "registry.unreachable",
    ),
    (
        'Get "https://registry.example/v2/": net/http: request canceled (Client.Timeout exceeded while awaiting '
        "headers)",
        "registry.unreachable",
    ),
    (
        'failed to resolve reference "registry.example/llm:1": unexpected status from HEAD request to '
        "https://registry.example/v2/llm/manifests/1: 503 Service Unavailable",
        "registry.unreachable",
    ),
    (
        "failed to copy: httpReadSeeker: failed open: unexpected status code "
        "https://registry.example/v2/llm/blobs/sha256:8f2a: 502 Bad Gateway - Server message: unknown",
        "registry.unreachable",
    ),
    (
        "failed to copy: httpReadSeeker: failed open: unexpected status code "
        "https://registry.example/v2/llm/manifests/sha256:8f2a: 429 Too Many Requests",
        "image.rate",
    ),
    (
        'failed to resolve reference "registry.example/llm:1": failed to do request: Head '
        '"https://registry.example/v2/llm/manifests/1": dial tcp: lookup registry.example: no such host',
        "registry.unreachable",
    ),
    # documented: Docker's client
    (
        'error getting credentials - err: exec: "docker-credential-desktop": executable file not found in $PATH, '
        "out: ``",
        "image.auth",
    ),
]  # fmt: skip

CONFIGURATION = {"image.arch", "image.missing", "program.missing", "mount.missing", "bind.address"}


@pytest.mark.parametrize(("text", "code"), TEXTS)
def test_a_known_complaint_has_its_code_cause_and_cure(text, code):
    """Each text becomes the error of its cause, with the text itself and something to do."""
    error = docker_errors.of_text(text, doing="starting the container qmd-vllm")
    assert code == error.code
    assert error.hint
    assert error.message.startswith("starting the container qmd-vllm failed: ")
    assert text[-60:] in error.message
    assert (Exit.CONFIGURATION if code in CONFIGURATION else Exit.PREREQUISITE) == error.exit_code


def test_a_container_that_starts_too_slowly_is_no_registry():
    """The same words about something else than an address of a registry are told as they are."""
    error = docker_errors.of_text("failed to create task for container: context deadline exceeded", doing="starting x")
    assert "docker.error" == error.code


def test_a_helper_that_is_missing_has_its_own_cure():
    """Another image would not help where the keeper of passwords is what is not found."""
    text = 'error getting credentials - err: exec: "docker-credential-desktop": executable file not found in $PATH'
    assert "credsStore" in docker_errors.of_text(text, doing="pulling x").hint


def test_an_unknown_complaint_is_told_as_it_is():
    """What nobody has seen before keeps its words, and says where to look."""
    error = docker_errors.of_text("the moon is\n  in the way", doing="pulling x")
    assert ("docker.error", "pulling x failed: the moon is in the way", Exit.FAILED) == (
        error.code,
        error.message,
        error.exit_code,
    )
    assert "docker info" in error.hint


@given(st.text(max_size=2000))
def test_any_text_becomes_an_error_of_a_line(text):
    """Whatever an engine says, the message is one line of bounded length."""
    error = docker_errors.of_text(text, doing="starting x")
    assert isinstance(error, QmdRemoteError)
    assert len(error.message) < 600
    assert len(error.message.splitlines()) == 1


def wrapped(inner: BaseException) -> Exception:
    """An error as the SDK raises it: requests' own around urllib3's around the system's."""
    try:
        try:
            raise requests.ConnectionError("Connection aborted.", inner)
        except requests.ConnectionError as error:
            raise RuntimeError(f"Error while fetching server API version: {error}") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("inner", "code", "words"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), "docker.down", "not installed, or not started"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "docker.down", "no container engine answers"),
        (PermissionError(errno.EACCES, "denied"), "docker.permission", "may not use"),
        (requests.ReadTimeout("Read timed out. (read timeout=60)"), "docker.down", "does not answer in time"),
        (ValueError("client version 1.52 is too new"), "docker.old", "too old"),
    ],
)
def test_a_failed_connection_is_told_by_what_lies_inside(inner, code, words):
    """The system's error counts, however deep the SDK has wrapped it; each is a prerequisite with its cure."""
    error = docker_errors.of_connection(wrapped(inner), "unix:///var/run/docker.sock")
    assert (code, Exit.PREREQUISITE) == (error.code, error.exit_code)
    assert words in error.message
    assert code == "docker.old" or "unix:///var/run/docker.sock" in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("endpoint", "fix"),
    [
        ("unix:///run/engine.sock", "start it there; or"),
        ("tcp://127.0.0.1:2375", "unset DOCKER_HOST"),
        ("unix:///run/user/1000/docker.sock", "systemctl --user start docker"),
    ],
)
def test_an_engine_that_somebody_named_is_not_started_as_the_usual_one(endpoint: str, fix: str):
    """Starting this machine's Docker lets no other address answer."""
    error = docker_errors.of_connection(wrapped(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), endpoint)
    assert ("docker.down", True) == (error.code, "DOCKER_HOST" in error.message)
    assert fix in error.hint
    assert "sudo systemctl start docker" not in error.hint


def test_a_named_engine_that_is_slow_is_not_this_machines_service():
    """The cure for a wrong address is another address."""
    late = TimeoutError("timed out")
    assert "systemctl" in docker_errors.of_connection(wrapped(late), "unix:///var/run/docker.sock").hint
    named = docker_errors.of_connection(wrapped(late), "tcp://127.0.0.1:2375").hint
    assert ("unset DOCKER_HOST" in named, "systemctl" in named) == (True, False)


def test_a_chain_of_errors_that_bites_its_tail_ends():
    """Errors may refer to each other in a circle."""
    one, other = OSError(errno.ENOENT, "x"), OSError("y")
    one.__context__, other.__context__ = other, one
    assert docker_errors.of_connection(one, "unix:///x").code == "docker.down"


def test_another_machines_engine_is_refused_with_a_way_out():
    """The error says why, and both ways on."""
    error = docker_errors.remote("ssh://box")
    assert ("docker.remote", Exit.PREREQUISITE) == (error.code, error.exit_code)
    assert "ssh://box" in error.message
    assert "DOCKER_HOST" in error.hint
