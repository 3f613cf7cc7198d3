"""The one Gaussian curve: against many digits, at both ends of the floats, and its laws."""

from __future__ import annotations

import math
import random

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit.privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu, gaussian_mus, log_delta_at


def log_delta(mu: float, epsilon: mpmath.mpf) -> mpmath.mpf:
    """log δ(ε) by the textbook difference, with as many digits as its cancellation needs."""
    m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
    root = mpmath.sqrt(2)
    return mpmath.log((mpmath.erfc(-(m / 2 - e / m) / root) - mpmath.exp(e) * mpmath.erfc((m / 2 + e / m) / root)) / 2)


def cases(count: int) -> list[tuple[float, float]]:
    draw = random.Random(7)
    return [(10 ** draw.uniform(-12, 4), 10 ** draw.uniform(-320, -0.001)) for _ in range(count)]


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_epsilon_is_right_to_twelve_digits_at_any_mu_and_delta(count: int) -> None:
    for mu, delta in cases(count):
        with mpmath.workdps(60 + int(2 * abs(math.log10(mu)))):
            epsilon = mpmath.mpf(gaussian_epsilon(mu, delta))
            target = mpmath.log(mpmath.mpf(delta))
            if epsilon == 0:
                assert log_delta(mu, mpmath.mpf(0)) <= target + mpmath.mpf("1e-9")
            else:
                assert log_delta(mu, epsilon * (1 - mpmath.mpf("1e-12"))) >= target
                assert log_delta(mu, epsilon * (1 + mpmath.mpf("1e-12"))) <= target


@pytest.mark.parametrize(("mu", "delta"), cases(12))
def test_mu_inverts_epsilon(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    if epsilon > 0:
        assert gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-13)


@given(st.floats(1e-300, 1e308), st.floats(5e-324, 0.999))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_float_is_answered_and_sides_are_kept(mu: float, delta: float) -> None:
    low, high = gaussian_epsilon(mu, delta, below=True), gaussian_epsilon(mu, delta)
    assert 0 <= low <= high
    if high < math.inf:
        assert gaussian_mu(high, delta, below=True) <= gaussian_mu(high, delta)
        assert high == 0 or high == pytest.approx(low, rel=1e-11, abs=1e-300)
    assert 0 <= gaussian_delta(mu, 1.0) <= 1


def test_mu_of_an_infinite_epsilon_is_infinite_and_arrays_agree_with_scalars() -> None:
    low, high = gaussian_mus(np.array([math.inf, 1.0, 0.0]), np.array([1e-5, 1e-200, 0.5]))
    assert high[0] == math.inf and low[1] == gaussian_mu(1.0, 1e-200, below=True)
    assert 2 * 0.5 * (1 + math.erf(high[2] / 2 / math.sqrt(2))) - 1 == pytest.approx(0.5)


def test_the_curve_is_continuous_where_its_two_forms_meet() -> None:
    for z, mu in ((-30.0, 50.0), (2.0, 0.02), (30.0, 0.02)):
        near = [float(log_delta_at(z * (1 + s), mu * (1 + s))) for s in (-1e-13, 1e-13)]
        assert near[0] == pytest.approx(near[1], rel=1e-9, abs=1e-9)
