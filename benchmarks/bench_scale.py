"""Sampler, ledger, accounting, canaries and data commitment at a billion records, on one CPU.

    python benchmarks/bench_scale.py          # -> results/scale_cpu.json

Nothing of a billion rows is made: sampler and ledger never see rows, and what does (the commitment) is measured on a
few and multiplied, which the result says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

RECORDS, BATCH, STEPS, PROCESSES = 10**9, 4096, 20_000, 64


def seconds(work: Any, rounds: int) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - begun) / rounds


def sampler(records: int) -> dict[str, float]:
    """One process's draws of a step, alone and as one of many."""
    from dpaudit.trainers.distributed.replicated import ShardSampler
    from dpaudit.trainers.sampling import PoissonSampler

    q = BATCH / records
    whole, shard = PoissonSampler(records, q), ShardSampler(records, q, rank=3, world=PROCESSES)
    sizes = np.array([len(whole.draw()) for _ in range(300)])
    return {
        "draw_seconds": seconds(whole.draw, 50),
        "draw_seconds_of_one_process": seconds(shard.draw, 50),
        "mean_batch": float(sizes.mean()),
        "variance_over_expected": float(sizes.var() / (BATCH * (1 - q))),
    }


def ledger(records: int, steps: int) -> dict[str, float]:
    """A journal on disk that counts every step, and the account of the whole plan."""
    from dpaudit import Ledger, Stage
    from dpaudit.accounting import account
    from dpaudit.storage.journal import DiskJournal, read_ledger

    stage = Stage(sampling_probability=BATCH / records, noise_multiplier=0.6, steps=steps, sampling="poisson")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "ledger.jsonl"
        journal = DiskJournal(path, relation="add_or_remove_one", unit="record", audit_plan_sha256=None)
        journal.begin(stage)
        begun = time.perf_counter()
        for _ in range(steps):
            journal.count()
        each = (time.perf_counter() - begun) / steps
        journal.seal("completed")
        counted, size = read_ledger(path).steps, sum(p.stat().st_size for p in pathlib.Path(folder).iterdir())
        journal.close()
    planned = dataclasses.replace(stage, steps=10**6)
    million = Ledger(stages=(planned,), relation="add_or_remove_one", unit="record", max_records_per_unit=1)
    begun = time.perf_counter()
    epsilon = account(million, delta=1e-10)[0].epsilon_upper
    return {
        "count_seconds": each, "counted": counted, "bytes": size,
        "account_seconds_of_a_million_steps": time.perf_counter() - begun, "epsilon_at_1e-10": epsilon,
    }  # fmt: skip


def canaries() -> dict[str, float]:
    """In-run canaries of a model of 7e9 coordinates."""
    from dpaudit.attacks.canaries.in_run import draw_in_run_canaries

    begun = time.process_time()
    design = draw_in_run_canaries(7 * 10**9)
    return {"canaries": len(design), "draw_seconds": time.process_time() - begun}


def commitment(records: int) -> dict[str, float]:
    """The HMAC over all records, which reads each once."""
    from dpaudit.trainers.huggingface.continuation import data_digest

    rows = [{"input_ids": list(range(256))} for _ in range(2000)]
    each = seconds(lambda: data_digest(rows, b"key"), 3) / len(rows)
    return {"seconds_a_record": each, "hours_of_all": each * records / 3600}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    default = pathlib.Path(__file__).parent / "results" / "scale_cpu.json"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    asked = parser.parse_args(arguments)
    result = {
        "schema": "dpaudit.bench_scale/1",
        "records": asked.records,
        "batch": BATCH,
        "sampler": sampler(asked.records),
        "ledger": ledger(asked.records, asked.steps),
        "canaries": canaries(),
        "commitment": commitment(asked.records),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
