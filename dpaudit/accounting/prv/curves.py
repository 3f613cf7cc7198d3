"""Certified answers about a ledger: ε at δ, δ at ε, and upper bounds on ε at many δ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dpaudit.accounting.prv import participation
from dpaudit.accounting.prv.pair import chernoff_delta, dominated, dominating, spacing
from dpaudit.accounting.prv.readings import delta_above, delta_below, epsilon_above
from dpaudit.accounting.prv.refine import refine
from dpaudit.accounting.prv.saddle import Run, aim_at_delta, aim_at_epsilon
from dpaudit.accounting.relations import Charges, Component, Step
from dpaudit.privacy.gaussian import gaussian_delta, gaussian_epsilon
from dpaudit.privacy.stage import Mechanism

EXACT = 1e-12
"""Relative error allowed for the closed Gaussian form."""
NARROW = 0.02
"""Noise narrower than this share of a shift: bounds by participation are as good as a lattice's, and cheaper."""
_FAINT = 1e-12  # ε of a Gaussian with this μ is below anything that rounding could resolve
_GIVEN_UP = 1e-3  # share of δ for which runs that hardly ever take part are left out of the upper bound


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


def with_gaussian(cost: Charges) -> tuple[Run, ...]:
    """The sampled runs and, fused into one step, everything Gaussian."""
    if cost.mu == 0:
        return cost.runs
    # Beside sampled runs a μ this small is below what their losses are rounded to.
    fused = Component(Mechanism.GAUSSIAN, 1 / max(cost.mu, 1e-100), (0.0, 1.0), (1.0,))
    return (*cost.runs, (Step(((1.0, fused),)), 1))


def directions(cost: Charges) -> tuple[int, ...]:
    """Both, unless every pair is its own mirror image."""
    symmetric = all(
        part.up == part.down or (part.up == (0.0, 1.0) and part.down == (1.0,))
        for step, _ in cost.runs
        for _, part in step.components
    )
    return (1,) if symmetric else (1, -1)


def exact_interval(value: float) -> Interval:
    """A closed form with its rounding; what passes the largest float is only known to do so."""
    return Interval(min(value * (1 - EXACT), participation.LARGEST), value * (1 + EXACT))


def epsilon_interval(cost: Charges, delta: float, *, rtol: float = 5e-3, atol: float = 1e-9) -> Interval:
    """Certified ε at δ of the dominating pair of a ledger: width at most max(rtol·ε, atol) where float64 allows.

    Wider intervals are returned, never wrong ones, where the window would pass 1.5 million points.

    Raises
    ------
    CrossedBounds
        Never, unless this code is wrong.
    """
    if cost.infinite:
        return Interval(math.inf, math.inf)
    if not cost.runs:
        return exact_interval(gaussian_epsilon(cost.mu, delta))
    if participation.total_variation(cost) <= delta:
        return Interval(0.0, 0.0)
    kept, left = _without_rare(cost, delta)
    if not kept.runs:
        exact = epsilon_interval(kept, delta)
        return checked(exact.lower, epsilon_interval(kept, left).upper, "bounds on epsilon")
    narrow = any(part.scale < NARROW for step, _ in kept.runs for _, part in step.components)
    if narrow or everyone(kept) < _FAINT:
        return _plain(cost, delta)
    found = _by_lattice(kept, delta, left, rtol, atol)
    if found.upper - found.lower > 2 * max(rtol * found.upper, atol):
        plain = _plain(cost, delta)
        found = checked(max(found.lower, plain.lower), min(found.upper, plain.upper), "bounds on epsilon")
    return found


def _plain(cost: Charges, delta: float) -> Interval:
    lower, upper = participation.epsilon_below(cost, delta), participation.epsilon_above(cost, delta)
    return checked(lower, upper, "bounds on epsilon by participation")


def everyone(cost: Charges) -> float:
    """μ of a ledger whose every step takes part: above any ε there is, for Gaussian noise."""
    squares = [
        math.sqrt(times) * max(participation.shift(part) / part.scale for _, part in step.components)
        for step, times in cost.runs
    ]
    return math.hypot(cost.mu, *squares)


