"""Step-level and sequential tests: coverage, power, and the planted faults they are for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.auditing import (
    Scores,
    audit,
    design,
    finding_from_sequence,
    finding_from_step,
    sequential_noise_test,
    step_noise_bound,
)
from dpaudit.auditing.many_runs import dkw_epsilon_lower, grid_epsilon_lower
from dpaudit.auditing.sequential import sequential_bits_test
from dpaudit.auditing.steps import smallest_visible_fault, step_means_bound, step_rates_bound

RUNS = 400
SLACK = 2 * math.sqrt(RUNS * 0.05 * 0.95)


@pytest.mark.parametrize("mu", [0.25, 1.25])
def test_step_bounds_cover(mu):
    rng = np.random.default_rng(0)
    above = {"means": 0, "noise": 0, "rates": 0}
    for _ in range(RUNS):
        inside, outside = rng.normal(mu, 1, 300), rng.normal(0, 1, 300)
        above["means"] += step_means_bound(inside, outside).mu_lower > mu
        above["noise"] += step_noise_bound(outside, sensitivity=mu).mu_lower > mu
        above["rates"] += step_rates_bound(inside, outside, mu / 2).mu_lower > mu
    assert all(count <= 0.05 * RUNS + SLACK for count in above.values()), above
    assert above["noise"] >= 0.05 * RUNS - SLACK  # exact, hence not slack either


def test_step_p_values_are_uniform_at_the_boundary():
    rng = np.random.default_rng(1)
    low = {"means": 0, "noise": 0}
    for _ in range(RUNS):
        inside, outside = rng.normal(1.25, 1, 200), rng.normal(0, 1, 200)
        low["means"] += step_means_bound(inside, outside, declared_mu=1.25).contradicts(0.05)
        low["noise"] += step_noise_bound(outside, sensitivity=1.25, declared_mu=1.25).contradicts(0.05)
    assert all(count <= 0.05 * RUNS + SLACK for count in low.values()), low


@pytest.mark.parametrize(("scale", "releases"), [(0.8, 1000), (4.0, 30_000)])
def test_zeroth_order_step_reaches_most_of_mu(scale, releases):
    """σ/√P in units of the step's sensitivity, a correct mechanism on a batch that the examiner owns."""
    rng, mu = np.random.default_rng(2), 1 / scale
    noise = step_noise_bound(rng.normal(0, scale, releases), compose=lambda m: 10 * m)
    assert 0.95 * mu < noise.mu_lower <= 1.01 * mu and noise.epsilon_lower == pytest.approx(10 * noise.mu_lower)
    half = releases // 2
    means = step_means_bound(rng.normal(1, scale, half), rng.normal(0, scale, half))
    assert 0.85 * mu < means.mu_lower < 1.02 * mu


def test_directions_not_counted_is_convicted():
    """P = 4 scalars per step, noise not scaled by √P: half the declared noise."""
    caught = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        residuals = rng.normal(0, 0.5, 4 * 25)
        caught += step_noise_bound(residuals, sensitivity=1.0, declared_mu=1.0).contradicts(0.005)
    assert caught >= 95


def test_smallest_visible_fault_has_its_power():
    rng, n, alpha = np.random.default_rng(4), 200, 0.005
    factor = smallest_visible_fault(n, alpha)
    caught = np.mean(
        [step_noise_bound(rng.normal(0, 1 / factor, n), declared_mu=1.0).contradicts(alpha) for _ in range(1000)]
    )
    assert caught == pytest.approx(0.8, abs=0.04)


def test_steps_refuse_silence():
    with pytest.raises(InvalidEvidence, match="no noise"):
        step_noise_bound([0.0, 0.0])
    with pytest.raises(InvalidEvidence, match="do not vary"):
        step_means_bound([1.0, 1.0], [1.0, 1.0])
    with pytest.raises(InvalidEvidence, match="NaN"):
        step_noise_bound([0.0, float("nan")])


