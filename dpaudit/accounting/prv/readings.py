"""Reading bounds off a composed pair: ε at δ and δ at ε from its certified tails, all in logarithms.

For a discrete pair (A, B) on a lattice,

    ε(δ) = max_j log((A(≥j) − δ) / B(≥j))        δ(ε) = max_j A(≥j) − e^ε·B(≥j)

is exact when B = e^{-loss}·A (the dominating pair: an upper bound), and for any two laws of the same statistic every j
is a test, so the maximum is a lower bound (the dominated pair). Errors of the tails widen both. Scales, δ and ε are
only ever compared as logarithms: neither e^ε nor δ has to be a float.
"""

from __future__ import annotations

import math

import numpy as np

from dpaudit.accounting.prv.loss import UNIT, Array
from dpaudit.accounting.prv.pair import Pair, log_less

_PART = 8192
"""Points looked at together."""


def _scaled(log_value: float, pair: Pair) -> float:
    """e^{log_value} in the units of P's tails; infinite where it is too large for a float."""
    exponent = log_value - pair.first.log_scale
    return math.inf if exponent > 700 else math.exp(exponent)


def _log_scales(pair: Pair) -> tuple[float, float]:
    """Difference between the logarithmic scales of P's and Q's tails, and how far it may be off."""
    first, second = pair.first, pair.second
    margin = first.scale_error + second.scale_error + 4 * UNIT * (abs(first.log_scale) + abs(second.log_scale))
    return first.log_scale - second.log_scale, margin


def _first_at_most_zero(falling: Array) -> int:
    """First place where an array that never rises, leading NaN aside, is 0 or less; its length if there is none."""
    found = falling <= 0
    return int(found.argmax()) if found.any() else len(falling)


def epsilon_above(pair: Pair, log_delta: float) -> float:
    """Upper bound on ε at δ from the dominating pair; at least the window's first loss, never below 0."""
    log_budget = log_less(log_delta + pair.log_mass_factor - pair.first.scale_error, pair.log_infinite)
    if log_budget == -math.inf:
        return math.inf
    # Tails never rise, so a bound above holds for every later point and a bound below for every earlier one.
    with np.errstate(invalid="ignore"):
        top = np.fmin.accumulate(pair.first.value + pair.first.error) - _scaled(log_budget, pair)
    bottom = np.fmax.accumulate((pair.second.value - pair.second.error)[::-1])[::-1]
    scale, margin = _log_scales(pair)
    # δ(ε) depends only on tails at losses above ε. So an ε is valid if it is at least the loss of point j and at least
    # the bound of every point i ≥ j: hence the running maximum from the right. It is -inf from the first point on where
    # nothing of the budget is missing, whose loss is therefore valid, and once it passes the loss of its own point no
    # point further left is better: a few parts from the right are enough.
    end = _first_at_most_zero(top)
    best = end * pair.h + pair.start if end < len(top) else math.inf
    most = -math.inf
    for stop in range(end, 0, -_PART):
        part = slice(max(0, stop - _PART), stop)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.log(top[part]) - np.log(bottom[part])
        each[~(bottom[part] > 0) | np.isnan(each)] = np.inf
        from_here = np.maximum(np.maximum.accumulate(each[::-1])[::-1], most)
        most = float(from_here[0])
        from_here += scale
        losses = np.arange(part.start, part.stop, dtype=np.float64)
        losses *= pair.h
        losses += pair.start
        best = min(best, float(np.maximum(from_here, losses).min()))
        if from_here[0] >= losses[0]:
            break
    return max(0.0, best + pair.shift_error + margin)


def epsilon_below(pair: Pair, log_delta: float) -> float:
    """Lower bound on ε at δ from the dominated pair."""
    known = np.fmax.accumulate((pair.first.value - pair.first.error)[::-1])[::-1]
    with np.errstate(invalid="ignore"):
        top = known - _scaled(log_delta + pair.first.scale_error, pair)
    bottom = np.fmin.accumulate(pair.second.value + pair.second.error)
    end = _first_at_most_zero(top)
    if not end:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = top[:end] / bottom[:end]  # not a number, or zero, where nothing is known
    ratio[np.isnan(ratio)] = 0.0
    place = int(ratio.argmax())
    if not ratio[place] > 0:
        return 0.0
    if bottom[place] == 0:
        return math.inf
    scale, margin = _log_scales(pair)
    return max(0.0, math.log(top[place]) - math.log(bottom[place]) + scale - margin)


def delta_above(pair: Pair, epsilon: float) -> float:
    """Upper bound on δ at ε from the dominating pair."""
    scale, margin = _log_scales(pair)
    moved = epsilon - pair.shift_error - margin
    if moved < pair.start:
        return 1.0
    place = math.floor((moved - pair.start) / pair.h)
    near = slice(max(0, place - 1), place + 3)
    top = pair.first.value[near] + pair.first.error[near]
    if place + 3 > len(pair.first.value):
        # Above the window only the mass beyond its last points is known, which bounds δ from above.
        best = float(np.fmin.reduce(pair.first.value + pair.first.error))
    else:
        # δ(ε) is the gain at the first loss above ε. e^ε·B is rounded down where it leaves the range of floats.
        factor = math.exp(min(700.0, moved - scale))
        with np.errstate(invalid="ignore"):
            gain = top - factor * np.maximum(pair.second.value[near] - pair.second.error[near], 0.0)
        best = math.inf if np.isnan(gain).any() else float(gain.max())
    if math.isinf(best):
        return 1.0
    log_found = math.log(best) + pair.first.log_scale + pair.first.scale_error if best > 0 else -math.inf
    log_total = float(np.logaddexp(log_found - pair.log_mass_factor, pair.log_infinite))
    # An upper bound of zero would be false: it is at least the smallest float.
    return min(1.0, max(5e-324, math.exp(min(0.0, log_total)) * (1 + 4 * UNIT)))


def delta_below(pair: Pair, epsilon: float) -> float:
    """Lower bound on δ at ε from the dominated pair."""
    scale, margin = _log_scales(pair)
    exponent = epsilon + margin - scale
    if exponent > 700:
        return 0.0
    with np.errstate(invalid="ignore"):
        gain = pair.first.value - pair.first.error - math.exp(exponent) * (pair.second.value + pair.second.error)
    best = float(np.fmax.reduce(gain))
    if not best > 0:
        return 0.0
    return math.exp(min(0.0, math.log(best) + pair.first.log_scale - pair.first.scale_error)) * (1 - 4 * UNIT)
