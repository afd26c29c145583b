"""`qmd-remote completion`: the script that makes a shell complete qmd-remote's command lines."""

from __future__ import annotations

from typing import Annotated

import typer

from qmd_remote import options
from qmd_remote.cli_run import new_app, run
from qmd_remote.errors import UsageError
from qmd_remote.output import Output

app = new_app()


@app.command(short_help="Print the completion script for bash, zsh or fish.")
def completion(
    shell: Annotated[
        str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", autocompletion=options.complete_shell)
    ],
    as_json: options.Json = False,
) -> None:
    """Print the script that makes a shell complete commands, options, and the names of services, models and settings.

    Put it where the shell looks, and open a new shell:

    \b
    Examples:
      qmd-remote completion bash > ~/.local/share/bash-completion/completions/qmd-remote
      qmd-remote completion zsh > ~/.zfunc/_qmd-remote      with ~/.zfunc in fpath, before compinit
      qmd-remote completion fish > ~/.config/fish/completions/qmd-remote.fish
      eval "$(qmd-remote completion bash)"                  in this shell only; zsh: the same
      qmd-remote completion fish | source                   in this shell only
    """
    out = Output("completion", as_json=as_json)

    def body() -> int:
        from qmd_remote.completion import SCRIPTS
        from qmd_remote.setting_values import did_you_mean

        if shell not in SCRIPTS:
            raise UsageError(
                f"there is no completion for '{shell}'{did_you_mean(shell, SCRIPTS)}",
                hint=f"the shells are: {', '.join(SCRIPTS)}",
            )
        out.raw(SCRIPTS[shell])
        return out.finish({"shell": shell, "script": SCRIPTS[shell]})

    run(out, body)
