"""What `up` says before and after, and what its exit code means."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmd_remote import settings, up_flow, up_views
from qmd_remote.errors import UsageError
from qmd_remote.launch import plan
from qmd_remote.launch import up as launch_up
from qmd_remote.launch.plan import GenerationPlan, Plan
from qmd_remote.output import Output
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings

Run = Callable[..., Any]
ON = Plan("mini", GenerationPlan("process", "http://127.0.0.1:8000", "some/model", "transformers"))
QUOTED = '"$(ssh 10.1.2.3 ' + shlex.quote("cat '/my keys/k'") + ')"'  # two shells read it
OFF = Plan("mini", GenerationPlan("off", reason="it is missing", hint="pip install it"))


def test_the_plan_of_an_ipv6_address():
    """An IPv6 address stands in brackets before its port, once."""
    for host in ("::1", "[::1]"):
        lines = up_views.plan_lines(Settings(host=host), ON, "")
        assert "  listen on   [::1]:8001, without a key" in lines


def test_the_plan_for_other_machines_has_a_key():
    """Where others can come `up` makes a key, unless everybody is to be served."""
    for insecure, words in ((False, "with a key, which `up` makes"), (True, "without a key")):
        lines = up_views.plan_lines(Settings(host="0.0.0.0", insecure_no_auth=insecure), ON, "")
        assert f"  listen on   0.0.0.0:8001, {words}" in lines


def test_the_plan_says_why_and_how():
    """The preset with its reason, and generation with its program, or why it is off."""
    lines = up_views.plan_lines(Settings(api_key="k"), ON, "no GPU was found")
    assert lines[0].startswith("preset mini, since no GPU was found: ")
    assert "  listen on   127.0.0.1:8001" in lines
    assert "  generation  some/model by `transformers serve` on http://127.0.0.1:8000" in lines
    assert "  generation  off, since it is missing" in up_views.plan_lines(Settings(), OFF, "")


@pytest.fixture
def upped(cli_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[int, dict[str, Any]]]:
    """What `up` makes of services that are at a URL already: nothing is started. Returns exit code and envelope."""

    def call(url: str) -> tuple[int, dict[str, Any]]:
        port = int(url.rpartition(":")[2])
        wanted = Settings(preset="mini", port=port, generation_engine="external", generation_url=f"{url}/v1/")
        monkeypatch.setattr(
            plan,
            "make",
            lambda wanted, *_, **__: Plan("mini", GenerationPlan("external", wanted.generation_url, "some/model")),
        )
        started = tuple(launch_up.Started(name, "already running", url=url) for name in (GENERATION, EMBED))
        monkeypatch.setattr(launch_up.Launch, "run", lambda _: started)
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            code = up_flow.up(Output("up", as_json=True), wanted, "")
        return code, json.loads(written.getvalue())

    return call


def test_up_ends_with_checks_of_what_it_brought_up(upped: Run, stand_in: Run):
    """Services that answer as QMD needs it are exit code 0; the external URL is asked without its /v1."""
    code, said = upped(stand_in().url)
    assert (0, [], "mini") == (code, said["warnings"], said["data"]["preset"])
    assert ["already running"] * 2 == [one["action"] for one in said["data"]["services"]]
    assert {"ok", "skip"} >= {row["status"] for row in said["data"]["checks"]}


def test_up_fails_when_what_runs_is_no_good(upped: Run, nobody: str):
    """Services that do not answer the checks are exit code 1, with the rows, and each failure as a warning."""
    code, said = upped(nobody)
    assert (1, "check.failed") == (code, said["error"]["code"])
    assert "refused" in said["error"]["message"]
    assert said["warnings"] and said["data"]["checks"]


def commands_of(lines: list[str]) -> list[list[str]]:
    """The commands among the next steps, as a shell splits them."""
    return [shlex.split(line.strip().split("   ")[0].split("  ")[0]) for line in lines if line.startswith("  qmd")]


def test_a_server_that_closes_to_others_is_warned_about(upped: Run, runs: Run, stand_in: Run):
    """`up` without --host goes back to this machine only, and says how to keep it open."""
    server = stand_in()
    assert [] == upped(server.url)[1]["warnings"]
    runs(EMBED, server.url, spec={"host": "0.0.0.0"})
    warning = upped(server.url)[1]["warnings"][0]
    assert "0.0.0.0" in warning["message"]
    assert "qmd-remote settings set host=0.0.0.0" in warning["hint"]


def test_next_steps_on_loopback():
    """Test, tell QMD, look, stop; nothing about other machines, no key."""
    steps = commands_of(up_views.next_steps(Settings(), ON))
    assert ["test", "config write", "status", "down"] == [" ".join(step[1:]) for step in steps]
    assert [] == up_views.workstation_steps(Settings())


@pytest.mark.parametrize(
    ("settings", "key", "url"),
    [
        ({"host": "10.1.2.3", "insecure_no_auth": True}, None, "http://10.1.2.3:8001"),
        ({"host": "10.1.2.3", "api_key": "k"}, "…", "http://10.1.2.3:8001"),
        ({"host": "10.1.2.3", "api_key_file": "/my keys/k"}, QUOTED, "http://10.1.2.3:8001"),
        ({"host": "0.0.0.0", "api_key": "k"}, "…", f"http://{socket.gethostname()}:8001"),
        ({"host": "::", "api_key": "k", "port": 9}, "…", f"http://{socket.gethostname()}:9"),
        ({"host": "fd00::7", "api_key": "k"}, "…", "http://[fd00::7]:8001"),
        ({"host": "box", "api_key": "k", "tls_cert": "c", "tls_key": "t"}, "…", "https://box:8001"),
    ],
)
def test_next_steps_for_the_workstation(settings: dict[str, Any], key: str | None, url: str):
    """An address other than loopback gets the commands for the other machine: the key's variable, then the URL."""
    lines = up_views.workstation_steps(Settings(**settings))
    there = [line.strip() for line in lines[lines.index("on the workstation:") + 1 :]]
    assert (key is not None) == there[0].startswith("export ")
    if key is not None:
        assert there[0].startswith(f"export QMD_REMOTE_API_KEY={key} ")
    with_key = " --api-key-env QMD_REMOTE_API_KEY" if key else ""
    (write,) = [line for line in there if "config write" in line]
    assert write.startswith(f"qmd-remote config write --url {url}{with_key}  ")


def test_next_steps_say_how_to_get_generation():
    """Where generation is off, the last line is how to turn it on."""
    assert "generation: pip install it" == up_views.next_steps(Settings(), OFF)[-1]


@pytest.mark.parametrize(
    ("flags", "instead"),
    [
        ({"generation_image": "vllm:1"}, "--generation docker"),
        ({"generation_container": "x"}, "--generation docker"),
        ({"generation_url": "http://x:1"}, "--generation external"),
    ],
)
def test_options_that_would_change_nothing_are_refused(flags, instead):
    """Who types an image for generation that is a process would wait for a container in vain."""
    with pytest.raises(UsageError) as told:
        up_flow.require_used(settings.resolve({"preset": "cpu", **flags}))
    assert instead in told.value.hint
    up_flow.require_used(settings.resolve({"preset": "cpu"}, {"QMD_REMOTE_GENERATION_IMAGE": "vllm:1"}))
    up_flow.require_used(settings.resolve({"preset": "gpu", "generation_image": "vllm:1"}))
