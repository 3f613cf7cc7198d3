"""The largest value that a monotone test rejects: bisection, and interpolation on the grid of that bisection."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc, betaincinv

from dpaudit.auditing.f_dp import f_dp_mu_bracket, f_dp_mu_lower
from dpaudit.auditing.one_run import snj_epsilon_lower, snj_p_value
from dpaudit.auditing.power import best_mu_guesses, expected_mu_lower
from dpaudit.auditing.rates import bayesian_epsilon_lower
from dpaudit.auditing.solve import largest_not_above, largest_rejected
from dpaudit.auditing.xiang import _error_rates, _log_p, _order_quantiles, xiang_mu_lower


@given(
    root=st.floats(0, 900),
    power=st.sampled_from([0.2, 1.0, 3.0, 9.0]),
    step=st.booleans(),
    start=st.sampled_from([1.0, 2.0]),
    tol=st.sampled_from([1e-2, 1e-4, 1e-9]),
)
def test_interpolation_ends_where_bisection_does(
    root: float, power: float, step: bool, start: float, tol: float
) -> None:
    def value(x: float) -> float:
        if step:
            return 1.0 if x > root else -1.0
        return float(x**power - root**power)

    found = largest_not_above(value, 0.0, start=start, limit=700.0, tol=tol)
    assert found == largest_rejected(lambda x: value(x) <= 0.0, start=start, limit=700.0, tol=tol)
    assert value(found) <= 0.0 and (found == 700.0 or root - found <= tol * 1.001)


def test_it_takes_few_evaluations_and_none_off_the_answer() -> None:
    seen: list[float] = []

    def value(x: float) -> float:
        seen.append(x)
        return math.expm1(x) - 5.0

    assert abs(largest_not_above(value, 0.0, start=1.0, tol=1e-9) - math.log(6.0)) < 1e-9
    assert len(seen) <= 16  # bisection takes 33
    assert largest_not_above(lambda x: x + 1.0, 0.0, tol=1e-9) == 0.0


@given(
    m=st.integers(2, 20_000),
    share=st.floats(0.01, 1),
    right=st.floats(0.4, 1),
    delta=st.sampled_from([0.0, 1e-7, 1e-4]),
)
def test_the_one_run_bound_is_that_of_bisection(m: int, share: float, right: float, delta: float) -> None:
    guesses = max(1, int(m * share))
    correct = min(guesses, round(guesses * right))

    def rejects(epsilon: float) -> bool:
        return snj_p_value(m, guesses, correct, epsilon, delta) <= 0.05

    expected = largest_rejected(rejects, start=2.0, limit=700.0, tol=1e-6)
    assert snj_epsilon_lower(m, guesses, correct, delta, 0.05, tol=1e-6) == expected


@settings(max_examples=25, deadline=None)
@given(m=st.integers(4, 5_000), mu=st.floats(0.05, 8), alpha=st.sampled_from([0.04, 0.005, 0.5]), data=st.data())
def test_the_best_number_of_guesses_is_that_of_comparing_all(
    m: int, mu: float, alpha: float, data: st.DataObject
) -> None:
    guesses = data.draw(st.lists(st.integers(1, m // 2).map(lambda k: 2 * k), min_size=1, max_size=8))
    assert best_mu_guesses(m, guesses, mu, alpha) == max(guesses, key=lambda k: expected_mu_lower(m, k, mu, alpha))


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 5_000), share=st.floats(0.01, 1), right=st.floats(0, 1))
def test_a_bracket_narrowed_twice_ends_where_one_search_ends(m: int, share: float, right: float) -> None:
    guesses = max(1, int(m * share))
    correct = round(guesses * right)
    rough = f_dp_mu_bracket(m, guesses, correct, tol=2.0**-4)
    low, high = f_dp_mu_bracket(m, guesses, correct, tol=1e-4, within=rough)
    assert rough[0] <= low == f_dp_mu_lower(m, guesses, correct, tol=1e-4) <= high <= rough[1]


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 2_000), share=st.floats(0.01, 1), right=st.floats(0, 1))
def test_the_bound_by_sorted_losses_is_that_of_bisection(m: int, share: float, right: float) -> None:
    guesses = max(1, int(m * share))
    correct, levels = round(guesses * right), _order_quantiles(m, guesses)
    expected = largest_rejected(
        lambda mu: _log_p(guesses - correct, _error_rates(mu, levels)) <= math.log(0.05),
        start=1.0,
        limit=60.0,
        tol=1e-4,
    )
    assert xiang_mu_lower(m, guesses, correct, tol=1e-4) == expected


@settings(max_examples=15, deadline=None)
@given(tp=st.integers(0, 300), fp=st.integers(0, 200), delta=st.sampled_from([0.0, 1e-5, 0.1]))
def test_the_credible_bound_is_that_of_bisection(tp: int, fp: int, delta: float) -> None:
    nodes = betaincinv(fp + 0.5, 200 - fp + 0.5, (np.arange(4096) + 0.5) / 4096)

    def private(epsilon: float) -> bool:
        grow = math.exp(min(epsilon, 700.0))
        edge = np.clip(np.maximum(1 - delta - grow * nodes, (1 - delta - nodes) / grow), 0, 1)
        return bool(np.mean(1.0 - betainc(300 - tp + 0.5, tp + 0.5, edge)) < 0.05)

    expected = largest_rejected(private, start=2.0, limit=700.0, tol=1e-9)
    assert bayesian_epsilon_lower(tp, 300, fp, 200, delta) == expected