def _without_rare(cost: Charges, delta: float) -> tuple[Charges, float]:
    """The ledger without runs that hardly ever take part, and the δ that is left for an upper bound.

    Leaving a run out is post-processing for a lower bound, and costs its total variation in δ for an upper one. Runs of
    noise too narrow for a lattice may cost up to half of δ.
    """
    kept, spent = [], 0.0
    for step, times in sorted(cost.runs, key=lambda run: run[1] * participation.step_variation(run[0])):
        price = times * participation.step_variation(step)
        narrow = any(part.scale < NARROW for _, part in step.components)
        if spent + price <= (0.5 if narrow else _GIVEN_UP) * delta:
            spent += price
        else:
            kept.append((step, times))
    if spent == 0:
        return cost, delta
    return dataclasses.replace(cost, runs=tuple(kept)), delta - spent


def _by_lattice(cost: Charges, delta: float, left: float, rtol: float, atol: float) -> Interval:
    """Both directions, the larger one first; ``left`` is the δ of the upper bound."""
    runs, log_delta, log_left = with_gaussian(cost), math.log(delta), math.log(left)
    aims = sorted((aim_at_delta(runs, d, log_delta) for d in directions(cost)), key=lambda a: -a.epsilon)
    lower, upper = 0.0, 0.0
    for aim in aims:
        low, high = refine(runs, aim, (log_delta, log_left), rtol, atol, upper)
        checked(low, high, "bounds on epsilon of one direction")
        lower, upper = max(lower, low), max(upper, high)
    if lower == 0 < upper and delta_interval(cost, 0.0).upper <= left:
        return Interval(0.0, 0.0)
    return checked(lower, upper, "bounds on epsilon")


def epsilon_uppers(cost: Charges, deltas: Sequence[float], *, rtol: float = 2e-3) -> list[float]:
    """Certified upper bounds on ε at many δ (ascending), two windows for every decade of δ."""
    runs = with_gaussian(cost)
    count = max(2, math.ceil(2 * math.log10(deltas[-1] / deltas[0])) + 1)
    anchors = [float(a) for a in np.geomspace(deltas[0], deltas[-1], count)]
    worst = [0.0] * len(deltas)
    for direction in directions(cost):
        best = [math.inf] * len(deltas)
        for anchor in anchors:
            aim = aim_at_delta(runs, direction, math.log(anchor))
            h = spacing(runs, aim, max(0.5 * rtol * aim.epsilon, 1e-6))
            pair = dominating(runs, aim, h, 0.005)
            for i, delta in enumerate(deltas):
                if anchor / 4 < delta < 4 * anchor:
                    best[i] = min(best[i], epsilon_above(pair, math.log(delta)))
        worst = [max(w, b) for w, b in zip(worst, best)]
    return worst


def delta_interval(cost: Charges, epsilon: float, *, rtol: float = 5e-3) -> Interval:
    """Certified δ at ε of the dominating pair of a ledger; ``rtol`` is the width aimed at in ε."""
    if cost.infinite:
        return Interval(1.0, 1.0)
    if not cost.runs:
        value = gaussian_delta(cost.mu, epsilon)
        return Interval(value * (1 - EXACT), min(1.0, max(value * (1 + EXACT), 5e-324 if cost.mu else 0.0)))
    largest = min(1.0, participation.total_variation(cost))
    if any(part.scale < NARROW for step, _ in cost.runs for _, part in step.components):
        return Interval(0.0, largest)
    runs = with_gaussian(cost)
    lower, upper = 0.0, 0.0
    for direction in directions(cost):
        aim = aim_at_epsilon(runs, direction, epsilon)
        h = spacing(runs, aim, max(0.1 * rtol * epsilon, 1e-5 * (aim.high - aim.low)))
        above, below = dominating(runs, aim, h, 0.01), dominated(runs, aim, h, 0.01)
        lower = max(lower, delta_below(below, epsilon))
        upper = max(upper, min(delta_above(above, epsilon), chernoff_delta(runs, aim, h, 0.01, epsilon)))
    return checked(lower, min(upper, largest), "bounds on delta")
