"""Tests of a profile by independent canaries: never below the exact tail, at its level, and sharp."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from dpaudit import InvalidValue
from dpaudit.auditing.gaussian import gdp_delta, gdp_epsilon
from dpaudit.auditing.independent import (
    EPSILONS,
    independent_epsilon_lower,
    independent_p_value,
    profile_counts,
    profile_test,
    profile_test_of_counts,
)


def exact_tail(v: int, n: int, w: int, m: int, epsilon: float, delta: float) -> float:
    """P[N_in − e^ε (n/m) N_out ≥ observed] by enumeration, at the worst rate of a fine grid."""
    cost = math.exp(epsilon) * n / m
    observed = v - cost * w
    worst = 0.0
    for a in np.linspace(0, (1 - delta) / math.exp(epsilon), 60):
        outs = np.arange(m + 1)
        needed = np.ceil(observed + cost * outs - 1e-9)
        tail = binom.sf(needed - 1, n, min(1.0, math.exp(epsilon) * a + delta))
        worst = max(worst, float((binom.pmf(outs, m, a) * tail).sum()))
    return worst


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 3),
    st.sampled_from([0, 1e-5, 0.1]),
)
@settings(max_examples=60, deadline=None)
def test_p_value_is_at_least_the_exact_tail(n: int, m: int, u: float, x: float, epsilon: float, delta: float) -> None:
    v, w = round(u * n), round(x * m)
    assert independent_p_value(v, n, w, m, epsilon, delta) >= exact_tail(v, n, w, m, epsilon, delta) * (1 - 1e-9)


def test_p_value_is_within_a_small_factor_of_the_exact_tail() -> None:
    exact = exact_tail(60, 100, 10, 100, 1.0, 0.0)
    assert exact < independent_p_value(60, 100, 10, 100, 1.0, 0.0) < 12 * exact


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 4), st.floats(0, 4))
@settings(max_examples=60, deadline=None)
def test_more_evidence_and_smaller_claims_are_refuted_more(v: int, w: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    slack = 1 + 1e-9
    assert independent_p_value(v, 50, w, 50, low, 1e-5) <= independent_p_value(v, 50, w, 50, high, 1e-5) * slack
    if v < 50:
        assert independent_p_value(v + 1, 50, w, 50, low, 1e-5) <= independent_p_value(v, 50, w, 50, low, 1e-5) * slack


def gaussian_scores(rng: np.random.Generator, m: int, mu: float, shrink: float = 1.0, shift: float = 0.0):  # type: ignore[no-untyped-def]
    coins = rng.random(m) < 0.5
    x = shrink * rng.standard_normal(m) + mu * coins + shift
    return mu * x - mu * mu / 2, coins


DELTAS = tuple(gdp_delta(1.0, e) for e in EPSILONS)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_false_alarms_stay_below_the_level_also_under_a_common_shift(shift: float) -> None:
    rng = np.random.default_rng(0)
    alarms = sum(
        profile_test(*gaussian_scores(rng, 2000, 1.0, shift=shift * rng.standard_normal()), DELTAS).p_value <= 0.1
        for _ in range(60)
    )
    assert alarms <= 0.1 * 60 + 2 * math.sqrt(0.1 * 0.9 * 60)


def test_less_noise_is_refuted_where_it_shows() -> None:
    rng = np.random.default_rng(1)
    assert profile_test(*gaussian_scores(rng, 100_000, 1.0), DELTAS).p_value > 0.05
    scores, coins = gaussian_scores(rng, 100_000, 1.0, shrink=0.9)
    test = profile_test(scores, coins, DELTAS)
    assert test.p_value < 1e-6
    assert test.counts.inside > test.expected
    assert profile_test_of_counts(profile_counts(scores, coins, DELTAS), DELTAS) == test


def test_the_conditional_bound_is_below_the_truth_and_above_nothing() -> None:
    rng = np.random.default_rng(2)
    truth = gdp_epsilon(1.0, 1e-5)
    bounds = [independent_epsilon_lower(*gaussian_scores(rng, 10_000, 1.0), 1e-5) for _ in range(5)]
    assert all(1.0 < bound < truth for bound in bounds)
    assert independent_epsilon_lower(*gaussian_scores(rng, 10_000, 0.0001), 1e-5) < 0.05


def test_bad_counts_and_shapes_are_refused() -> None:
    with pytest.raises(InvalidValue, match="no counts"):
        independent_p_value(3, 2, 0, 2, 1.0, 0.0)
    with pytest.raises(InvalidValue, match="as many"):
        profile_test([0.0], [1], [0.1])
    with pytest.raises(InvalidValue, match="alike"):
        profile_test([0.0, 1.0], [1], DELTAS)
