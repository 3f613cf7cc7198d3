"""Certified answers about a ledger: ε at δ, δ at ε, and points of the trade-off function.

Everything is read from tail sums of composed laws. For a discrete pair (A, B) on a lattice,

    ε(δ) = max_j log((A(≥j) − δ) / B(≥j))        δ(ε) = max_j A(≥j) − e^ε·B(≥j)

is exact when B = e^{-loss}·A (the dominating pair: an upper bound), and for any two laws of the same statistic every j
is a test, so the maximum is a lower bound (the dominated pair). Errors of the tails widen both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dpaudit.accounting.gdp import gaussian_delta, gaussian_epsilon
from dpaudit.accounting.prv.pair import LARGEST_WINDOW, Pair, chernoff, dominated, dominating, on_grid, spacing
from dpaudit.accounting.prv.saddle import Aim, Run, aim_at_delta, aim_at_epsilon, aim_at_mean, aim_by
from dpaudit.accounting.relations import Charges, Component, Step
from dpaudit.privacy.stage import Mechanism

EXACT = 1e-12  # relative error allowed for the closed Gaussian form
_ROUNDS = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """``lower ≤ truth ≤ upper``."""

    lower: float
    upper: float


def _epsilon_above(pair: Pair, delta: float) -> float:
    """Upper bound on ε at δ from the dominating pair; at least the window's first loss, never below 0."""
    scale = math.exp(min(700.0, -pair.first.log_scale))
    top = pair.first.value + pair.first.error
    top += (pair.infinite - delta * pair.mass_factor) * scale
    bottom = pair.second.value - pair.second.error
    met, unknown = top <= 0, bottom <= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        np.log(top, out=top)
        np.log(bottom, out=bottom)
    each = top
    each -= bottom
    each[unknown] = np.inf
    each[met] = -np.inf
    # δ(ε) only asks for tails at losses above ε: any ε at least loss j and every bound at i ≥ j will do.
    from_here = np.maximum.accumulate(each[::-1])[::-1]
    from_here += pair.first.log_scale - pair.second.log_scale
    losses = np.arange(len(each), dtype=np.float64)
    losses *= pair.h
    losses += pair.start
    return max(0.0, float(np.maximum(from_here, losses).min()) + pair.shift_error)


def _epsilon_below(pair: Pair, delta: float) -> float:
    """Lower bound on ε at δ from the dominated pair."""
    scale = math.exp(min(700.0, -pair.first.log_scale))
    top = pair.first.value - pair.first.error - delta * scale
    bottom = pair.second.value + pair.second.error
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(top > 0, np.log(top) - np.log(bottom), -np.inf)
    return max(0.0, float(each.max()) + pair.first.log_scale - pair.second.log_scale)


def with_gaussian(cost: Charges) -> tuple[Run, ...]:
    """The sampled runs and, fused into one step, everything Gaussian."""
    if cost.mu_squared == 0:
        return cost.runs
    fused = Component(Mechanism.GAUSSIAN, cost.mu_squared**-0.5, (0.0, 1.0), (1.0,))
    return (*cost.runs, (Step(((1.0, fused),)), 1))


def directions(cost: Charges) -> tuple[int, ...]:
    """Both, unless every pair is its own mirror image."""
    symmetric = all(
        part.up == part.down or (part.up == (0.0, 1.0) and part.down == (1.0,))
        for step, _ in cost.runs
        for _, part in step.components
    )
    return (1,) if symmetric else (1, -1)


def epsilon_interval(cost: Charges, delta: float, *, rtol: float = 5e-3, atol: float = 1e-6) -> Interval:
    """Certified ε at δ of the dominating pair of a ledger: width at most max(rtol·ε, atol) where float64 allows.

    Wider intervals are returned, never wrong ones, when the window would pass 1.5 million points.
    """
    if cost.infinite:
        return Interval(math.inf, math.inf)
    if not cost.runs:
        value = gaussian_epsilon(math.sqrt(cost.mu_squared), delta)
        return Interval(value * (1 - EXACT), value * (1 + EXACT))
    if total_variation(cost) <= delta:
        return Interval(0.0, 0.0)
    runs = with_gaussian(cost)
    aims = sorted((aim_at_delta(runs, d, delta) for d in directions(cost)), key=lambda a: -a.epsilon)
    lower, upper = 0.0, 0.0
    for aim in aims:
        low, high = _refine(runs, aim, delta, rtol, atol, upper)
        lower, upper = max(lower, low), max(upper, high)
    if lower == 0 < upper and delta_interval(cost, 0.0).upper <= delta:
        return Interval(0.0, 0.0)
    return Interval(min(lower, upper), upper)


def total_variation(cost: Charges) -> float:
    """Upper bound on δ(0): total variation adds up over steps, and one step's is at most its chance to take part."""
    step_wise = sum(times * sum(w * (1 - part.up[0]) for w, part in step.components) for step, times in cost.runs)
    return step_wise + gaussian_delta(math.sqrt(cost.mu_squared), 0.0)


