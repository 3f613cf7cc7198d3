"""Two checkouts' certified accounting, taking turns in one run, so that both meet the same load.

    python benchmarks/interleaved_accounting.py OLD_CHECKOUT [--rounds 7] [--out benchmarks/results/FILE.json]

CPU seconds of one question, least of all rounds; σ differs by a millionth from question to question, so that no table
is used twice. Each round starts a fresh process for either checkout, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import commit, load, processor

NEW = Path(__file__).parents[1]
CASES: dict[str, tuple[list[tuple[float, float, int]], float, int]] = {
    "MNIST, 14,062 steps": ([(256 / 60000, 1.1, 14062)], 1e-5, 1),
    "q=.01 s=.8 T=5000": ([(0.01, 0.8, 5000)], 1e-5, 1),
    "q=.082 s=3 T=2500": ([(0.082, 3.0, 2500)], 1e-5, 1),
    "q=.024 s=.8 T=410": ([(1024 / 42061, 0.8, 410)], 1e-5, 1),
    "q=.001 s=1 T=1e5": ([(0.001, 1.0, 100_000)], 1e-5, 1),
    "ten stages": ([(0.01, 1.5 - 0.08 * i, 300) for i in range(10)], 1e-5, 1),
    "fifty stages": ([(0.01, 0.9 + 0.02 * i, 50) for i in range(50)], 1e-5, 1),
    "q=.001 s=1 T=1e6": ([(0.001, 1.0, 10**6)], 1e-6, 1),
    "q=.001 s=1 T=1e9": ([(0.001, 1.0, 10**9)], 1e-6, 1),
    "q=1e-5 s=.5 T=1e9": ([(1e-5, 0.5, 10**9)], 1e-6, 1),
    "q=1e-6 s=.5 T=1e9": ([(1e-6, 0.5, 10**9)], 1e-6, 1),
    "units of 8 records": ([(0.001, 1.0, 5000)], 1e-6, 8),
    "units of 32 records": ([(0.001, 1.0, 5000)], 1e-6, 32),
    "units of 32 records, q=.01": ([(0.01, 2.0, 2000)], 1e-6, 32),
}
CHILD = """
import json, sys, time
import dpaudit
from dpaudit import Ledger, Stage
from dpaudit.accounting import account
found = {}
def stages(parts, i):
    return tuple(Stage(sampling_probability=q, noise_multiplier=s * (1 + 1e-6 * i), steps=t, sampling="poisson")
                 for q, s, t in parts)
for name, (parts, delta, k) in json.loads(sys.argv[1]).items():
    times = []
    for i in range(4):
        ledger = Ledger(stages=stages(parts, i), relation="add_or_remove_one", max_records_per_unit=k)
        start = time.process_time()
        (bound,) = account(ledger, delta=delta)
        times.append(time.process_time() - start)
    found[name] = [min(times[1:]), bound.epsilon_lower, bound.epsilon_upper]
times = []
for i in range(3):
    (stage,) = stages([(0.01, 1.0, 2000)], i)
    start = time.process_time()
    delta = 1e-5 * (1 + 1e-6 * i)
    dpaudit.calibrate(stage, "noise_multiplier", epsilon=3.0, delta=delta, relation="add_or_remove_one")
    times.append(time.process_time() - start)
found["calibration of sigma"] = [min(times), None, None]
print(json.dumps(found))
"""


def ask(checkout: Path) -> dict[str, Any]:
    """One round of one checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, json.dumps(CASES)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds = [(ask(options.old), ask(NEW)) for _ in range(options.rounds)]
    rows = []
    for name in rounds[0][0]:
        row: dict[str, Any] = {"case": name}
        for which, place in (("old", 0), ("new", 1)):
            seconds, lower, upper = min((pair[place][name] for pair in rounds), key=lambda answer: answer[0])
            row |= {f"{which}_ms": round(1e3 * seconds, 2), f"{which}_lower": lower, f"{which}_upper": upper}
        rows.append(row)
        print(f"{name:28s} {row['old_ms']:9.1f} {row['new_ms']:8.1f} ms  [{row['new_lower']}, {row['new_upper']}]")
    summary = {"processor": processor(), "old": commit(options.old), "new": commit(NEW), "load": load()}
    if options.out:
        options.out.write_text(json.dumps(summary | {"rounds": options.rounds, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
