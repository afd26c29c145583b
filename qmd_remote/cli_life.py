"""`qmd-remote up`, `down`, `status`, `logs`, `serve`: the life of the services on this machine."""

from __future__ import annotations

import shlex
import signal
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import Exit
from qmd_remote.output import Output

if TYPE_CHECKING:
    from qmd_remote.settings import Settings

app = new_app()

# parameters of commands that are no settings
NOT_SETTINGS = {"generation", "foreground", "dry_run", "no_wait", "managed", "as_json", "quiet", "verbose"}


def settings_from(flags: dict[str, Any]) -> tuple[Settings, str]:
    """The settings of this command line, and why its preset was chosen (empty when it was named)."""
    from qmd_remote import services, settings
    from qmd_remote.launch import hardware, plan

    resolved = settings.resolve(flags)
    if resolved.preset:
        return resolved, ""
    # a plain `up` must not tear down what a named preset has built
    # a service that was killed counts too: it is what `status` says to start again
    running = [record.preset for name in services.SERVICES if (record := services.read(name)) and record.preset]
    if running:
        return settings.resolve(flags, preset=running[0], preset_origin="running services"), "it is what runs now"
    preset, why = plan.choose_preset(hardware.probe())
    return settings.resolve(flags, preset=preset), why


def _tidy_up_when_told_to_end() -> None:
    """A plain `kill` and a closed terminal undo a start like Ctrl-C does; under nohup the latter is ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@app.command(short_help="Start both services and wait until they are ready.")
def up(
    preset: options.Preset = None,
    embed_model: options.EmbedModel = None,
    rerank_model: options.RerankModel = None,
    device: options.Device = None,
    backend: options.Backend = None,
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    max_batch_size: options.MaxBatchSize = None,
    max_batch_tokens: options.MaxBatchTokens = None,
    host: options.Host = None,
    port: options.Port = None,
    api_key_file: options.ApiKeyFile = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    insecure_no_auth: options.InsecureNoAuth = None,
    trust_remote_code: options.TrustRemoteCode = None,
    generation: options.Generation = None,
    generation_model: options.GenerationModel = None,
    generation_port: options.GenerationPort = None,
    generation_command: options.GenerationCommand = None,
    generation_url: options.GenerationUrl = None,
    generation_image: options.GenerationImage = None,
    generation_container: options.GenerationContainer = None,
    generation_host: options.GenerationHost = None,
    generation_context: options.GenerationContext = None,
    generation_sequences: options.GenerationSequences = None,
    generation_gpu_share: options.GenerationGpuShare = None,
    generation_args: options.GenerationArgs = None,
    gpus: options.Gpus = None,
    embed_engine: options.EmbedEngine = None,
    embed_image: options.EmbedImage = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and start nothing.")] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, show both logs, and stop both on Ctrl-C or SIGTERM.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return as soon as both are started.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Start generation and the embed server, wait until both are ready, and leave them running.

    Services that run already with the same settings are kept; others are replaced, and the difference is shown.
    An address that other machines can reach gets an API key.

    \b
    Examples:
      qmd-remote up
      qmd-remote up --preset mini
      qmd-remote up --host 0.0.0.0
      qmd-remote up --foreground
      qmd-remote up --preset gpu --dry-run
      qmd-remote up --embed-model ~/models/my-embedder --device cuda:1
      qmd-remote up --generation external --generation-url http://127.0.0.1:11434
    """
    flags = {name: value for name, value in locals().items() if name not in NOT_SETTINGS}
    flags["generation_engine"] = generation
    given = options.typed({**flags, "no_wait": no_wait, "foreground": foreground})
    out = Output("up", as_json=as_json, quiet=quiet, verbose=verbose or foreground, given=given)

    def body() -> int:
        from qmd_remote import plan_flow, up_flow

        if dry_run:
            return plan_flow.show(out, *settings_from(flags))
        up_flow.require_one_way(waits=not no_wait, foreground=foreground, as_json=as_json)
        _tidy_up_when_told_to_end()
        return up_flow.up(out, *settings_from(flags), up_flow.How(waits=not no_wait, foreground=foreground))

    run(out, body)


