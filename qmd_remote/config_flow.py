"""`config write`, `check` and `edit`: which `remote:` block to write, and what QMD makes of the one that is there."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qmd_remote import editor, local, presets, settings
from qmd_remote.client import checks, config_check, config_facts, qmd_config
from qmd_remote.client.config_check import Checked
from qmd_remote.client.config_values import Finding
from qmd_remote.client.qmd_config import RemoteConfig
from qmd_remote.client.remote_block import KEEP, Keep, ModelNames, RemoteBlock, require_variable
from qmd_remote.errors import ConfigError, Exit, ServiceFailed, UsageError
from qmd_remote.output import Output

KEY_VARIABLE = "QMD_REMOTE_API_KEY"
SEVERITY_STYLE = {"error": "bold red", "warning": "yellow", "info": "dim"}
DESIGN = ModelNames(presets.DESIGN_EMBED, presets.DESIGN_GENERATION, presets.DESIGN_RERANK)


def wanted_block(
    out: Output,
    *,
    url: str | None,
    embed_url: str | None,
    generation_url: str | None,
    key_variable: str | None,
    literal: bool,
    there: RemoteConfig | None = None,
) -> RemoteBlock:
    """Settle the block; what could not be learnt from a server is said as a warning.

    Where no URL is given and nothing runs here, the URLs of the block that is `there` stay: another machine is meant.

    Raises UsageError for contradicting options, ConfigError for a key that is asked for and not there.
    """
    if url and (embed_url or generation_url):
        raise UsageError("--url stands for both services", hint="leave out --embed-url and --generation-url")
    if key_variable:
        require_variable(key_variable)
    here = local.find()
    kept: RemoteConfig | None = None
    if there and there.present and not there.problem and not (here.running or url or embed_url or generation_url):
        kept = there
        url, embed_url, generation_url = there.url, there.embed_url, there.generation_url
        if url and (embed_url, generation_url) == (url, url):
            embed_url = generation_url = None
        else:
            url = None
    one = qmd_config.normalise_url(url) if url else None
    nowhere = f"http://127.0.0.1:{settings.resolve({}).generation_port}"
    embed = one or (qmd_config.normalise_url(embed_url) if embed_url else here.embed_url)
    # QMD ignores a block with one URL only: where generation is off, a door at which nobody answers is written
    generation = one or (qmd_config.normalise_url(generation_url) if generation_url else here.generation_url or nowhere)
    if (embed_url is None) != (generation_url is None):
        missing, default = ("--generation-url", generation) if embed_url else ("--embed-url", embed)
        out.warn(f"QMD needs both URLs, so {default} is written for the other one", hint=f"name it with {missing}")
    key = os.environ.get(key_variable, "") if key_variable else (kept.api_key if kept else None) or here.key
    server = checks.fetch_models(embed, generation, key)
    found = server.models
    what = "the model names in the file stay" if kept else "the design's model names are written"
    if found.embed is None and server.needs_key:
        hint = f"export {key_variable or KEY_VARIABLE}=… and write again"
        out.warn(f"{embed} tells its models to those with a key only: {what}", hint=hint)
    elif found.embed is None:
        out.warn(f"{embed} did not answer within 2 s: {what}", hint="qmd-remote test" if kept else "qmd-remote up")
    if found.generate is None:
        hint = "QMD's query expansion fails until it does: qmd-remote status"
        out.warn(f"{generation} did not say which model it generates with", hint=hint)
    other = kept.models if kept else ModelNames()
    names = ModelNames(
        found.embed or other.embed or DESIGN.embed,
        found.generate or other.generate or DESIGN.generate,
        found.rerank or other.rerank or DESIGN.rerank,
    )
    block = RemoteBlock(embed_url=embed, generation_url=generation, models=names)
    if one:
        block = RemoteBlock(url=one, models=names)
    if kept and kept.api_key_shown and not (key_variable or literal):
        return replace(block, api_key=KEEP)
    return replace(block, api_key=_key(key_variable, literal=literal, needs_key=server.needs_key))


def _key(variable: str | None, *, literal: bool, needs_key: bool | None) -> str | Keep | None:
    """What to write as `api_key`: a reference, the key itself only if asked for, nothing, or what is there already."""
    if literal:
        key = os.environ.get(variable or KEY_VARIABLE, "")
        if not key:
            raise ConfigError(
                f"--api-key-literal copies the key from {variable or KEY_VARIABLE}, which is not set here",
                hint=f"export {variable or KEY_VARIABLE}=…",
            )
        return key
    if variable or needs_key:
        return f"${{{variable or KEY_VARIABLE}}}"
    # a server that does not answer does not say whether it wants the key that is there
    return KEEP if needs_key is None else None


def check(out: Output, path: Path, *, index: str, by_rule: bool, offline: bool) -> int:
    """Say what QMD does with the file, and every finding. `by_rule` says that QMD's rule chose the file, not --file."""
    folder = Path.cwd() if by_rule and index == "index" else None
    checked = config_check.check_file(config_facts.gather(path, os.environ, folder=folder, beside=by_rule))
    asked = checked.sound and not offline
    if asked:
        with out.progress("asking the services"):
            answers = config_facts.ask(checked)
        checked = config_check.check_answers(checked, answers)
        for url in dict.fromkeys(filter(None, (checked.embed_url, checked.generation_url))):
            cause = answers.causes.get(url)
            out.detail(f"{config_check.without_secrets(url)}: {cause.message if cause else 'answers'}")
        told = [f"{role} {name}" for role, name in vars(answers.models).items() if name]
        out.detail(f"models there: {', '.join(told) or 'not told'}")
    chosen_by = _chosen_by() if by_rule else "--file"
    _tell(out, checked, chosen_by)
    data = _data(out, checked) | {"chosen_by": chosen_by, "asked": asked}
    if checked.exit_code == Exit.OK:
        if not checked.findings:
            out.note("nothing to correct" + ("" if asked else "; the services were not asked"))
        return out.finish(data)
    first = checked.findings[0]
    error = ServiceFailed if checked.exit_code == Exit.FAILED else ConfigError
    what = "QMD would use its local models" if checked.reason else "QMD's requests would fail"
    count = sum(finding.severity == "error" for finding in checked.findings)
    message = f"{what}: {first.message}" + (f", and {count - 1} more" if count > 1 else "")
    hint = f"{first.fix.rstrip('.')}; then: qmd-remote config check"
    return out.fail(error(message, hint=hint, code=f"config_check.{first.code}"), data)


