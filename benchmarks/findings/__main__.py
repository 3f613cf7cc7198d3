r"""Run a row of the table of findings, or write the table.

    python benchmarks/findings 8                     # every setting and seed of row 8 that is not finished yet
    python benchmarks/findings 8 --only quadratic    # those whose name holds a word
    python benchmarks/findings 7 --steps 2           # a trial: two steps each, nothing is recorded
    python benchmarks/findings 7 --device cuda       # SmolLM2-135M on Rotten Tomatoes, 8 minutes on one H100
    python benchmarks/findings --table               # docs/findings.md from the recorded runs

Finished runs are lines of ``benchmarks/results/findings.jsonl``; calling again goes on where it stopped. The small
models are pretrained on first use and kept (``DPAUDIT_FINDINGS_MODELS`` names the folder).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve().parent
for folder in (HERE.parent, HERE.parents[1]):  # the benchmarks, and a checkout that is not installed
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from findings import store  # noqa: E402
from findings.jobs import Job, Options  # noqa: E402
from findings.rows import jobs_of  # noqa: E402


def run(jobs: Iterable[Job], options: Options, results: Path) -> list[dict[str, object]]:
    """Run what is not finished, and record each run as it ends; a trial is only printed."""
    done = {store.key(found) for found in store.finished(results)} if options.steps is None else set()
    begun, rows = time.monotonic(), []
    for job in jobs:
        if (job.row, job.setting, job.seed) in done:
            continue
        if options.minutes is not None and time.monotonic() - begun > 60 * options.minutes:
            print(f"{options.minutes:g} minutes are over; call again to go on.", flush=True)
            break
        cpu, wall = time.process_time(), time.monotonic()
        found = {"row": job.row, "setting": job.setting, "seed": job.seed, **job.run()}
        found["cpu_seconds"] = round(time.process_time() - cpu, 1)
        found["wall_seconds"] = round(time.monotonic() - wall, 1)
        found["machine"] = store.machine(options.device)
        if options.steps is None:
            store.append(results, found)
        rows.append(found)
        print({k: v for k, v in found.items() if k not in ("stages", "machine")}, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", type=int, nargs="?", choices=range(1, 10), metavar="ROW")
    parser.add_argument("--table", action="store_true", help="write docs/findings.md and stop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--backbone", choices=("small", "smollm2", "stand-in"), help="default: small, or smollm2 on cuda"
    )
    parser.add_argument("--steps", type=int, help="a trial of so many steps; records nothing")
    parser.add_argument("--minutes", type=float, help="begin no further run after so many minutes")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="settings whose name holds it")
    parser.add_argument("--results", type=Path, default=store.RESULTS)
    given = parser.parse_args(arguments)
    if given.table:
        from findings.table import write

        write(given.results)
        return []
    if given.row is None:
        parser.error("name a row from 1 to 9, or --table")
    backbone = given.backbone or ("small" if given.device == "cpu" else "smollm2")
    options = Options(device=given.device, steps=given.steps, backbone=backbone, minutes=given.minutes)
    import torch

    torch.set_num_threads(1)
    jobs = (job for job in jobs_of(given.row, options) if all(word in job.setting for word in given.only))
    return run(jobs, options, given.results)


if __name__ == "__main__":
    main()
