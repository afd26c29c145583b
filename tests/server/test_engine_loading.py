"""How the engine becomes ready, or why it does not; and what it computes in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmd_remote.errors import ApiError, ModelUnsupported, Unavailable
from qmd_remote.presets import MINI_EMBED
from qmd_remote.server.device import Device
from qmd_remote.server.engine import Engine
from qmd_remote.settings import Settings
from tests.server import tiny_models as tiny
from tests.server.tiny_models import embed, network

LIMIT_S = 60
QUESTION = "What is the capital of France?"


def settled(engine: Engine) -> bool:
    """Wait until loading has ended; False when it took too long."""
    done = threading.Event()
    engine.on_settled(done.set)
    return done.wait(LIMIT_S)


def test_while_loading_requests_wait_and_then_hear_the_phase(monkeypatch):
    """Until the models are there, `ready` ends with the phase and its progress, and a request waits for them."""
    started, gate = threading.Event(), threading.Event()

    def slow(settings: Settings, report: Callable[[str, float | None], None]) -> Any:
        report("downloading someone/model", 0.43)
        started.set()
        assert gate.wait(LIMIT_S)
        raise ModelUnsupported("secret cause at /a/secret/path")

    monkeypatch.setattr("qmd_remote.server.engine.load_models", slow)
    engine = Engine(Settings())
    assert (engine.state, engine.dimension, engine.facts()) == ("loading", None, {})
    engine.start()

    async def story() -> tuple[ApiError, ApiError]:
        await asyncio.to_thread(started.wait, LIMIT_S)
        try:
            await engine.ready(0.05)
        except Unavailable as error:
            early = error
        waiting = asyncio.create_task(engine.embed(["a"]))
        await asyncio.sleep(0)
        gate.set()
        try:
            await waiting
        except Unavailable as error:
            return early, error
        raise AssertionError("the request got through")

    early, late = asyncio.run(story())
    assert early.code == "loading"
    assert "downloading someone/model, 43%" in early.message
    assert late.code == "failed"
    assert "model.unsupported" in late.message
    assert "secret" not in late.message
    assert isinstance(engine.failure, ModelUnsupported)
    assert engine.state == "failed"
    engine.close()


def test_settling_is_told_once_also_to_those_who_ask_late(tmp_path):
    """A callback hears of the end of loading once, whether it was there before or comes after."""
    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    engine = Engine(Settings(embed_model=str(folder), rerank_model=str(folder), device="cpu"))
    early: list[str] = []
    engine.on_settled(lambda: early.append(engine.state))
    engine.start()
    assert settled(engine)
    late: list[str] = []
    engine.on_settled(lambda: late.append(engine.state))
    engine.close()
    assert (early, late) == (["ready"], ["ready"])


def test_closing_while_loading_ends_the_wait(monkeypatch):
    """Who waits for the models when the server closes gets 503 at once, and the loader stops at its next step."""
    started, gate, stopped = (threading.Event() for _ in range(3))

    def slow(settings: Settings, report: Callable[[str, float | None], None]) -> Any:
        started.set()
        assert gate.wait(LIMIT_S)
        try:
            report("loading the embedding model", None)
        finally:
            stopped.set()

    monkeypatch.setattr("qmd_remote.server.engine.load_models", slow)
    engine = Engine(Settings())
    engine.start()

    async def story() -> ApiError:
        waiting = asyncio.create_task(engine.embed(["a"]))
        await asyncio.to_thread(started.wait, LIMIT_S)
        engine.close()
        with pytest.raises(Unavailable) as caught:
            await waiting
        return caught.value

    assert asyncio.run(story()).code == "shutting_down"
    gate.set()
    assert stopped.wait(LIMIT_S)
    assert (engine.state, engine.failure) == ("loading", None)


def failing(**settings: Any) -> Any:
    """The failure of an engine with these settings."""
    engine = Engine(Settings(**{"embed_model": MINI_EMBED, "rerank_model": MINI_EMBED, "device": "cpu", **settings}))
    engine.start()
    assert settled(engine)
    engine.close()
    return engine.failure


@pytest.mark.parametrize("end", [SystemExit(2), RuntimeError("boom"), MemoryError()])
def test_whatever_ends_the_loader_is_a_failure_that_is_told(end: BaseException, monkeypatch):
    """A bug, too little memory, or a library that leaves the process: nobody waits for models that never come."""

    def broken(settings: Settings, report: Callable[[str, float | None], None]) -> Any:
        raise end

    monkeypatch.setattr("qmd_remote.server.engine.load_models", broken)
    failure = failing()
    assert failure is not None
    assert type(end).__name__ in failure.message


def test_models_for_the_wrong_job_are_refused(tmp_path):
    """A cross-encoder cannot embed, a classifier of three classes cannot rerank, SPLADE can do neither."""
    cross = tiny.save_cross_encoder(tmp_path / "cross", "bert")
    three = tiny.save_cross_encoder(tmp_path / "three", "bert", labels=3)
    sparse = tiny.save_encoder(tmp_path / "sparse", "bert")
    tiny.edit_json(sparse / "config_sentence_transformers.json", model_type="SparseEncoder")
    for settings, words in [
        ({"embed_model": str(cross)}, "cross is no embedding model"),
        ({"rerank_model": str(three)}, "3 classes"),
        ({"embed_model": str(sparse)}, "sparse is no embedding model"),
        ({"rerank_model": str(sparse)}, "sparse is no reranker"),
    ]:
        failure = failing(**settings)
        assert isinstance(failure, ModelUnsupported)
        assert words in failure.message


def test_broken_weights_fail_with_the_model_named(tmp_path):
    """Weights that cannot be read end in one line that names the model, not its path."""
    folder = tiny.save_encoder(tmp_path / "broken", "bert")
    (folder / "model.safetensors").write_bytes(b"not weights")
    failure = failing(embed_model=str(folder))
    assert isinstance(failure, ModelUnsupported)
    assert "broken cannot be loaded as an embedding model" in failure.message
    assert str(tmp_path) not in failure.message
    assert "\n" not in failure.message


def test_a_model_that_only_gives_nan_never_becomes_ready(tmp_path):
    """The warm-up finds out that a model does not work, before anyone gets an answer from it."""
    import torch

    folder = tiny.save_encoder(tmp_path / "nan", "bert")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: torch.full_like(value, float("nan")) for name, value in weights.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    failure = failing(embed_model=str(folder))
    assert isinstance(failure, ModelUnsupported)
    assert "no finite result" in failure.message


def test_absent_device_fails_the_start():
    """DEVICE=cuda:99 is an error of its own kind, never a silent fall-back."""
    assert failing(device="cuda:99").code == "device.unavailable"


OWN_CODE = """
from transformers import BertConfig, BertModel
class OwnConfig(BertConfig):
    model_type = "own_bert"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


