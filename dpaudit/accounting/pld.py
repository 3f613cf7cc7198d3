"""``pld``: privacy loss distributions through dp_accounting, a rigorous upper bound where float64 carries it.

Its FFT leaves negative mass of about 1e-12 that it never clips, so that at δ ≤ 1e-11 its "pessimistic" ε falls below
the truth (q=.01, σ=1, T=1e4, δ=1e-13: 10.515 against at least 10.827). Such δ are refused. Its grid has a fixed width,
so that a wide loss takes any time and memory there is: ledgers beyond a number of grid points are refused too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

from dpaudit.accounting.accountant import Accountant, Bounds, Question, charged, resting_on
from dpaudit.accounting.peer import peer_version, quiet
from dpaudit.accounting.prv.loss import loss_range
from dpaudit.accounting.prv.saddle import spread_of
from dpaudit.accounting.prv.sides import WIDE, sides, with_gaussian
from dpaudit.accounting.relations import Charges, Component, Step
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Mechanism, Relation

SMALLEST_DELTA = 1e-10
GRID = 1e-4
"""Width of dp_accounting's grid."""
MOST_STEP_POINTS = 6e5
"""Grid points of single steps, over all distinct stages: a loop in Python passes them one by one, 10 to 20 s in all."""
MOST_POINTS = 5e6
"""Grid points of the composed loss: about 10 s and 0.5 GB."""
MOST_FINE = 100_000
"""Steps whose loss is finer than the grid: they are composed one by one."""
_LEAST_SCALE = 1e-3  # narrower noise has losses of more than any number of points
_MOST_SCALE = 1e100  # wider noise is charged as this, which can only raise ε


@final
class PldAccountant(Accountant[tuple[Charges, list[Any]]]):
    """Upper bound on ε by the connect-the-dots discretisation on a grid of 1e-4 (2207.04380)."""

    name = "pld"
    options = frozenset({"assume", "rtol"})

    @property
    def version(self) -> str:
        """This package's version with that of dp_accounting."""
        return peer_version()

    def prepare(self, question: Question) -> tuple[Charges, list[Any]]:
        """The ledger as events of dp_accounting.

        Raises
        ------
        UnsupportedStage
            δ at or below 1e-10, a pair that dp_accounting does not have, or a loss too wide for its grid.
        """
        if question.delta <= SMALLEST_DELTA:
            raise UnsupportedStage(
                f"accountant 'pld' refuses delta={question.delta}, where its float64 FFT can fall below the truth"
                f" (bound: above {SMALLEST_DELTA}); use accountant 'prv'."
            )
        cost = charged(question)
        if cost.infinite:
            return cost, []
        _small_enough(cost)
        import dp_accounting as dp

        events = []
        if cost.mu:
            # Under REPLACE_ONE dp_accounting doubles the sensitivity, which μ holds already, so the noise is doubled
            # too.
            events.append(dp.GaussianDpEvent(min((2 if _symmetric(cost, question) else 1) / cost.mu, _MOST_SCALE)))
        events += [dp.SelfComposedDpEvent(_event(step), times) for step, times in cost.runs]
        return cost, events

    def bounds(self, question: Question, prepared: tuple[Charges, list[Any]]) -> Bounds:
        """ε at δ of the composed distribution."""
        cost, events = prepared
        (upper,) = _epsilons(cost, events, question, (question.delta,))
        return Bounds(upper=upper, notes=resting_on(cost))


def pld_curve(ledger: Ledger, deltas: Sequence[float], **options: Any) -> list[float | None]:
    """Upper bounds on ε at several δ from one composition, for a curve; None at a δ that ``pld`` refuses.

    Raises
    ------
    UnsupportedStage
        As :meth:`PldAccountant.prepare`, whatever δ is.
    """
    kept = [delta for delta in deltas if delta > SMALLEST_DELTA]
    if not kept:
        return [None] * len(deltas)
    question = Question(ledger=ledger, delta=min(kept), **options)
    found = iter(_epsilons(*PldAccountant().prepare(question), question, kept))
    return [next(found) if delta > SMALLEST_DELTA else None for delta in deltas]