def edit(out: Output, path: Path, *, index: str, by_rule: bool, offline: bool) -> int:
    """Open the file in the user's editor, then check it.

    Raises ConfigError when there is no file, PrerequisiteError when there is no editor.
    """
    command = editor.command(path, "qmd-remote config edit")
    if not path.exists():
        raise ConfigError(f"there is no file {path}", hint="qmd-remote config write", code="config_file.missing")
    editor.open_file(command, path, "qmd-remote config edit", keep_stdout=out.as_json)
    return check(out, path, index=index, by_rule=by_rule, offline=offline)


def _chosen_by() -> str:
    return next((name for name in ("QMD_CONFIG_DIR", "XDG_CONFIG_HOME") if os.environ.get(name)), "default")


def _tell(out: Output, checked: Checked, chosen_by: str) -> None:
    from rich.markup import escape

    out.show(escape(checked.sentence))
    why = {"default": "where QMD looks by default", "--file": "named by --file"}
    out.show(escape(f"  {checked.path}, {why.get(chosen_by, f'chosen by {chosen_by}')}"))
    for finding in checked.findings:
        style = SEVERITY_STYLE[finding.severity]
        where = f"line {finding.line}: " if finding.line else ""
        out.show(f"[{style}]{finding.severity:<7}[/]  {escape(where + finding.message)}")
        out.show(escape(f"         {out.typed(finding.fix)}"))


def _data(out: Output, checked: Checked) -> dict[str, Any]:
    urls = {"embed_url": checked.embed_url, "generation_url": checked.generation_url}
    return {
        "path": checked.path,
        "verdict": checked.verdict,
        "reason": checked.reason,
        **{name: url and config_check.without_secrets(url) for name, url in urls.items()},
        "api_key": checked.api_key,
        "findings": [_finding(out, finding) for finding in checked.findings],
    }


def _finding(out: Output, finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "fix": out.about(finding.fix)}
