"""`qmd-remote test`: the requests QMD sends, and whether it can use what comes back."""

from __future__ import annotations

import time

from qmd_remote.client.checks_embed import EmbedChecks
from qmd_remote.client.checks_generation import GenerationChecks
from qmd_remote.client.discovery import Discovered, fetch_models, first_model
from qmd_remote.client.http import REQUEST_S
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.client.report import CheckResult, Report, Target
from qmd_remote.client.service import OnResult, Service
from qmd_remote.presets import DESIGN_EMBED, DESIGN_GENERATION, DESIGN_RERANK

__all__ = ["CheckResult", "Discovered", "ModelNames", "Report", "Target", "fetch_models", "run_checks"]


def run_checks(
    target: Target, *, quick: bool = False, limit_s: float = REQUEST_S, on_result: OnResult | None = None
) -> Report:
    """Send what QMD sends, one request after another, and judge each answer.

    `quick` leaves out what takes long. Each request may take `limit_s` seconds, QMD's own limit by default; a service
    that cannot be reached is asked once. `on_result` gets each row as soon as it is there. Raises ConfigError for a
    key that no header can hold.
    """
    began = time.monotonic()
    rows: list[CheckResult] = []

    def collect(row: CheckResult) -> None:
        rows.append(row)
        if on_result:
            on_result(row)

    names = target.models
    embed = Service(target.embed_url, target.embed_reason, target.key, limit_s, collect, names=target.names)
    generation = Service(
        target.generation_url, target.generation_reason, target.key, limit_s, collect, names=target.names
    )
    try:
        EmbedChecks(embed, names.embed or DESIGN_EMBED, names.rerank or DESIGN_RERANK).run(quick=quick)
        model = names.generate or _served_model(target) or DESIGN_GENERATION
        GenerationChecks(generation, model, constrained=target.generation_constrained).run(quick=quick)
    finally:
        embed.close()
        generation.close()
    return Report(tuple(rows), time.monotonic() - began, embed.first_cause or generation.first_cause)


def _served_model(target: Target) -> str | None:
    """The generation service's own name for its model: unlike the embed server, it takes no other."""
    return first_model(target.generation_url, target.key) if target.generation_url else None