def test_betting_keeps_its_level_at_every_time():
    rng, epsilon = np.random.default_rng(5), 1.0
    q = 1 / (1 + math.exp(-epsilon))
    wrong = sum(sequential_bits_test(rng.random(400) < q, epsilon).rejected for _ in range(RUNS))
    assert wrong <= 0.05 * RUNS + SLACK


def test_betting_convicts_early_and_says_what_it_refutes():
    rng = np.random.default_rng(6)
    test = sequential_bits_test(rng.random(2000) < 0.95, 1.0)
    assert test.rejected and test.stopped_at < 200 and test.refutes == "(epsilon, 0)"
    with pytest.raises(InvalidEvidence, match="0 and 1"):
        sequential_bits_test([0.5, 1.0], 1.0)


def test_noise_betting():
    rng = np.random.default_rng(7)
    wrong = sum(sequential_noise_test(rng.normal(size=400) * (1 + 0.02 * (s % 2)), 1.0).rejected for s in range(RUNS))
    assert wrong <= 0.05 * RUNS + SLACK
    test = sequential_noise_test(rng.normal(size=2000) * 2.0, 4.0)
    assert test.rejected and test.stopped_at < 60 and test.refutes == "declared step mechanism"


def test_threshold_corrections_keep_their_level():
    rng, wrong = np.random.default_rng(8), {"dkw": 0, "grid": 0}
    grid = np.linspace(-2, 2, 21)
    for _ in range(RUNS):
        member = rng.integers(0, 2, 200)
        scores = rng.normal(size=200)
        wrong["dkw"] += dkw_epsilon_lower(scores, member, 0.0) > 0
        wrong["grid"] += grid_epsilon_lower(scores, member, grid, 0.0) > 0
    assert all(count <= 0.05 * RUNS + SLACK for count in wrong.values()), wrong
    member = np.arange(2000) % 2
    scores = 5.0 * member + rng.normal(size=2000)
    assert dkw_epsilon_lower(scores, member, 1e-5) > 2.5
    assert grid_epsilon_lower(scores, member, grid + 2.5, 1e-5) > 4.0


def test_findings_from_white_box_tests():
    rng = np.random.default_rng(9)
    honest = finding_from_step(step_noise_bound(rng.normal(size=500), declared_mu=1.0), 0.005)
    assert honest.status == "note" and honest.power == 0.8 and "factor of 1.1" in honest.excludes
    faulty = finding_from_step(step_noise_bound(rng.normal(size=500) / 2, declared_mu=1.0), 0.005)
    assert faulty.status == "violated" and faulty.claim == "declared mechanism" and faulty.power is None
    bits = finding_from_sequence(sequential_bits_test(np.ones(200), 1.0), 0.005)
    assert bits.status == "note" and bits.claim == "(epsilon, 0)"
    noise = finding_from_sequence(sequential_noise_test(rng.normal(size=500) / 2, 1.0), 0.005)
    assert noise.status == "violated"


def test_white_box_findings_supply_the_power():
    rng, m = np.random.default_rng(10), 1000
    member = rng.integers(0, 2, m)
    scores = rng.normal(size=m) + 0.9 * member
    plan = design(m, 3.0, 1e-5, relation="add_or_remove_one", unit="record")
    honest = finding_from_step(step_noise_bound(rng.normal(size=2000), declared_mu=1.0), 0.005)
    result = audit(Scores([f"c{i}" for i in range(m)], scores, member), plan, findings=[honest])
    assert result.verdict == "consistent" and "factor" in result.power_source


def test_bad_arguments_of_the_noise_test_are_named_before_anything_is_computed() -> None:
    for options, words in (
        ({"declared_sd": 0.0}, "declared_sd=0.0"),
        ({"declared_sd": -1.0}, "declared_sd=-1.0"),
        ({"declared_sd": 1.0, "faults": (1.0, 2.0)}, "must all exceed 1"),
        ({"declared_sd": 1.0, "faults": ()}, "must all exceed 1"),
        ({"declared_sd": 1.0, "alpha": 2.0}, "alpha=2.0"),
    ):
        with pytest.raises(InvalidValue, match=words):
            sequential_noise_test([0.5, -0.5], **options)