@app.command(short_help="Restart the services with the settings that they run with.")
def restart(
    service: Annotated[
        str | None, typer.Argument(help="embed or generation [both].", autocompletion=options.complete_service)
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Restart the services with the settings that they run with; a key that has changed in its file is read again.

    \b
    Examples:
      qmd-remote restart
      qmd-remote restart embed
    """
    out = Output("restart", as_json=as_json, quiet=quiet, verbose=verbose)

    def body() -> int:
        from qmd_remote import services, up_flow

        _tidy_up_when_told_to_end()
        return up_flow.restart(out, (services.require_name(service),) if service else ())

    run(out, body)


@app.command(short_help="Show what runs: state, model, endpoint, memory, requests.")
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it, until Ctrl-C.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what runs: state, model, endpoint, device, memory, requests. Problems come first.

    Exits with 3 when nothing runs, with 1 when something is ill.

    \b
    Examples:
      qmd-remote status
      qmd-remote status --watch
      qmd-remote status --json
    """
    out = Output("status", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import status_flow

        return status_flow.watch(out) if watch else status_flow.once(out)

    run(out, body)


@app.command(short_help="Show the services' logs.")
def logs(
    service: Annotated[
        str | None, typer.Argument(help="embed or generation [both].", autocompletion=options.complete_service)
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, help="How many lines, from the end [50, or all of --since]."),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only what came since: 45s, 10m, 2h, 1d ago, or an ISO time.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing what is added.")] = False,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Show when each line was written.")] = False,
    crash: Annotated[bool, typer.Option("--crash", help="Show the last lines before the newest crash.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the services' logs, in the order of time.

    With --json every line has its time in front.

    \b
    Examples:
      qmd-remote logs embed -n 200
      qmd-remote logs -f
      qmd-remote logs --since 10m -t
      qmd-remote logs --crash generation
    """
    given = " ".join(filter(None, (service and shlex.quote(service), options.typed({"lines": lines, "since": since}))))
    out = Output("logs", as_json=as_json, quiet=quiet, given=given)

    def body() -> int:
        from qmd_remote import logs_flow

        if crash:
            logs_flow.require_alone(service, since=since, follow=follow)
            return logs_flow.crashes(out, service, lines, stamps=timestamps)
        return logs_flow.logs(out, service, lines, since, follow=follow, stamps=timestamps)

    run(out, body)


@app.command(short_help="Stop the services that `up` started.")
def down(as_json: options.Json = False, quiet: options.Quiet = False, verbose: options.Verbose = False) -> None:
    """Stop the services that `up` started; running requests are finished first.

    \b
    Example:
      qmd-remote down
    """
    out = Output("down", as_json=as_json, quiet=quiet, verbose=verbose)

    def body() -> int:
        from qmd_remote.launch.down import bring_down
        from qmd_remote.services import TITLES

        began = time.monotonic()
        with out.progress("stopping"):
            stopped, swept = bring_down()
        for record in stopped:
            out.note(f"{TITLES[record.service]} stopped")
            out.detail(f"  it was process {record.pid}, at {record.url}")
        for found in swept:
            out.note(f"{TITLES[found.service]} stopped: its container {found.name}, which nothing looked after")
        if stopped:
            out.detail(f"in {time.monotonic() - began:.1f} s")
        if not (stopped or swept):
            out.note("nothing was running")
        return out.finish({"stopped": [*(one.service for one in stopped), *(one.service for one in swept)]})

    run(out, body)


@app.command(short_help="Run the embed/rerank server in the foreground.")
def serve(
    host: options.Host = None,
    port: options.Port = None,
    embed_model: options.EmbedModel = None,
    rerank_model: options.RerankModel = None,
    device: options.Device = None,
    backend: options.Backend = None,
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    max_batch_size: options.MaxBatchSize = None,
    max_batch_tokens: options.MaxBatchTokens = None,
    api_key_file: options.ApiKeyFile = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    insecure_no_auth: options.InsecureNoAuth = None,
    trust_remote_code: options.TrustRemoteCode = None,
    preset: options.Preset = None,
    managed: Annotated[bool, typer.Option("--managed", hidden=True)] = False,
    as_json: options.Json = False,
) -> None:
    """Run the embed/rerank server in the foreground, until Ctrl-C; a crashed worker is restarted.

    \b
    Examples:
      qmd-remote serve
      EMBED_MODEL=BAAI/bge-m3 qmd-remote serve --port 9001
      qmd-remote serve --host 0.0.0.0 --api-key-file ~/.config/qmd-remote/api-key
    """
    flags = {name: value for name, value in locals().items() if name not in NOT_SETTINGS}
    out = Output("serve", as_json=as_json, given=options.typed(flags))

    def body() -> int:
        from qmd_remote import settings
        from qmd_remote.errors import ExtraMissing
        from qmd_remote.server import supervisor

        # what `up` hands over is settled; the user's file is not asked again
        resolved = settings.handed_over() if managed else settings.resolve(flags)
        if missing := supervisor.missing_module():
            raise ExtraMissing("mini" if resolved.preset == "mini" else "server", missing)
        code = supervisor.serve(resolved, managed=managed, as_json=as_json)
        # a failure was told by the worker; the log of a managed service is no place for a success
        return out.finish({}) if code == Exit.OK and not managed else code

    run(out, body)
