"""The servers that the clients' requests go to: embedding, ranking and generation behind one door, with a key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from qmd_remote.presets import MINI_EMBED
from qmd_remote.server.app import create_app
from qmd_remote.settings import Settings
from tests.families.replay import KEY, PATIENCE_S
from tests.server import tiny_models as tiny
from tests.server.conftest import _serving
from tests.server.generation_service import Service, say

# as small models write it: nothing of it would be left by a client's own rule
MESSY = "Sure!\n1. **Lex:** passport office\n2. Vec: how to renew a passport\n- hyde: The passport is renewed there."
LLM = "own/llm"


def untidy(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """A generation service with one model, whose lines need repair."""
    if handler.path == "/v1/models":
        return say(handler, 200, json.dumps({"object": "list", "data": [{"id": LLM, "object": "model"}]}).encode())
    if handler.path not in {"/v1/chat/completions", "/v1/completions"}:
        return say(handler, 404, b'{"detail": "Not Found"}')
    chat = {"message": {"role": "assistant", "content": MESSY}}
    choice = {"index": 0, "finish_reason": "stop", **(chat if "chat" in handler.path else {"text": MESSY})}
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    said = {"id": "1", "object": "completion", "created": 0, "model": LLM, "choices": [choice], "usage": usage}
    return say(handler, 200, json.dumps(said).encode())


def one_door(generation: Service, model: str) -> AbstractContextManager[str]:
    """A server with `model` in both roles and generation behind it, with a key, which echoes models' names."""
    behind = {"generation_engine": "external", "generation_url": generation.url}
    return running(embed_model=model, rerank_model=model, **behind, api_key=KEY, echo_model=True)


@contextmanager
def running(**settings: Any) -> Iterator[str]:
    """The URL of a server with these settings, on the CPU in float32, once its models are ready."""
    plain = {"device": "cpu", "backend": "torch", "dtype": "float32", "generation_engine": "off", "access_log": False}
    with _serving(create_app(Settings(**{**plain, **settings}))) as (host, port):
        url = f"http://{host}:{port}"
        tiny.until(lambda: _state(url) != "loading", PATIENCE_S)
        assert "ok" == _state(url)
        yield url


def _state(url: str) -> Any:
    return httpx.get(f"{url}/health", timeout=PATIENCE_S, trust_env=False).json()["status"]


@pytest.fixture(scope="session")
def generation() -> Iterator[Service]:
    """The generation service behind the server."""
    with closing(Service()) as service:
        service.answer = untidy
        yield service


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that answers at once, with vectors that mean nothing."""
    return str(tiny.save_encoder(tmp_path_factory.mktemp("tiny"), "bert"))


@pytest.fixture(scope="session")
def box(generation: Service, tiny_model: str) -> Iterator[str]:
    """One door for everything, for clients that compare the name of the model; full sizes cost it little."""
    with one_door(generation, tiny_model) as url:
        yield url


@pytest.fixture(scope="session")
def mini_box(generation: Service) -> Iterator[str]:
    """The same with MiniLM: its vectors and rankings mean something."""
    with one_door(generation, MINI_EMBED) as url:
        yield url


@pytest.fixture(scope="module")
def small_door(tiny_model: str) -> Iterator[Callable[..., str]]:
    """Start servers with that model: `small_door(**settings)`."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            running(embed_model=tiny_model, rerank_model=tiny_model, **settings)
        )
