"""Certified bounds on ε in one direction: windows aimed ever better and lattices cut ever finer, until they are close.

Every bound that is read is valid; the loop only decides where to look next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from dpaudit.accounting.prv import inverse
from dpaudit.accounting.prv.compose import Tails
from dpaudit.accounting.prv.pair import (
    Pair,
    chernoff,
    dominated,
    dominating,
    largest_window,
    on_grid,
    spacing,
    wanted_spacing,
)
from dpaudit.accounting.prv.readings import epsilon_above, epsilon_below
from dpaudit.accounting.prv.saddle import Aim, Run, aim_at_mean, aim_by

ROUNDS = 7
_LATTICE_SHARE = 0.3  # part of the width aimed at that cutting into cells may take
_GROWTH = 0.01  # relative width of cells far from the bulk
_MANY = 100  # steps from which on a spectrum may have few coefficients
_SMOOTH = 20  # lattice points to one standard deviation of the composed loss, at least, for the same
_Reading = Callable[[float, bool], float]
"""Bound on ε at a log δ; the flag leaves out round-off, for a diagnosis."""


def refine(
    sides: tuple[Sequence[Run], Sequence[Run]],
    aim: Aim,
    log_deltas: tuple[float, float],
    rtol: float,
    atol: float,
    ceiling: float,
) -> tuple[float, float]:
    """Bounds in one direction; only an upper bound when it stays below ``ceiling``, the other direction's.

    Parameters
    ----------
    sides : pair of runs
        What the lower bound and what the upper bound is of.
    log_deltas : pair of float
        log δ of the lower and of the upper bound.
    """
    (kept, runs), (log_delta, log_left) = sides, log_deltas
    low, high, growth = 0.0, math.inf, _GROWTH
    # Where the other direction is larger, this one need only be shown to stay below it.
    tolerance = max(_LATTICE_SHARE * rtol * aim.epsilon, 0.5 * atol, 0.5 * (ceiling - aim.epsilon))
    route = _Route(runs)
    h = route.spacing(aim, tolerance)
    moves = 0
    for _ in range(ROUNDS):
        above, h = route.above(runs, aim, h, growth, tolerance)
        high = min(high, above(log_left, False))
        if math.isinf(high):
            high = chernoff(runs, aim, h, growth, log_left)
        if high <= ceiling or high == 0:
            return 0.0, high
        below = route.below(kept, aim, h, growth)
        low = max(low, below(log_delta, False))
        allowed = max(rtol * high, atol)
        if high - low <= allowed:
            break
        # What the two would be without round-off: the lattice's part of the width.
        top, bottom = above(log_left, True), below(log_delta, True)
        if top - bottom > 0.7 * allowed and bottom > 0.5 * top:
            smallest = route.smallest(aim)
            if h <= 1.1 * smallest:
                break
            shrink = min(0.6, 0.9 * math.sqrt(0.6 * allowed / (top - bottom)))
            h = max(on_grid(h * shrink), smallest)
            growth = max(growth * shrink, 1e-4)
            continue
        # Round-off: rare jumps make the tilted law bimodal. Look where ε is now known to be, or with a smaller tilt.
        if moves == 0 and low > 0 and high < 2 * low:
            aim = aim_at_mean(runs, aim.direction, (low + high) / 2, aim.reach)
        else:
            guess = max(low, 0.1 * min(high, aim.epsilon))
            aim = aim_by(runs, aim.direction, 0.8 * aim.theta, guess, aim.reach, 1e-13)
        moves += 1
        h = route.spacing(aim, max(_LATTICE_SHARE * rtol * aim.epsilon, 0.5 * atol))
    return low, high


class _Route:
    """How pairs are composed: by their few Fourier coefficients, or where that fails once, in a window from then on."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._by_few = sum(times for _, times in runs) >= _MANY

    def spacing(self, aim: Aim, tolerance: float) -> float:
        """Width of the lattice for a width of ``tolerance`` in ε."""
        if self._by_few:
            h = on_grid(wanted_spacing(self._runs, aim, tolerance))
            if aim.spread >= _SMOOTH * h:
                return h
        return spacing(self._runs, aim, tolerance)

    def smallest(self, aim: Aim) -> float:
        """Smallest width that can be had."""
        return 0.0 if self._by_few else (aim.high - aim.low) / (largest_window(len(self._runs)) - 4)

    def above(self, runs: Sequence[Run], aim: Aim, h: float, growth: float, tolerance: float) -> tuple[_Reading, float]:
        """Upper bounds on ε from the dominating pair, and the width they were had with."""
        if self._by_few and aim.spread >= _SMOOTH * h:
            found = inverse.above(runs, aim, h, growth)
            if found is not None:
                return found.upper, h
            self._by_few = False
            h = spacing(self._runs, aim, tolerance)
        pair = dominating(runs, aim, h, growth)
        return (lambda log_delta, exact: epsilon_above(_exact(pair) if exact else pair, log_delta)), h

    def below(self, runs: Sequence[Run], aim: Aim, h: float, growth: float) -> _Reading:
        """Lower bounds on ε from the dominated pair."""
        if self._by_few and aim.spread >= _SMOOTH * h:
            found = inverse.below(runs, aim, h, growth)
            if found is not None:
                return found.lower
        pair = dominated(runs, aim, h, growth)
        return lambda log_delta, exact: epsilon_below(_exact(pair) if exact else pair, log_delta)


def _exact(pair: Pair) -> Pair:
    """The pair as if its tails had no errors: a diagnosis, never a bound."""

    def bare(tails: Tails) -> Tails:
        return dataclasses.replace(tails, error=np.where(np.isinf(tails.error), np.inf, 0.0))

    return dataclasses.replace(pair, first=bare(pair.first), second=bare(pair.second))
