"""`qmd-remote models` and `qmd-remote pull`: which models there are, and having them ahead of time."""

from __future__ import annotations

import shlex
import signal
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmd_remote import options
from qmd_remote.cli_life import settings_from
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import Interrupted, QmdRemoteError, UsageError
from qmd_remote.output import Output, as_typed

if TYPE_CHECKING:
    from qmd_remote.catalogue import Model
    from qmd_remote.pull_flow import Pulled, Wanted

app = new_app()


@app.command(short_help="Show the recommended models: size, length, licence, prompts.")
def models(
    name: Annotated[
        str | None, typer.Argument(help="One model, in detail [all].", autocompletion=options.complete_model)
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the recommended models, or one of them in detail. Any other hub id or local folder works too.

    \b
    Examples:
      qmd-remote models
      qmd-remote models bge-m3
      qmd-remote up --embed-model BAAI/bge-m3
    """
    out = Output("models", as_json=as_json, quiet=quiet)

    def body() -> int:
        from qmd_remote import catalogue, pull_flow, views_models

        chosen = [_known(name)] if name else list(catalogue.CATALOGUE.values())
        found = [pull_flow.here(model.id) for model in chosen]
        if name:
            commands = [as_typed(command) for command in _commands(chosen[0])]
            out.show(views_models.model_details(chosen[0], *found[0], commands))
        else:
            out.show(views_models.models_tables(chosen, [state for state, _ in found]))
            out.note("one in detail: qmd-remote models NAME; any other hub id or local folder works too:")
            out.note("  qmd-remote up --embed-model ID|FOLDER --rerank-model ID|FOLDER --generation-model ID|FOLDER")
        listed = [_as_dict(model, state, folder) for model, (state, folder) in zip(chosen, found, strict=True)]
        return out.finish({"models": listed})

    run(out, body)


@app.command(short_help="Fetch models ahead of time; an interrupted download goes on.")
def pull(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Hub ids to fetch [those that `up` would use].",
            autocompletion=options.complete_model,
            show_default=False,
        ),
    ] = None,
    preset: options.Preset = None,
    embed_model: options.EmbedModel = None,
    rerank_model: options.RerankModel = None,
    generation: options.Generation = None,
    generation_model: options.GenerationModel = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fetch models into the hub's cache, so that `up` and `serve` need no network. By default those `up` would use.

    An interrupted download goes on where it was, also after a crash.

    \b
    Examples:
      qmd-remote pull
      qmd-remote pull --preset gpu
      qmd-remote pull BAAI/bge-m3 cross-encoder/ms-marco-MiniLM-L6-v2
    """
    flags = {
        "preset": preset,
        "embed_model": embed_model,
        "rerank_model": rerank_model,
        "generation_engine": generation,
        "generation_model": generation_model,
    }
    out = Output("pull", as_json=as_json, quiet=quiet, verbose=verbose, given=options.typed(flags))

    def body() -> int:
        from qmd_remote import pull_flow, settings

        # a plain `kill` says what is kept, like Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if not model:
            resolved, why = settings_from(flags)
            if why:
                out.note(f"preset {resolved.preset}, since {why}")
            return _pull(out, pull_flow.of_settings(resolved), resolved.stall_limit_s)
        if out.given:
            raise UsageError(
                "name either models or the settings that choose them", hint=f"qmd-remote pull {shlex.join(model)}"
            )
        out.given = shlex.join(model)
        return _pull(out, pull_flow.of_names(model), settings.resolve({}).stall_limit_s)

    run(out, body)


def _pull(out: Output, wanted: list[Wanted], patience_s: float) -> int:
    """Fetch one model after the other; the first failure ends it."""
    from qmd_remote import pull_flow, views_models
    from qmd_remote.server.hub import Hub

    pull_flow.require_hub_library()
    done: list[Pulled] = []
    began = time.monotonic()
    try:
        with out.progress("looking for the models"):
            for one in wanted:
                done.append(
                    pull_flow.pull(
                        one,
                        Hub(patience_s=patience_s),
                        lambda progress: out.phase(f"downloading {progress.model}", detail=str(progress)),
                    )
                )
                out.detail(f"{one.model}: {done[-1].outcome}, after {time.monotonic() - began:.1f} s")
    except KeyboardInterrupt:
        stopped = Interrupted("stopped; what has come is kept", hint="go on with: qmd-remote pull")
        return out.fail(stopped, _data(done))
    except QmdRemoteError as error:
        return out.fail(error, _data(done))
    out.show(views_models.pulled_table(done))
    for pulled in done:
        _remark(out, pulled)
    return out.finish(_data(done))


def _remark(out: Output, one: Pulled) -> None:
    """What the table cannot say of a bundled model."""
    from qmd_remote.launch.plan import LLM_HINT

    if one.outcome == "package":
        out.note(f"{one.model} comes with an installed package and needs no download")
    elif one.outcome == "package missing":
        out.warn(f"{one.model} comes as a package, not from the hub, and the package is not installed", LLM_HINT)


def _data(done: list[Pulled]) -> dict[str, Any]:
    return {"models": [one.as_dict() for one in done]}


def _known(name: str) -> Model:
    """The model of the catalogue by its id or the last part of it. Raises UsageError."""
    from qmd_remote.catalogue import CATALOGUE
    from qmd_remote.setting_values import did_you_mean

    by_name = {key: model for model in CATALOGUE.values() for key in (model.id.lower(), _short(model).lower())}
    if found := by_name.get(name.lower()):
        return found
    near = did_you_mean(name, [*CATALOGUE, *map(_short, CATALOGUE.values())])
    raise UsageError(
        f"'{name}' is none of the recommended models{near}",
        hint=f"list them: qmd-remote models; another model works too: qmd-remote up --embed-model {shlex.quote(name)}",
    )


def _short(model: Model) -> str:
    return model.id.rpartition("/")[2]


def _commands(model: Model) -> list[str]:
    return [f"qmd-remote up --{model.role}-model {model.id}", f"qmd-remote pull {model.id}"]


def _as_dict(model: Model, state: str, folder: object) -> dict[str, Any]:
    from dataclasses import asdict

    about = {**asdict(model), "presets": model.presets, "here": state, "folder": str(folder) if folder else None}
    return {**about, "commands": _commands(model)}
