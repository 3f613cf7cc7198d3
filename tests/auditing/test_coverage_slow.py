"""Coverage, false alarms and verdicts by simulation: what every bound promises, on mechanisms whose ε is known.

Run by ``make test-slow``. Rates are compared with their promise plus two standard errors.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from dpaudit.auditing import (
    Control,
    Scores,
    audit,
    candidate_epsilon_lower,
    cp_epsilon_lower,
    design,
    f_dp_epsilon_lower,
    gdp_epsilon_lower,
    guess,
    snj_epsilon_lower,
    step_noise_bound,
    xiang_mu_lower,
)
from dpaudit.auditing.f_dp import gaussian_trade_off
from dpaudit.auditing.gaussian import gdp_epsilon, gdp_mu
from dpaudit.auditing.guess import count_correct
from dpaudit.auditing.many_runs import dkw_epsilon_lower, grid_epsilon_lower, split_counts
from dpaudit.auditing.rates import bayesian_epsilon_lower, jeffreys_epsilon_lower, katz_epsilon_lower
from dpaudit.auditing.steps import step_means_bound
from dpaudit.auditing.xiang import accuracy_mu_lower

pytestmark = pytest.mark.slow
DELTA, RUNS = 1e-5, 2000


def at_most(count, runs=RUNS, rate=0.05):
    assert count <= rate * runs + 2 * math.sqrt(runs * rate * (1 - rate)), (count, runs)


def gaussian(rng, m, epsilon):
    """m independent scalar Gaussian mechanisms, one canary each."""
    member = rng.integers(0, 2, m)
    return member, member * gdp_mu(epsilon, DELTA) + rng.normal(size=m)


def laplace(rng, m, epsilon):
    """m independent Laplace mechanisms: (ε, 0)-DP, hence (ε + 2 ln(1 − δ), δ)-DP and no less."""
    member = rng.integers(0, 2, m)
    return member, member + rng.laplace(0.0, 1.0 / epsilon, m)


def interfering(rng, m, epsilon, dimension=40):
    """One release of the sum of all inserted canaries' unit vectors in few dimensions: they jam each other."""
    member = rng.integers(0, 2, m)
    vectors = rng.normal(size=(m, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    release = member @ vectors + rng.normal(size=dimension) / gdp_mu(epsilon, DELTA)
    return member, vectors @ (release - 0.5 * vectors.sum(axis=0))


def one_scalar(rng, m, epsilon):
    """All canaries share one scalar release, so that the number of right guesses varies wildly."""
    member, signs = rng.integers(0, 2, m), rng.choice([-1.0, 1.0], m)
    release = float(signs @ (member - 0.5)) + rng.normal() / gdp_mu(epsilon, DELTA)
    return member, signs * release + 1e-9 * rng.normal(size=m)


def revealing(rng, m, epsilon):
    """Randomised response on every coin, and with probability δ·m a whole block of coins is revealed."""
    member = rng.integers(0, 2, m)
    truth = rng.random(m) < 1 / (1 + math.exp(-epsilon))
    scores = np.where(truth, member, 1 - member) + 0.01 * rng.normal(size=m)
    if rng.random() < m * DELTA / 100:
        scores[:100] = 3.0 * member[:100] - 1.0
    return member, scores


@pytest.mark.parametrize("mechanism", [gaussian, laplace, interfering, one_scalar, revealing])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("m", [100, 1000])
def test_one_run_bound_covers(mechanism, epsilon, m):
    rng = np.random.default_rng(zlib.crc32(f"{mechanism.__name__} {epsilon} {m}".encode()))
    plan = design(m, epsilon, DELTA, relation="add_or_remove_one", unit="record")
    above = {m // 2: 0, plan.guesses_in: 0}
    for _ in range(RUNS):
        member, scores = mechanism(rng, m, epsilon)
        order = np.argsort(-scores)  # no ties here; guess() itself is tested elsewhere
        for k in above:
            right = int(member[order[:k]].sum() + (1 - member[order[m - k :]]).sum())
            above[k] += snj_epsilon_lower(m, 2 * k, right, DELTA) > epsilon
    at_most(max(above.values()))


@pytest.mark.parametrize("mechanism", [gaussian, laplace])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_many_runs_bounds_cover(mechanism, epsilon):
    rng, m = np.random.default_rng(17), 1000
    ids, grid = [f"c{i}" for i in range(m)], np.linspace(-3, 4, 29)
    above = {"split": 0, "dkw": 0, "grid": 0}
    for _ in range(RUNS):
        member, scores = mechanism(rng, m, epsilon)
        counts, _ = split_counts(Scores(ids, scores, member), DELTA)
        above["split"] += cp_epsilon_lower(*counts, DELTA) > epsilon
        above["dkw"] += dkw_epsilon_lower(scores, member, DELTA) > epsilon
        above["grid"] += grid_epsilon_lower(scores, member, grid, DELTA) > epsilon
    for count in above.values():
        at_most(count)


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0])
def test_gaussian_bounds_cover_gaussian_mechanisms(epsilon):
    rng, m = np.random.default_rng(23), 1000
    ids = [f"c{i}" for i in range(m)]
    plan = design(m, epsilon, DELTA, relation="add_or_remove_one", unit="record")
    above = {"f_dp": 0, "xiang": 0, "accuracy": 0}
    for _ in range(RUNS):
        member, scores = gaussian(rng, m, epsilon)
        made, right = count_correct(guess(ids, scores, plan), member)
        above["f_dp"] += f_dp_epsilon_lower(m, made, right, DELTA, tol=1e-4) > epsilon
        made, right = count_correct(guess(ids, scores, (m // 2, m // 2)), member)
        above["xiang"] += _xiang(m, right) > epsilon
        above["accuracy"] += accuracy_mu_lower(m, right) > gdp_mu(epsilon, DELTA)
    for count in above.values():
        at_most(count)


_SEEN: dict[tuple[int, int], float] = {}


def _xiang(m, right):
    if (m, right) not in _SEEN:
        _SEEN[m, right] = gdp_epsilon(xiang_mu_lower(m, m, right, tol=1e-4), DELTA)
    return _SEEN[m, right]


def test_gaussian_bounds_do_not_cover_laplace_mechanisms():
    """Why they are labelled conditional, and never convict on (ε, δ)."""
    rng, m, wrong = np.random.default_rng(29), 10_000, 0
    for _ in range(50):
        member, scores = laplace(rng, m, 1.0)
        tp, fp = int((scores[member == 1] > 0.5).sum()), int((scores[member == 0] > 0.5).sum())
        wrong += gdp_epsilon_lower(tp, int(member.sum()), fp, int(m - member.sum()), DELTA) > 1.0
    assert wrong >= 45


@pytest.mark.parametrize("m", [100, 1000])
def test_null_scores_alarm_no_estimator(m):
    rng, ids = np.random.default_rng(31), [f"c{i}" for i in range(m)]
    plan = design(m, 1.0, DELTA, relation="add_or_remove_one", unit="record")
    names = ["snj", "snj_all", "f_dp", "xiang", "cp", "bayesian", "jeffreys", "gdp", "katz", "split", "dkw"]
    alarms = dict.fromkeys(names, 0)
    for _ in range(RUNS):
        member, scores = rng.integers(0, 2, m), rng.normal(size=m)
        guesses = guess(ids, scores, plan)
        made, right = count_correct(guesses, member)
        half, half_right = count_correct(guess(ids, scores, (m // 2, m // 2)), member)
        inside = guesses == 1
        counts = (
            int((inside & (member == 1)).sum()),
            int(member.sum()),
            int((inside & (member == 0)).sum()),
            int(m - member.sum()),
        )
        split, _ = split_counts(Scores(ids, scores, member), DELTA)
        values = {
            "snj": snj_epsilon_lower(m, made, right, DELTA),
            "snj_all": snj_epsilon_lower(m, half, half_right, DELTA),
            "f_dp": f_dp_epsilon_lower(m, made, right, DELTA, tol=1e-4),
            "xiang": _xiang(m, half_right),
            "cp": cp_epsilon_lower(*counts, DELTA),
            "bayesian": bayesian_epsilon_lower(*counts, DELTA),
            "jeffreys": jeffreys_epsilon_lower(*counts, DELTA),
            "gdp": gdp_epsilon_lower(*counts, DELTA),
            "katz": katz_epsilon_lower(*counts),
            "split": cp_epsilon_lower(*split, DELTA),
            "dkw": dkw_epsilon_lower(scores, member, DELTA),
        }
        for name, value in values.items():
            alarms[name] += value > 0
    print(m, alarms)
    for count in alarms.values():
        at_most(count)


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_correct_mechanism_is_rarely_convicted(epsilon):
    """Both tests of a one-run audit together, at 1,000 seeds: the budget α = 0.05 covers the whole verdict."""
    m, mu = 1000, gdp_mu(epsilon, DELTA)
    ids = [f"c{i}" for i in range(m)]
    plan = design(m, epsilon, DELTA, relation="add_or_remove_one", unit="record")
    verdicts = {}
    for seed in range(1000):
        member, scores = gaussian(np.random.default_rng(seed), m, epsilon)
        result = audit(
            Scores(ids, scores, member), plan, curve=gaussian_trade_off(mu), accounted_upper=epsilon, secondary=False
        )
        verdicts[result.verdict] = verdicts.get(result.verdict, 0) + 1
    assert set(verdicts) <= {"violated", "inconclusive"}
    at_most(verdicts.get("violated", 0), 1000)


def test_null_scores_are_never_consistent_at_any_size():
    strong = np.random.default_rng(0).integers(0, 2, 4000)
    for m, claim in ((100, 0.2), (1000, 1.0), (1000, 3.0), (4000, 0.1), (4000, 4.0)):
        ids = [f"c{i}" for i in range(m)]
        plan = design(m, claim, DELTA, relation="add_or_remove_one", unit="record")
        control = Control(scores=Scores(ids, strong[:m] + np.linspace(0, 0.1, m), strong[:m]))
        for seed in range(200):
            rng = np.random.default_rng(seed)
            result = audit(
                Scores(ids, rng.normal(size=m), rng.integers(0, 2, m)), plan, control=control, secondary=False
            )
            assert result.verdict in ("inconclusive", "violated")


@pytest.mark.parametrize("delta", [0.0, 1e-5])
@pytest.mark.parametrize(("k", "epsilon"), [(16, 1.0), (256, 4.0)])
def test_candidate_bound_covers(k, epsilon, delta):
    rng, above = np.random.default_rng(37), 0
    q = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    for right in rng.binomial(300, q, RUNS):
        above += candidate_epsilon_lower(300, 300, int(right), k, delta) > epsilon
    at_most(above)


@pytest.mark.parametrize(("scale", "releases", "q"), [(0.8, 1000, 0.0128), (4.0, 30_000, 0.0625)])
def test_zeroth_order_step_audit_reaches_three_quarters_of_epsilon(scale, releases, q):
    """σ/√P = ``scale``: a correct mechanism on a batch the examiner owns, composed by the certified accountant."""
    from dpaudit import Stage
    from dpaudit.accounting import account
    from dpaudit.accounting.calibrate import stage_ledger

    def compose(mu):
        stage = Stage(sampling="poisson", sampling_probability=q, noise_multiplier=1 / mu, steps=1000)
        return account(stage_ledger(stage, "add_or_remove_one"), delta=DELTA)[0].epsilon_lower

    truth, noise, means = compose(1 / scale), [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise.append(step_noise_bound(rng.normal(0, scale, releases), compose=compose).epsilon_lower / truth)
        inside, outside = rng.normal(1, scale, releases // 2), rng.normal(0, scale, releases // 2)
        means.append(step_means_bound(inside, outside, compose=compose).epsilon_lower / truth)
    assert np.mean(noise) >= 0.9 and np.mean(means) >= 0.75
    assert np.mean(np.array(noise) > 1.01) <= 0.15
