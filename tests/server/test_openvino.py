"""The OpenVINO backend: torch's numbers for every architecture, conversions kept on disk, and no word to anybody."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer

from qmd_remote.server import openvino_cache, openvino_forward
from qmd_remote.server.backends import forward_for
from qmd_remote.server.device import Device
from qmd_remote.server.embedder import Embedder
from qmd_remote.server.forward import Network, PaddedForward
from qmd_remote.server.openvino_cache import ConvertedModel
from qmd_remote.server.openvino_forward import OpenVinoForward, attempt, distance, properties, width
from qmd_remote.server.openvino_runtime import runtime
from qmd_remote.server.reranker import CrossEncoderModel
from tests.server import tiny_models as tiny

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")

OPTIONS: dict[str, Any] = {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": torch.float32}}
LEAST = 1e-5
PAIRS = [(tiny.QUERY, text) for text in tiny.TEXTS]


class Loaded:
    """A model whose forward pass is torch's at first; `network` is what backends get."""

    def __init__(self, folder: Path, *, pairs: bool = False) -> None:
        self.folder = folder
        self.network: Network
        if pairs:
            cross = CrossEncoder(str(folder), activation_fn=torch.nn.Identity(), **OPTIONS)
            self.model: Any = CrossEncoderModel(cross.eval(), self._keep)
        else:
            self.model = Embedder(SentenceTransformer(str(folder), **OPTIONS).eval(), self._keep)

    def _keep(self, network: Network) -> PaddedForward:
        if network.module.tokenizer.pad_token is None:
            network.module.tokenizer.pad_token = network.module.tokenizer.eos_token
        self.network = network
        return PaddedForward(network)

    def openvino(self, cache: Path, *, dtype: str = "float32") -> OpenVinoForward:
        """The backend over this network."""
        return OpenVinoForward(self.network, self.folder, cache=cache, dtype=dtype, threads=1)

    def attempt(self, cache: Path) -> OpenVinoForward | None:
        """What the server gets, which may be None."""
        return attempt(self.network, self.folder, cache=cache, dtype="float32", threads=1)

    @property
    def has_weights(self) -> bool:
        """Whether torch could still compute."""
        return all(parameter.device.type == "cpu" for parameter in self.network.module.parameters())


def dense(folder: Path) -> Path:
    """A BERT with a projection after its pooling."""
    tiny.add_dense(tiny.save_encoder(folder, "bert"), width=16)
    return folder


