"""`qmd-remote up`, `down`, `status`, `logs`, `serve`: the life of the services on this machine."""

from __future__ import annotations

import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import Exit, NotRunning
from qmd_remote.output import Output

if TYPE_CHECKING:
    from qmd_remote.settings import Settings

app = new_app()


def settings_from(flags: dict[str, Any]) -> tuple[Settings, str]:
    """The settings of this command line, and why its preset was chosen (empty when it was named)."""
    from qmd_remote import services, settings
    from qmd_remote.launch import hardware, plan

    resolved = settings.resolve(flags)
    if resolved.preset:
        return resolved, ""
    # a plain `up` must not tear down what a named preset has built
    running = [record.preset for name in services.SERVICES if (record := services.find(name)) and record.preset]
    preset, why = (running[0], "it is what runs now") if running else plan.choose_preset(hardware.probe())
    return settings.resolve(flags, preset=preset), why


@app.command(short_help="Start both services, wait until they are ready, leave them running.")
def up(
    preset: options.Preset = None,
    embed_model: options.EmbedModel = None,
    rerank_model: options.RerankModel = None,
    device: options.Device = None,
    max_batch_size: options.MaxBatchSize = None,
    host: options.Host = None,
    port: options.Port = None,
    api_key_file: options.ApiKeyFile = None,
    insecure_no_auth: options.InsecureNoAuth = None,
    trust_remote_code: options.TrustRemoteCode = None,
    generation: options.Generation = None,
    generation_model: options.GenerationModel = None,
    generation_port: options.GenerationPort = None,
    generation_command: options.GenerationCommand = None,
    generation_url: options.GenerationUrl = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Start generation and the embed server, wait until both are ready, and leave them running.

    Services that run already with the same settings are kept; others are replaced.

    \b
    Examples:
      qmd-remote up
      qmd-remote up --preset mini
      qmd-remote up --embed-model ~/models/my-embedder --device cuda:1
      qmd-remote up --generation external --generation-url http://127.0.0.1:11434
    """
    flags = {k: v for k, v in locals().items() if k not in {"as_json", "quiet", "generation"}}
    flags["generation_engine"] = generation
    out = Output("up", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import commands

        # a plain `kill` must tidy up like Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return commands.up(out, *settings_from(flags))

    run(out, body)


@app.command(short_help="Show what runs: state, model, endpoint, device, memory.")
def status(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Show what runs: state, model, endpoint, device, memory. Exits with 3 when nothing does, 1 when something is ill.

    \b
    Examples:
      qmd-remote status
      qmd-remote status --json
    """
    out = Output("status", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import settings, views
        from qmd_remote.launch import status as launch_status

        statuses = launch_status.look(settings.resolve({}).key)
        code = launch_status.exit_code(statuses)
        if code == Exit.NOT_RUNNING:
            data = {"services": [asdict(one) for one in statuses]}
            return out.fail(NotRunning("neither service is running", hint="qmd-remote up"), data)
        out.show(views.status_table(statuses))
        return out.finish({"services": [asdict(one) for one in statuses]}, exit_code=code)

    run(out, body)


@app.command(short_help="Show the services' logs.")
def logs(
    service: Annotated[str | None, typer.Argument(help="embed or generation [both].")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines, counted from the end.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing what is added.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show the services' logs.

    \b
    Examples:
      qmd-remote logs embed -n 200
      qmd-remote logs -f
    """
    out = Output("logs", as_json=as_json)

    def body() -> int:
        from qmd_remote.launch import logs as launch_logs

        files = launch_logs.files(service)
        if as_json:
            return out.finish({"logs": {name: launch_logs.tail(path, lines) for name, path in files.items()}})
        for name, text in launch_logs.stream(files, lines, follow=follow):
            out.raw(f"{name:<10} | {text}\n" if len(files) > 1 else f"{text}\n")
        return out.finish({})

    run(out, body)


@app.command(short_help="Stop the services that `up` started.")
def down(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Stop the services that `up` started; running requests are finished first.

    \b
    Example:
      qmd-remote down
    """
    out = Output("down", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote.launch.up import TITLES, bring_down

        with out.progress("stopping"):
            stopped = bring_down()
        for record in stopped:
            out.note(f"{TITLES[record.service]} stopped")
        if not stopped:
            out.note("nothing was running")
        return out.finish({"stopped": [record.service for record in stopped]})

    run(out, body)


@app.command(short_help="Run the embed/rerank server in the foreground.")
def serve(
    host: options.Host = None,
    port: options.Port = None,
    embed_model: options.EmbedModel = None,
    rerank_model: options.RerankModel = None,
    device: options.Device = None,
    max_batch_size: options.MaxBatchSize = None,
    api_key_file: options.ApiKeyFile = None,
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
      qmd-remote serve --host 0.0.0.0 --api-key-file ~/.config/qmd-remote/key
    """
    flags = {k: v for k, v in locals().items() if k not in {"as_json", "managed"}}
    out = Output("serve", as_json=as_json)

    def body() -> int:
        from qmd_remote import settings
        from qmd_remote.errors import ExtraMissing
        from qmd_remote.server import supervisor

        resolved = settings.resolve(flags)
        if missing := supervisor.missing_module():
            raise ExtraMissing("mini" if resolved.preset == "mini" else "server", missing)
        code = supervisor.serve(resolved, managed=managed, as_json=as_json)
        # a failure was told by the worker; the log of a managed service is no place for a success
        return out.finish({}) if code == Exit.OK and not managed else code

    run(out, body)
