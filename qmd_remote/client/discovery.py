"""What running services say of themselves: their models' names, and whether they need a key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from qmd_remote.client.http import Answer, exchange, make_client, require_sendable
from qmd_remote.client.remote_block import ModelNames

ANSWER_S = 2.0


@dataclass(frozen=True)
class Discovered:
    """Names as far as the services tell them. `needs_key`: True if either wants one, None if one does not say."""

    models: ModelNames
    needs_key: bool | None


@dataclass(frozen=True)
class _Model:
    """An entry of a list of models. `role` is embed, rerank or generate; None in the lists of other servers."""

    name: str
    role: str | None


def fetch_models(
    embed_url: str | None, generation_url: str | None, key: str = "", *, timeout: float = ANSWER_S
) -> Discovered:
    """Ask both services at once, for at most about `timeout` seconds in all. What is not known is None.

    Raises ConfigError for a key that no header can hold, and nothing else.
    """
    require_sendable(key)
    found: dict[str, Any] = {}
    jobs: list[Callable[[], None]] = []
    if embed_url:
        jobs.append(lambda: found.update(_ask_embed(embed_url, key, timeout)))
        jobs.append(lambda: found.update(embed_needs_key=_needs_key(embed_url, timeout)))
    if generation_url:
        jobs.append(lambda: found.update(generate=first_model(generation_url, key, timeout=timeout)))
        jobs.append(lambda: found.update(generation_needs_key=_needs_key(generation_url, timeout)))
    # Threads, since nothing bounds the time in which a name is resolved.
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    known = dict(found)
    names = ModelNames(known.get("embed"), known.get("generate"), known.get("rerank"))
    needs = {known.get("embed_needs_key"), known.get("generation_needs_key") if generation_url else False}
    return Discovered(names, True if True in needs else None if None in needs else False)


def first_model(url: str, key: str = "", *, timeout: float = ANSWER_S) -> str | None:
    """The name to ask for in generation, or None: the first in the service's /v1/models.

    Our own server tells each model's role there; of its names, the first that generates.
    """
    return next((model.name for model in _listed(url, key, timeout) if model.role in ("generate", None)), None)


def _ask_embed(url: str, key: str, timeout: float) -> dict[str, str]:
    said = _json(_get(url, "/health", key, timeout))
    models = said.get("models") if isinstance(said, dict) else None
    if isinstance(models, dict):
        return {role: name for role in ("embed", "rerank") if isinstance(name := models.get(role), str)}
    # The server hides its models from whoever has no key; its list has the embedder first.
    listed = [model.name for model in _listed(url, key, timeout) if model.role != "generate"]
    return {"embed": listed[0], "rerank": listed[-1]} if listed else {}


def _needs_key(url: str, timeout: float) -> bool | None:
    answer = _get(url, "/v1/models", "", timeout)
    return {401: True, 200: False}.get(answer.status) if answer else None


def _listed(url: str, key: str, timeout: float) -> list[_Model]:
    said = _json(_get(url, "/v1/models", key, timeout))
    data = said.get("data") if isinstance(said, dict) else None
    items = data if isinstance(data, list) else []
    return [
        _Model(item["id"], item.get("qmd_remote_role"))
        for item in items
        if isinstance(item, dict) and isinstance(item.get("id"), str)
    ]


def _get(url: str, path: str, key: str, timeout: float) -> Answer | None:
    try:
        with make_client(url.rstrip("/"), key, limit_s=timeout) as client:
            return exchange(client, path, limit_s=timeout)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):  # ValueError: no URL at all
        return None


def _json(answer: Answer | None) -> Any:
    if answer is None or answer.status != httpx.codes.OK:
        return None
    try:
        return answer.json()
    except ValueError:
        return None