def save_own_code(folder: Path) -> Path:
    """A model whose architecture exists only in a Python file beside it."""
    tiny.save_encoder(folder, "bert")
    (folder / "modeling_own.py").write_text(OWN_CODE)
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    tiny.edit_json(folder / "config.json", model_type="own_bert", architectures=["OwnModel"], auto_map=auto_map)
    return folder


def test_code_of_a_model_runs_only_if_asked_for_by_name(tmp_path, monkeypatch):
    """Without the model's name in trust_remote_code the cause and the flag are named; with it, the code runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_own_code(tmp_path / "own_model")
    failure = failing(embed_model=str(folder))
    assert isinstance(failure, ModelUnsupported)
    assert "own_model runs code of its own" in failure.message
    assert "--trust-remote-code own_model" in failure.hint
    with tiny.loaded(folder, folder, trust_remote_code=("own_model",)) as engine:
        assert embed(engine, ["fox"]).shape == (1, tiny.HIDDEN)
        assert type(network(engine)[0].model).__name__ == "OwnModel"


@pytest.fixture
def half(monkeypatch):
    """Have the CPU compute in half precision, as CUDA does."""
    chosen = Device("cpu", "float16", "a test", cuda_available=False)
    monkeypatch.setattr("qmd_remote.server.device.choose", lambda *_: chosen)


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_half_precision_keeps_pooling_and_logits_in_float32(half, tmp_path, architecture):
    """With a transformer in float16, vectors are unit to float32's digits, and logits are finer than float16's."""
    encoder = tiny.save_encoder(tmp_path / "encoder", architecture)
    cross = tiny.save_cross_encoder(tmp_path / "cross", architecture)
    with tiny.loaded(encoder, cross) as engine:
        assert engine.facts()["dtype"] == "float16"
        vectors = embed(engine, tiny.TEXTS).astype(np.float64)
        scores = asyncio.run(engine.rerank(QUESTION, tiny.CORPUS)).scores
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    logits = np.log(scores) - np.log1p(-scores)
    assert (np.abs(logits - logits.astype(np.float16)) > 1e-5).any()


def test_half_precision_that_overflows_continues_in_float32(half, tmp_path):
    """A model whose activations leave float16's range is widened, and its vectors are those of float32."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny.save_encoder(tmp_path / "bert", "bert")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("intermediate.dense.weight"):
            weights[name] = weights[name] * 50_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with tiny.loaded(folder, folder) as engine:
        assert engine.facts()["dtype"] == "float32"
        found = embed(engine, tiny.CORPUS)
        expected = network(engine).to(torch.float32).encode(tiny.CORPUS, normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)
