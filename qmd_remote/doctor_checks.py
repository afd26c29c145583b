"""The checks of `doctor`, in their order: this installation, the machine, its engine, the hub, QMD, the services."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlsplit

from qmd_remote import __version__, doctor_containers, doctor_models, paths, services, up_flow
from qmd_remote.client import config_check, config_facts, family_choice
from qmd_remote.client.config_check import Checked
from qmd_remote.doctor import Check, Finding, State, ok, once, skipped
from qmd_remote.errors import ConfigError, PrerequisiteError, requirement
from qmd_remote.launch import containers, docker_plan, docker_preflight, hardware, plan, status
from qmd_remote.launch.gpu import Gpu
from qmd_remote.launch.hardware import Hardware
from qmd_remote.launch.memory_plan import gib
from qmd_remote.launch.status import ServiceStatus
from qmd_remote.reach import is_loopback, server_tls
from qmd_remote.services import EMBED, GENERATION
from qmd_remote.settings import Settings
from qmd_remote.supervision import listen
from qmd_remote.up_again import up_line

CUDA_TORCH = "pipx runpip qmd-remote install --force-reinstall torch   (PyPI's has CUDA)"
PASSING = {"loading", "stopping", "unattended"}


def all_checks(settings: Settings, qmd_file: Path) -> list[Check]:
    """The checks for these settings; what several of them need is looked at once."""
    probe = once(hardware.probe)
    engine = once(containers.connect)
    planned = once(lambda: plan.make(settings, probe(), paths.cache_dir(), held=up_flow.held(settings)))
    config = once(lambda: _judged(qmd_file))
    statuses = once(lambda: status.look(settings.key))

    def here(name: str, look: Callable[[], Finding]) -> Check:
        """A check that counts only where services can run."""
        return Check(name, lambda: look() if serves(settings, probe()) else skipped("no service can run here"))

    return [
        Check("python", lambda: python(settings, probe(), client=lambda: is_client(config()))),
        here("gpu", lambda: gpu(settings, probe())),
        here("container engine", lambda: doctor_containers.engine(settings, engine, planned)),
        here("gpu for containers", lambda: doctor_containers.gpu(settings, probe(), engine)),
        here("memory plan", lambda: doctor_containers.memory(settings, probe(), planned)),
        here("ports", lambda: ports(settings)),
        here("address and key", lambda: address(settings)),
        here("disk", lambda: doctor_models.disk(settings)),
        here("model hub", lambda: doctor_models.hub(settings)),
        here("models", lambda: doctor_models.models(settings)),
        Check("QMD's config", lambda: qmd_config(qmd_file, config)),
        Check("embed server", lambda: service(EMBED, settings, statuses(), can_run=serves(settings, probe()))),
        Check("generation", lambda: service(GENERATION, settings, statuses(), can_run=serves(settings, probe()))),
    ]


def serves(settings: Settings, here: Hardware) -> bool:
    """Whether the embed server can run on this machine at all."""
    return here.server or settings.embed_engine == "docker"


def is_client(checked: Checked | None) -> bool:
    """Whether QMD here is to send everything to another machine."""
    if checked is None or checked.reason:
        return False
    return not is_loopback(urlsplit(checked.embed_url or "").hostname or "")


def python(settings: Settings, here: Hardware, client: Callable[[], bool]) -> Finding:
    """Python, ourselves, and the parts that the services need."""
    us = f"qmd-remote {__version__}, Python {platform.python_version()}"
    if util.find_spec("torch") is not None:
        us += f", torch {metadata.version('torch')}"
    if not serves(settings, here):
        if client():
            return ok(f"{us}; a client of another machine")
        fix = f"pipx install --force '{requirement('mini' if settings.preset == 'mini' else 'server')}'"
        return Finding("warning", f"{us}; the server's part is not installed: this can only be a client", fix)
    if settings.generation_engine == "process" and (lacks := plan.lacking(settings, here)):
        return Finding("warning", f"{us}; generation will be off: {lacks.reason}", lacks.hint)
    return ok(us)


def gpu(settings: Settings, here: Hardware) -> Finding:
    """The GPUs, their driver and memory, and whether torch can use them."""
    if here.apple_gpu:
        return ok("Apple silicon: mps")
    if not here.nvidia:
        if (settings.generation_engine == "docker" and settings.gpus != "none") or settings.device.startswith("cuda"):
            return Finding("failure", "no NVIDIA driver is installed", docker_plan.NO_GPU)
        return skipped("no NVIDIA driver is installed: the models run on the CPU")
    if not here.gpus:
        names = ", ".join(here.gpu_names) or "an NVIDIA driver is installed"
        return Finding(
            "warning", f"{names}, but nvidia-smi fails", "see why: nvidia-smi   (often: restart the machine)"
        )
    told = "; ".join(_gpu(one, here) for one in here.gpus)
    on_it = settings.embed_engine == "process" and settings.device != "cpu"
    if on_it and util.find_spec("torch") is not None and metadata.version("torch").endswith("+cpu"):
        return Finding("warning", f"{told}; torch is the build for CPUs and cannot use it", CUDA_TORCH)
    return ok(told)


def _gpu(one: Gpu, here: Hardware) -> str:
    driver = f", driver {one.driver}" if one.driver else ""
    if one.unified:
        # nvidia-smi's N/A is as it should be there
        return f"{one.name}, {gib(here.memory.total)} that CPU and GPU share{driver}"
    return f"{one.name}, {gib(one.total) if one.total else 'memory not told'}{driver}"


def ports(settings: Settings) -> Finding:
    """Whether the services' ports are free, or held by the services themselves. Raises for the first that is not."""
    wanted = {EMBED: (settings.host, settings.port, "--port")}
    if settings.generation_engine in {"docker", "process"}:
        address = settings.generation_host if settings.generation_engine == "docker" else "127.0.0.1"
        wanted[GENERATION] = (address, settings.generation_port, "--generation-port")
        if settings.port == settings.generation_port:
            raise ConfigError(
                f"both services are to listen on port {settings.port}",
                hint="choose another one for generation with --generation-port",
            )
    return ok(", ".join(_port(settings, name, *where) for name, where in wanted.items()))


