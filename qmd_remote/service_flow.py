"""`service install`, `uninstall` and `status`: the services as a unit of the user's systemd."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qmd_remote import atomic, keys, paths, service_checks, services, up_flow
from qmd_remote.client import qmd_config
from qmd_remote.errors import ConfigError, NotRunning, PrerequisiteError, ServiceFailed
from qmd_remote.launch import containers, docker_plan, hardware, plan, systemd, unit
from qmd_remote.launch import up as launch_up
from qmd_remote.launch.down import STOP_MARGIN_S
from qmd_remote.launch.engine import STOP_GRACE_S
from qmd_remote.output import Output
from qmd_remote.reach import server_tls
from qmd_remote.service_checks import Failed
from qmd_remote.settings import Settings
from qmd_remote.supervision import python_module

PROGRAM = "qmd-remote"
MODPROBE = "nvidia-modprobe"
MODE = 0o600
WITHOUT = "see what runs without it: qmd-remote status; stop that: qmd-remote down"


def unit_file(env: Mapping[str, str] = os.environ) -> Path:
    """Where the unit lies, whether it exists or not."""
    base = Path(env["XDG_CONFIG_HOME"]) if env.get("XDG_CONFIG_HOME") else Path.home() / ".config"
    return base / "systemd" / "user" / unit.NAME


def show_unit(out: Output, wanted: Settings, given: Mapping[str, object]) -> int:
    """Write the unit that `install` would put in place to stdout. Raises ConfigError where a file for it is missing."""
    wanted = launch_up.absolute(wanted)
    _require_files(wanted)
    content = _content(out, wanted, given)
    out.raw(content)
    return out.finish({"path": unit_file(), "unit": content})


def install(out: Output, wanted: Settings, why: str, given: Mapping[str, object]) -> int:
    """Put the unit in place, enable it and start it. `given` are the settings of the command line, `why` the preset's.

    Raises what `up` would raise before it starts anything; PrerequisiteError without a systemd; ConfigError for a file
    of that name that is not ours.
    """
    path = unit_file()
    _require_systemd(
        f"to see the unit: qmd-remote service install --print; or start the services without it: "
        f"{' '.join(('qmd-remote up', out.given)).rstrip()}"
    )
    wanted = launch_up.absolute(wanted)
    _require_files(wanted)
    content = _content(out, wanted, given)
    before = _ours_at(path)
    _look_ahead(out, wanted)
    _require_no_other(systemd.state())
    if why:
        out.note(f"preset {wanted.preset}, since {why}; the unit names it")
    changed = content != before
    diff = _diff(path, before, content) if changed else ""
    if changed:
        _require_valid(out, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.put(path, content, mode=MODE)
    if before and changed:
        out.raw(diff)
    out.note(f"{path}: {'as it was' if not changed else 'changed' if before else 'written'}")
    with out.progress("starting"):
        started = _run(changed=changed)
    lingers = _tell_lingering(out)
    out.note(f"{unit.NAME} {'starts' if started else 'runs already'}; to see how far it is: qmd-remote status --watch")
    out.note(f"what it says: journalctl --user -u {unit.NAME} -f")
    return out.finish({"path": path, "changed": changed, "diff": diff, "started": started, "linger": lingers})


def uninstall(out: Output) -> int:
    """Stop the services of the unit, and remove it. Raises as `install`."""
    path = unit_file()
    _require_systemd(WITHOUT)
    there = _ours_at(path) is not None
    now = systemd.state()
    stopped = now.running
    if there:
        with out.progress("stopping" if stopped else "removing"):
            systemd.tell("disable", "--now")
            path.unlink()
            systemd.tell("daemon-reload")
            with suppress(ServiceFailed):  # systemd forgets a unit without a file by itself, unless it failed
                systemd.tell("reset-failed")
    elif stopped:  # its file was deleted by hand
        with out.progress("stopping"):
            systemd.tell("stop")
    out.note(f"{path} removed" if there else "the service is not installed")
    if there and systemd.lingers():
        out.note(f"other services of {systemd.user()} may need it that lingering is on: loginctl disable-linger")
    return out.finish({"path": path, "removed": there, "stopped": stopped})


def status(out: Output) -> int:
    """Say whether the services come back after a reboot, and if not, why. Raises NotRunning when there is no unit."""
    path = unit_file()
    _require_systemd(WITHOUT)
    content = _ours_at(path)
    now = systemd.state()
    lingers = systemd.lingers()
    data = {
        "path": path,
        "installed": content is not None,
        "enabled": now.enabled == "enabled",
        "active": now.active,
        "pid": now.pid or None,
        "restarts": now.restarts,
        "linger": lingers,
    }
    if content is None:
        error = NotRunning("the service is not installed", hint="qmd-remote service install", code="unit.missing")
        return out.fail(error, data | {"checks": []})
    checks = service_checks.judge(now, lingers, systemd.user())
    data["checks"] = [check.as_dict() for check in checks]
    service_checks.show(out, path, checks)
    bad = next((check for check in checks if check.state == "failure"), None)
    if bad is not None:
        return out.fail(Failed(bad), data)
    return out.finish(data)


def _require_systemd(instead: str) -> None:
    """Make sure that the user's systemd can be asked; where there is none, say what to do `instead`."""
    try:
        systemd.require()
    except PrerequisiteError as error:
        if error.code == "systemd.missing":
            error.hint = instead
        raise


