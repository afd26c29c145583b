"""Which batches run before a server says that it is ready."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.server import warm_up
from qmd_remote.server.text_model import TextModel
from qmd_remote.server.warm_up import SPECIAL, Shape, shapes, within
from tests.server import tiny_models as tiny
from tests.server.tiny_models import embed

numbers = st.integers(1, 70_000)


@given(max_length=numbers, batch_size=st.integers(1, 512), batch_tokens=numbers)
def test_shapes_keep_the_limits_and_reach_them(max_length: int, batch_size: int, batch_tokens: int):
    """Batches are within size and budget or of one text, the longest text alone and the fullest batch among them."""
    found = shapes(max_length, batch_size, batch_tokens)
    assert all(1 <= shape.rows <= batch_size and 1 <= shape.length <= max_length for shape in found)
    assert all(shape.rows == 1 or shape.tokens <= batch_tokens for shape in found)
    assert Shape(1, max_length) in found
    assert Shape(max(1, min(batch_size, batch_tokens // max_length)), max_length) in found
    assert sorted(shape.tokens for shape in found) == [shape.tokens for shape in found]
    assert len(set(found)) == len(found) <= 2 * (len(warm_up.LENGTHS) + 1)
    assert 1 == found[0].rows


def test_the_shapes_of_minilm_on_a_cpu():
    """A short query comes first, and every length as a single text and in a full batch."""
    singles, full = {Shape(1, 8), Shape(1, 32), Shape(1, 128), Shape(1, 256)}, {Shape(16, 128), Shape(8, 256)}
    found = shapes(256, 32, 2_048)
    assert Shape(1, 8) == found[0]
    assert singles | full | {Shape(32, 8), Shape(32, 32)} == set(found)


def run(plan: list[Shape], *, seconds: float, per_token: float) -> list[Shape]:
    """What runs of a plan on a device that takes so long, within so many seconds."""
    ran: list[Shape] = []
    for shape in within(plan, seconds, clock=lambda: per_token * sum(shape.tokens for shape in ran)):
        ran.append(shape)
    return ran


@given(per_token=st.floats(1e-6, 1.0), seconds=st.floats(0.01, 60))
def test_a_warm_up_stays_within_its_time(per_token: float, seconds: float):
    """Beside the first one, nothing runs that does not end in time, and all runs where there is time for all."""
    plan = shapes(512, 32, 16_384)
    ran = run(plan, seconds=seconds, per_token=per_token)
    assert plan[: len(ran)] == ran
    spent = sum(shape.tokens for shape in ran) * per_token
    assert len(ran) == 1 or spent <= seconds * 1.0001
    if sum(shape.tokens for shape in plan) * per_token < seconds * 0.9999:
        assert plan == ran


def test_both_models_are_warmed_up_before_the_engine_is_ready(tmp_path, monkeypatch, caplog):
    """Single texts and full batches have run in each model when the first request comes; a line tells how long."""
    caplog.set_level(logging.INFO, logger="qmd_remote")
    monkeypatch.setattr(warm_up, "CPU_S", 60.0)  # on a busy machine the last sizes are left out
    whole, ran = TextModel.run, set()

    def recorded(self, batch):
        ran.add((type(self).__name__, len(batch), max(item.length for item in batch)))
        return whole(self, batch)

    monkeypatch.setattr(TextModel, "run", recorded)
    encoder = tiny.save_encoder(tmp_path / "encoder", "bert")
    cross = tiny.save_cross_encoder(tmp_path / "cross", "bert")
    with tiny.loaded(encoder, cross, max_batch_size=4, max_batch_tokens=4096) as engine:
        assert {"Embedder", "CrossEncoderModel"} == {name for name, _, _ in ran}
        for name in ("Embedder", "CrossEncoderModel"):
            long = {rows for kind, rows, longest in ran if kind == name and longest >= tiny.POSITIONS - SPECIAL}
            assert {1, 4} == long
        assert ("warming up", True) == (engine.loading.phase, (engine.loading.progress or 0) > 0)
    assert 1 == sum("warmed up with" in record.getMessage() for record in caplog.records)


def test_a_batch_too_large_for_the_memory_does_not_stop_the_start(tmp_path, monkeypatch, caplog):
    """A size that cannot be computed is told, and the server becomes ready for all others."""
    whole = TextModel.run

    def short_of_memory(self, batch):
        if max(item.length for item in batch) > 12:
            raise RuntimeError("CUDA out of memory")
        return whole(self, batch)

    monkeypatch.setattr(TextModel, "run", short_of_memory)
    encoder = tiny.save_encoder(tmp_path / "encoder", "bert")
    with tiny.loaded(encoder, encoder) as engine:
        assert "ready" == engine.state
        assert (1, tiny.HIDDEN) == embed(engine, ["fox"]).shape
    assert "cannot be computed here" in caplog.text
