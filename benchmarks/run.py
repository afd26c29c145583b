"""Our server and its peers side by side: the same QMD-shaped work over HTTP, in turn, in one run.

    python benchmarks/run.py [--quick] [--json FILE] [--write-docs]

docs/benchmarks.md says what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
from harness import models, plot, report, torch_side, venvs
from harness.machine import machine
from harness.servers import Server, infinity, ours, plain, versions
from harness.stage import PLANS, WORK, Stage, say

DOCS = Path(__file__).resolve().parent.parent / "docs"
CACHE = Path(platformdirs.user_cache_dir("qmd-remote-benchmarks"))
OURS = {"qmd-remote": "auto", "qmd-remote, torch": "torch"}
PEERS = ("sentence-transformers", "infinity-emb")


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. `stages`, `rounds` and `servers` follow --quick where they are not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="MiniLM alone, three rounds: some minutes")
    parser.add_argument("--stages", help=f"comma-separated, of {', '.join(PLANS)} (default minilm,bert-base)")
    parser.add_argument("--rounds", type=int, help="rounds of each stage (default 5, with --quick 3)")
    parser.add_argument("--servers", help=f"semicolon-separated, of {'; '.join([*OURS, *PEERS])} (default all)")
    parser.add_argument("--only", help=f"kinds of work, comma-separated, of {', '.join(WORK)} (default all)")
    parser.add_argument("--at-cap", type=float, help="share of the chunks that are as long as they may be")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    parser.add_argument("--cache", type=Path, default=CACHE, help="models and environments (default %(default)s)")
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs (default: a temporary one)")
    parser.add_argument("--limit", type=float, default=300, help="seconds one request may take (default 300)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--from-json", type=Path, help="measure nothing: report what such a file holds")
    parser.add_argument("--write-docs", action="store_true", help="put the tables and the plot into docs/")
    found = parser.parse_args(arguments)
    found.stages = (found.stages or ("minilm" if found.quick else "minilm,bert-base")).split(",")
    if unknown := set(found.stages) - set(PLANS):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}")
    found.servers = [name.strip() for name in found.servers.split(";")] if found.servers else [*OURS, *PEERS]
    if unknown := set(found.servers) - {*OURS, *PEERS}:
        parser.error(f"there is no server {', '.join(sorted(unknown))}")
    found.only = found.only.split(",") if found.only else list(WORK)
    if unknown := set(found.only) - set(WORK):
        parser.error(f"there is no work {', '.join(sorted(unknown))}")
    found.rounds = found.rounds or (3 if found.quick else 5)
    found.peer_python = {name: Path(path) for name, _, path in (item.partition("=") for item in found.peer_python)}
    return found


def servers(wanted: list[str], pythons: dict[str, Path], cache: Path, home: Path) -> list[Server]:
    """The servers by name, in their order; environments that are missing are made."""
    found = []
    for name in wanted:
        if name in OURS:
            found.append(ours(name, Path(sys.executable), OURS[name], home / name.replace(", ", "-")))
            continue
        python = pythons.get(name) or venvs.python_of(name, cache / "venvs")
        found.append(infinity(python, home) if name == "infinity-emb" else plain(python))
    return found


def measured(wanted: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    here = machine()
    with tempfile.TemporaryDirectory() as home:
        logs = wanted.logs or Path(home)
        logs.mkdir(parents=True, exist_ok=True)
        found = servers(wanted.servers, wanted.peer_python, wanted.cache, Path(home))
        plans = [PLANS[name].only(wanted.only) for name in wanted.stages]
        if wanted.at_cap is not None:
            plans = [replace(plan, chunks=replace(plan.chunks, at_cap=wanted.at_cap)) for plan in plans]
        names = list(dict.fromkeys(name for plan in plans for name in (plan.embed, plan.rerank) if name))
        say(f"models: {', '.join(names)}")
        folders = torch_side.apart(torch_side.make_models, names, wanted.cache / "models")
        result: dict[str, Any] = {
            "schema": 1,
            "date": time.strftime("%Y-%m-%d"),
            "machine": here,
            "peak": torch_side.apart(torch_side.gemm_peak, here["flags"]),
            "versions": {server.name: versions(server.python) for server in found},
            "stages": [],
        }
        for plan in plans:
            stage = Stage(plan, folders, models.words(), logs, rounds=wanted.rounds, limit_s=wanted.limit)
            stage.run(found, here["cores"])
            result["stages"].append(stage.result())
            if wanted.json:  # what is measured stays, whatever comes
                wanted.json.write_text(json.dumps(result, indent=1))
        again = torch_side.apart(torch_side.gemm_peak, here["flags"])  # a busy moment lowers one of the two
        result["peak"] = {name: max(value, again[name]) for name, value in result["peak"].items()}
        return result


def main() -> None:
    """Measure or read, then report."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are ended then, as after Ctrl-C
    wanted = options()
    try:
        result = json.loads(wanted.from_json.read_text()) if wanted.from_json else measured(wanted)
    except KeyboardInterrupt:
        sys.exit("interrupted; the servers have ended")
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=1))
    text = report.markdown(result)
    print(text)
    if wanted.write_docs:
        page = DOCS / "benchmarks.md"
        page.write_text(report.replace(page.read_text(encoding="utf-8"), text), encoding="utf-8")
        (DOCS / "benchmarks.svg").write_text(plot.svg(result), encoding="utf-8")


if __name__ == "__main__":
    main()
