"""What `up` and `restart` do between parsing and showing: plan, start, wait, check, and say what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from qmd_remote import foreground, keys, paths, services, settings, up_views
from qmd_remote.client import checks, qmd_config
from qmd_remote.client.report import Report
from qmd_remote.commands import CONSTRAINED, first_failure
from qmd_remote.errors import ConfigError, ModelNotFound, NotRunning, ServiceFailed, UsageError
from qmd_remote.launch import containers, docker_plan, hardware, plan, status
from qmd_remote.launch import up as launch_up
from qmd_remote.launch.phases import Phase
from qmd_remote.launch.plan import Plan
from qmd_remote.launch.up import Launch, Started
from qmd_remote.output import Output
from qmd_remote.reach import is_loopback, require_safe_bind, server_tls
from qmd_remote.services import EMBED, Record
from qmd_remote.settings import Settings
from qmd_remote.supervision import listen
from qmd_remote.up_again import up_line


@dataclass(frozen=True)
class How:
    """`waits`: until all is ready, then check it. `foreground`: stay, show the logs, and end with the services."""

    waits: bool = True
    foreground: bool = False


def up(out: Output, wanted: Settings, why: str, how: How | None = None) -> int:
    """Bring everything up. `why` is the reason for the preset, if nobody named it."""
    how = how or How()
    require_used(wanted)
    wanted = _with_key(out, launch_up.absolute(wanted))
    if wanted.generation_engine == "external" and wanted.generation_url:
        wanted = replace(wanted, generation_url=qmd_config.normalise_url(wanted.generation_url))
    require_safe_bind(wanted)
    server_tls(wanted)
    _require_folders(wanted)
    _warn_of_closing(out, wanted)
    planned = plan.make(wanted, hardware.probe(), paths.cache_dir(), held=held(wanted))
    for line in up_views.plan_lines(wanted, planned, why):
        out.note(line)
    generation = planned.generation
    docker_plan.require_fit(wanted, generation.memory)
    if generation.engine == "off" and wanted.generation_engine != "off":
        out.warn(f"generation is off: {generation.reason}", hint=generation.hint)
        wanted = replace(wanted, generation_engine="off")
    launch = Launch(wanted, planned, _teller(out), on_warning=out.warn, waits=how.waits, foreground=how.foreground)
    if how.foreground:
        return foreground.run(out, launch, lambda started: _ready(out, launch, started))
    started, report = _start(out, launch)
    for line in up_views.started_lines(started):
        out.note(line)
    if not how.waits:
        out.note("both start in the background; to see how far they are: qmd-remote status --watch")
        return out.finish(_data(planned, started, report))
    return _finish(out, launch, started, report)


def restart(out: Output, names: tuple[str, ...]) -> int:
    """Restart the running services of these names, or all, with the settings that they were started with."""
    records = [record for name in names or services.SERVICES if (record := services.find(name)) is not None]
    missing = [services.TITLES[name] for name in names if services.find(name) is None]
    if missing or not records:
        what = f"the {missing[0]} is not running" if missing else "neither service is running"
        raise NotRunning(what, hint=up_line())
    for one in status.look():
        if one.state == "failed" and not names:
            detail = f": {one.detail}" if one.detail else ""
            out.warn(f"the {services.TITLES[one.service]} has failed, and is not restarted{detail}", hint=up_line())
    wanted = settings_of(records)
    if any(record.service == EMBED for record in records):
        # what is wrong with them is told while the old server still runs
        require_safe_bind(wanted)
        server_tls(wanted)
        services.spec_of(EMBED, wanted)
    planned = plan.make(wanted, hardware.probe(), paths.cache_dir(), held=held(wanted))
    launch = Launch(wanted, planned, _teller(out), on_warning=out.warn)
    with out.progress("restarting"), foreground.logs_shown(out, only_if=out.verbose):
        started = launch.restart([record.service for record in records])
    for line in up_views.started_lines(started):
        out.note(line)
    return out.finish({"services": [asdict(one) for one in started]})


def require_used(wanted: Settings) -> None:
    """Refuse options that would change nothing with the generation that was chosen. Raises UsageError."""
    engine = wanted.generation_engine
    for names, engines, instead in USED_BY:
        for name in names:
            if wanted.origins.get(name) == "flag" and engine not in engines:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{option} is not for generation by '{engine}', and would change nothing",
                    hint=f"add: {instead}; or leave {option} out",
                )


# options, the generation engines that use them, and how to get one of these
USED_BY = (
    (("generation_image", "generation_container", "generation_host"), {"docker"}, "--generation docker"),
    (("generation_command",), {"process"}, "--generation process"),
    (("generation_url",), {"external"}, "--generation external"),
)


def settings_of(records: list[Record]) -> Settings:
    """The settings that services run with, from their records; what none of them tells comes from this environment.

    Raises ConfigError when the embed server has a key that cannot be had here.
    """
    flags = {name: value for record in records for name, value in record.spec.items() if name in NAMES}
    for record in records:
        if record.service == EMBED:
            flags |= {"api_key_file": record.key_file or None, **_generation_of(record)}
        flags["preset"] = flags.get("preset") or record.preset or None
    wanted = settings.resolve(flags)
    for record in records:
        if record.service == EMBED and not record.key_file:
            if record.spec.get("api_key") and services.spec_of(EMBED, wanted)["api_key"] != record.spec["api_key"]:
                raise ConfigError(
                    "the embed server was started with a key that this shell does not have",
                    hint="export QMD_REMOTE_API_KEY=… and then: qmd-remote restart",
                    code="key.missing",
                )
            if not record.spec.get("api_key"):
                wanted = replace(wanted, api_key="", api_key_file="")
    return wanted


def _generation_of(embed: Record) -> dict[str, object]:
    """Where the running embed server was told that generation is, as settings."""
    engine = embed.beside.get("engine") or None
    port = urlsplit(str(embed.spec.get("generation_at") or "")).port if engine in launch_up.OURS else None
    return {"generation_engine": engine, "generation_url": embed.beside.get("url"), "generation_port": port}


NAMES = frozenset(f.name for f in settings.declared()) - {"api_key"}


def held(wanted: Settings) -> dict[str, Settings]:
    """The services that run, with their settings: what they use of the GPU is no reason to refuse others instead."""
    alone = {found.service: wanted for _, found in containers.without_keeper() if found.running}
    records = filter(None, map(services.find, services.SERVICES))
    return alone | {
        one.service: replace(wanted, **{name: value for name, value in one.spec.items() if name in HELD})
        for one in records
    }


# what decides on memory
HELD = frozenset({"embed_model", "rerank_model", "device", "embed_engine", "gpus"}) | {
    f"generation_{name}" for name in ("engine", "command", "model", "context", "sequences", "gpu_share", "args")
}


def _warn_of_closing(out: Output, wanted: Settings) -> None:
    """Say so when other machines reach the embed server now, and will not any more."""
    record = services.find(EMBED)
    before = str(record.spec.get("host") or "") if record else ""
    if before and not is_loopback(before) and is_loopback(wanted.host):
        out.warn(
            f"the embed server listened on {before}, and now listens on {wanted.host}: this machine only",
            hint=f"to keep it open for others: qmd-remote settings set host={before}; then: qmd-remote up",
        )


def _require_folders(wanted: Settings) -> None:
    """Refuse the name of a folder that is not there before what runs is stopped for it. Raises ModelNotFound."""
    for name in (wanted.embed_model, wanted.rerank_model, wanted.generation_model):
        if name.startswith(("/", "./", "../", "~")) and paths.in_full(name) == name and not Path(name).exists():
            raise ModelNotFound(f"there is no folder {name}", hint="name an existing folder, or a model on the hub")


def _with_key(out: Output, wanted: Settings) -> Settings:
    """The settings with a key, made if need be, where other machines can come."""
    if is_loopback(wanted.host) or wanted.key or wanted.insecure_no_auth:
        return wanted
    listen(wanted.host, 0).close()  # an address that is none of ours needs no key
    path, made = keys.ensure()
    if made:
        out.note(f"an API key was made, since other machines can reach {wanted.host}: {path}")
    return replace(wanted, api_key_file=str(path))


def _teller(out: Output) -> launch_up.OnPhase:
    def tell(service: str, phase: Phase) -> None:
        out.phase(f"{services.TITLES[service]}: {phase.name}", detail=phase.detail)

    return tell


def _start(out: Output, launch: Launch) -> tuple[tuple[Started, ...], Report | None]:
    with out.progress("starting"), foreground.logs_shown(out, only_if=out.verbose):
        started = launch.run()
        return started, _check(launch.settings, launch.plan) if launch.waits else None


def _check(wanted: Settings, planned: Plan) -> Report:
    """A small request to each service."""
    generation = planned.generation
    on = generation.engine != "off"
    target = checks.Target(
        embed_url=wanted.url,
        generation_url=generation.url if on else None,
        generation_reason=generation.reason,
        key=wanted.key,
        generation_constrained=CONSTRAINED.get(generation.program),
        names=False,  # for ourselves
    )
    return checks.run_checks(target, quick=True)


def _ready(out: Output, launch: Launch, started: tuple[Started, ...]) -> int:
    return _finish(out, launch, started, _check(launch.settings, launch.plan))


def _finish(out: Output, launch: Launch, started: tuple[Started, ...], report: Report | None) -> int:
    """Say what runs now and what to do with it; the exit code tells whether the checks went well."""
    out.show(up_views.started_table(started, status.look(launch.settings.key)))
    for row in report.rows if report else ():
        if row.status in {"fail", "warn"}:
            out.warn(f"{row.name}: {row.received}", hint=row.fix)
    for line in up_views.next_steps(launch.settings, launch.plan):
        out.note(line)
    for line in up_views.workstation_steps(launch.settings):
        out.note(line, here=False)
    data = _data(launch.plan, started, report)
    if report and report.failed:
        hint = "qmd-remote test says more, and so does: qmd-remote logs"
        error = ServiceFailed(f"the services run, but {first_failure(report)}", hint=hint, code="check.failed")
        return out.fail(error, data)
    return out.finish(data)


def _data(planned: Plan, started: tuple[Started, ...], report: Report | None) -> dict[str, object]:
    return {
        "preset": planned.preset,
        "services": [asdict(one) for one in started],
        "checks": [asdict(row) for row in report.rows] if report else [],
    }


def require_one_way(*, waits: bool, foreground: bool, as_json: bool) -> None:
    """Refuse contradicting options. Raises UsageError."""
    if foreground and not waits:
        raise UsageError("--foreground stays, --no-wait goes", hint="leave out one of the two")
    if foreground and as_json:
        raise UsageError(
            "--foreground shows logs until it is stopped, which is no JSON document",
            hint="leave out one of the two; beside it there is: qmd-remote status --json",
        )