def _refine(
    runs: Sequence[Run], aim: Aim, delta: float, rtol: float, atol: float, ceiling: float
) -> tuple[float, float]:
    """Bounds in one direction; only an upper bound when it stays below ``ceiling``, the other direction's."""
    low, high, growth, lost = 0.0, math.inf, 0.01, 0
    # Where the other direction is larger, this one need only be shown to stay below it.
    tolerance = max(0.3 * rtol * aim.epsilon, 0.5 * atol, 0.5 * (ceiling - aim.epsilon))
    h = spacing(runs, aim, tolerance)
    for _ in range(_ROUNDS):
        before = high - low
        high = min(high, _epsilon_above(dominating(runs, aim, h, growth), delta))
        if math.isinf(high):
            high = chernoff(runs, aim, h, growth, delta)
        if high <= ceiling or high == 0:
            return 0.0, high
        low = max(low, _epsilon_below(dominated(runs, aim, h, growth), delta))
        allowed = max(rtol * high, atol)
        if high - low <= allowed:
            break
        smallest = (aim.high - aim.low) / (LARGEST_WINDOW - 4)
        if h <= 1.1 * smallest:
            break
        if high - low > min(0.05 * high, 0.7 * before):
            # Rare jumps make the tilted law bimodal: look where ε is now known to be, or with a smaller tilt.
            guess = max(low, 0.1 * min(high, aim.epsilon))
            if lost == 0 and high < 2 * low:
                aim = aim_at_mean(runs, aim.direction, (low + high) / 2, aim.reach)
            else:
                aim = aim_by(runs, aim.direction, 0.8 * aim.theta, guess, aim.reach, 1e-13)
            lost += 1
            h = spacing(runs, aim, max(0.3 * rtol * aim.epsilon, 0.5 * atol))
            continue
        shrink = min(0.6, 0.9 * math.sqrt(0.7 * allowed / (high - low)))
        h = max(on_grid(h * shrink), smallest)
        growth = max(growth * shrink, 1e-4)
    return low, high


def epsilon_uppers(cost: Charges, deltas: Sequence[float], *, rtol: float = 2e-3) -> list[float]:
    """Certified upper bounds on ε at many δ (ascending), two windows for every decade of δ."""
    runs = with_gaussian(cost)
    count = max(2, math.ceil(2 * math.log10(deltas[-1] / deltas[0])) + 1)
    anchors = [float(a) for a in np.geomspace(deltas[0], deltas[-1], count)]
    worst = [0.0] * len(deltas)
    for direction in directions(cost):
        best = [math.inf] * len(deltas)
        for anchor in anchors:
            aim = aim_at_delta(runs, direction, anchor)
            h = spacing(runs, aim, max(0.5 * rtol * aim.epsilon, 1e-6))
            pair = dominating(runs, aim, h, 0.005)
            for i, delta in enumerate(deltas):
                if anchor / 4 < delta < 4 * anchor:
                    best[i] = min(best[i], _epsilon_above(pair, delta))
        worst = [max(w, b) for w, b in zip(worst, best)]
    return worst


def delta_interval(cost: Charges, epsilon: float, *, rtol: float = 5e-3) -> Interval:
    """Certified δ at ε of the dominating pair of a ledger; ``rtol`` is the width aimed at in ε."""
    if cost.infinite:
        return Interval(1.0, 1.0)
    if not cost.runs:
        value = gaussian_delta(math.sqrt(cost.mu_squared), epsilon)
        return Interval(value * (1 - EXACT), min(1.0, value * (1 + EXACT)))
    runs = with_gaussian(cost)
    lower, upper = 0.0, 0.0
    for direction in directions(cost):
        aim = aim_at_epsilon(runs, direction, epsilon)
        h = spacing(runs, aim, max(0.1 * rtol * epsilon, 1e-5 * (aim.high - aim.low)))
        above, below = dominating(runs, aim, h, 0.01), dominated(runs, aim, h, 0.01)
        lower = max(lower, _delta_below(below, epsilon))
        upper = max(upper, _delta_above(above, epsilon))
    return Interval(min(lower, upper), upper)


def _delta_above(pair: Pair, epsilon: float) -> float:
    moved = epsilon - pair.shift_error
    factor = math.exp(min(700.0, moved + pair.second.log_scale - pair.first.log_scale))
    gain = pair.first.value + pair.first.error - factor * (pair.second.value - pair.second.error)
    gain = gain[max(0, math.floor((moved - pair.start) / pair.h) - 1) :]
    scale = math.exp(min(700.0, pair.first.log_scale))
    value = float(gain.max(initial=0.0)) * scale / pair.mass_factor + pair.infinite
    return min(1.0, value) if moved >= pair.start else 1.0


def _delta_below(pair: Pair, epsilon: float) -> float:
    factor = math.exp(min(700.0, epsilon + pair.second.log_scale - pair.first.log_scale))
    gain = pair.first.value - pair.first.error - factor * (pair.second.value + pair.second.error)
    return max(0.0, float(gain.max()) * math.exp(min(700.0, pair.first.log_scale)))
