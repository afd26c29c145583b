"""What `doctor` looks at for the models: whether they are here, room for them, and the hub they come from."""

from __future__ import annotations

import os
import shlex
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import httpx

from qmd_remote import catalogue, hub_cache, paths, presets, pull_flow
from qmd_remote.doctor import Finding, ok, skipped
from qmd_remote.errors import QmdRemoteError
from qmd_remote.launch import docker_plan
from qmd_remote.launch.plan import LLM_HINT
from qmd_remote.server import hub as hub_of_server
from qmd_remote.settings import Settings

GB = 10**9
SPARE = 2 * GB  # for logs and converted models
UNKNOWN = 5 * GB  # a model that nothing is known of
HUB_S = 2.5
HUB = "https://huggingface.co"
YES = {"1", "ON", "YES", "TRUE"}  # as the hub's library reads its variables
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def models(settings: Settings, env: Mapping[str, str] = os.environ) -> Finding:
    """Whether the models are on this machine. Raises what `hub.without_hub` raises of folders."""
    names = [one.model for one in pull_flow.of_settings(settings)]
    missing = absent(settings)
    if not missing and _lacks_package(settings):
        others = ", ".join(name for name in names if name != settings.generation_model)
        return Finding(
            "warning", f"here: {others}; {settings.generation_model} is not: its package is missing", LLM_HINT
        )
    if not missing:
        return ok(f"here: {', '.join(names)}")
    listed = ", ".join(missing)
    if offline(env):
        fix = f"unset HF_HUB_OFFLINE, then: {_pull(settings)}"
        return Finding("failure", f"not here: {listed}; and HF_HUB_OFFLINE forbids to fetch them", fix)
    return Finding("warning", f"not here yet: {listed}; `up` fetches them", f"fetch them ahead: {_pull(settings)}")


def disk(settings: Settings) -> Finding:
    """Room for models, logs and converted models, in folders that can be written."""
    try:
        coming = sum(_size(model) for model in absent(settings))
    except QmdRemoteError:  # told by `models`
        coming = 0
    told, state, fix = [], ok("").state, ""
    for what, folder, needs in (
        ("the hub's cache", hub_cache.folder(), coming),
        ("qmd-remote's files", paths.cache_dir(), 0),
    ):
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not os.access(there, os.W_OK):
            return Finding("failure", f"{folder}, for {what}, cannot be written", _own(folder))
        free = shutil.disk_usage(there).free
        short = f", of {needs / GB:.1f} GB needed" if free < needs else ""
        told.append(f"{free / GB:.1f} GB free for {what}{short}")
        if free < needs + SPARE and state != "failure":
            state, fix = "failure" if free < needs else "warning", f"free some space: df -h {shlex.quote(str(there))}"
    return Finding(state, "; ".join(told), fix)


def hub(settings: Settings, env: Mapping[str, str] = os.environ) -> Finding:
    """Whether the model hub answers, and takes the token where there is one."""
    if offline(env):
        return skipped("HF_HUB_OFFLINE is set")
    try:
        needed = absent(settings)
    except QmdRemoteError:  # told by `models`
        needed = []
    where, secret = (env.get("HF_ENDPOINT") or HUB).rstrip("/"), token(env)
    answer = _ask(where, secret)
    if isinstance(answer, int) and answer < httpx.codes.INTERNAL_SERVER_ERROR:
        if secret and answer == httpx.codes.UNAUTHORIZED:
            fix = "make a new one (hf auth login, or export HF_TOKEN=…), or remove it: hf auth logout, unset HF_TOKEN"
            return Finding("failure" if needed else "warning", f"{where} answers, and refuses the token", fix)
        return ok(
            f"{where} answers, " + ("and takes the token" if secret else "without a token: gated models need one")
        )
    what = f"{where} answers {answer}" if isinstance(answer, int) else f"{where} does not answer ({answer})"
    if not needed:
        return Finding("warning", f"{what}; no model has to come from there")
    fix = "check the network and HTTPS_PROXY; or name local folders"
    if settings.preset != "mini":
        fix += "; or take models that need no hub: qmd-remote up --preset mini"
    return Finding("failure", f"{what}, and from there must come: {', '.join(needed)}", fix)


def absent(settings: Settings) -> list[str]:
    """The models that `up` would have to fetch. Raises what `hub.without_hub` raises of folders."""
    names = {one.model for one in pull_flow.of_settings(settings)}
    generation = settings.generation_model
    found = {name for name in names if _is_here(name)}
    if settings.generation_engine == "docker" and generation in presets.BUNDLED:
        # a container sees the hub's cache, and no packages
        found = found - {generation} if docker_plan.to_download(settings) else found | {generation}
    elif generation == presets.MINI_GENERATION:
        found.add(generation)  # as a process it comes as a package, never from the hub
    return [one.model for one in pull_flow.of_settings(settings) if one.model not in found]


def _lacks_package(settings: Settings) -> bool:
    """Whether generation is a process whose model comes as a package that is not installed."""
    name = settings.generation_model
    return (
        settings.generation_engine == "process"
        and name == presets.MINI_GENERATION
        and presets.bundled_path(name) is None
    )


def offline(env: Mapping[str, str]) -> bool:
    """Whether the hub's library is told to keep away from the network."""
    return env.get("HF_HUB_OFFLINE", "").upper() in YES


def token(env: Mapping[str, str]) -> str:
    """The hub's token by its library's rule: from the environment, else from the file that a login writes."""
    named = next((env[name] for name in TOKENS if env.get(name)), "")
    if named:
        return named.strip()
    file = Path(env.get("HF_TOKEN_PATH") or docker_plan.hf_home(env) / "token").expanduser()
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _ask(where: str, secret: str) -> int | str:
    """The hub's status, or why there is none."""
    told: list[int | str] = []

    def job() -> None:
        try:
            if secret:
                who = httpx.get(f"{where}/api/whoami-v2", headers={"authorization": f"Bearer {secret}"}, timeout=HUB_S)
                told.append(who.status_code)
            else:
                told.append(httpx.head(where, timeout=HUB_S).status_code)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a token that no header can hold
            told.append(type(error).__name__)

    # a thread, since nothing bounds the time in which a name is resolved
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    thread.join(HUB_S)
    return next(iter(told), "no answer")


def _is_here(model: str) -> bool:
    return hub_of_server.without_hub(model) is not None or pull_flow.here(model)[0] != "not yet"


def _size(model: str) -> int:
    known = catalogue.CATALOGUE.get(model)
    return known.size_mb * 10**6 if known else UNKNOWN


def _own(folder: Path) -> str:
    """How to get a folder of one's own, without a word about those above it."""
    quoted = shlex.quote(str(folder))
    return f'sudo mkdir -p {quoted} && sudo chown -R "$USER" {quoted}'


def _pull(settings: Settings) -> str:
    named = settings.origins.get("preset") == "flag"
    return f"qmd-remote pull --preset {settings.preset}" if named else "qmd-remote pull"
