"""How much of the true ε the audit's lower bounds reach, on an ideal Gaussian mechanism; and what an audit costs.

    python benchmarks/bench_audit.py                               # table and timings -> results/audit.json
    python benchmarks/bench_audit.py --quick                       # a tenth of the repetitions
    python benchmarks/bench_audit.py --costs                       # timings alone, put into results/audit.json
    python benchmarks/bench_audit.py --jax-python ENV/bin/python   # jax-privacy on the same scores, beside ours

Each cell is mean(lower bound)/ε at 95 % confidence and δ = 1e-5: m canaries with fair coins, independent Gaussian
scores of unit sensitivity with exactly the claimed ε. "reference" rows are an independent simulation of the same
estimators at 400/200/60 repetitions, without any constraint on the number of guesses.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import commit, load, processor
from scipy.special import ndtr

from dpaudit.auditing import (
    Control,
    Scores,
    audit,
    cp_epsilon_lower,
    design,
    f_dp_epsilon_lower,
    gdp_epsilon_lower,
    snj_epsilon_lower,
    step_noise_bound,
    xiang_mu_lower,
)
from dpaudit.auditing.design import choose_guesses, choose_mechanism_guesses
from dpaudit.auditing.f_dp import gaussian_trade_off
from dpaudit.auditing.gaussian import gdp_epsilon, gdp_mu
from dpaudit.auditing.many_runs import counts_at, dkw_epsilon_lower, split_counts
from dpaudit.auditing.one_run import snj_ceiling
from dpaudit.auditing.steps import step_means_bound
from dpaudit.auditing.xiang import accuracy_mu_lower

DELTA, ALPHA = 1e-5, 0.05
SIZES = {100: 400, 1000: 200, 10_000: 60}
CHEAP = 10
"""Bounds that are functions of counts alone get this many times the repetitions."""
EPSILONS = (1.0, 2.0, 4.0, 8.0)
RESULTS = pathlib.Path(__file__).parent / "results" / "audit.json"

REFERENCE = {
    "SNJ, r = m": [[0.03, 0.05, 0.09, 0.12], [0.11, 0.15, 0.16, 0.16], [0.18, 0.18, 0.18, 0.17]],
    "SNJ, unconstrained k": [[0.03, 0.09, 0.16, 0.21], [0.21, 0.34, 0.39, 0.36], [0.46, 0.53, 0.53, 0.48]],
    "f-DP Gaussian, r = m": [[0.06, 0.10, 0.20, 0.26], [0.21, 0.29, 0.30, 0.29], [0.30, 0.30, 0.30, 0.29]],
    "f-DP Gaussian, own k": [[0.04, 0.16, 0.30, 0.39], [0.32, 0.50, 0.58, 0.57], [0.58, 0.66, 0.69, 0.69]],
    "CP, pre-registered": [[0.0, 0.0, 0.05, 0.11], [0.05, 0.17, 0.26, 0.28], [0.30, 0.40, 0.44, 0.43]],
    "CP, split": [[0.0, 0.0, 0.01, 0.05], [0.01, 0.08, 0.18, 0.23], [0.20, 0.33, 0.38, 0.38]],
    "GDP-mu, pre-registered": [[0.01, 0.03, 0.18, 0.44], [0.19, 0.53, 0.73, 0.82], [0.71, 0.84, 0.91, 0.94]],
    "accuracy test": [[0.15, 0.22, 0.46, 0.66], [0.48, 0.73, 0.84, 0.90], [0.83, 0.90, 0.95, 0.97]],
    "parametric mean/sd": [[0.21, 0.34, 0.57, 0.73], [0.58, 0.79, 0.87, 0.92], [0.86, 0.93, 0.95, 0.97]],
}
KINDS = {
    "SNJ, r = m": "one run",
    "SNJ, unconstrained k": "one run",
    "SNJ, ceiling > 1.1 claim": "one run (what an audit uses)",
    "f-DP Gaussian, r = m": "one run, conditional",
    "f-DP Gaussian, own k": "one run, conditional",
    "CP, pre-registered": "many runs",
    "CP, split": "many runs",
    "CP, DKW": "many runs",
    "GDP-mu, pre-registered": "many runs, conditional",
    "accuracy test": "one run, conditional",
    "sorted losses (Xiang)": "one run, conditional",
    "parametric mean/sd": "many runs, conditional, asymptotic",
}

_fdp = functools.lru_cache(maxsize=None)(functools.partial(f_dp_epsilon_lower, delta=DELTA, alpha=ALPHA, tol=1e-5))


@functools.cache
def _xiang(m: int, right: int) -> float:
    return gdp_epsilon(xiang_mu_lower(m, m, right, ALPHA, tol=1e-4), DELTA)


@functools.cache
def _accuracy(m: int, hits: int) -> float:
    return gdp_epsilon(accuracy_mu_lower(m, hits, ALPHA), DELTA)


def best_cut(bound: Callable[..., float], n: int, mu: float) -> float:
    """Threshold, fixed beforehand, whose bound at the expected counts is largest for scores N(0, 1) and N(μ, 1)."""
    cuts = np.linspace(mu / 2, mu / 2 + 3.5, 141)

    def value(cut: float) -> float:
        tp, fp = round(n * float(ndtr(mu - cut))), round(n * float(ndtr(-cut)))
        return bound(tp, n, fp, n, DELTA, ALPHA)

    return float(max(cuts, key=value))


def cell(m: int, epsilon: float, repetitions: int, keep: list[Any] | None) -> dict[str, list[float]]:
    """Every estimator's bounds on ``repetitions`` simulated audits."""
    mu = gdp_mu(epsilon, DELTA)
    rng = np.random.default_rng([m, int(epsilon)])
    ids = [f"c{i}" for i in range(m)]
    k_free, _ = choose_guesses(m, epsilon, DELTA, ALPHA, constrained=False)
    k_bound, able = choose_guesses(m, epsilon, DELTA, ALPHA)
    k_fdp = choose_mechanism_guesses(m, mu, ALPHA)
    cp_cut, gdp_cut = best_cut(cp_epsilon_lower, m // 2, mu), best_cut(gdp_epsilon_lower, m // 2, mu)
    out: dict[str, list[float]] = {name: [] for name in KINDS}
    for repetition in range(CHEAP * repetitions):
        member = rng.integers(0, 2, m)
        scores = rng.normal(size=m) + mu * member
        if keep is not None and repetition < repetitions:
            keep.append((scores[member == 1], scores[member == 0]))
        order = np.argsort(-scores)
        head, tail = np.cumsum(member[order]), np.cumsum(1 - member[order[::-1]])
        right = {k: int(head[k - 1] + tail[k - 1]) for k in (m // 2, k_free, k_bound, k_fdp)}
        out["SNJ, r = m"].append(snj_epsilon_lower(m, m, right[m // 2], DELTA, ALPHA))
        out["SNJ, unconstrained k"].append(snj_epsilon_lower(m, 2 * k_free, right[k_free], DELTA, ALPHA))
        if able:
            out["SNJ, ceiling > 1.1 claim"].append(snj_epsilon_lower(m, 2 * k_bound, right[k_bound], DELTA, ALPHA))
        out["f-DP Gaussian, r = m"].append(_fdp(m, m, right[m // 2]))
        out["f-DP Gaussian, own k"].append(_fdp(m, 2 * k_fdp, right[k_fdp]))
        out["accuracy test"].append(_accuracy(m, int(((scores > mu / 2) == member).sum())))
        if repetition >= repetitions:
            continue
        out["sorted losses (Xiang)"].append(_xiang(m, right[m // 2]))
        out["CP, pre-registered"].append(cp_epsilon_lower(*counts_at(scores, member == 1, cp_cut), DELTA, ALPHA))
        out["GDP-mu, pre-registered"].append(gdp_epsilon_lower(*counts_at(scores, member == 1, gdp_cut), DELTA, ALPHA))
        out["CP, split"].append(
            cp_epsilon_lower(*split_counts(Scores(ids, scores, member), DELTA, ALPHA)[0], DELTA, ALPHA)
        )
        out["CP, DKW"].append(dkw_epsilon_lower(scores, member, DELTA, ALPHA))
        bound = step_means_bound(scores[member == 1], scores[member == 0], alpha=ALPHA)
        out["parametric mean/sd"].append(gdp_epsilon(bound.mu_lower, DELTA) if bound.mu_lower > 0 else 0.0)
    return out


JAX = """
import json, sys
import numpy as np
from jax_privacy import auditing
data = np.load(sys.argv[1])
delta, alpha = float(sys.argv[2]), float(sys.argv[3])
bonferroni = auditing.Bonferroni()
def one(name, call):
    try:
        return float(call())
    except Exception as error:
        print(name, repr(error)[:200], file=sys.stderr)
        return float("nan")
rows = {"jax one_run": [], "jax one_run_fdp": [], "jax gdp": []}
for i in range(len(data.files) // 2):
    a = auditing.CanaryScoreAuditor(data[f"in{i}"], data[f"out{i}"])
    rows["jax one_run"].append(one("one_run", lambda: a.epsilon_one_run(alpha, delta)))
    rows["jax one_run_fdp"].append(one("fdp", lambda: a.epsilon_one_run_fdp(alpha, delta)))
    rows["jax gdp"].append(one("gdp", lambda: a.epsilon_from_gdp(alpha, delta)))
print(json.dumps(rows))
"""


def jax_rows(python: str, scores: list[Any]) -> dict[str, list[float]]:
    """jax-privacy's bounds on the same scores, computed by its own interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "scores.npz"
        np.savez(path, **{f"{kind}{i}": s for i, pair in enumerate(scores) for kind, s in zip(("in", "out"), pair)})
        command = [python, "-c", JAX, str(path), str(DELTA), str(ALPHA)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print("jax-privacy failed:", done.stderr[-300:], file=sys.stderr)
        return {}
    rows: dict[str, list[float]] = json.loads(done.stdout)
    return rows


def costs() -> dict[str, Any]:
    """CPU seconds and peak memory of an audit of a million canaries, and of the command on two million rows of CSV."""
    m, rng = 1_000_000, np.random.default_rng(0)
    member = rng.integers(0, 2, m)
    scores, ids = rng.normal(size=m) + member, [f"canary-{i}" for i in range(m)]
    start = time.process_time()
    snj_epsilon_lower(m, m, 700_001, DELTA, ALPHA)
    bound = time.process_time() - start
    start = time.process_time()
    plan = design(m, 4.0, DELTA, relation="add_or_remove_one", unit="record")
    control = Control(scores=Scores(ids, scores + 9 * member, member), fault="planted")
    audit(Scores(ids, scores, member), plan, control=control, curve=gaussian_trade_off(gdp_mu(4.0, DELTA)))
    whole = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "processor": processor(),
        "commit": commit(),
        "load": load(),
        "canaries": m,
        "one_run_bound_s": bound,
        "full_audit_s": whole,
        "peak_rss_gib": peak,
        "command": command_costs(2 * m, rng),
    }


def command_costs(rows: int, rng: np.random.Generator) -> dict[str, float]:
    """CPU seconds and peak memory of ``dpaudit audit`` on a CSV of so many rows, from start to exit."""
    member = rng.integers(0, 2, rows)
    scores = (rng.normal(size=rows) + member).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "scores.csv"
        lines = (f"canary-{i},{bit},{score!r}\n" for i, (bit, score) in enumerate(zip(member, scores, strict=True)))
        with path.open("w") as file:
            file.write("id,member,score\n")
            file.writelines(lines)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        asked = [sys.executable, "-m", "dpaudit", "audit", str(path), "--claimed-epsilon", "4", "--delta", str(DELTA)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1, 2):
            raise RuntimeError(f"the command ended with {done.returncode}: {done.stderr[-300:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rows": rows, "seconds": seconds, "peak_rss_gib": after.ru_maxrss / 2**20}


def zeroth_order(seeds: int) -> list[dict[str, Any]]:
    """Share of ε that a step-level audit of a correct zeroth-order mechanism reaches, composed by the accountant.

    Conditional on Gaussian steps. The examiner owns the batch and knows its exact signal; "transcript only" sees the
    releases alone, with 64 clipped records of random sign in each batch, and must take their spread for noise.
    """
    from dpaudit import Stage
    from dpaudit.accounting import account
    from dpaudit.accounting.calibrate import stage_ledger

    rows = []
    for scale, releases, q, steps in ((0.8, 1000, 0.0128, 1000), (4.0, 30_000, 0.0625, 1000)):

        def compose(mu: float, q: float = q, steps: int = steps) -> float:
            stage = Stage(sampling="poisson", sampling_probability=q, noise_multiplier=1 / mu, steps=steps)
            ledger = stage_ledger(stage, "add_or_remove_one")
            return account(ledger, delta=DELTA)[0].epsilon_lower or 0.0

        truth = compose(1 / scale)
        found: dict[str, list[float]] = {"noise": [], "means": []}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            noise = step_noise_bound(rng.normal(0, scale, releases), compose=compose)
            half = releases // 2
            means = step_means_bound(rng.normal(1, scale, half), rng.normal(0, scale, half), compose=compose)
            found["noise"].append((noise.epsilon_lower or 0.0) / truth)
            found["means"].append((means.epsilon_lower or 0.0) / truth)
        rng = np.random.default_rng(seeds)
        seen = rng.normal(0, scale, releases) + rng.choice([-1.0, 1.0], (releases, 64)).sum(axis=1)
        rows.append(
            {
                "noise_over_root_directions": scale,
                "releases": releases,
                "epsilon": truth,
                "known_signal": float(np.mean(found["noise"])),
                "mean_and_sd": float(np.mean(found["means"])),
                "transcript_only": compose(step_noise_bound(seen).mu_lower) / truth,
            }
        )
    return rows


def main() -> None:
    """Print the tables and write results/audit.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    parser.add_argument("--costs", action="store_true", help="what an audit costs, alone")
    parser.add_argument("--jax-python", help="interpreter of an environment with jax-privacy installed")
    parser.add_argument("--jax-repetitions", type=int, default=20, help="repetitions for jax-privacy's slower code")
    options = parser.parse_args()
    spent = costs()
    print(
        f"a million canaries: one-run bound {spent['one_run_bound_s']:.4f} CPU s, full audit with plan, control and all"
        f" estimators {spent['full_audit_s']:.2f} s (target < 5), peak memory {spent['peak_rss_gib']:.2f} GiB (< 1)\n"
        f"the command on two million rows of CSV: {spent['command']['seconds']:.2f} CPU s (target < 10), peak memory"
        f" {spent['command']['peak_rss_gib']:.2f} GiB\n"
    )
    if options.costs:
        stored = json.loads(RESULTS.read_text()) | {"costs": spent}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
        return
    steps = zeroth_order(5 if options.quick else 20)
    print("step-level audit of a correct zeroth-order mechanism; share of epsilon (target 0.75, conditional):")
    for row in steps:
        print(
            f"  sigma/sqrt(P) = {row['noise_over_root_directions']:.1f}, {row['releases']} releases, epsilon"
            f" {row['epsilon']:.2f}: known signal {row['known_signal']:.2f}, mean and sd {row['mean_and_sd']:.2f},"
            f" transcript only {row['transcript_only']:.2f}"
        )
    print()
    table: dict[str, dict[str, list[float | None]]] = {}
    above: dict[str, float] = {}
    for m, full in SIZES.items():
        repetitions = max(full // 10, 10) if options.quick else full
        columns = []
        for epsilon in EPSILONS:
            keep: list[Any] | None = [] if options.jax_python else None
            rows = cell(m, epsilon, repetitions, keep)
            if keep is not None:
                rows.update(jax_rows(options.jax_python, keep[: options.jax_repetitions]))
            columns.append(rows)
            for name, values in rows.items():
                if values:
                    above[name] = max(above.get(name, 0.0), float(np.mean(np.array(values) > epsilon)))
        names = list(columns[0])
        table[str(m)] = {
            name: [float(np.mean(c[name])) / e if c.get(name) else None for c, e in zip(columns, EPSILONS)]
            for name in names
        }
        place = list(SIZES).index(m)
        print(f"m = {m}, {repetitions} repetitions; mean(bound)/epsilon at epsilon = 1, 2, 4, 8")
        for name, ratios in table[str(m)].items():
            shown = " ".join("  -  " if r is None else f"{r:5.2f}" for r in ratios)
            print(f"  {name:26s} {shown}   {KINDS.get(name, 'peer')}")
            if name in REFERENCE:
                print(f"  {'  reference':26s} {' '.join(f'{r:5.2f}' for r in REFERENCE[name][place])}")
        ceilings = " ".join(
            f"{snj_ceiling(m, 2 * choose_guesses(m, e, DELTA, ALPHA)[0], DELTA, ALPHA):5.2f}" for e in EPSILONS
        )
        print(f"  {'ceiling of the audit':26s} {ceilings}   in units of epsilon\n")
    print("largest share of bounds above the truth in any cell:")
    for name, rate in above.items():
        print(f"  {name:26s} {rate:.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    if not options.quick:
        RESULTS.write_text(
            json.dumps({"costs": spent, "zeroth_order": steps, "ratios": table, "largest_excess": above}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
