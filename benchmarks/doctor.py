"""How long `qmd-remote doctor` takes on this machine, as a new process each time.

python benchmarks/doctor.py [--rounds 10] [--preset mini] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

TARGET_S = 3.0


def measure(rounds: int, arguments: list[str]) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of each run, and of each check in each run."""
    runs: list[float] = []
    checks: dict[str, list[float]] = {}
    for _ in range(rounds):
        began = time.perf_counter()
        command = [sys.executable, "-m", "qmd_remote", "doctor", "--json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        runs.append(time.perf_counter() - began)
        said = json.loads(done.stdout)
        if "checks" not in said["data"]:
            sys.exit(said["error"]["message"])
        for row in said["data"]["checks"]:
            checks.setdefault(row["name"], []).append(row["seconds"])
    return runs, checks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--preset", default="")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    runs, checks = measure(asked.rounds, ["--preset", asked.preset] if asked.preset else [])
    median, slowest = statistics.median(runs), {name: max(times) for name, times in checks.items()}
    if asked.json:
        print(json.dumps({"median_s": round(median, 3), "worst_s": round(max(runs), 3), "checks_worst_s": slowest}))
        return
    print(f"doctor: median {median:.2f} s, worst {max(runs):.2f} s of {asked.rounds} (aim: {TARGET_S:g} s)")
    for name, seconds in sorted(slowest.items(), key=lambda one: -one[1])[:3]:
        print(f"  {name}: {seconds:.2f} s at worst")


if __name__ == "__main__":
    main()
