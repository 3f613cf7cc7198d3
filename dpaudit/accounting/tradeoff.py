"""Trade-off curves: the certified band of TPR at FPR, from ONE composed law for both rates.

Rates of an attacker that has to tell a pair (A, B) apart satisfy TPR ≤ δ(ε) + e^ε·FPR for every ε, and every tail of
the dominated pair is a test whose rates are known. Taking both rates from the same law matters: reading FPR from the
reverse direction's lower tail, as others do, understates TPR by up to 200 times in the corner that counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from dpaudit.accounting.prv.curves import EXACT, Interval, checked, delta_interval, epsilon_interval
from dpaudit.accounting.prv.loss import Array
from dpaudit.accounting.prv.pair import Pair, dominated, dominating, spacing
from dpaudit.accounting.prv.participation import total_variation
from dpaudit.accounting.prv.saddle import aim_at_rate
from dpaudit.accounting.prv.sides import directions, sides, with_gaussian
from dpaudit.accounting.relations import Charges, charges
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.ledger import Ledger


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TradeOff:
    """Certified band of the best attack's true-positive rate at false-positive rates ``fpr`` (ascending).

    ``tpr_lower ≤ best TPR ≤ tpr_upper``, the worse of both directions of the relation.
    """

    fpr: Array
    tpr_lower: Array
    tpr_upper: Array


def rates(cost: Charges, fpr: Sequence[float] | Array) -> TradeOff:
    """Certified TPR band of a cost at the given false-positive rates."""
    asked = np.sort(np.asarray(fpr, dtype=np.float64))
    if asked.size == 0 or not (asked[0] >= 0 and asked[-1] <= 1):
        raise InvalidValue("fpr must hold probabilities in [0, 1]; give at least one.")
    if cost.infinite:
        return TradeOff(asked, np.ones_like(asked), np.ones_like(asked))
    if not cost.runs:
        with np.errstate(divide="ignore"):
            exact = ndtr(ndtri(asked) + cost.mu) if cost.mu else asked
        return TradeOff(asked, exact * (1 - EXACT), np.minimum(exact * (1 + EXACT), 1.0))
    split = sides(cost)
    if not split.on_lattice or not split.above.runs or split.pure:
        return TradeOff(asked, asked, np.minimum(1.0, asked + total_variation(cost)))
    runs, kept = with_gaussian(split.above), with_gaussian(split.below)
    lower, upper = asked.copy(), np.ones_like(asked)
    positive = asked[asked > 0]
    decades = np.unique(np.round(np.log10(np.clip(positive, 1e-14, 0.3)) * 2) / 2)
    per_direction = []
    for direction in directions(split.above):
        best = np.ones_like(asked)
        for exponent in decades:
            aim = aim_at_rate(runs, direction, float(10.0**exponent))
            h = spacing(runs, aim, 4e-5 * (aim.high - aim.low))
            best = np.minimum(best, _upper_rates(dominating(runs, aim, h, 0.005), asked))
            lower = np.maximum(lower, _lower_rates(dominated(kept, aim, h, 0.005), asked))
        per_direction.append(best)
    upper = np.maximum.reduce(per_direction)
    worst = int(np.argmax(lower - upper))
    checked(float(lower[worst]), float(upper[worst]), "rates")
    return TradeOff(asked, lower, upper)


def _upper_rates(pair: Pair, asked: Array) -> Array:
    """Upper bounds on the TPR: TPR ≤ δ(ε) + e^ε·FPR at every lattice loss ε."""
    losses = pair.start + pair.h * np.arange(len(pair.first.value))
    margin = pair.first.scale_error + pair.second.scale_error
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        first = pair.first.value + pair.first.error
        # e^loss · B in the units of A, so that neither leaves the range of floats.
        units = losses + pair.second.log_scale - pair.first.log_scale - margin
        second = np.maximum(pair.second.value - pair.second.error, 0.0) * np.exp(np.minimum(units, 700.0))
        log_gain = np.log(first - second) + pair.first.log_scale + pair.first.scale_error - pair.log_mass_factor
        delta = np.exp(np.minimum(np.logaddexp(log_gain, pair.log_infinite), 0.0))
        delta = np.where(np.isfinite(first - second), delta, 1.0)
        slope = np.exp(np.minimum(losses + pair.shift_error, 700.0))
    keep = (delta < 1) & (slope > 0) & (losses < 700)
    if not keep.any():
        return np.ones_like(asked)
    delta, slope = delta[keep], slope[keep]
    # The best line for a rate is found among its neighbours on the lower envelope.
    best = np.ones_like(asked)
    for start in range(0, len(asked), 64):
        part = asked[start : start + 64]
        best[start : start + 64] = np.minimum(1.0, (delta + slope * part[:, None]).min(axis=1))
    return best


def _lower_rates(pair: Pair, asked: Array) -> Array:
    """Lower bounds on the TPR, by tests that report a loss label of at least j and by mixtures of two of them."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        log_tpr = np.log(pair.first.value - pair.first.error) + pair.first.log_scale - pair.first.scale_error
        log_fpr = np.log(pair.second.value + pair.second.error) + pair.second.log_scale + pair.second.scale_error
        tpr, fpr = np.exp(log_tpr), np.exp(log_fpr)
    good = np.isfinite(tpr) & np.isfinite(fpr) & (tpr > 0) & (fpr <= 1) & (tpr <= 1)
    x, y = np.concatenate(([0.0], fpr[good], [1.0])), np.concatenate(([0.0], tpr[good], [1.0]))
    order = np.lexsort((y, x))
    x, y = x[order], np.maximum.accumulate(y[order])
    return np.maximum(np.interp(asked, x, y), asked)


