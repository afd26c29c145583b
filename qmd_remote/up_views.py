"""What `up` says: its plan, what it did, and what to do next. Values in, lines and rich renderables out."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from qmd_remote.launch.plan import Plan
from qmd_remote.launch.status import ServiceStatus
from qmd_remote.launch.up import Started
from qmd_remote.presets import PRESETS
from qmd_remote.reach import is_loopback
from qmd_remote.services import TITLES
from qmd_remote.settings import Settings
from qmd_remote.views import styled, table


def plan_lines(settings: Settings, plan: Plan, why: str) -> list[str]:
    """What `up` is about to do, a line each."""
    generation = plan.generation
    how = {
        "docker": f"{generation.model} by vLLM in {settings.generation_image}, on {generation.url}",
        "process": f"{generation.model} by `{generation.program} serve` on {generation.url}",
        "external": f"{generation.model} at {generation.url}",
        "off": f"off, since {generation.reason}",
    }[generation.engine]
    return [
        f"preset {plan.preset}" + (f", since {why}" if why else "") + f": {PRESETS[plan.preset].summary}",
        f"  embed       {settings.embed_model}",
        f"  rerank      {settings.rerank_model}",
        f"  device      {settings.device}",
        f"  listen on   {_bracketed(settings.host)}:{settings.port}{_which_key(settings)}",
        f"  generation  {how}",
    ]


def _which_key(settings: Settings) -> str:
    if settings.key:
        return ""
    open_to_all = is_loopback(settings.host) or settings.insecure_no_auth
    return ", without a key" if open_to_all else ", with a key, which `up` makes"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def started_lines(started: Sequence[Started]) -> list[str]:
    """What `up` did about each service that it looks after."""
    return [f"{TITLES[one.service]}: {_done(one)}" for one in started if one.action not in {"external", "off"}]


def _done(one: Started) -> str:
    if one.action not in {"started", "restarted"}:
        return one.action
    return f"{one.action} in {one.seconds} s" + (f", since {', '.join(one.changed)}" if one.changed else "")


def started_table(started: Sequence[Started], statuses: Sequence[ServiceStatus]) -> Table:
    """What `up` did, with what runs now."""
    now = {status.service: status for status in statuses}
    rows = table("service", "state", "model", "endpoint", "device")
    for one in started:
        status = now[one.service]
        state = styled(status.state if one.pid else one.action)
        model = status.model or one.model or "–"
        rows.add_row(one.service, state, escape(model), status.url or one.url or "–", status.device or "–")
    return rows


KEY_VARIABLE = "QMD_REMOTE_API_KEY"
EVERYWHERE = {"0.0.0.0", "::", "[::]"}  # noqa: S104 - compared, not bound


def next_steps(settings: Settings, plan: Plan) -> list[str]:
    """The exact commands to type after `up`."""
    steps = (
        [(f"export {KEY_VARIABLE}={key}", "the key, for these commands and for QMD")]
        if (key := _key_here(settings))
        else []
    )
    steps += [
        ("qmd-remote test", "send both services exactly what QMD sends"),
        ("qmd-remote config write", "tell QMD on this machine about them"),
        ("qmd-remote status", "what runs"),
        ("qmd-remote down", "stop it"),
    ]
    lines = ["", "next:", *_aligned(steps)]
    if plan.generation.engine == "off":
        lines.append(f"generation: {plan.generation.hint or plan.generation.reason}")
    return lines


def _key_here(settings: Settings) -> str:
    """How a shell of this machine gets the key from its file; empty without one, or where a variable has it already."""
    if settings.api_key or not settings.api_key_file:
        return ""
    return f'"$(cat {shlex.quote(settings.api_key_file)})"'


def workstation_steps(settings: Settings) -> list[str]:
    """How another machine gets the key, and what to type there; nothing where none can come."""
    if is_loopback(settings.host):
        return []
    host = socket.gethostname() if settings.host in EVERYWHERE else settings.host
    url = f"http{'s' if settings.tls_cert else ''}://{_bracketed(host)}:{settings.port}"
    steps, with_key = [], ""
    if settings.api_key or settings.api_key_file:
        with_key = f" --api-key-env {KEY_VARIABLE}"
        steps.append((f"export {KEY_VARIABLE}={_how_to_read_the_key(settings, host)}", "the key, for QMD too"))
    steps += [
        (f"qmd-remote config write --url {url}{with_key}", "tell QMD there about this box"),
        ("qmd-remote test", "send what QMD sends"),
    ]
    return ["", "on the workstation:", *_aligned(steps)]


def _how_to_read_the_key(settings: Settings, host: str) -> str:
    if settings.api_key:
        return "…"  # it came from a variable here, and only its owner knows how it got there
    # not `qmd-remote key show`: a shell that ssh starts often has no PATH to what pipx installed
    command = f"cat {shlex.quote(settings.api_key_file)}"
    if "'" in command:
        command = shlex.quote(command)  # two shells read it
    return f'"$(ssh {host} {command})"'


def _aligned(steps: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(command) for command, _ in steps)
    return [f"  {command:<{width}}  {meaning}" for command, meaning in steps]
