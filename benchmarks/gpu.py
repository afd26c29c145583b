"""The server on one NVIDIA GPU: nomic-embed-text's and bge-reranker-v2-m3's shapes, beside sentence-transformers.

    python benchmarks/gpu.py [--json FILE]                  on a machine with a GPU
    python benchmarks/gpu.py --device cpu --tiny            a rehearsal without one

Weights are random and seeded, tokenizers made here: no hub is needed, and the package's [server] extra is enough.
Half precision is compared with float32 on the same texts; the exit code is 1 where the answers differ too much.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from harness import measure
from harness.client import logits, vectors
from harness.gpu_models import WORDS, save_embedder, save_reranker
from harness.machine import machine
from harness.models import Shape
from harness.servers import Running, ours, start
from harness.work import CHUNKS, DOCUMENTS, Lengths, Texts

SEED = 20
BUDGETS = (4_096, 8_192, 16_384, 32_768, 65_536)
BATCHES = (32, 64)
LEAST_COSINE = 0.9999
LIMIT_S = 300


@dataclass(frozen=True)
class Size:
    """How large models and work are. `words` is the length cap of chunks, `requests` how many index requests a round
    has, `clients` how many send them at once."""

    nomic: Shape
    xlmr: Shape
    words: int
    requests: int
    clients: int
    reranks: int
    rounds: int
    gemm: int


FULL = Size(Shape(12, 768, 3072, 8192, gated=True), Shape(24, 1024, 4096, 8192), 898, 32, 8, 20, 5, 8192)
TINY = Size(Shape(2, 64, 128, 256, gated=True), Shape(2, 64, 128, 256), 40, 2, 2, 3, 2, 256)


class Bench:
    """Everything on one device. Rates are tokens a second, special tokens included."""

    def __init__(self, device: str, size: Size, home: Path) -> None:
        import torch

        torch.manual_seed(SEED)
        self._device, self._size, self._home = device, size, home
        self._dtype = torch.float32 if device == "cpu" else torch.float16
        # some CPUs would choose bfloat16, which random weights rank otherwise
        self._chosen = "float32" if device == "cpu" else "auto"
        self._embedder, self._reranker = save_embedder(size.nomic, home), save_reranker(size.xlmr, home)
        self._lengths = Lengths(max(4, size.words // 20), size.words, 2 / 3)
        self._texts = Texts(WORDS, "gpu")

    def run(self) -> dict[str, Any]:
        """All parts, one after the other, so that none shares the device with another."""
        peak = self._gemm_peak()
        result: dict[str, Any] = {"peak_flops_per_s": peak, "dtype": str(self._dtype).removeprefix("torch.")}
        result["http"] = self._over_http()
        result["in_process"] = self._in_process()
        result["sentence_transformers"] = self._sentence_transformers()
        result["answers"] = self._answers
        shapes = {"index": self._size.nomic, "rerank": self._size.xlmr}
        result["share_of_peak"] = {
            kind: self._per_token(kind, shape) * result["http"][kind]["tokens_per_s"] / peak
            for kind, shape in shapes.items()
        }
        return result

    # --- the work ------------------------------------------------------------------------------------------------

    def _requests(self, turn: int) -> list[list[str]]:
        return [self._texts.chunks(1000 * turn + i, self._lengths) for i in range(self._size.requests)]

    def _question(self, turn: int) -> tuple[str, list[str]]:
        words = self._size.words - 14  # room for the query
        return self._texts.query(turn, 0), [self._texts.text(turn, i, words) for i in range(DOCUMENTS)]

    def _per_token(self, kind: str, shape: Shape) -> float:
        """FLOPs of an average token."""
        lengths = [n + 2 for n in self._lengths.draw("flops", 300)] if kind == "index" else [self._size.words]
        return sum(map(shape.flops, lengths)) / sum(lengths)

    # --- over HTTP -----------------------------------------------------------------------------------------------

    def _over_http(self) -> dict[str, Any]:
        server = ours(
            "qmd-remote", Path(sys.executable), "auto", self._home / "server", self._device, dtype=self._chosen
        )
        running = start(server, self._embedder, self._reranker, self._home)
        try:
            running.wait()
            found: dict[str, Any] = {"facts": running.facts(), "seconds_to_ready": running.seconds_to_ready}
            self._index(running, -1)
            rates = [self._index(running, turn) for turn in range(self._size.rounds)]
            found["index"] = {"tokens_per_s": statistics.median(rates), "rounds": rates}
            found["rerank"] = self._rerank(running)
            self._check(running)
        finally:
            running.stop()
        return found

    def _index(self, running: Running, turn: int) -> float:
        """Tokens a second of one round: every client sends requests of 32 chunks, one after the other."""
        requests = self._requests(turn)
        tokens = sum(len(text.split()) + 2 for texts in requests for text in texts)
        left: SimpleQueue[list[str]] = SimpleQueue()
        for texts in requests:
            left.put(texts)

        def work() -> None:
            with closing(running.client(LIMIT_S)) as client:
                while True:
                    try:
                        client.embed(left.get_nowait())
                    except Empty:
                        return

        began = time.perf_counter()
        measure.all_of([work] * self._size.clients)
        return tokens / (time.perf_counter() - began)

    def _rerank(self, running: Running) -> dict[str, Any]:
        times, tokens = [], 0
        with closing(running.client(LIMIT_S)) as client:
            for turn in range(-2, self._size.reranks):
                query, documents = self._question(turn)
                tokens = sum(_pair_tokens(query, text) for text in documents)
                seconds, _ = client.rerank(query, documents)
                times += [seconds] if turn >= 0 else []
        return {"tokens_per_s": tokens / statistics.median(times), **measure.latency(times)}

    def _check(self, running: Running) -> None:
        """The answers of the server, kept to be compared with float32; the last figure of the run."""
        texts, (query, documents) = self._texts.chunks(7, self._lengths), self._question(7)
        with closing(running.client(LIMIT_S)) as client:
            found = vectors(client.embed(texts)[1])
            scores = logits(client.rerank(query, documents)[1])
        wanted, expected = self._reference(texts, query, documents)
        order = measure.order(scores, expected)
        self._answers = {"cosine_to_float32": measure.least_cosine(found, wanted), "order": order}
        self._answers["good"] = self._answers["cosine_to_float32"] >= LEAST_COSINE and not order["swapped"]

    # --- in this process -----------------------------------------------------------------------------------------

    def _reference(self, texts: list[str], query: str, documents: list[str]) -> tuple[Any, Any]:
        import torch

        wanted = self._st("embedder", torch.float32).encode(texts, batch_size=4)
        network = self._st("reranker", torch.float32)
        expected = network.predict(
            [(query, text) for text in documents], batch_size=4, activation_fn=torch.nn.Identity()
        )
        return wanted, np.asarray(expected, dtype=np.float64)

    def _in_process(self) -> dict[str, Any]:
        """The model contract alone, for each token budget."""
        from qmd_remote.server.loading import load_models
        from qmd_remote.settings import Settings

        models = {"embed_model": str(self._embedder), "rerank_model": str(self._reranker)}
        settings = Settings(**models, device=self._device, dtype=self._chosen)
        loaded = load_models(settings, lambda *_: None)
        texts = [text for texts in self._requests(0) for text in texts]
        query, documents = self._question(0)
        found: dict[str, Any] = {"forward": loaded.embedder.forward.name}
        prepared: dict[str, tuple[Any, list[Any]]] = {
            "index": (loaded.embedder, loaded.embedder.prepare(texts)),
            "rerank": (loaded.reranker.model, loaded.reranker.model.prepare(loaded.reranker.inputs(query, documents))),
        }
        for kind, (model, items) in prepared.items():
            tokens = sum(item.length for item in items)
            found[kind] = {}
            for budget in BUDGETS:
                work = partial(_forward, model, batches(items, budget, model.packs))
                found[kind][budget] = tokens / self._median(work)
        return found

    def _sentence_transformers(self) -> dict[str, Any]:
        """encode and predict with its own sorting and padding, in the same precision."""
        texts = [text for texts in self._requests(0) for text in texts]
        query, documents = self._question(0)
        pairs = [(query, text) for text in documents]
        embedder, reranker = self._st("embedder", self._dtype), self._st("reranker", self._dtype)
        tokens = sum(len(text.split()) + 2 for text in texts)
        pair_tokens = sum(_pair_tokens(*pair) for pair in pairs)
        return {
            "index": {n: tokens / self._median(lambda n=n: embedder.encode(texts, batch_size=n)) for n in BATCHES},
            "rerank": {
                n: pair_tokens / self._median(lambda n=n: reranker.predict(pairs, batch_size=n)) for n in BATCHES
            },
        }

    def _st(self, kind: str, dtype: Any) -> Any:
        from sentence_transformers import CrossEncoder, SentenceTransformer

        made, folder = (SentenceTransformer, self._embedder) if kind == "embedder" else (CrossEncoder, self._reranker)
        return made(str(folder), device=self._device, model_kwargs={"dtype": dtype})

    def _gemm_peak(self) -> float:
        """FLOP/s of one large matrix product."""
        import torch

        n = self._size.gemm
        with torch.inference_mode():
            a, b = (torch.randn(n, n, device=self._device).to(self._dtype) for _ in range(2))
            return 2.0 * n**3 / self._median(lambda: a @ b, rounds=20)

    def _median(self, work: Callable[[], Any], rounds: int | None = None) -> float:
        """Seconds, after one call that is not counted, the device's work included."""
        times = []
        for _ in range((rounds or self._size.rounds) + 1):
            began = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def _wait(self) -> None:
        import torch

        if self._device != "cpu":
            torch.cuda.synchronize()


