"""Gaussian DP: exact for unsampled stages, a certified μ over a range of δ otherwise, and the central-limit estimate.

Sampling has no useful global μ: in the far corner a sampled run behaves as if every step had been sampled. So a
certified μ* is stated for δ ≥ δ_min only: for δ in [δ_min, 1) the ledger's ε(δ) is at most that of the μ*-Gaussian.
The central-limit value is an estimate, up to 23 times below the truth, and never a bound.
"""

from __future__ import annotations

import math

import numpy as np

from dpaudit.accounting.relations import Charges, Component
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.stage import Mechanism


def clt_mu(charges: Charges) -> float:
    """Central-limit μ of a ledger: Σ q²T(e^{1/σ²} − 1) plus the exact part (Bu et al., 1911.11607).

    An ESTIMATE: up to 23 times below the truth for rare, noisy participation, above it for small σ.
    """
    if charges.infinite:
        return math.inf
    squares = [charges.mu]
    for step, times in charges.runs:
        match step.components:
            case ((_, Component(Mechanism.GAUSSIAN, sigma, (_, q), (_,))),):
                with np.errstate(over="ignore"):
                    squares.append(float(math.sqrt(times) * q * np.sqrt(np.expm1(np.square(1 / np.float64(sigma))))))
            case _:
                raise UnsupportedStage(
                    "accountant 'gdp-clt' knows one record under plain Poisson-sampled Gaussian stages only;"
                    " use accountant 'prv'."
                )
    return math.hypot(*squares)


def exact_mu(charges: Charges) -> float | None:
    """μ of a ledger whose every stage is unsampled Gaussian, or None."""
    if charges.infinite:
        return math.inf
    return charges.mu if not charges.runs else None
