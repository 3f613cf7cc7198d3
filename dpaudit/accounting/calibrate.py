"""Calibration: the parameter whose CERTIFIED upper bound meets a target ε."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from dpaudit.accounting.account import epsilon_upper
from dpaudit.accounting.accountant import RTOL
from dpaudit.accounting.prv.curves import epsilon_once
from dpaudit.accounting.relations import charges
from dpaudit.privacy import validate
from dpaudit.privacy.errors import DpauditError, InvalidValue, UnsupportedStage
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.protocols import Budget, Calibratable
from dpaudit.privacy.stage import Clip, Relation, Stage

P = TypeVar("P", bound=Calibratable)
Number = TypeVar("Number", int, float)

LARGEST_SIGMA = 1e12
SMALLEST_SIGMA = 1e-6
LARGEST_STEPS = 10**9
"""Ends of the search. A result that stands at one of them is not the best there is, only the best looked for."""


class _Search:
    """ε of a parameter by one accountant; a refusal on the way counts as not met, and is told where nothing is."""

    def __init__(self, epsilon_of: Callable[[float], float], target: float) -> None:
        validate.positive(target_epsilon=target)
        validate.finite(target_epsilon=target)
        self._epsilon_of, self.target, self._refusal = epsilon_of, target, ""

    def __call__(self, value: float) -> float:
        try:
            return self._epsilon_of(value)
        except UnsupportedStage as error:
            self._refusal = str(error)
            return math.inf

    def unmet(self, sentence: str) -> DpauditError:
        """The error of a search that found nothing."""
        return UnsupportedStage(self._refusal) if self._refusal else InvalidValue(sentence)

    def checked(self, value: Number) -> Number:
        """The value, evaluated once more: what misses its target is refused and never returned."""
        found = self._epsilon_of(value)
        if not found <= self.target:
            raise InvalidValue(
                f"the value found, {value!r}, has a certified epsilon={found} above target epsilon={self.target} when"
                " it is evaluated again; use another accountant, or report this plan as a defect."
            )
        return value


def smallest_meeting(
    epsilon_of: Callable[[float], float],
    target: float,
    *,
    start: float,
    largest: float,
    rtol: float = 1e-4,
    quick: Callable[[float], float] | None = None,
) -> float:
    """Smallest value (to ``rtol`` in ε, on the safe side) whose decreasing ``epsilon_of`` is at most ``target``.

    Regula falsi on log ε against log of the value, bracketed; every value tried is a certified evaluation, and the one
    returned is evaluated twice. Values below 1e-6 are not looked for.

    Parameters
    ----------
    quick : callable, optional
        Something near ε and cheaper, to search with; it need not be a bound. What it finds is evaluated by
        ``epsilon_of``, and searched for with that where it misses the target or lies well below it.
    """
    if quick is not None:
        found = _smallest(_Search(quick, target), start, largest, rtol)
        if target * (1 - 10 * rtol) <= epsilon_of(found) <= target:
            return found
        start = found
    search = _Search(epsilon_of, target)
    return search.checked(_smallest(search, start, largest, rtol))


def _smallest(search: _Search, start: float, largest: float, rtol: float) -> float:
    target = search.target
    low = high = start
    at_low = at_high = search(start)
    # ε falls at least as fast as the value rises, so that the first step is likely to end on the other side.
    step = min(max(0.95 * at_low / target, 0.5), 0.9)
    while at_low <= target:
        high, at_high = low, at_low
        low *= step
        if low < SMALLEST_SIGMA:
            return high
        at_low, step = search(low), 0.5
    step = max(min(1.05 * at_high / target, 2.0), 1.1)
    while at_high > target:
        low, at_low = high, at_high
        if high >= largest:
            raise search.unmet(
                f"target epsilon={target} is not met up to {largest:g}; raise the target, or lower steps or q."
            )
        high = min(step * high, largest)
        at_high, step = search(high), 2.0
    side = 0
    for _ in range(60):
        if at_high >= target * (1 - rtol) or high / low < 1 + 1e-9:
            break
        middle = math.sqrt(low * high) if abs(side) >= 3 else _between(low, high, at_low, at_high, target, rtol)
        side = 0 if abs(side) >= 3 else side
        at_middle = search(middle)
        if at_middle <= target:
            high, at_high, side = middle, at_middle, max(side, 0) + 1
        else:
            low, at_low, side = middle, at_middle, min(side, 0) - 1
    return high


def _between(low: float, high: float, at_low: float, at_high: float, target: float, rtol: float) -> float:
    """Next value to try, aimed a little inside the target so that the safe end is the one that converges."""
    x, y = math.log(low), math.log(high)
    aim = target * (1 - 0.4 * rtol)
    a, b = _gap(at_low, aim), _gap(at_high, aim)
    weight = b / (b - a) if math.isfinite(a) and a != b else 0.5
    return math.exp(y + min(max(weight, 0.02), 0.98) * (x - y))


def _gap(epsilon: float, target: float) -> float:
    return math.log(epsilon / target) if epsilon > 0 else -10.0


def calibrate(plan: P, /, *, accountant: str = "prv", assume: Collection[str] = ()) -> P:
    """The plan with the smallest noise multiplier whose certified ε meets its target.

    Parameters
    ----------
    plan : Calibratable
        Gives ``target_epsilon``, ``delta``, ``with_noise_multiplier(s)`` and ``ledger()``.
    accountant : str
        Whose upper bound has to meet the target.
    assume : collection of str
        Premises that the caller vouches for and the ledger does not record; an accountant that needs one names it.

    Returns
    -------
    Calibratable
        The plan, of the same type, with its noise multiplier σ: the accountant's ε at the plan's δ is at most the
        target.

    Raises
    ------
    InvalidValue
        If the plan has no target, its δ is outside (0, 1), or no σ up to the largest one looked at meets the
        target.
    UnsupportedStage
        If the accountant cannot treat the plan's stages.
    """
    target = plan.target_epsilon
    if target is None:
        raise InvalidValue("target_epsilon=None; give the plan the ε it has to meet, or its noise multiplier.")
    validate.open_unit(delta=plan.delta)

    def epsilon_of(sigma: float) -> float:
        return epsilon_upper(plan.with_noise_multiplier(sigma).ledger(), plan.delta, accountant, assume=assume)

    def quick(sigma: float) -> float:
        ledger = plan.with_noise_multiplier(sigma).ledger()
        return epsilon_once(charges(ledger, assume=assume), plan.delta, RTOL)

    search = quick if accountant == "prv" else None
    sigma = smallest_meeting(epsilon_of, target, start=1.0, largest=LARGEST_SIGMA, quick=search)
    return plan.with_noise_multiplier(sigma)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, slots=True)
class _StagePlan:
    """A plain stage as a plan, for calibration without a trainer."""

    stage: Stage
    relation: Relation
    delta: float
    target_epsilon: float | None
    max_records_per_unit: int = 1

    def with_noise_multiplier(self, noise_multiplier: float) -> _StagePlan:
        return dataclasses.replace(self, stage=dataclasses.replace(self.stage, noise_multiplier=noise_multiplier))

    def ledger(self) -> Ledger:
        return Ledger(stages=(self.stage,), relation=self.relation, max_records_per_unit=self.max_records_per_unit)


def stage_ledger(stage: Stage, relation: str | Relation, *, unit: str = "record") -> Ledger:
    """A ledger of one stage."""
    return Ledger(stages=(stage,), relation=Relation.parse(relation), unit=unit)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageTarget:
    """The ε that one stage has to meet, and how it is accounted.

    Attributes
    ----------
    epsilon, delta : float
    relation : Relation
    accountant : str, default="prv"
    group_size : int, default=1
        Units that change together.
    assume : collection of str
        Assumptions of the accountant.
    """

    epsilon: float
    delta: float
    relation: Relation
    accountant: str = "prv"
    group_size: int = 1
    assume: Collection[str] = ()

    def upper(self, stage: Stage) -> float:
        """Certified upper ε at δ of a stage."""
        ledger = stage_ledger(stage, self.relation)
        return epsilon_upper(ledger, self.delta, self.accountant, group_size=self.group_size, assume=self.assume)


def calibrate_noise_multiplier(stage: Stage, target: StageTarget) -> float:
    """Smallest σ for ``stage`` (its own σ is ignored) whose certified ε at δ meets the target."""
    plan = _StagePlan(stage, target.relation, target.delta, target.epsilon, target.group_size)
    return calibrate(plan, accountant=target.accountant, assume=target.assume).stage.noise_multiplier


def calibrate_steps(stage: Stage, target: StageTarget) -> int:
    """Largest number of steps of ``stage`` (its own is ignored) whose certified ε at δ meets the target.

    At most ``LARGEST_STEPS``: more are not looked for, so that a result of 1e9 says only that so many meet it.
    """

    target_epsilon = target.epsilon
    search = _Search(lambda steps: target.upper(dataclasses.replace(stage, steps=int(steps))), target_epsilon)
    low, at_low = 1, search(1)
    if at_low > target_epsilon:
        raise search.unmet(f"target epsilon={target_epsilon} is not met by a single step; raise the noise multiplier.")
    high, at_high = 1, at_low
    while at_high <= target_epsilon:
        low, at_low = high, at_high
        if high == LARGEST_STEPS:
            return search.checked(high)
        # ε grows about as the root of the steps at first and faster later, so the square of what is missing is tried.
        further = 2.0 if at_low == 0 else min(1.1 * (target_epsilon / at_low) ** 2, 1e6)
        high = min(max(2 * low, math.ceil(low * further)), LARGEST_STEPS)
        at_high = search(high)
    turn = 0
    while high - low > 1:
        turn += 1
        a, b = _gap(at_low, target_epsilon), _gap(at_high, target_epsilon)
        share = a / (a - b) if turn % 3 and math.isfinite(b) else 0.5
        middle = round(low * (high / low) ** min(max(share, 0.0), 1.0))
        middle = min(max(middle, low + 1), high - 1)
        at_middle = search(middle)
        if at_middle <= target_epsilon:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return search.checked(low)


def calibrate_sampling_probability(stage: Stage, target: StageTarget) -> float:
    """Largest q of ``stage`` (its own is ignored) whose certified ε at δ meets the target."""

    def epsilon_of(inverse: float) -> float:
        return target.upper(dataclasses.replace(stage, sampling_probability=1 / inverse))

    search = _Search(epsilon_of, target.epsilon)
    if search(1.0) <= target.epsilon:
        return search.checked(1.0)
    return 1 / smallest_meeting(epsilon_of, target.epsilon, start=64.0, largest=1e12)


def calibrate_split(
    *,
    target_epsilon: float,
    delta: float,
    ledger: Ledger,
    shares: Sequence[float],
    accountant: str = "prv",
    assume: Collection[str] = (),
) -> Ledger:
    """Noise multipliers that divide a budget over stages; the composed certified ε at δ meets the target.

    Parameters
    ----------
    shares : sequence of float
        Per stage, its share of the central-limit μ² = q²T·(e^{1/σ²} − 1), which adds over stages; positive, scaled
        to add up to one. The estimate only divides the budget: the bound that meets the target is certified.
    """
    if len(shares) != len(ledger.stages) or not all(share > 0 for share in shares):
        raise InvalidValue(
            f"shares={list(shares)} must hold one positive number for each of {len(ledger.stages)} stages."
        )
    parts = [share / sum(shares) for share in shares]

    def with_scale(scale: float) -> Ledger:
        # The budget μ² = 1/scale² is divided by the shares, and a stage's σ follows from its part in closed form.
        stages = []
        for stage, part in zip(ledger.stages, parts):
            rate = stage.sampling_probability**2 * stage.steps
            sigma = stage.noise_multiplier if rate == 0 else math.log1p(part / (scale**2 * rate)) ** -0.5
            per_direction = math.sqrt(stage.releases_per_step) if stage.clip is Clip.PER_DIRECTION else 1.0
            stages.append(dataclasses.replace(stage, noise_multiplier=sigma * per_direction))
        return dataclasses.replace(ledger, stages=tuple(stages))

    def epsilon_of(scale: float) -> float:
        return epsilon_upper(with_scale(scale), delta, accountant, assume=assume)

    return with_scale(smallest_meeting(epsilon_of, target_epsilon, start=1.0, largest=LARGEST_SIGMA))


def budget(target_epsilon: float, delta: float, accountant: str = "prv") -> Budget:
    """A callable that gives the ε left of ``target_epsilon`` after a ledger; negative when overspent."""
    validate.positive(target_epsilon=target_epsilon)
    validate.open_unit(delta=delta)

    def remaining(ledger: Ledger, /) -> float:
        return target_epsilon - epsilon_upper(ledger, delta, accountant)

    return remaining
