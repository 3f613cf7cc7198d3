"""The Gaussian mechanism's exact curve: ε, δ and μ into one another, for scalars and arrays.

A mechanism is μ-GDP when telling two neighbouring data sets apart is as hard as telling N(0, 1) from N(μ, 1) (Dong,
Roth and Su, 1905.02383). Its curve is δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) (Balle and Wang, 1805.06530). That
difference loses all digits where both terms are tiny or ε is large. With z = ε/μ − μ/2, so that ε = μ·(μ/2 + z), it is

    δ = φ(z)·(R(z) − R(z + μ)),    R(x) = Φ(−x)/φ(x)  (the Mills ratio),

which has no large terms: every function here works on z and on log δ, for any μ and δ that floats can hold.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import erfcx, ndtr, ndtri

from dpaudit.privacy import validate

Array = npt.NDArray[np.float64]
Real = float | Array

_ROOT_2 = math.sqrt(2.0)
_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
_SHORT = 0.02  # below this μ the difference of Mills ratios is summed as a series
_HALVINGS = 80


def mills(x: Array) -> Array:
    """Mills ratio of the standard normal, R(x) = Φ(−x)/φ(x), for x above −37."""
    found: Array = math.sqrt(math.pi / 2) * erfcx(x / _ROOT_2)
    return found


def _fall(z: Array, mu: Array) -> Array:
    """Difference R(z) − R(z + μ) of two Mills ratios, by its series where they are nearly equal."""
    ratio = mills(z)
    # The Mills ratio R has R′(x) = x·R(x) − 1, so each further derivative follows from the two before it: R⁽ⁿ⁺¹⁾ =
    # x·R⁽ⁿ⁾ + n·R⁽ⁿ⁻¹⁾.
    before, slope = ratio, z * ratio - 1
    total, factor = -mu * slope, mu
    for n in range(1, 8):
        before, slope = slope, z * slope + n * before
        factor = factor * mu / (n + 1)
        total = total - factor * slope
    return np.where(mu < _SHORT, total, ratio - mills(z + mu))


def log_delta_at(z: Real, mu: Real) -> Array:
    """log δ of μ-GDP at ε = μ·(μ/2 + z)."""
    z, mu = np.broadcast_arrays(np.asarray(z, dtype=np.float64), np.asarray(mu, dtype=np.float64))
    inside = np.maximum(z, -30.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = -0.5 * inside * inside - _LOG_ROOT_2PI + np.log(np.maximum(_fall(inside, mu), 0.0))
        # Far below zero δ is 1 − Φ(z) less a term that is no larger than Φ(z). Both are below 1e-190 there, so that 1 −
        # 2Φ(z) is δ to the last digit of a float.
        far = np.log1p(-np.minimum(2 * ndtr(z), 1.0))
    return np.where(mu <= 0, -np.inf, np.where(z < -30.0, far, near))


def log_gaussian_delta(mu: Real, epsilon: Real) -> Array:
    """log δ(ε) of μ-GDP, for arrays; −∞ where μ is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.asarray(epsilon) / mu - np.asarray(mu) / 2
    return log_delta_at(np.where(np.isnan(z), np.inf, z), mu)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """δ at ε of μ-GDP, exact to about 1e-12 relative.

    >>> round(gaussian_delta(1.0, 0.0), 6)
    0.382925
    """
    validate.non_negative(mu=mu)
    if mu == 0:
        return max(0.0, -math.expm1(epsilon))
    if math.isinf(mu):
        return 1.0
    return min(1.0, math.exp(float(log_gaussian_delta(mu, epsilon))))


def gaussian_epsilon(mu: float, delta: float, *, below: bool = False) -> float:
    """ε at δ of μ-GDP to about 1e-12 relative, rounded up, or down with ``below``; 0 where δ is at least δ(0).

    Infinite where ε passes the largest float (μ above 1.8e154).

    >>> round(gaussian_epsilon(1.0, 1e-5), 4)
    4.3772
    """
    validate.non_negative(mu=mu)
    validate.open_unit(delta=delta)
    target = math.log(delta)
    low = -mu / 2
    if mu == 0 or float(log_delta_at(low, mu)) <= target:
        return 0.0
    # Φ(−z) ≤ e^{−z²/2}, so the root lies below the z at which this equals δ.
    low, high = max(low, -40.0), math.sqrt(-2 * target)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(log_delta_at(middle, mu)) > target else (low, middle)
    return max(0.0, mu * (mu / 2 + (low if below else high)))


def gaussian_mus(epsilon: Real, delta: Real) -> tuple[Array, Array]:
    """Two neighbouring μ, below and above the one whose curve passes through each (ε, δ); infinite where ε is."""
    epsilon, delta = np.broadcast_arrays(np.asarray(epsilon, dtype=np.float64), np.asarray(delta, dtype=np.float64))
    target = np.log(delta)
    finite = np.where(np.isinf(epsilon), 1.0, epsilon)
    # δ(ε) ≤ δ(0) ≤ μ/√(2π) from below; from above z is below −10 there, so that δ passes 1 − 1e-22.
    low, high = 2 * delta, 10 + np.sqrt(100 + 2 * finite)
    for step in range(_HALVINGS):
        # μ may be anywhere between 1e-323 and 1e154, so the first rounds halve its exponent.
        middle = np.sqrt(low) * np.sqrt(high) if step < 14 else (low + high) / 2
        over = log_gaussian_delta(middle, finite) >= target
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return np.where(np.isinf(epsilon), np.inf, low), np.where(np.isinf(epsilon), np.inf, high)


def gaussian_mu(epsilon: float, delta: float, *, below: bool = False) -> float:
    """The μ whose curve passes through (ε, δ), rounded up, or down with ``below``.

    Rounded up it covers the pair (every mechanism with this ε at δ that is Gaussian is μ-GDP); rounded down its
    mechanism still is (ε, δ)-DP.

    >>> round(gaussian_mu(4.0, 1e-5), 6)
    0.924931
    """
    validate.non_negative(epsilon=epsilon)
    validate.open_unit(delta=delta)
    low, high = gaussian_mus(epsilon, delta)
    return float(low if below else high)


def gaussian_tpr(mu: float, fpr: float) -> float:
    """Largest true-positive rate of a test at false-positive rate ``fpr``: Φ(Φ⁻¹(fpr) + μ).

    >>> round(gaussian_tpr(1.0, 0.01), 4)
    0.0924
    """
    return float(ndtr(ndtri(fpr) + mu))