def tradeoff(
    ledger: Ledger, *, group_size: int = 1, assume: Collection[str] = ()
) -> Callable[[float], tuple[float, float]]:
    """The declared trade-off curve as a callable: ``f(fpr) -> (beta_lower, beta_upper)``.

    ``beta_lower`` is certified: no attack has a smaller false-negative rate at this false-positive rate. ``beta_upper``
    is reached by some attack when the ledger's pair is attained.
    """
    cost = charges(ledger, group_size=group_size, assume=assume)
    known: dict[float, tuple[float, float]] = {}

    def curve(fpr: float) -> tuple[float, float]:
        if fpr not in known:
            validate.probability(fpr=fpr)
            band = rates(cost, [fpr])
            known[fpr] = (1 - float(band.tpr_upper[0]), 1 - float(band.tpr_lower[0]))
        return known[fpr]

    return curve


def tradeoff_curve(
    ledger: Ledger, fpr: Sequence[float] | Array, *, group_size: int = 1, assume: Collection[str] = ()
) -> TradeOff:
    """Certified band of the best TPR at many false-positive rates at once.

    Parameters
    ----------
    ledger : Ledger
        Stages that ran or are planned, with their neighbouring relation.
    fpr : array of shape (n,)
        False-positive rates in [0, 1]; they need not be sorted.
    group_size : int, default=1
        Units of privacy that the claim covers together, beside the ledger's own ``max_records_per_unit``.
    assume : collection of str
        Premises that the caller vouches for and the ledger does not record; an accountant that needs one names it.

    Returns
    -------
    TradeOff
        Arrays of shape (n,) at the rates in ascending order: lower and upper bound on the best true-positive rate.

    Raises
    ------
    InvalidValue
        If a rate is outside [0, 1] or none is given.
    UnsupportedStage
        If a stage cannot be treated.
    """
    return rates(charges(ledger, group_size=group_size, assume=assume), fpr)


def advantage(ledger: Ledger, *, group_size: int = 1, assume: Collection[str] = ()) -> Interval:
    """Certified best membership advantage, max(TPR − FPR) = δ(ε = 0)."""
    return delta_interval(charges(ledger, group_size=group_size, assume=assume), 0.0)


def delta_at(ledger: Ledger, epsilon: float, *, group_size: int = 1, assume: Collection[str] = ()) -> Interval:
    """Certified δ at ε ≥ 0."""
    validate.non_negative(epsilon=epsilon)
    return delta_interval(charges(ledger, group_size=group_size, assume=assume), epsilon)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EpsilonCurve:
    """Certified bounds on ε after each of ``steps`` (ascending)."""

    steps: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]


def epsilon_curve(
    ledger: Ledger,
    delta: float,
    *,
    points: int | Sequence[int] = 40,
    group_size: int = 1,
    assume: Collection[str] = (),
    rtol: float = 5e-3,
) -> EpsilonCurve:
    """ε at δ after each of several step counts: the budget curve of a run, stage boundaries included.

    Parameters
    ----------
    points : int or sequence of int
        How many counts to spread over the run, or the counts themselves (cumulative steps).
    """
    validate.open_unit(delta=delta)
    ends = np.cumsum([stage.steps for stage in ledger.stages]).astype(int)
    total = int(ends[-1]) if len(ends) else 0
    if isinstance(points, int):
        counts = set(np.unique(np.rint(np.linspace(0, total, points + 1)).astype(int))) | set(ends)
    else:
        counts = {int(p) for p in points}
    chosen = sorted(int(c) for c in counts if 0 < c <= total)
    lower: list[float] = []
    upper: list[float] = []
    for count in chosen:
        cost = charges(first_steps(ledger, count), group_size=group_size, assume=assume)
        found = epsilon_interval(cost, delta, rtol=rtol)
        # ε never falls with more steps, so bounds may be carried over.
        lower.append(max(found.lower, lower[-1] if lower else 0.0) if cost.tight else 0.0)
        upper.append(found.upper)
    for i in range(len(upper) - 2, -1, -1):
        upper[i] = min(upper[i], upper[i + 1])
    for low, up in zip(lower, upper):
        checked(low, up, "bounds on epsilon over steps")
    return EpsilonCurve(tuple(chosen), tuple(lower), tuple(upper))


def first_steps(ledger: Ledger, count: int) -> Ledger:
    """The ledger after its first ``count`` steps."""
    left, stages = count, []
    for stage in ledger.stages:
        taken = min(left, stage.steps)
        if taken:
            stages.append(dataclasses.replace(stage, steps=taken))
        left -= taken
    return dataclasses.replace(ledger, stages=tuple(stages))
