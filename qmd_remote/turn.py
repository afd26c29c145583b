"""Whose turn it is to take memory of the GPU, where `up --no-wait` has started both services at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import httpx

from qmd_remote import services
from qmd_remote.settings import Settings

POLL_S = 0.5
ASK_S = 2.0


def wait_for_generation(settings: Settings, report: Callable[[str, float | None], None]) -> None:
    """Return when vLLM is ready, has ended, or has had `start_limit_s`; at once where `up` did not ask for this.

    vLLM looks at its start whether all of its share is free, and counts what others take meanwhile as its own.
    """
    if os.environ.get(services.AFTER_GENERATION) != "1":
        return
    until = time.monotonic() + settings.start_limit_s
    with httpx.Client(base_url=settings.generation_at, timeout=ASK_S, trust_env=False) as client:
        while services.find(services.GENERATION) and not _is_ready(client) and time.monotonic() < until:
            report("waiting for generation to take its memory first", None)
            time.sleep(POLL_S)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
