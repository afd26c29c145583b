"""Memory over time: how much RAM the engine keeps while it embeds and reranks mixed work.

Runs the engine in this process, on requests of every size from several callers at once, and prints its resident memory
after each half a million tokens. The aim: within 2 % between one and five million tokens.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/memory.py --tokens 5000000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time

from qmd_remote.presets import MINI_EMBED
from qmd_remote.server import memory
from qmd_remote.server.engine import Engine
from qmd_remote.settings import Settings

CALLERS = 3
START_LIMIT_S = 600
WORDS = ("the", "index", "holds", "notes", "about", "rivers", "budgets", "gardens", "meetings", "and", "weather")


def text(rng: random.Random) -> str:
    """A few words, or a whole chunk: two thirds are at the models' usual lengths, the rest shorter."""
    return " ".join(rng.choices(WORDS, k=rng.randint(300, 600) if rng.random() < 2 / 3 else rng.randint(3, 300)))


class Work:
    """Requests as QMD sends them, until `until` tokens have been answered."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._rng = random.Random(seed)
        self.tokens = 0
        self.until = 0

    async def caller(self) -> None:
        while self.tokens < self.until:
            self.tokens += await self._one_request()

    async def _one_request(self) -> int:
        rng, kind = self._rng, self._rng.random()
        if kind < 0.4:
            return (await self._engine.embed([text(rng) for _ in range(32)])).tokens
        if kind < 0.7:
            return (await self._engine.embed([" ".join(rng.choices(WORDS, k=8))])).tokens
        documents = [text(rng) for _ in range(rng.randint(5, 40))]
        return (await self._engine.rerank("notes about rivers", documents)).tokens


async def measure(engine: Engine, options: argparse.Namespace) -> list[dict[str, float]]:
    """A row for each step: tokens so far, resident bytes, tokens per second."""
    await engine.ready(START_LIMIT_S)
    work, rows = Work(engine, options.seed), []
    while work.tokens < options.tokens:
        began, before = time.monotonic(), work.tokens
        work.until = min(options.tokens, before + options.step)
        await asyncio.gather(*(work.caller() for _ in range(CALLERS)))
        rate = (work.tokens - before) / (time.monotonic() - began)
        rows.append({"tokens": work.tokens, "resident_bytes": memory.resident(), "tokens_per_s": round(rate)})
        if not options.json:
            show(rows, options.since)
    return rows


def show(rows: list[dict[str, float]], since: int) -> None:
    """The newest row as a line of the table, with its change since the first one of `since` tokens."""
    if len(rows) == 1:
        print(f"{'tokens':>12} {'MiB':>8} {'change':>8} {'tok/s':>8}")
    last, base = rows[-1], next((row for row in rows if row["tokens"] >= since), None)
    change = f"{last['resident_bytes'] / base['resident_bytes'] - 1:+.1%}" if base else "–"
    print(
        f"{last['tokens']:>12,} {last['resident_bytes'] / 2**20:>8.1f} {change:>8} {last['tokens_per_s']:>8,}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--embed-model", default=MINI_EMBED)
    parser.add_argument("--rerank-model", default=MINI_EMBED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--step", type=int, default=500_000)
    parser.add_argument("--since", type=int, default=1_000_000, help="tokens from which changes count")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engine = Engine(Settings(embed_model=options.embed_model, rerank_model=options.rerank_model, device=options.device))
    engine.start()
    try:
        rows = asyncio.run(measure(engine, options))
    finally:
        engine.close()
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
