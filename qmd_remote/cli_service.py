"""`qmd-remote service …`: the services as a unit of the user's systemd, which starts them after a reboot."""

from __future__ import annotations

from typing import Annotated

import typer

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.output import Output

app = new_app(help="Have both services started with the machine, by systemd and without root.")

NOT_SETTINGS = {"generation", "print_only", "as_json", "quiet"}  # parameters that are no settings


@app.command(short_help="Have both services started with the machine.")
def install(
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
    print_only: Annotated[bool, typer.Option("--print", help="Write the unit to stdout, and change nothing.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a systemd user unit that runs `qmd-remote up --foreground` with these options; enable and start it.

    It takes over what runs in the background. Typed again with other options it shows what changes, and restarts.

    \b
    Examples:
      qmd-remote service install
      qmd-remote service install --preset spark --host 0.0.0.0
      qmd-remote service install --print
    """
    flags = {name: value for name, value in locals().items() if name not in NOT_SETTINGS}
    flags["generation_engine"] = generation
    given = options.typed({**flags, "print": print_only})
    out = Output("service install", as_json=as_json, quiet=quiet, given=given)

    def body() -> int:
        from qmd_remote import cli_life, service_flow

        wanted, why = cli_life.settings_from(flags)
        if print_only:
            return service_flow.show_unit(out, wanted, flags)
        return service_flow.install(out, wanted, why, flags)

    run(out, body)


@app.command(short_help="Stop the services and remove the unit.")
def uninstall(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Stop the services that systemd started, and remove the unit; settings, keys, logs and models stay.

    \b
    Example:
      qmd-remote service uninstall
    """
    out = Output("service uninstall", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import service_flow

        return service_flow.uninstall(out)

    run(out, body)


@app.command(short_help="Say whether they come back after a reboot.")
def status(as_json: options.Json = False) -> None:
    """Say whether the services come back after a reboot, how the unit is, and how to mend what is not as it should be.

    Exits with 3 when it is not installed, with 1 when something is wrong.

    \b
    Examples:
      qmd-remote service status
      qmd-remote service status --json
    """
    out = Output("service status", as_json=as_json)

    def body() -> int:
        from qmd_remote import service_flow

        return service_flow.status(out)

    run(out, body)
