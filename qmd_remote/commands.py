"""What `test` does between parsing and showing: find the target, check it, judge."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

from qmd_remote import keys, local, services, views
from qmd_remote.client import checks, qmd_config
from qmd_remote.client.causes import shown
from qmd_remote.client.checks import CheckResult, Report, Target
from qmd_remote.client.remote_block import require_variable
from qmd_remote.errors import ConfigError, NotRunning, ServiceFailed, UsageError
from qmd_remote.local import Local
from qmd_remote.output import Output
from qmd_remote.reach import is_loopback
from qmd_remote.services import GENERATION

# whether an engine can hold an answer to a form (structured output); for others that is not known
CONSTRAINED = {"vllm": True, "transformers": False}


def test(out: Output, target: Target) -> int:
    """Run every check against a target and show a row each."""
    urls = [url and shown(url) for url in (target.embed_url, target.generation_url)]
    out.note(f"embed server {urls[0] or 'none'} · generation {urls[1] or 'none'}")

    def told(row: CheckResult) -> None:
        out.phase(f"checked: {row.name}")
        latency = "" if row.latency_ms is None else f" ({row.latency_ms:,.0f} ms)"
        out.detail(f"  {row.endpoint}, {row.sent} → {row.received}{latency}")

    with out.progress("checking"):
        report = checks.run_checks(target, on_result=told)
    out.show(views.report_table(report))
    data = {"target": _shown(target), "checks": [asdict(row) for row in report.rows], "total_s": report.total_s}
    if not report.failed:
        return out.finish(data)
    cause = report.first_cause
    error = ServiceFailed(
        first_failure(report), hint=cause.fix if cause else "", code=cause.code if cause else "check.failed"
    )
    return out.fail(error, data)


def first_failure(report: Report) -> str:
    """The first failure in words, with the check that met it."""
    row = next(row for row in report.rows if row.status == "fail")
    return f"{row.name}: {report.first_cause.message if report.first_cause else row.received}"


def _shown(target: Target) -> dict[str, object]:
    urls = {"embed_url": target.embed_url, "generation_url": target.generation_url}
    return {name: url and shown(url) for name, url in urls.items()} | {"with_key": bool(target.key)}


def find_target(
    *,
    url: str | None,
    embed_url: str | None,
    generation_url: str | None,
    api_key: str | None,
    config_file: Path,
) -> Target:
    """What to test: the URLs given, else those of QMD's config, else what runs here.

    `api_key` is the one asked for by an option; None takes the config's for the config's URLs, since QMD does so too,
    and this environment's elsewhere. Raises UsageError for contradicting options, ConfigError for a config that QMD
    would not use, NotRunning when there is nothing to test.
    """
    if url and (embed_url or generation_url):
        raise UsageError("--url stands for both services", hint="leave out --embed-url and --generation-url")
    if not (url or embed_url or generation_url):
        from_config = _from_config(config_file, api_key)
        if from_config:
            return from_config
    here = local.find()
    key = here.key if api_key is None else api_key
    if url:
        return _from_url(qmd_config.normalise_url(url), here, key)
    if embed_url or generation_url:
        return Target(
            embed_url=qmd_config.normalise_url(embed_url) if embed_url else None,
            generation_url=qmd_config.normalise_url(generation_url) if generation_url else None,
            embed_reason="no --embed-url was given",
            generation_reason="no --generation-url was given",
            key=key,
        )
    if not here.running:
        raise NotRunning(
            "there is nothing to test: QMD's config names no server, and none runs here",
            hint="qmd-remote up, or: qmd-remote test --url http://HOST:8001",
        )
    return _from_services(here, key)


def _from_url(url: str, here: Local, key: str) -> Target:
    """One URL answers for everything; of this machine's own server more is known."""
    if _place(url) != _place(here.embed_url):
        return Target(embed_url=url, generation_url=url, key=key)
    ours = _from_services(here, key)
    return replace(
        ours, embed_url=url, generation_url=url if here.embed and ours.generation_url else ours.generation_url
    )


def _from_services(here: Local, key: str) -> Target:
    # QMD is told of one door, which passes expansions on, and repairs what comes back
    door = here.embed_url if here.embed and here.generation_url else here.generation_url
    return Target(
        embed_url=here.embed_url,
        generation_url=door,
        generation_reason="generation is off",
        key=key,
        models=checks.ModelNames(generate=here.generation.model if here.generation else None),
        generation_constrained=CONSTRAINED.get(here.generation.program) if here.generation else None,
        names=False,  # they are met by loopback, which is not how QMD is told to meet them
    )


def _from_config(path: Path, api_key: str | None) -> Target | None:
    """The URLs and the key in QMD's config; None when it has no `remote:` block."""
    config = qmd_config.read(path)
    if not config.present:
        return None
    if problem := config.problem:
        raise ConfigError(f"{path}: {problem}", hint="qmd-remote config write", code="config.incomplete")
    if config.unset and api_key is None:
        raise ConfigError(
            f"{path} takes the key from {config.unset[0]}, which is not set here",
            hint=f"export {config.unset[0]}=…, or name the key with --api-key-file",
            code="config.unset_key",
        )
    generation = services.find(GENERATION)
    ours = generation is not None and _place(config.generation_url or "") == _place(generation.url)
    return Target(
        embed_url=config.embed_url,
        generation_url=config.generation_url,
        generation_constrained=CONSTRAINED.get(generation.program) if generation and ours else None,
        key=(config.api_key or "") if api_key is None else api_key,
        models=config.models,
    )


def _place(url: str) -> tuple[str, int | None]:
    """Host and port, with every name of loopback made the same."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    return ("localhost" if is_loopback(host) else host, parts.port)


def key_from(api_key_env: str | None, api_key_file: Path | None) -> str | None:
    """The key that an option names, or None when none does. Raises ConfigError when it is not there."""
    if api_key_env:
        require_variable(api_key_env)
        if not os.environ.get(api_key_env):
            raise ConfigError(f"the variable {api_key_env} is not set here", hint=f"export {api_key_env}=…")
        return os.environ[api_key_env]
    return keys.read_file(api_key_file) if api_key_file else None
