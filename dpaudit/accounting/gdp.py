"""Gaussian DP: exact for unsampled stages, a certified μ over a range of δ otherwise, and the central-limit estimate.

Sampling has no useful global μ: in the far corner a sampled run behaves as if every step had been sampled. So a
certified μ* is stated for δ ≥ δ_min only: for δ in [δ_min, 1) the ledger's ε(δ) is at most that of the μ*-Gaussian.
The central-limit value is an estimate, up to 23 times below the truth, and never a bound.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from dpaudit.accounting.relations import Charges, Component
from dpaudit.privacy import validate
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.stage import Mechanism


def gaussian_delta(mu: float, epsilon: float) -> float:
    """δ(ε) of a Gaussian with mean shift μ: Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) (Balle and Wang, 1805.06530).

    >>> round(gaussian_delta(1.0, 0.0), 6)
    0.382925
    """
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    return math.exp(_log_delta(mu, epsilon))


def _log_delta(mu: float, epsilon: float) -> float:
    """log δ(ε), without cancellation in the far tail."""
    a = float(log_ndtr(mu / 2 - epsilon / mu))
    gap = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - a
    return a + math.log(-math.expm1(gap)) if gap < 0 else -math.inf


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε at δ of a Gaussian with mean shift μ, exact to about 1e-12 relative; 0 where δ ≥ δ(0).

    >>> round(gaussian_epsilon(1.0, 1e-5), 4)
    4.3772
    """
    validate.non_negative(mu=mu)
    validate.open_unit(delta=delta)
    if mu == 0 or math.log(delta) >= _log_delta(mu, 0.0):
        return 0.0
    if math.isinf(mu):
        return math.inf
    target = math.log(delta)
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * target)
    # High is the Chernoff bound, so the root lies between.
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _log_delta(mu, middle) > target else (low, middle)
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The μ whose curve passes through (ε, δ)."""
    low, high = 0.0, 1.0
    target = math.log(delta)
    while _log_delta(high, epsilon) < target:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if middle and _log_delta(middle, epsilon) > target else (middle, high)
    return high


def gaussian_tpr(mu: float, fpr: float) -> float:
    """Largest true-positive rate of a test at false-positive rate ``fpr``: Φ(Φ⁻¹(fpr) + μ)."""
    return float(ndtr(ndtri(fpr) + mu))


def clt_mu(charges: Charges) -> float:
    """Central-limit μ of a ledger: Σ q²T(e^{1/σ²} − 1) plus the exact part (Bu et al., 1911.11607).

    An ESTIMATE: up to 23 times below the truth for rare, noisy participation, above it for small σ.
    """
    if charges.infinite:
        return math.inf
    total = charges.mu_squared
    for step, times in charges.runs:
        match step.components:
            case ((_, Component(Mechanism.GAUSSIAN, sigma, (_, q), (_,))),):
                with np.errstate(over="ignore"):
                    total += float(times * q * q * np.expm1(sigma**-2))
            case _:
                raise UnsupportedStage(
                    "accountant 'gdp-clt' knows one record under plain Poisson-sampled Gaussian stages only;"
                    " use accountant 'prv'."
                )
    return math.sqrt(total)


def exact_mu(charges: Charges) -> float | None:
    """μ of a ledger whose every stage is unsampled Gaussian, or None."""
    if charges.infinite:
        return math.inf
    return math.sqrt(charges.mu_squared) if not charges.runs else None
