"""Does an engine that says it is well still work? A completion of one token, and its own count of tokens, tell."""

from __future__ import annotations

import asyncio
import re

import httpx

# vLLM's counters; either moves while it works on anything
_WORK = re.compile(r"^vllm:(?:generation|prompt)_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)

ASK_S = 5.0


async def until_hung(url: str, model: str, limit_s: float, key: str = "") -> None:
    """Return when the service hangs; it is asked every `limit_s` seconds."""
    while True:
        await asyncio.sleep(limit_s)
        if await is_hung(url, model, limit_s, key):
            return


async def is_hung(url: str, model: str, limit_s: float, key: str = "") -> bool:
    """Whether the service answers its health check with 200 and completes nothing for `limit_s` seconds.

    Any answer to the completion is a sign of life, an error too; so is a counter that moved meanwhile: a queue may be
    long. A service that cannot be reached has ended, which is somebody else's business.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(trust_env=False, timeout=ASK_S, headers=headers) as client:
        before = await work_done(client, url)
        probe = {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0}
        try:
            await client.post(f"{url}/v1/completions", json=probe, timeout=limit_s)
        except httpx.ReadTimeout:
            pass
        except httpx.HTTPError:
            return False
        else:
            return False
        if before is not None and await work_done(client, url) != before:
            return False
        try:
            return (await client.get(f"{url}/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


async def work_done(client: httpx.AsyncClient, url: str) -> tuple[str, ...] | None:
    """The engine's counts of tokens, or None where it does not tell."""
    try:
        answer = await client.get(f"{url}/metrics")
    except httpx.HTTPError:
        return None
    return tuple(_WORK.findall(answer.text)) or None if answer.status_code == httpx.codes.OK else None
