"""Privacy loss distributions through dp_accounting: a rigorous upper bound where float64 carries it.

Its FFT leaves negative mass of about 1e-12 that it never clips, so that at δ ≤ 1e-11 its "pessimistic" ε falls below
the truth (q=.01, σ=1, T=1e4, δ=1e-13: 10.515 against at least 10.827). Such δ are refused.
"""

from __future__ import annotations

import math
from typing import Any

from dpaudit.accounting.relations import Charges, Component, Step
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.stage import Mechanism, Relation

SMALLEST_DELTA = 1e-10


def pld_epsilon(charges: Charges, relation: Relation, delta: float) -> float:
    """Upper bound on ε at δ by connect-the-dots on dp_accounting's grid of 1e-4 (2207.04380).

    Raises
    ------
    UnsupportedStage
        δ at or below 1e-10, or a pair that dp_accounting does not have.
    """
    if delta <= SMALLEST_DELTA:
        raise UnsupportedStage(
            f"accountant 'pld' refuses delta={delta}, where its float64 FFT can fall below the truth (bound:"
            f" above {SMALLEST_DELTA}); use accountant 'prv'."
        )
    if charges.infinite:
        return math.inf
    import dp_accounting as dp

    symmetric = relation is Relation.REPLACE_ONE and any(
        part.mechanism is Mechanism.GAUSSIAN for step, _ in charges.runs for _, part in step.components
    )
    relations = dp.NeighboringRelation
    accountant = dp.pld.PLDAccountant(relations.REPLACE_ONE if symmetric else relations.ADD_OR_REMOVE_ONE)
    if charges.mu:
        # Under REPLACE_ONE dp_accounting doubles the sensitivity by itself; μ already holds it.
        accountant.compose(dp.GaussianDpEvent((2 if symmetric else 1) / charges.mu))
    for step, times in charges.runs:
        accountant.compose(dp.SelfComposedDpEvent(_event(step), times))
    return max(0.0, float(accountant.get_epsilon(delta)))


def _event(step: Step) -> Any:
    import dp_accounting as dp

    if step.truncation is not None:
        population, q, cap, sigma = step.truncation
        return dp.TruncatedSubsampledGaussianDpEvent(population, q, cap, sigma)
    ((_, component),) = step.components
    match component:
        case Component(Mechanism.LAPLACE, scale, (0.0, _), (_,)):
            return dp.LaplaceDpEvent(scale)
        case Component(Mechanism.LAPLACE, scale, (_, q), (_,)):
            return dp.PoissonSampledDpEvent(q, dp.LaplaceDpEvent(scale))
        case Component(Mechanism.GAUSSIAN, sigma, (_, q), down) if len(down) <= 2:
            return dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma))
        case Component(Mechanism.GAUSSIAN, sigma, up, (_,)):
            return dp.dp_event.MixtureOfGaussiansDpEvent(sigma, list(range(len(up))), list(up))
        case _:
            raise UnsupportedStage(
                "accountant 'pld' has no pair for sampled Laplace noise or for groups under replace_one;"
                " use accountant 'prv'."
            )