def _content(out: Output, wanted: Settings, given: Mapping[str, object]) -> str:
    """The unit for these settings; what stays behind is said."""
    names = [name for name, value in given.items() if value is not None and value != ""]
    # what `up` would choose anew each time is settled now
    if wanted.preset and "preset" not in names and wanted.origins["preset"] in {"hardware", "running services"}:
        names.insert(0, "preset")
    env, secret = unit.environment(wanted, os.environ)
    if secret:
        hint = "a token of the hub can lie in a file instead: hf auth login" if "HF_TOKEN" in secret else ""
        out.warn(f"left out of the unit, since it is no place for secrets: {', '.join(secret)}", hint=hint)
    modprobe = shutil.which(MODPROBE)
    return unit.text(
        unit.Unit(
            program=program(),
            arguments=unit.arguments(wanted, names),
            env=env,
            # it makes the devices of the GPU, which the service itself may not: its file is setuid
            prepare=(modprobe, "-u", "-c=0") if modprobe else (),
            stop_limit_s=_stop_limit_s(wanted),
        )
    )


def program(called: str | None = None) -> tuple[str, ...]:
    """This program, by the path that it was called by: links are kept, since an upgrade replaces what they lead to."""
    this = Path(sys.argv[0] if called is None else called)
    if this.name == PROGRAM:
        found = this if this.is_file() else shutil.which(PROGRAM)
        if found:
            return (str(Path(found).absolute()),)
    beside = Path(sys.executable).with_name(PROGRAM)
    return (str(beside),) if beside.is_file() else tuple(python_module("qmd_remote"))


def _stop_limit_s(wanted: Settings) -> float:
    """Seconds that an orderly end of `up --foreground` may take: one service after the other, each with its limit."""
    one = max(wanted.shutdown_limit_s, STOP_GRACE_S) + STOP_MARGIN_S
    return len(services.SERVICES) * one + STOP_MARGIN_S


def _ours_at(path: Path) -> str | None:
    """The unit that is there, or None. Raises ConfigError when it is not ours."""
    if path.is_symlink() and path.readlink() == Path(os.devnull):
        raise ConfigError(
            f"{unit.NAME} is masked, so that nothing may start it",
            hint=f"systemctl --user unmask {unit.NAME}",
            code="unit.masked",
        )
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    if not unit.is_ours(content):
        raise ConfigError(
            f"{path} was not made by qmd-remote, and stays as it is",
            hint=f"move it out of the way: mv {path} {path}.old",
            code="unit.foreign",
        )
    return content


def _require_files(wanted: Settings) -> None:
    """Raise ConfigError where a key or a certificate is missing: such a path is not absolute yet, and no start works.

    The key of this shell does not stand in for the file, since it does not get into the unit.
    """
    if wanted.api_key_file:
        keys.read_file(wanted.api_key_file)
    server_tls(wanted)


def _look_ahead(out: Output, wanted: Settings) -> None:
    """Find what would stop the start before anything is written. Raises as `up` does."""
    if wanted.generation_engine == "external" and wanted.generation_url:
        wanted = replace(wanted, generation_url=qmd_config.normalise_url(wanted.generation_url))
    planned = plan.make(wanted, hardware.probe(), paths.cache_dir(), held=up_flow.held(wanted))
    docker_plan.require_fit(wanted, planned.generation.memory)
    if planned.generation.engine == "off" and wanted.generation_engine != "off":
        out.warn(f"generation is off: {planned.generation.reason}", hint=planned.generation.hint)
    for warning in containers.preflight(planned):
        out.warn(warning)


def _require_no_other(now: systemd.UnitState) -> None:
    """Refuse beside an `up --foreground` in somebody's terminal. Services in the background are taken over by it."""
    for record in filter(None, map(services.find, services.SERVICES)):
        owner = services.foreground_owner(record)
        if owner is not None and owner != now.pid:
            raise ServiceFailed(
                f"the {services.TITLES[record.service]} belongs to another `qmd-remote up --foreground` (pid {owner})",
                hint=f"end it (Ctrl-C in its terminal, or: kill {owner}), and then: qmd-remote service install",
                code="foreground",
            )


def _require_valid(out: Output, content: str) -> None:
    taken, lines = systemd.complaints(content)
    if not taken:
        raise PrerequisiteError(
            f"systemd would not take the unit: {'; '.join(lines)}",
            hint="to see it: qmd-remote service install --print",
            code="unit.refused",
        )
    for line in lines:
        out.warn(f"this systemd does without a line of the unit: {line}")


def _run(*, changed: bool) -> bool:
    """Have the unit enabled and running as it is in its file now; returns whether it was started for that."""
    systemd.tell("daemon-reload")
    now = systemd.state()
    if now.load == "not-found":
        raise ConfigError(
            f"systemd does not look into {unit_file().parent}",
            hint="XDG_CONFIG_HOME is set in this shell, and not for systemd: unset XDG_CONFIG_HOME, and type it again",
            code="unit.not_found",
        )
    systemd.tell("enable")
    if now.running and not changed:
        return False
    with suppress(ServiceFailed):  # nothing to forget
        systemd.tell("reset-failed")
    systemd.tell("restart" if now.running else "start")
    return True


def _tell_lingering(out: Output) -> bool | None:
    lingers = systemd.lingers()
    if lingers is False:
        out.warn(service_checks.NO_LINGER.format(user=systemd.user()), hint=service_checks.LINGER_FIX)
    return lingers


def _diff(path: Path, before: str | None, after: str) -> str:
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True),
        after.splitlines(keepends=True),
        str(path) if before is not None else os.devnull,
        str(path),
    )
    return "".join(lines)
