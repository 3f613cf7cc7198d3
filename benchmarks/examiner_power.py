"""Power and false alarms of the examiner: every planted fault and every correct step, seed by seed.

    python benchmarks/examiner_power.py --seeds 20            # go on where the results file stops; about two hours
    python benchmarks/examiner_power.py --sets held_out_2     # only some sets of faults
    python benchmarks/examiner_power.py --table               # print what there is

Every case is one whole examination (all groups of tests, budget counted in steps), so that a fault counts as convicted
only when the FIRST finding names its cause. Results go to benchmarks/results/examiner_power.json, written anew after
every case; the order is by seed, so that a partial file is balanced. A row holds the commit of the detectors that it
was measured with; ``--redo NAME`` measures the named faults again, with the detectors as they are now. The run of
earlier detectors over 20 seeds, and what they made of faults on first sight, stands in examiner_power_0a34604.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import faults  # noqa: E402 - the checkout comes first on the path
from tests.faults import _foreign_broken  # noqa: E402
from tests.faults._foreign_correct import correct  # noqa: E402
from tests.faults._innocents import INNOCENTS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "examiner_power.json"
SEEDS = 20
BUDGET = "500 steps"
"""Of an innocent; a fault has its own, mostly the same. A minute is far more on problems of this size."""

Row = dict[str, Any]


def fault_sets() -> dict[str, tuple[Any, ...]]:
    """Faults by set: written with the detectors, after each freeze, and in foreign styles before and after a freeze."""
    return {
        "catalogue": faults.catalogue(), "held_out": faults.held_out(), "held_out_2": faults.held_out_2(),
        "foreign": _foreign_broken.FAULTS, "foreign_later": _foreign_broken.LATER,
    }  # fmt: skip


CORRECT = {**INNOCENTS, **{f"foreign: {name}": build for name, build in correct().items()}}
"""Correct steps, of this library, of Opacus, and in foreign styles."""


def cases(sets: list[str], seeds: int) -> Iterator[Row]:
    """All cases by seed: correct steps, then faults."""
    for seed in range(seeds):
        if "innocents" in sets:
            for name in CORRECT:
                yield {"kind": "innocent", "name": name, "seed": seed}
        for kind in sets:
            for fault in fault_sets().get(kind, ()):
                yield {"kind": kind, "name": fault.name, "seed": seed, "fault": fault}


def measure(case: Row, commit: str) -> Row:
    fault = case.pop("fault", None)
    built = CORRECT[case["name"]](case["seed"]) if fault is None else fault.build(case["seed"])
    begun, work = time.monotonic(), time.process_time()
    result = faults.examine_case(built, budget=BUDGET if fault is None else fault.budget)
    row = {
        **case, "budget": BUDGET if fault is None else fault.budget, "names": list(result.names),
        "seconds": round(time.monotonic() - begun, 3), "cpu_seconds": round(time.process_time() - work, 3),
        "violated": result.violated, "partial": list(result.partial), "detectors": commit,
    }  # fmt: skip
    if result.findings:
        row["witness"] = result.findings[0].text.split("Measured: ")[-1]
    if fault is not None:
        row |= {"expected": fault.expected, "convicted": result.names[:1] == (fault.expected,)}
    return row


def write(results: Row, path: Path) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(results, indent=None, separators=(",", ":")).replace('},{"kind"', '},\n{"kind"') + "\n")
    os.replace(draft, path)


def head() -> Row:
    import torch

    return {
        "schema": "dpaudit.examiner_power/1", "seeds": SEEDS, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine(), "rows": [],
    }  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """Fault, set, convicted of examined, median and largest seconds; and the innocents."""
    lines = ["| Fault | Set | Convicted by name | Median s | Largest s |", "|---|---|---|---|---|"]
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["kind"] != "innocent":
            grouped.setdefault((row["kind"], row["name"]), []).append(row)
    for (kind, name), own in grouped.items():
        seconds = [row["cpu_seconds"] for row in own]
        won = sum(row["convicted"] for row in own)
        spread = f"{statistics.median(seconds):.2f} | {max(seconds):.2f}"
        lines.append(f"| {name} | {kind} | {won}/{len(own)} | {spread} |")
    innocents = [row for row in rows if row["kind"] == "innocent"]
    found = [row for row in innocents if row["violated"]]
    lines += ["", f"correct steps: {len(found)} of {len(innocents)} convicted"]
    return lines + [f"- {row['name']}, seed {row['seed']}: {', '.join(row['names'])}" for row in found]


def commit_of_detectors() -> str:
    asked = ["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", "attacks"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=[*fault_sets(), "innocents"])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--redo", nargs="*", default=[], help="names whose rows are measured again")
    parser.add_argument("--commit", default=commit_of_detectors(), help="of the detectors, where the tree has no git")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else head()
    if not options.table:
        results["rows"] = [row for row in results["rows"] if row["name"] not in options.redo]
        done = {(row["kind"], row["name"], row["seed"]) for row in results["rows"]}
        for case in cases(options.sets, options.seeds):
            if (case["kind"], case["name"], case["seed"]) not in done:
                results["rows"].append(measure(case, options.commit))
                write(results, options.out)
                print(json.dumps(results["rows"][-1]), file=sys.stderr, flush=True)
    print("\n".join(table(results["rows"])))


if __name__ == "__main__":
    main()