def _port(settings: Settings, name: str, host: str, port: int, flag: str) -> str:
    record = services.find(name)
    if record is not None and urlsplit(record.url).port == port:
        return f"{port} is ours"
    if holder := containers.holder_of(host, port):
        if holder.owner == containers.us() and holder.service == name:
            return f"{port} is ours"
        raise docker_preflight.taken(holder, flag)
    try:
        listen(host, port, holder=services.port_holder, flag=flag).close()
    except PrerequisiteError as error:
        by_engine = name == GENERATION and settings.generation_engine == "docker"
        if error.code != "port.permission" or not by_engine:  # the engine may what we may not
            raise
    return f"{port} is free"


def address(settings: Settings) -> Finding:
    """Who can reach the embed server, by which key, and whether its certificate can be used."""
    tls = ", with TLS" if server_tls(settings) else ""
    if is_loopback(settings.host):
        return ok(f"{settings.host}: this machine only{tls}")
    if settings.key:
        return ok(f"{settings.host}, with a key{tls}")
    if settings.insecure_no_auth:
        fix = f"leave out --insecure-no-auth, so that there is a key: qmd-remote up --host {settings.host}"
        return Finding("warning", f"{settings.host}, for everybody without a key{tls}", fix)
    file = paths.key_file()
    return ok(f"{settings.host}{tls}, with the key " + (f"in {file}" if file.exists() else f"that `up` makes: {file}"))


def _judged(file: Path) -> Checked | None:
    """What QMD makes of its file, and what the services in it answer; None without a file."""
    if not file.exists():
        return None
    checked = family_choice.check_for(config_facts.gather(file, os.environ), None)
    return config_check.check_answers(checked, config_facts.ask(checked)) if checked.sound else checked


def qmd_config(file: Path, judged: Callable[[], Checked | None]) -> Finding:
    """What QMD on this machine does with its config file, and whether the services named there answer."""
    checked = judged()
    if checked is None:
        return skipped(f"there is no {file}: QMD is not set up on this machine, or has another --index")
    graver = [finding for finding in checked.findings if finding.severity != "info"]
    if not graver:
        return ok(checked.sentence)
    first = graver[0]
    # QMD without our services is as QMD comes
    state: State = "failure" if first.severity == "error" and first.code != "remote.missing" else "warning"
    return Finding(state, f"{file}: {first.message}", f"{first.fix}; all of it: qmd-remote config check")


def service(name: str, settings: Settings, statuses: Iterable[ServiceStatus], *, can_run: bool = True) -> Finding:
    """Whether a service answers."""
    one = next(found for found in statuses if found.service == name)
    elsewhere = one.url if one.state == "external" else settings.generation_url if name == GENERATION else ""
    if elsewhere and one.state in {"external", "not running"}:
        return _external(elsewhere, settings.key)
    where = f" at {one.url}" if one.url else ""
    if one.state == "ready":
        return ok(f"{one.state}{where}" + (f", {one.model}" if one.model else ""))
    if one.state == "off" or (name == GENERATION and settings.generation_engine == "off"):
        return skipped("it is switched off")
    if one.state == "not running":
        return skipped("it does not run here; start it: qmd-remote up" if can_run else "no service can run here")
    state: State = "warning" if one.state in PASSING else "failure"
    detail = f"{one.state}{where}" + (f": {one.detail}" if one.detail else "")
    fix = {"unattended": up_line(), "loading": "qmd-remote status --watch"}
    return Finding(state, detail, fix.get(one.state, f"qmd-remote logs {name}"))


def _external(url: str, key: str) -> Finding:
    """Whether generation that is not ours answers."""
    asked = config_facts.ask(Checked(path=Path(), generation_url=url, key=key))
    if cause := asked.causes.get(url):
        return Finding("failure", cause.message, cause.fix)
    name = asked.models.generate
    return ok(f"answers at {config_check.without_secrets(url)}" + (f", {name}" if name else ""))
