"""`config write`, `check` and `edit`: which `remote:` block to write, and what QMD makes of a file that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qmd_remote import editor, local, presets, settings
from qmd_remote.client import checks, config_check, config_facts, families, qmd_config
from qmd_remote.client.config_check import Checked
from qmd_remote.client.config_values import Finding
from qmd_remote.client.families import DEFAULT, Family
from qmd_remote.client.family_choice import check_for
from qmd_remote.client.qmd_config import RemoteConfig
from qmd_remote.client.remote_block import KEEP, Keep, ModelNames, RemoteBlock, require_variable
from qmd_remote.config_files import ConfigFile
from qmd_remote.errors import ConfigError, Exit, ServiceFailed, UsageError
from qmd_remote.output import Output
from qmd_remote.reach import is_loopback

KEY_VARIABLE = "QMD_REMOTE_API_KEY"
WHICH_QMD = "which counts for a QMD with a remote mode: @tobilu/qmd from npm has none, and passes over the block"
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
    expands: bool = True,
) -> RemoteBlock:
    """Settle the block; what could not be learnt from a server is said as a warning.

    Where no URL is given and nothing runs here, the URLs of the block that is `there` stay: another machine is meant.
    `expands` is False for a client that asks no server for expansions.

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
    if kept is None and not (url or embed_url or generation_url):
        url = here.embed_url  # which passes generation's requests on, and makes expansions come out right
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
        out.warn(f"{embed} did not answer within 2 s: {what}", hint=_when_silent(embed))
    if found.generate is None and expands:
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


def _when_silent(url: str) -> str:
    """What to do about a server that does not answer."""
    if is_loopback(urlsplit(url).hostname or ""):
        return "qmd-remote up"
    return f"start it on {urlsplit(url).hostname}, or correct the URL; then: qmd-remote test"


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


def check(out: Output, files: Sequence[ConfigFile], wanted: Family | None, *, here: bool, offline: bool) -> int:
    """Say what QMD does with each file, and every finding; the first error is that of the command.

    `here` says that QMD would read a project's own file in this folder instead. Raises UsageError for a family that
    has no file.
    """
    if wanted and wanted.file is None:
        raise UsageError(
            f"{wanted.name} reads no file, but variables of the environment",
            hint=f"to see what they should be: qmd-remote config write --client {wanted.name} --print-env",
        )
    judged = []
    for file in files:
        if len(files) > 1:
            out.again = file.again
        judged.append(_check_one(out, file, wanted, here=here, offline=offline))
    failed = next((checked for checked, _ in judged if checked.exit_code != Exit.OK), None)
    data = judged[0][1] if len(files) == 1 else {"files": [one for _, one in judged]}
    if failed is None:
        return out.finish(data)
    if len(files) > 1:
        out.again = next(file.again for file, (checked, _) in zip(files, judged, strict=True) if checked is failed)
    return out.fail(_error(failed, wanted), data)


def _check_one(
    out: Output, file: ConfigFile, wanted: Family | None, *, here: bool, offline: bool
) -> tuple[Checked, dict[str, Any]]:
    folder = Path.cwd() if here else None
    checked = check_for(config_facts.gather(file.path, os.environ, folder=folder, beside=file.by_rule), wanted)
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
    _tell(out, checked, file.chosen_by)
    if checked.exit_code == Exit.OK and not checked.findings:
        out.note("nothing to correct" + ("" if asked else "; the services were not asked"))
        if checked.client == DEFAULT:
            out.note(WHICH_QMD)
    return checked, _data(out, checked) | {"chosen_by": file.chosen_by, "asked": asked}


def _error(checked: Checked, wanted: Family | None) -> ServiceFailed | ConfigError:
    first = checked.findings[0]
    error = ServiceFailed if checked.exit_code == Exit.FAILED else ConfigError
    what = "QMD would use its local models" if checked.reason else "QMD's requests would fail"
    count = sum(finding.severity == "error" for finding in checked.findings)
    message = f"{what}: {first.message}" + (f", and {count - 1} more" if count > 1 else "")
    named = f" --client {wanted.name}" if wanted else ""
    hint = f"{first.fix.rstrip('.')}; then: qmd-remote config check{named}"
    return error(message, hint=hint, code=f"config_check.{first.code}")


def edit(out: Output, file: ConfigFile, *, here: bool, offline: bool) -> int:
    """Open the file in the user's editor, then check it.

    Raises ConfigError when there is no file, PrerequisiteError when there is no editor.
    """
    command = editor.command(file.path, "qmd-remote config edit")
    if not file.path.exists():
        raise ConfigError(f"there is no file {file.path}", hint="qmd-remote config write", code="config_file.missing")
    editor.open_file(command, file.path, "qmd-remote config edit", keep_stdout=out.as_json)
    return check(out, [file], None, here=here, offline=offline)


def _tell(out: Output, checked: Checked, chosen_by: str) -> None:
    from rich.markup import escape

    out.show(escape(checked.sentence))
    why = {"default": "where QMD looks by default", "--file": "named by --file"}
    agent = f"that of OpenClaw's {chosen_by}" if chosen_by.startswith("agent ") else f"chosen by {chosen_by}"
    out.show(escape(f"  {checked.path}, {why.get(chosen_by, agent)}"))
    if checked.client != DEFAULT:
        out.show(escape(f"  for {checked.client}: {families.find(checked.client).about}"))
    for finding in checked.findings:
        style = SEVERITY_STYLE[finding.severity]
        where = f"line {finding.line}: " if finding.line else ""
        out.show(f"[{style}]{finding.severity:<7}[/]  {escape(where + finding.message)}")
        out.show(escape(f"         {out.typed(finding.fix)}"))


def _data(out: Output, checked: Checked) -> dict[str, Any]:
    urls = {"embed_url": checked.embed_url, "generation_url": checked.generation_url}
    return {
        "path": checked.path,
        "client": checked.client,
        "verdict": checked.verdict,
        "reason": checked.reason,
        **{name: url and config_check.without_secrets(url) for name, url in urls.items()},
        "api_key": checked.api_key,
        "findings": [_finding(out, finding) for finding in checked.findings],
    }


def _finding(out: Output, finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "fix": out.about(finding.fix)}
