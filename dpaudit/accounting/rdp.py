"""Rényi DP through dp_accounting: a rigorous, loose upper bound, with its known defects refused.

dp_accounting 0.6 does not double the sensitivity of Gaussian events under replace-one (its issue 378): σ=2 at
δ=1e-5 gives 2.17 where the truth is 4.38. Replace-one is therefore refused here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dpaudit.accounting.relations import Charges, Component
from dpaudit.accounting.tuning import Tuning
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.stage import Mechanism, Relation


def rdp_epsilon(charges: Charges, relation: Relation, delta: float, tuning: Tuning | None = None) -> float:
    """Upper bound on ε at δ; see :func:`rdp_epsilons`."""
    return rdp_epsilons(charges, relation, (delta,), tuning)[0]


def rdp_epsilons(
    charges: Charges, relation: Relation, deltas: Sequence[float], tuning: Tuning | None = None
) -> list[float]:
    """Upper bounds on ε at several δ by Rényi composition (Mironov et al., 1908.10530); tuning by 2110.03620.

    Raises
    ------
    UnsupportedStage
        Replace-one, groups under Poisson sampling, truncated Poisson, sampled Laplace noise.
    """
    if relation is Relation.REPLACE_ONE:
        raise UnsupportedStage(
            "accountant 'rdp' refuses relation='replace_one', where dp_accounting returns half of ε for Gaussian"
            " noise; use accountant 'prv'."
        )
    if charges.infinite:
        return [math.inf] * len(deltas)
    import dp_accounting as dp

    events: list[Any] = []
    if charges.mu:
        events.append(dp.GaussianDpEvent(1 / charges.mu))
    for step, times in charges.runs:
        if len(step.components) != 1:
            raise UnsupportedStage("accountant 'rdp' cannot treat truncated Poisson stages; use accountant 'prv'.")
        events.append(dp.SelfComposedDpEvent(_event(step.components[0][1]), times))
    if not events:
        return [0.0] * len(deltas)
    event: Any = dp.ComposedDpEvent(events)
    if tuning is not None:
        event = dp.dp_event.RepeatAndSelectDpEvent(event, tuning.mean, tuning.shape)
    accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event)
    return [max(0.0, float(accountant.get_epsilon(delta))) for delta in deltas]


def _event(component: Component) -> Any:
    import dp_accounting as dp

    match component:
        case Component(Mechanism.GAUSSIAN, sigma, (_, q), (_,)):
            return dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma))
        case Component(Mechanism.LAPLACE, scale, (0.0, _), (_,)):
            return dp.LaplaceDpEvent(scale)
        case _:
            raise UnsupportedStage(
                "accountant 'rdp' has no bound for sampled Laplace noise or for groups under Poisson sampling;"
                " use accountant 'prv'."
            )
