"""Two machines, as two network namespaces: the services on one, QMD's side on the other."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).parent / "qmd-remote"
BOX, WORKSTATION = "10.77.0.1", "10.77.0.2"
LISTEN = "0A"  # the state's number in /proc/net/tcp

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need Linux, root and iproute2's ip",
)


@dataclass
class Host:
    """A network namespace with a home of its own."""

    name: str
    home: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run any program there."""
        ours = {"QMD_REMOTE_HOME": str(self.home), "QMD_CONFIG_DIR": str(self.home / "qmd")}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("QMD_")}
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *words],
            env={**kept, **ours, **self.env},
            capture_output=True,
            text=True,
            timeout=280,
        )

    def qmd_remote(self, *words: str) -> tuple[int, dict]:
        """The exit code and the envelope of a command with --json."""
        done = self.command(SCRIPT, *words, "--json")
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)

    def listeners(self) -> list[tuple[str, int]]:
        """The addresses and ports at which anything listens there."""
        found = []
        for file, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
            for line in self.command("cat", file).stdout.splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == LISTEN:
                    address, port = local.split(":")
                    found.append((_address(address, family), int(port, 16)))
        return found

    def status_of(self, url: str, *headers: str) -> str:
        """The status with which a server answers a request from there; 000 when it cannot be reached."""
        program = (
            "import httpx, sys\n"
            "headers = dict(h.split(': ') for h in sys.argv[2:])\n"
            "try: print(httpx.post(sys.argv[1], json={'input': 'a'}, headers=headers, trust_env=False).status_code)\n"
            "except httpx.ConnectError: print('000')\n"
        )
        return self.command(sys.executable, "-c", program, url, *headers).stdout.strip()


def _address(text: str, family: int) -> str:
    """An address of /proc/net/tcp: words of four bytes in the machine's order."""
    raw = bytes.fromhex(text)
    words = [raw[i : i + 4][::-1] if sys.byteorder == "little" else raw[i : i + 4] for i in range(0, len(raw), 4)]
    return socket.inet_ntop(family, b"".join(words))


def ip(*words: str) -> None:
    """Configure the network."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, converted: Path) -> Iterator[tuple[Host, Host]]:
    """A box and a workstation on one cable; the services of the box are stopped at the end, whatever happened."""
    folder = tmp_path_factory.mktemp("hosts")
    box, workstation = (Host(f"qmd-{name}-{os.getpid()}", folder / name) for name in ("box", "station"))
    cables = (f"qb{os.getpid()}", f"qs{os.getpid()}")
    try:
        try:
            ip("netns", "add", box.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        ip("netns", "add", workstation.name)
        ip(
            "link",
            "add",
            cables[0],
            "netns",
            box.name,
            "type",
            "veth",
            "peer",
            "name",
            cables[1],
            "netns",
            workstation.name,
        )
        for host, cable, address in ((box, cables[0], BOX), (workstation, cables[1], WORKSTATION)):
            ip("-n", host.name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", host.name, "link", "set", cable, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
            host.home.mkdir()
        (box.home / "cache").symlink_to(converted)
        yield box, workstation
    finally:
        if box.home.exists():
            box.qmd_remote("down")
        for host in (box, workstation):
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def test_one_host_serves_and_the_other_one_uses_it(hosts: tuple[Host, Host]):
    """`up --host` makes a key; with it `config write` and `test` are green from the other host, and without it 401."""
    box, workstation = hosts
    code, envelope = box.qmd_remote("up", "--preset", "mini", "--host", BOX)
    assert 0 == code, envelope
    url = f"http://{BOX}:8001"
    key = box.command(SCRIPT, "key", "show").stdout.strip()
    assert 0o600 == (box.home / "config" / "api-key").stat().st_mode & 0o777

    # nothing listens but what was announced: the embed server for all, generation and its engine for the box itself
    reachable = [(address, port) for address, port in box.listeners() if not address.startswith("127.")]
    assert [(BOX, 8001)] == reachable
    local = [port for address, port in box.listeners() if address.startswith("127.")]
    assert 8000 in local
    assert 2 == len(local)
    assert "000" == workstation.status_of(f"http://{BOX}:8000/v1/completions")

    assert "401" == workstation.status_of(f"{url}/v1/embeddings")
    assert "401" == workstation.status_of(f"{url}/v1/embeddings", "Authorization: Bearer no-key-of-this-box")
    assert "401" == workstation.status_of(f"{url}/v1/chat/completions")
    assert "200" == workstation.status_of(f"{url}/v1/embeddings", f"Authorization: Bearer {key}")

    workstation.env = {"QMD_REMOTE_API_KEY": key}
    code, envelope = workstation.qmd_remote("config", "write", "--url", url, "--api-key-env", "QMD_REMOTE_API_KEY")
    assert 0 == code, envelope
    assert [] == envelope["warnings"]
    written = (workstation.home / "qmd" / "index.yml").read_text()
    assert f"url: {url}\n" in written
    assert "generate: HuggingFaceTB/SmolLM2-135M-Instruct\n" in written
    assert key not in written
    code, envelope = workstation.qmd_remote("config", "check")
    assert (0, "remote") == (code, envelope["data"]["verdict"]), envelope
    code, envelope = workstation.qmd_remote("test")
    assert [] == [row for row in envelope["data"]["checks"] if row["status"] == "fail"]
    assert 0 == code

    workstation.env = {"QMD_REMOTE_API_KEY": "no-key-of-this-box"}
    code, envelope = workstation.qmd_remote("test")
    assert (1, "unauthorized") == (code, envelope["error"]["code"]), envelope


def test_an_exposed_server_without_a_key_stays_refused(hosts: tuple[Host, Host]):
    """`serve` on an address that others reach does not make a key of its own accord: it says what to do."""
    box, _ = hosts
    code, envelope = box.qmd_remote("serve", "--host", BOX, "--port", "8002", "--preset", "mini")
    assert (4, "bind.no_key") == (code, envelope["error"]["code"])
