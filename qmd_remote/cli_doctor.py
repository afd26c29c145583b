"""`qmd-remote doctor`: look at everything, and say how to mend what is wrong."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.output import Output

app = new_app()
DEFAULT_INDEX = "index"


class _BareIndex(TyperCommand):
    """A command whose `--index` may stand without a name, which Typer has no form for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        follows = [*args, "-"][1:]
        named = [
            [one, DEFAULT_INDEX] if one == "--index" and after.startswith("-") else [one]
            for one, after in zip(args, follows, strict=True)
        ]
        return super().parse_args(ctx, [word for words in named for word in words])


Index = Annotated[
    str | None,
    typer.Option(
        "--index",
        metavar="[NAME]",
        help="Look into QMD's index, too: documents, vectors, cached answers. Without a name, QMD's own.",
    ),
]


@app.command(short_help="Look at everything, and say how to mend what is wrong.", cls=_BareIndex)
def doctor(
    preset: options.Preset = None,
    index: Index = None,
    file: options.File = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Look at everything that the services and QMD need, and say how to mend what is wrong. Nothing is changed.

    Python and its parts, GPU and driver, the container engine and its way to the GPU, the memory plan, ports, disk,
    the model hub, the models, QMD's config, and both services. Exits with 1 when something is wrong.

    With --index also QMD's index: documents without vectors or with some of them, vectors of another model, dimension
    or prompt than the server's, and failures that QMD cached. It is only read.

    \b
    Examples:
      qmd-remote doctor
      qmd-remote doctor --preset gpu
      qmd-remote doctor --index
      qmd-remote doctor --index work --json
    """
    given = options.typed({"preset": preset, "index": index})
    name = index or DEFAULT_INDEX
    out = Output("doctor", as_json=as_json, quiet=quiet, again=options.again(file, name), given=given)

    def body() -> int:
        from qmd_remote import cli_life, doctor, doctor_checks, doctor_index, paths, up_again

        wanted = None if preset else up_again.settings_that_run()
        wanted = wanted or cli_life.settings_from({"preset": preset})[0]
        qmd_file = file or paths.qmd_config_file(name)
        checks = doctor_checks.all_checks(wanted, qmd_file)
        if index is not None:
            checks += doctor_index.index_checks(name, qmd_file)
        return doctor.run(out, checks)

    run(out, body)