SHAPES: dict[str, tuple[Callable[[Path], Path], bool]] = {
    **{
        f"{name}, {tiny.POOLING[name]}": (partial(tiny.save_encoder, architecture=name), False) for name in tiny.POOLING
    },
    "bert, dense": (dense, False),
    "bert, classifier": (partial(tiny.save_cross_encoder, architecture="bert"), True),
    "xlm-roberta, classifier": (partial(tiny.save_cross_encoder, architecture="xlm-roberta"), True),
    "qwen3, yes or no": (tiny.save_yes_no, True),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny embedding model's folder, which tests leave as it is."""
    return tiny.save_encoder(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def converted(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the conversion of `bert` lies, to be copied."""
    cache = tmp_path_factory.mktemp("converted")
    Loaded(bert).openvino(cache)
    return cache


@pytest.fixture
def kept(converted: Path, tmp_path: Path) -> Path:
    """The test's own cache in which the conversion of `bert` lies."""
    return shutil.copytree(converted, tmp_path / "kept")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """The networks converted so far."""
    done: list[Network] = []
    convert = openvino_forward._convert

    def count(network: Network, names: Any) -> Any:
        done.append(network)
        return convert(network, names)

    monkeypatch.setattr(openvino_forward, "_convert", count)
    return done


@pytest.fixture
def pretended_bf16(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have any CPU pass for one that takes the precision asked for; what was asked for, one entry per compilation."""
    asked: list[str] = []

    def note(dtype: str, threads: int) -> Any:
        asked.append(dtype)
        return properties(dtype, threads)

    monkeypatch.setattr(openvino_forward, "properties", note)
    monkeypatch.setattr(openvino_forward, "settled", lambda _: asked[-1])
    return asked


def entries(cache: Path) -> list[Path]:
    """The folders with conversions, drafts included."""
    return sorted((cache / "openvino").glob("*/*"))


@pytest.mark.parametrize("shape", list(SHAPES))
def test_numbers_are_those_of_torch(shape, tmp_path):
    """Every kind of network gives torch's float32 numbers, for any number of rows of any length."""
    make, pairs = SHAPES[shape]
    loaded = Loaded(make(tmp_path / "model"), pairs=pairs)
    rows = [item.row for item in loaded.model.prepare(PAIRS if pairs else tiny.TEXTS)]
    batches = [rows, rows[:1], rows[8:9], rows[1:3] * 16, [loaded.model._blank.row]]
    expected = [loaded.model.forward.fetch(loaded.model.forward.run(batch)) for batch in batches]

    forward = loaded.openvino(tmp_path / "cache")

    for batch, wanted in zip(batches, expected, strict=True):
        found = forward.fetch(forward.run(batch))
        assert np.float32 == found.dtype
        assert distance(found, wanted) < LEAST


def test_model_works_on_without_torch_weights(bert, kept):
    """Once OpenVINO computes, torch's copy of the weights is gone, and texts still become unit vectors."""
    loaded = Loaded(bert)
    expected = loaded.model.finish(loaded.model.run(loaded.model.prepare(tiny.TEXTS)))

    loaded.model.forward = loaded.openvino(kept)

    assert {"meta"} == {parameter.device.type for parameter in loaded.network.module.parameters()}
    found = loaded.model.finish(loaded.model.run(loaded.model.prepare(tiny.TEXTS)))
    np.testing.assert_allclose(found, expected, atol=LEAST)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_result_outlives_the_next_pass(bert, kept):
    """What `run` returned is not written over by the pass after it, nor by giving memory back."""
    loaded = Loaded(bert)
    first, second = ([item.row] for item in loaded.model.prepare(tiny.TEXTS[3:5]))
    forward = loaded.openvino(kept)

    found = forward.run(first)
    kept = found.copy()
    forward.run(second)
    forward.free()

    np.testing.assert_array_equal(kept, found)
    np.testing.assert_allclose(kept, forward.run(first), atol=1e-6)


def test_server_computes_with_it(bert, tmp_path, monkeypatch):
    """An engine told so embeds with OpenVINO, keeps the conversion among our own files, and says so in /health."""
    monkeypatch.setenv("QMD_REMOTE_HOME", str(tmp_path / "home"))
    loaded = Loaded(bert)
    expected = loaded.model.finish(loaded.model.run(loaded.model.prepare(tiny.TEXTS)))
    with tiny.loaded(bert, bert, backend="openvino") as engine:
        assert isinstance(engine._models.embedder.forward, OpenVinoForward)
        found = tiny.embed(engine, tiny.TEXTS)

    np.testing.assert_allclose(found, expected, atol=LEAST)
    assert 1 == len(entries(tmp_path / "home" / "cache"))


def test_second_start_does_not_convert(bert, kept, conversions):
    """A conversion is kept and serves the next start."""
    loaded = Loaded(bert)
    rows = [item.row for item in loaded.model.prepare(tiny.TEXTS)]
    expected = loaded.model.forward.fetch(loaded.model.forward.run(rows))

    found = loaded.openvino(kept).run(rows)

    assert [] == conversions
    assert distance(found, expected) < LEAST


@pytest.mark.parametrize("times", ["new", "kept"])
def test_changed_model_is_converted_anew(times, tmp_path):
    """Other weights in the same folder are not computed with the old ones, and only their conversion stays on disk.

    Images and archives may give all files one time, and the weights of an architecture have one size.
    """
    cache, folder = tmp_path / "cache", tiny.save_encoder(tmp_path / "model", "bert", seed=1)
    Loaded(folder).openvino(cache)
    before, modified = entries(cache), {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    tiny.save_encoder(folder, "bert", seed=2)
    for file, moment in modified.items() if times == "kept" else ():
        os.utime(file, ns=(moment, moment))
    loaded = Loaded(folder)
    rows = [item.row for item in loaded.model.prepare(tiny.TEXTS)]
    expected = loaded.model.forward.fetch(loaded.model.forward.run(rows))

    found = loaded.openvino(cache).run(rows)

    assert distance(found, expected) < LEAST
    assert 1 == len(entries(cache))
    assert before != entries(cache)


def test_new_version_converts_anew(bert, kept, conversions, monkeypatch):
    """What another version of a library converted is not used; nor is it kept."""
    monkeypatch.setattr(openvino_cache.metadata, "version", lambda package: "another")

    Loaded(bert).openvino(kept)

    assert 1 == len(conversions)
    assert 1 == len(entries(kept))


def test_snapshots_of_one_model_share_a_place(converted, tmp_path):
    """A newer snapshot in the hub's cache replaces the conversion of the one before; another model's stays."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    snapshots = [hub / "models--a--b" / "snapshots" / commit for commit in ("1", "2")]
    other = hub / "models--a--c" / "snapshots" / "1"
    model = runtime().Core().read_model(entries(converted)[0] / "model.xml")
    for seed, folder in enumerate((*snapshots, other)):
        assert ConvertedModel(cache, tiny.save_encoder(folder, "bert", seed=seed), ["output"]).write(model)

    kept = [ConvertedModel(cache, folder, ["output"]).read(runtime().Core()) for folder in (*snapshots, other)]

    assert [False, True, True] == [found is not None for found in kept]
    assert 2 == len(entries(cache))


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: os.truncate(place / "model.bin", 1000),
        lambda place: (place / "model.bin").unlink(),
        lambda place: (place / "model.xml").write_text("<net"),
        lambda place: (place / "model.xml").unlink(),
        lambda place: flip(place / "model.bin"),
        lambda place: (place / "checksum").unlink(),
    ],
    ids=["cut", "no weights", "no XML", "no graph", "one byte", "no checksum"],
)
def test_conversion_that_cannot_be_read_is_none(damage, kept, caplog):
    """A damaged conversion counts as none, with a warning."""
    place = ConvertedModel(kept, Path("model"), [])
    entries(kept)[0].rename(_there(place))
    damage(_there(place))

    assert place.read(runtime().Core()) is None

    assert "made again" in caplog.text


def flip(file: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def _there(place: ConvertedModel) -> Path:
    place._place.parent.mkdir(exist_ok=True)
    return place._place


def test_conversion_with_wrong_numbers_is_made_again(bert, kept, conversions, caplog):
    """A conversion that computes something else costs a warning and a new one, which takes its place."""
    loaded = Loaded(bert)
    rows = [item.row for item in loaded.model.prepare(tiny.TEXTS)]
    expected = loaded.model.forward.fetch(loaded.model.forward.run(rows))
    weights = entries(kept)[0] / "model.bin"
    weights.write_bytes(bytes(weights.stat().st_size))

    found = loaded.openvino(kept).run(rows)

    assert "made again" in caplog.text
    assert distance(found, expected) < LEAST
    assert [loaded.network] == conversions
    assert weights.read_bytes().strip(b"\0")


def test_cache_that_cannot_be_written_is_no_failure(bert, tmp_path, caplog):
    """Without a place to keep it a conversion is used all the same, and a warning tells the price."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    loaded = Loaded(bert)
    rows = [item.row for item in loaded.model.prepare(tiny.TEXTS)]
    expected = loaded.model.forward.fetch(loaded.model.forward.run(rows))

    found = loaded.openvino(tmp_path / "cache").run(rows)

    assert distance(found, expected) < LEAST
    assert "the next start converts again" in caplog.text


def test_conversion_leaves_logging_as_it_is():
    """The converter sets up the root logger to its taste; that is undone, or the server's log would fall silent."""
    runtime()
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    with openvino_forward._quietly():
        from openvino.tools.ovc.logger import init_logger

        init_logger("ERROR", False, True)
        assert before != (root.level, root.filters, root.handlers)

    assert before == (root.level, root.filters, root.handlers)


def test_full_disk_leaves_no_draft(bert, tmp_path, monkeypatch, caplog):
    """When a conversion cannot be written to its end, nothing of it stays, and the model computes."""

    def fail(model: Any, path: Path, **_: Any) -> None:
        path.write_text("half of it")
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino_cache, "runtime", lambda: SimpleNamespace(save_model=fail))

    assert 1 == len(Loaded(bert).openvino(tmp_path / "cache").run([{"input_ids": np.array([1, 2])}]))

    assert [] == entries(tmp_path / "cache")
    assert "iostream error" in caplog.text


def _raise_while_traced(features: dict[str, Any], output: Any) -> Any:
    if torch.jit.is_tracing():
        raise ValueError("not while traced")
    return output


def _depend_on_rows(features: dict[str, Any], output: Any) -> Any:
    return output + len(features["input_ids"].tolist())  # tracing takes this number for a constant


@pytest.mark.parametrize("after", [_raise_while_traced, _depend_on_rows])
def test_network_that_does_not_convert_stays_with_torch(after, bert, tmp_path, monkeypatch, caplog):
    """Where conversion fails, or gives other numbers, torch computes as before; a warning names the cause."""
    loaded = Loaded(bert)
    forward = loaded.network.module.forward

    def other(features: dict[str, Any], **options: Any) -> Any:
        result = forward(features, **options)
        return {**result, "sentence_embedding": after(features, result["sentence_embedding"])}

    monkeypatch.setattr(loaded.network.module, "forward", other)
    rows = [item.row for item in loaded.model.prepare(tiny.TEXTS)]
    expected = loaded.model.forward.fetch(loaded.model.forward.run(rows))

    assert loaded.attempt(tmp_path / "cache") is None

    assert loaded.has_weights
    np.testing.assert_array_equal(expected, loaded.model.forward.fetch(loaded.model.forward.run(rows)))
    assert [] == entries(tmp_path / "cache")
    assert 1 == sum(record.levelno == logging.WARNING for record in caplog.records)
    assert ("not while traced" if after is _raise_while_traced else "off torch's") in caplog.text


def test_missing_package_leaves_torch(bert, tmp_path, monkeypatch, caplog):
    """An openvino that cannot be imported is a warning, not the end of the start."""
    monkeypatch.setitem(sys.modules, "openvino", None)

    assert Loaded(bert).attempt(tmp_path / "cache") is None

    assert "openvino" in caplog.text


def test_torch_is_taken_where_the_device_says_so(bert, tmp_path):
    """OpenVINO is not tried unless it is the device's backend."""
    device = Device("cpu", "float32", "", cuda_available=False, backend="torch")

    assert not isinstance(forward_for(Loaded(bert).network, device, bert), OpenVinoForward)


def test_bfloat16_is_asked_of_the_plugin(bert, kept):
    """The plugin is given the precision as a hint, takes it where the CPU can, and `dtype` is what it took."""
    forward = Loaded(bert).openvino(kept, dtype="bfloat16")

    can = "BF16" in runtime().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert "bf16" == properties("bfloat16", 1)["INFERENCE_PRECISION_HINT"]
    assert ("bfloat16" if can else "float32") == forward.dtype


@pytest.mark.parametrize("threads", [1, 2])
def test_plugin_computes_as_asked(threads, bert, kept):
    """One stream of so many threads, none of them tied to a core, in float32."""
    loaded = Loaded(bert)
    forward = OpenVinoForward(loaded.network, bert, cache=kept, dtype="float32", threads=threads)

    found = forward._compiled.get_property

    assert (1, threads) == (found("NUM_STREAMS"), found("INFERENCE_NUM_THREADS"))
    assert found("ENABLE_CPU_PINNING") is False
    assert "f32" == found("INFERENCE_PRECISION_HINT").to_string()


def test_widening_compiles_in_float32(bert, kept, pretended_bf16):
    """A narrow precision can be left for good, once; from float32 there is nothing to widen."""
    loaded = Loaded(bert)
    rows = [item.row for item in loaded.model.prepare(tiny.TEXTS)]
    expected = loaded.model.forward.fetch(loaded.model.forward.run(rows))
    forward = loaded.openvino(kept, dtype="bfloat16")
    assert "bfloat16" == forward.dtype

    assert forward.widen()
    assert not forward.widen()

    assert ["bfloat16", "float32"] == pretended_bf16
    assert "float32" == forward.dtype
    assert distance(forward.run(rows), expected) < LEAST


def test_bfloat16_that_is_too_far_off_is_widened_at_once(bert, kept, pretended_bf16, monkeypatch, caplog):
    """Where a model's numbers do not survive bfloat16 it computes in float32 from the start, with a warning."""
    monkeypatch.setitem(openvino_forward.TOLERANCE, "bfloat16", -1.0)

    forward = Loaded(bert).openvino(kept, dtype="bfloat16")

    assert "float32" == forward.dtype
    assert "not exact enough" in caplog.text


SILENT = """
import sys

asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event.startswith("socket.") else None)
import sentence_transformers, torch
assert "openvino" not in sys.modules
from qmd_remote.server.openvino_runtime import runtime

openvino = runtime()
model = openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))
openvino.Core().compile_model(model, "CPU")
from openvino.tools.ovc import telemetry_utils

print(telemetry_utils.tm.__name__, asked, "openvino_telemetry.main" in sys.modules)
"""


def test_openvino_reports_to_nobody():
    """Its import and a conversion open no socket: the class that would send is its own one that does nothing.

    And no other library imports it before we do.
    """
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=120)

    assert "openvino.tools.ovc.telemetry_stub [] False" == done.stdout.strip(), done.stderr


def test_logits_are_no_matrix_product(tmp_path):
    """A classifier's last step, which bfloat16 would cut to two or three digits, is one OpenVINO does not narrow."""
    loaded = Loaded(tiny.save_cross_encoder(tmp_path / "model", "bert"), pairs=True)

    model = openvino_forward._convert(loaded.network, (*loaded.network.names, "attention_mask"))

    products = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
    assert products
    assert tiny.HIDDEN <= min(node.get_output_partial_shape(0)[-1].get_max_length() for node in products)
    assert "forward" not in vars(loaded.network.module[0].auto_model.classifier)


@given(length=st.integers(1, 100_000), limit=st.integers(0, 100_000))
def test_width_holds_the_longest_row_and_wastes_little(length, limit):
    """A batch is as wide as its longest row, at most 7 tokens or a 16th more, and never beyond the model's limit."""
    found = width(length, limit)

    assert length <= found <= max(length + 7, length * 17 // 16)
    assert found == length or not limit or found <= limit


def test_widths_are_few():
    """Rows of up to 8192 tokens come in so few widths that what OpenVINO keeps for each is no matter."""
    assert 112 == len({width(length, 8192) for length in range(1, 8193)})


def test_distance_of_logits_near_zero_is_absolute():
    """The difference of two small logits is not blown up; that of two short vectors is a share of their length."""
    logits, rows = np.array([[1e-6]], dtype=np.float32), np.full((1, 3), 1e-6, dtype=np.float32)

    assert distance(2 * logits, logits) < 1e-5
    assert 1 == pytest.approx(distance(2 * rows, rows))
    assert float("inf") == distance(rows[:, :2], rows)
