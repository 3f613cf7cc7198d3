"""Certified answers about a ledger: ε at δ, δ at ε, and upper bounds on ε at many δ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr, ndtri_exp

from dpaudit.accounting.prv import participation
from dpaudit.accounting.prv.pair import chernoff_delta, dominated, dominating, spacing
from dpaudit.accounting.prv.readings import delta_above, delta_below
from dpaudit.accounting.prv.refine import first_upper, refine
from dpaudit.accounting.prv.route import Route
from dpaudit.accounting.prv.saddle import aim_at_delta, aim_at_epsilon
from dpaudit.accounting.prv.sides import Sides, directions, sides, with_gaussian
from dpaudit.accounting.relations import Charges
from dpaudit.privacy.gaussian import gaussian_delta, gaussian_epsilon

EXACT = 1e-12
"""Relative error allowed for the closed Gaussian form."""
_WIDE = 0.1  # relative width from which on an interval is looked for in another way
_WINDOW_SPACING = 1.5  # distance of windows, in normal quantiles of δ


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """``lower ≤ truth ≤ upper``."""

    lower: float
    upper: float


class CrossedBounds(RuntimeError):
    """A certified lower bound came out above an upper one, which cannot be: a defect, to be reported."""


def checked(lower: float, upper: float, what: str = "bounds") -> Interval:
    """The interval; bounds that cross are a defect of this code and never made into a thin interval."""
    if not lower <= upper:
        raise CrossedBounds(f"certified {what} cross: lower={lower!r} is above upper={upper!r}; report this ledger.")
    return Interval(lower, upper)


def exact_interval(value: float) -> Interval:
    """A closed form with its rounding; what passes the largest float is only known to do so."""
    return Interval(min(value * (1 - EXACT), participation.LARGEST), value * (1 + EXACT))


def epsilon_interval(cost: Charges, delta: float, *, rtol: float = 5e-3, atol: float = 1e-9) -> Interval:
    """Certified ε at δ of the dominating pair of a ledger: width at most max(rtol·ε, atol) where float64 allows.

    Wider intervals are returned, never wrong ones, where the window would pass 1.5 million points.

    Raises
    ------
    RuntimeError
        When the two ends cross, which would be a defect of this code.
    """
    if cost.infinite:
        return Interval(math.inf, math.inf)
    if not cost.runs:
        return exact_interval(gaussian_epsilon(cost.mu, delta))
    if participation.total_variation(cost) <= delta:
        return Interval(0.0, 0.0)
    split = sides(cost, delta)
    if not split.above.runs:
        lower = exact_interval(gaussian_epsilon(split.below.mu, delta)).lower
        upper = exact_interval(gaussian_epsilon(split.above.mu, delta - split.spent)).upper + split.pure
        return checked(lower, upper, "bounds on epsilon")
    if not split.on_lattice:
        return _plain(cost, delta)
    found = _by_lattice(split, delta, rtol, atol)
    if found.upper - found.lower > max(_WIDE * found.upper, atol):
        # Near the smallest float few Fourier coefficients do badly and a window may do better, so both are tried.
        again = _by_lattice(split, delta, rtol, atol, few=False)
        found = checked(max(found.lower, again.lower), min(found.upper, again.upper), "bounds on epsilon")
    if found.upper - found.lower > 2 * max(rtol * found.upper, atol):
        plain = _plain(cost, delta)
        found = checked(max(found.lower, plain.lower), min(found.upper, plain.upper), "bounds on epsilon")
    return found


def epsilon_once(cost: Charges, delta: float, rtol: float) -> float:
    """Upper bound on ε, nearly that of :func:`epsilon_interval`, by one round in the direction that is probably larger.

    It proves nothing. It is for searches that evaluate what they find with :func:`epsilon_interval`.
    """
    if cost.infinite or not cost.runs or participation.total_variation(cost) <= delta:
        return epsilon_interval(cost, delta).upper
    split = sides(cost, delta)
    if not split.above.runs or not split.on_lattice:
        return epsilon_interval(cost, delta).upper
    above = with_gaussian(split.above)
    aims = [aim_at_delta(above, direction, math.log(delta)) for direction in directions(split.above)]
    aim = max(aims, key=lambda aim: aim.epsilon)
    upper = first_upper(above, aim, math.log(delta - split.spent), rtol, 1e-9)
    return upper + split.pure if math.isfinite(upper) else epsilon_interval(cost, delta).upper


def _plain(cost: Charges, delta: float) -> Interval:
    lower, upper = participation.epsilon_below(cost, delta), participation.epsilon_above(cost, delta)
    return checked(lower, upper, "bounds on epsilon by participation")


def _by_lattice(split: Sides, delta: float, rtol: float, atol: float, *, few: bool = True) -> Interval:
    """Both directions, the larger one first; with ``few`` by few Fourier coefficients where that can be."""
    above, below = with_gaussian(split.above), with_gaussian(split.below)
    log_deltas = math.log(delta), math.log(delta - split.spent)
    aims = sorted((aim_at_delta(above, d, log_deltas[0]) for d in directions(split.above)), key=lambda a: -a.epsilon)
    lower, upper, route = 0.0, 0.0, Route(above, few=few)
    for aim in aims:
        low, high = refine((below, above), aim, log_deltas, rtol, atol, upper, route)
        checked(low, high, "bounds on epsilon of one direction")
        lower, upper = max(lower, low), max(upper, high)
    if lower == 0 < upper and delta_interval(split.above, 0.0).upper <= delta - split.spent:
        upper = 0.0
    return checked(lower, upper + split.pure, "bounds on epsilon")


def epsilon_uppers(cost: Charges, deltas: Sequence[float], *, rtol: float = 2e-3) -> list[float]:
    """Certified upper bounds on ε at many δ (ascending), from a bounded number of windows.

    A window aimed at one δ is right to many digits at every δ whose normal quantile is near; so windows are spread over
    the quantiles, at most some twenty from the smallest float to 1. ε falls with δ, so that where a window fails the
    bound of a smaller δ stands.
    """
    split = sides(cost)
    if not split.on_lattice or not split.above.runs:
        return _falling([epsilon_interval(cost, delta).upper for delta in deltas])
    runs, log_deltas = with_gaussian(split.above), [math.log(delta) for delta in deltas]
    first, last = (float(-ndtri_exp(log_deltas[i])) for i in (0, -1))
    anchors = np.linspace(first, last, max(2, math.ceil((first - last) / _WINDOW_SPACING) + 1))
    worst = [0.0] * len(deltas)
    for direction in directions(split.above):
        best = [math.inf] * len(deltas)
        for anchor in anchors:
            aim = aim_at_delta(runs, direction, float(log_ndtr(-anchor)))
            route, tolerance = Route(runs), max(0.5 * rtol * aim.epsilon, 1e-6)
            upper, _ = route.above(runs, aim, route.spacing(aim, tolerance), 0.005, tolerance)
            for i, log_delta in enumerate(log_deltas):
                if abs(float(ndtri_exp(log_delta)) + anchor) <= _WINDOW_SPACING:
                    best[i] = min(best[i], upper(log_delta, False))
        worst = [max(w, b + split.pure) for w, b in zip(worst, best)]
    smallest = epsilon_interval(cost, deltas[0], rtol=rtol).upper
    return _falling([min(worst[0], smallest), *worst[1:]])


def _falling(values: Sequence[float]) -> list[float]:
    """Running minimum, since ε never rises with δ."""
    return [float(value) for value in np.minimum.accumulate(np.array(values))]


def delta_interval(cost: Charges, epsilon: float, *, rtol: float = 5e-3) -> Interval:
    """Certified δ at ε of the dominating pair of a ledger; ``rtol`` is the width aimed at in ε."""
    if cost.infinite:
        return Interval(1.0, 1.0)
    if not cost.runs:
        value = gaussian_delta(cost.mu, epsilon)
        return Interval(value * (1 - EXACT), min(1.0, max(value * (1 + EXACT), 5e-324 if cost.mu else 0.0)))
    largest = min(1.0, participation.total_variation(cost))
    split = sides(cost)
    if not split.on_lattice or not split.above.runs or split.pure:
        return Interval(0.0, largest)
    runs, kept = with_gaussian(split.above), with_gaussian(split.below)
    lower, upper = 0.0, 0.0
    for direction in directions(split.above):
        aim = aim_at_epsilon(runs, direction, epsilon)
        h = spacing(runs, aim, max(0.1 * rtol * epsilon, 1e-5 * (aim.high - aim.low)))
        above, below = dominating(runs, aim, h, 0.01), dominated(kept, aim, h, 0.01)
        lower = max(lower, delta_below(below, epsilon))
        upper = max(upper, min(delta_above(above, epsilon), chernoff_delta(runs, aim, h, 0.01, epsilon)))
    return checked(lower, min(upper, largest), "bounds on delta")
