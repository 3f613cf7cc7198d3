"""``gdp-clt``: the central-limit estimate of Gaussian DP, which others print as a bound.

It lies up to 23 times below the truth, and never stands in a field called upper.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np

from dpaudit.accounting.accountant import Accountant, Bounds, Question, charged, resting_on
from dpaudit.accounting.relations import Charges, Component
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.gaussian import gaussian_epsilon
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


@final
class CltAccountant(Accountant[tuple[Charges, float]]):
    """ε by the central-limit theorem for Gaussian DP: an estimate, and never reported as a bound."""

    name = "gdp-clt"
    rigorous = False
    options = frozenset({"assume", "rtol"})

    def prepare(self, question: Question) -> tuple[Charges, float]:
        """The ledger's charges and its central-limit μ, where it has one."""
        cost = charged(question)
        return cost, clt_mu(cost)

    def bounds(self, question: Question, prepared: tuple[Charges, float]) -> Bounds:
        """ε at δ of the central-limit μ, as an estimate."""
        cost, mu = prepared
        value = math.inf if math.isinf(mu) else gaussian_epsilon(mu, question.delta)
        return Bounds(estimate=value, notes=resting_on(cost, "a central-limit estimate, not a bound"))
