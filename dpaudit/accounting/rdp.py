"""``rdp``: Rényi DP through dp_accounting, a rigorous and loose upper bound, with its known defects refused.

dp_accounting 0.6 does not double the sensitivity of Gaussian events under replace-one (its issue 378): σ=2 at
δ=1e-5 gives 2.17 where the truth is 4.38. Replace-one is therefore refused here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

from dpaudit.accounting.accountant import Accountant, Bounds, Question, charged, resting_on
from dpaudit.accounting.peer import peer_version, quiet, renyi_parts
from dpaudit.accounting.relations import Charges, Component
from dpaudit.accounting.tuning import Tuning
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Mechanism, Relation

MOST_STAGES = 400
"""Distinct sampled stages that are composed: each takes about 25 ms."""
_LEAST_SCALE = 1e-150  # below it α/(2σ²) leaves the range of floats
_MOST_SCALE = 1e100  # wider noise is charged as this, which can only raise ε


@final
class RdpAccountant(Accountant[tuple[Charges, Any]]):
    """Upper bound on ε by Rényi composition (Mironov et al., 1908.10530), and of tuning by 2110.03620."""

    name = "rdp"
    options = frozenset({"assume", "rtol", "tuning"})

    @property
    def version(self) -> str:
        """This package's version with that of dp_accounting."""
        return peer_version()

    def prepare(self, question: Question) -> tuple[Charges, Any]:
        """The ledger as one event of dp_accounting.

        Raises
        ------
        UnsupportedStage
            Replace-one, groups under Poisson sampling, truncated Poisson, sampled Laplace noise, noise too narrow for
            its orders, or more distinct stages than it composes in seconds.
        """
        cost = charged(question)
        return cost, _event(cost, question.ledger.relation, question.tuning)

    def bounds(self, question: Question, prepared: tuple[Charges, Any]) -> Bounds:
        """ε at δ by the best Rényi order."""
        cost, event = prepared
        tuning = question.tuning
        notes = [] if tuning is None else [f"the number of tuning runs is {tuning.name} with mean {tuning.mean:g}"]
        (upper,) = _epsilons(event, (question.delta,))
        return Bounds(upper=math.inf if cost.infinite else upper, notes=resting_on(cost, *notes))


def rdp_curve(ledger: Ledger, deltas: Sequence[float], **options: Any) -> list[float]:
    """Upper bounds on ε at several δ from one Rényi composition, for a curve.

    Raises
    ------
    UnsupportedStage
        As :meth:`RdpAccountant.prepare`.
    """
    cost, event = RdpAccountant().prepare(Question(ledger=ledger, delta=deltas[0], **options))
    return [math.inf] * len(deltas) if cost.infinite else _epsilons(event, deltas)


def _epsilons(event: Any, deltas: Sequence[float]) -> list[float]:
    """ε at each δ of a dp_accounting event; 0 where the ledger has no steps."""
    if event is None:
        return [0.0] * len(deltas)
    dp = renyi_parts()

    with quiet():
        accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(event)
        return [max(0.0, float(accountant.get_epsilon(delta))) for delta in deltas]


def _event(cost: Charges, relation: Relation, tuning: Tuning | None) -> Any:
    if relation is Relation.REPLACE_ONE:
        raise UnsupportedStage(
            "accountant 'rdp' refuses relation='replace_one', where dp_accounting returns half of ε for Gaussian"
            " noise; use accountant 'prv'."
        )
    if len(cost.runs) > MOST_STAGES:
        raise UnsupportedStage(
            f"accountant 'rdp' refuses {len(cost.runs)} distinct sampled stages, which it would compose for minutes"
            f" (bound: {MOST_STAGES}); use accountant 'prv'."
        )
    if cost.infinite:
        return None
    dp = renyi_parts()

    events: list[Any] = []
    if cost.mu:
        _wide_enough(1 / cost.mu)
        events.append(dp.GaussianDpEvent(min(1 / cost.mu, _MOST_SCALE)))
    for step, times in cost.runs:
        if len(step.components) != 1:
            raise UnsupportedStage("accountant 'rdp' cannot treat truncated Poisson stages; use accountant 'prv'.")
        _wide_enough(step.components[0][1].scale)
        events.append(dp.SelfComposedDpEvent(_step_event(step.components[0][1]), times))
    if not events:
        return None
    event: Any = dp.ComposedDpEvent(events)
    if tuning is not None:
        event = dp.dp_event.RepeatAndSelectDpEvent(event, tuning.mean, tuning.shape)
    return event


def _wide_enough(scale: float) -> None:
    if scale < _LEAST_SCALE:
        raise UnsupportedStage(
            f"accountant 'rdp' refuses a noise multiplier of {scale:g} in all (bound: at least {_LEAST_SCALE:g}), where"
            " its moments pass the largest float; use accountant 'prv'."
        )


def _step_event(component: Component) -> Any:
    dp = renyi_parts()

    match component:
        case Component(Mechanism.GAUSSIAN, sigma, (_, q), (_,)):
            return dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(min(sigma, _MOST_SCALE)))
        case Component(Mechanism.LAPLACE, scale, (0.0, _), (_,)):
            return dp.LaplaceDpEvent(min(scale, _MOST_SCALE))
        case _:
            raise UnsupportedStage(
                "accountant 'rdp' has no bound for sampled Laplace noise or for groups under Poisson sampling;"
                " use accountant 'prv'."
            )