def _forward(model: Any, batches: Sequence[Sequence[Any]]) -> None:
    """All batches; the host waits for one while the device computes the next."""
    before = None
    for batch in batches:
        output = model.run(batch)
        if before is not None:
            model.finish(before)
        before = output
    model.finish(before)


def batches(items: Sequence[Any], budget: int, packs: bool) -> list[list[Any]]:
    """`items`, longest first, in batches of at most `budget` tokens, padding included where the model pads."""
    found: list[list[Any]] = []
    spent = 0
    for item in sorted(items, key=lambda one: -one.length):
        cost = item.length if packs or not found else found[-1][0].length
        if not found or spent + cost > budget:
            found.append([])
            spent, cost = 0, item.length
        found[-1].append(item)
        spent += cost
    return found


def _pair_tokens(query: str, document: str) -> int:
    return len(query.split()) + len(document.split()) + 3


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    peers, inside, http = result["sentence_transformers"], result["in_process"], result["http"]
    lines = [
        f"{result['gpu']}, {result['dtype']}; torch {result['versions']['torch']}; "
        f"matrix products reach {result['peak_flops_per_s'] / 1e12:.3g} TFLOP/s; forward: {inside['forward']}",
        "",
        "| tokens/s | nomic, index | bge-reranker-v2-m3, rerank |",
        "| :-- | --: | --: |",
    ]
    rows = [("over HTTP", {kind: http[kind]["tokens_per_s"] for kind in ("index", "rerank")})]
    rows += [(f"in process, batches of {b:,} tokens", {k: inside[k][b] for k in ("index", "rerank")}) for b in BUDGETS]
    rows += [(f"sentence-transformers, batch {n}", {k: peers[k][n] for k in ("index", "rerank")}) for n in BATCHES]
    lines += [f"| {title} | {row['index']:,.0f} | {row['rerank']:,.0f} |" for title, row in rows]
    gain = {kind: http[kind]["tokens_per_s"] / max(peers[kind].values()) for kind in ("index", "rerank")}
    share, answers, rerank = result["share_of_peak"], result["answers"], http["rerank"]
    order = answers["order"]
    return "\n".join(
        [
            *lines,
            f"| over HTTP ÷ the better of sentence-transformers | {gain['index']:.1f}× | {gain['rerank']:.1f}× |",
            f"| over HTTP, share of the peak | {share['index']:.1%} | {share['rerank']:.1%} |",
            "",
            f"One rerank of {DOCUMENTS}: p50 {rerank['p50_ms']:.0f} ms, p95 {rerank['p95_ms']:.0f} ms. Index requests: "
            f"{CHUNKS} chunks. Least cosine to float32: {answers['cosine_to_float32']:.6f}. Pairs the other way round "
            f"than in float32: {order['swapped']} of {order['pairs']}.",
        ]
    )


def main() -> int:
    """Measure, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu for a rehearsal")
    parser.add_argument("--tiny", action="store_true", help="tiny models and little work")
    parser.add_argument("--rounds", type=int, help="rounds of each figure (default 5, with --tiny 2)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    wanted = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    size = TINY if wanted.tiny else FULL
    if wanted.rounds:
        size = Size(**{**vars(size), "rounds": wanted.rounds})
    with tempfile.TemporaryDirectory() as home:
        result = Bench(wanted.device, size, Path(home)).run()
    result["gpu"] = "no GPU" if wanted.device == "cpu" else torch.cuda.get_device_name(wanted.device)
    result["machine"] = machine()
    names = ("torch", "transformers", "sentence-transformers", "qmd-remote")
    result["versions"] = {name: metadata.version(name) for name in names}
    print(table(result))
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=1))
    if not result["answers"]["good"]:
        print("the answers differ from those in float32", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
