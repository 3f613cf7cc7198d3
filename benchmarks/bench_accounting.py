"""Certified accounting against dp-accounting PLD and Opacus PRV, in one run, one thread, as ratios.

    OMP_NUM_THREADS=1 python benchmarks/bench_accounting.py [--repeats 5] [--no-peers] [--out FILE]

Times are CPU seconds of this process (medians after one warm-up for ours; one run for a peer that takes over two
seconds), so that other work on the machine does not count. Tables are not carried from one repeat to the next: every
call clears the accountant's caches first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import numpy as np

from dpaudit import Ledger, Relation, Stage
from dpaudit.accounting.calibrate import StageTarget, calibrate_noise_multiplier
from dpaudit.accounting.prv.curves import epsilon_interval
from dpaudit.accounting.prv.loss import cells
from dpaudit.accounting.prv.saddle import rough
from dpaudit.accounting.relations import charges

Stages = list[tuple[float, float, int]]

CASES: dict[str, tuple[Stages, float]] = {
    "A mnist": ([(256 / 60000, 1.1, 14062)], 1e-5),
    "B q=.01 s=.8 T=5000": ([(0.01, 0.8, 5000)], 1e-5),
    "C cifar q=.082 s=3 T=2500": ([(0.082, 3.0, 2500)], 1e-5),
    "D li q=.024 s=.8 T=410": ([(1024 / 42061, 0.8, 410)], 1e-5),
    "E q=.001 s=1 T=1e5": ([(0.001, 1.0, 100_000)], 1e-5),
    "F three stages": ([(0.064, 4.0, 300), (0.016, 1.5, 2000), (0.004, 0.9, 1500)], 1e-5),
    "G ten stages": ([(0.01, 1.5 - 0.08 * i, 300) for i in range(10)], 1e-5),
    "H fifty stages": ([(0.01, 0.9 + 0.02 * i, 50) for i in range(50)], 1e-5),
}
LIMITS_MS = {"A mnist": 20.0, "G ten stages": 60.0, "H fifty stages": 250.0, "q=.001 s=1 T=1e6": 60.0}


def ledger(stages: Stages) -> Ledger:
    made = tuple(
        Stage(sampling_probability=q, noise_multiplier=s, steps=t, sampling="poisson")  # type: ignore[arg-type]
        for q, s, t in stages
    )
    return Ledger(stages=made, relation=Relation.ADD_OR_REMOVE_ONE)


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
        if times[-1] > 2:
            break
    return statistics.median(times)


def ours(stages: Stages, delta: float, repeats: int) -> tuple[float, float, float]:
    def run() -> tuple[float, float]:
        cells.cache_clear()
        rough.cache_clear()
        found = epsilon_interval(charges(ledger(stages)), delta)
        return found.lower, found.upper

    lower, upper = run()
    return timed(run, repeats), lower, upper


def pld(stages: Stages, delta: float, repeats: int) -> tuple[float, float]:
    import dp_accounting as dp

    def run() -> float:
        accountant = dp.pld.PLDAccountant()
        for q, s, t in stages:
            accountant.compose(dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(s)), t))
        return float(accountant.get_epsilon(delta))

    value = run() if len(stages) < 20 else math.nan
    return timed(run, repeats if len(stages) < 20 else 1), value


def opacus(stages: Stages, delta: float, repeats: int) -> tuple[float, float]:
    from opacus.accountants import PRVAccountant

    def run() -> float:
        accountant = PRVAccountant()
        accountant.history = [(s, q, t) for q, s, t in stages]
        return float(accountant.get_epsilon(delta, eps_error=0.01))

    value = run() if len(stages) < 20 else math.nan
    return timed(run, repeats if len(stages) < 20 else 1), value


def geometric(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    ours([(0.02, 2.0, 10)], 1e-5, 1)
    rows, ratios = [], {"pld": [], "opacus": []}  # type: ignore[var-annotated]
    print(
        f"{'case':28s} {'ours ms':>8s} {'interval':>21s} {'width':>8s}"
        f" {'PLD ms':>9s} {'x':>6s} {'Opacus':>9s} {'x':>6s}"
    )
    for name, (stages, delta) in CASES.items():
        seconds, lower, upper = ours(stages, delta, options.repeats)
        row: dict[str, object] = {"case": name, "ms": 1e3 * seconds, "lower": lower, "upper": upper}
        text = f"{name:28s} {1e3 * seconds:8.1f} [{lower:9.5f},{upper:9.5f}] {(upper - lower) / upper:8.1e}"
        if not options.no_peers:
            for peer, function in (("pld", pld), ("opacus", opacus)):
                taken, value = function(stages, delta, min(3, options.repeats))
                ratios[peer].append(taken / seconds)
                row |= {f"{peer}_ms": 1e3 * taken, f"{peer}_epsilon": value, f"{peer}_ratio": taken / seconds}
                text += f" {1e3 * taken:9.0f} {taken / seconds:5.0f}x"
        rows.append(row)
        print(text, flush=True)
    for name, stages, delta in (
        ("q=.001 s=1 T=1e6", [(0.001, 1.0, 10**6)], 1e-6),
        ("q=.001 s=1 T=1e9", [(0.001, 1.0, 10**9)], 1e-6),
    ):
        seconds, lower, upper = ours(stages, delta, min(3, options.repeats))
        rows.append({"case": name, "ms": 1e3 * seconds, "lower": lower, "upper": upper})
        print(f"{name:28s} {1e3 * seconds:8.1f} [{lower:9.5f},{upper:9.5f}] {(upper - lower) / upper:8.1e}", flush=True)

    def calibration() -> float:
        cells.cache_clear()
        rough.cache_clear()
        stage = ledger([(0.01, 1.0, 2000)]).stages[0]
        target = StageTarget(epsilon=3.0, delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE)
        return calibrate_noise_multiplier(stage, target)

    calibration()
    seconds = timed(calibration, options.repeats)
    print(f"calibration of sigma: {1e3 * seconds:.1f} ms -> {calibration():.5f}")
    rows.append({"case": "calibration", "ms": 1e3 * seconds})
    summary: dict[str, object] = {
        "processor": machine.processor(),
        "commit": machine.commit(),
        "load": machine.load(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "numpy": np.__version__,
    }
    for peer, values in ratios.items():
        if values:
            summary |= {f"{peer}_geometric": geometric(values), f"{peer}_least": min(values)}
            print(f"against {peer}: geometric mean {geometric(values):.0f}x, least {min(values):.1f}x")
    for row in rows:
        limit = LIMITS_MS.get(str(row["case"]))
        if limit is not None:
            verdict = "met" if float(str(row["ms"])) <= limit else "MISSED"
            print(f"{row['case']}: {float(str(row['ms'])):.1f} ms, target {limit:g} ms {verdict}")
    print(f"peak resident memory of this process, peers included: {summary['peak_rss_mb']:.0f} MB")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"summary": summary, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