def _epsilons(cost: Charges, events: Sequence[Any], question: Question, deltas: Sequence[float]) -> list[float]:
    """ε at each δ, from one composed privacy loss distribution."""
    if cost.infinite:
        return [math.inf] * len(deltas)
    import dp_accounting as dp

    relations = dp.NeighboringRelation
    with quiet():
        accountant = dp.pld.PLDAccountant(
            relations.REPLACE_ONE if _symmetric(cost, question) else relations.ADD_OR_REMOVE_ONE
        )
        for event in events:
            accountant.compose(event)
        return [max(0.0, float(accountant.get_epsilon(delta))) for delta in deltas]


def _symmetric(cost: Charges, question: Question) -> bool:
    return question.ledger.relation is Relation.REPLACE_ONE and any(
        part.mechanism is Mechanism.GAUSSIAN for step, _ in cost.runs for _, part in step.components
    )


def _small_enough(cost: Charges) -> None:
    """Refuse a question whose grid points would fill memory or take hours."""
    runs = with_gaussian(sides(cost).above)
    narrow = any(part.scale < _LEAST_SCALE for step, _ in runs for _, part in step.components)
    single = math.inf if narrow else sum(_points(step) for step, _ in runs)
    if not single <= MOST_STEP_POINTS:
        raise UnsupportedStage(
            f"accountant 'pld' refuses a ledger whose single steps take {single:.3g} points of its grid of {GRID:g}"
            f" (bound: {MOST_STEP_POINTS:.0e}, some 20 seconds); use accountant 'prv'."
        )
    if any(_points(step) < 3 and times > MOST_FINE for step, times in cost.runs):
        raise UnsupportedStage(
            f"accountant 'pld' refuses more than {MOST_FINE} steps whose loss is finer than its grid of {GRID:g}, which"
            " it composes one by one; use accountant 'prv'."
        )
    width = max(spread_of(runs, direction) for direction in (1, -1)) / GRID
    if not width <= MOST_POINTS:
        raise UnsupportedStage(
            f"accountant 'pld' refuses a ledger whose composed loss takes {width:.3g} points of its grid of {GRID:g}"
            f" (bound: {MOST_POINTS:.0e}, some 0.5 GB); use accountant 'prv'."
        )


def _points(step: Step) -> float:
    """Grid points of one step's loss, over all its components."""
    ranges = [(len(part.up), *loss_range(part, 9.0)) for _, part in step.components if part.scale < WIDE]
    return sum(count * (high - low) / GRID for count, low, high in ranges)


def _event(step: Step) -> Any:
    import dp_accounting as dp

    if step.truncation is not None:
        population, q, cap, sigma = step.truncation
        return dp.TruncatedSubsampledGaussianDpEvent(population, q, cap, sigma)
    ((_, component),) = step.components
    match component:
        case Component(Mechanism.LAPLACE, scale, (0.0, _), (_,)):
            return dp.LaplaceDpEvent(min(scale, _MOST_SCALE))
        case Component(Mechanism.LAPLACE, scale, (_, q), (_,)):
            return dp.PoissonSampledDpEvent(q, dp.LaplaceDpEvent(min(scale, _MOST_SCALE)))
        case Component(Mechanism.GAUSSIAN, sigma, (_, q), down) if len(down) <= 2:
            return dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(min(sigma, _MOST_SCALE)))
        case Component(Mechanism.GAUSSIAN, sigma, up, (_,)):
            return dp.dp_event.MixtureOfGaussiansDpEvent(min(sigma, _MOST_SCALE), list(range(len(up))), list(up))
        case _:
            raise UnsupportedStage(
                "accountant 'pld' has no pair for sampled Laplace noise or for groups under replace_one;"
                " use accountant 'prv'."
            )
