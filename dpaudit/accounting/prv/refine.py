"""Certified bounds on ε in one direction, by better placed windows and finer lattices until the two are close.

Every bound that is read is valid; the loop only decides where to look next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpaudit.accounting.prv.pair import chernoff, on_grid
from dpaudit.accounting.prv.route import Route
from dpaudit.accounting.prv.saddle import Aim, Run, aim_at_mean, aim_by

ROUNDS = 7
_LATTICE_SHARE = 0.28  # part of the width aimed at that cutting into cells may take
_STEEP = 30.0  # tilt above which cells far from the bulk are weighted so unevenly that they have to be narrower
_GROWTH = 0.02  # relative width of cells far from the bulk


def refine(
    sides: tuple[Sequence[Run], Sequence[Run]],
    aim: Aim,
    log_deltas: tuple[float, float],
    rtol: float,
    atol: float,
    ceiling: float,
    route: Route | None = None,
) -> tuple[float, float]:
    """Bounds in one direction; only an upper bound when it stays below ``ceiling``, the other direction's.

    Parameters
    ----------
    sides : pair of runs
        What the lower bound and what the upper bound is of.
    log_deltas : pair of float
        log δ of the lower and of the upper bound.
    route : Route, optional
        That of the other direction, whose cells are used again where they do.
    """
    (kept, runs), (log_delta, log_left) = sides, log_deltas
    low, high, growth = 0.0, math.inf, _GROWTH if aim.theta <= _STEEP else _GROWTH / 4
    # Where the other direction is larger, this one need only be shown to stay below it.
    tolerance = max(_LATTICE_SHARE * rtol * aim.epsilon, 0.5 * atol, 0.5 * (ceiling - aim.epsilon))
    route = Route(runs) if route is None else route
    if ceiling > 0 and route.cut_at is not None:
        # One moment of cells that are there already is mostly enough to show that the other direction is larger.
        high = chernoff(runs, aim, route.cut_at, growth, log_left, (1.0,))
        if high <= ceiling:
            return 0.0, high
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


def first_upper(runs: Sequence[Run], aim: Aim, log_delta: float, rtol: float, atol: float) -> float:
    """Upper bound of the first round of :func:`refine`, of one direction by itself."""
    route, tolerance = Route(runs), max(_LATTICE_SHARE * rtol * aim.epsilon, 0.5 * atol)
    above, _ = route.above(runs, aim, route.spacing(aim, tolerance), _GROWTH, tolerance)
    return above(log_delta, False)
