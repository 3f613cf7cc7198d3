"""The largest value that a monotone test still rejects, by bisection or by interpolation on the same grid."""

from __future__ import annotations

from collections.abc import Callable

REPEATED = 5
"""Interpolated points on one side of the answer, one after the other, before a step of bisection."""


def largest_rejected(rejects: Callable[[float], bool], *, start: float = 1.0, limit: float = 1e3, tol: float) -> float:
    """Largest x >= 0 with ``rejects(x)``, for a test that rejects below some x and accepts above; 0 when none.

    The lower end of the last bracket is returned, so that rounding never raises a lower bound.

    Parameters
    ----------
    start : float
        First upper end to try; it is doubled until the test accepts.
    limit : float
        Largest value looked at; returned when the test still rejects there.
    tol : float
        Width of the last bracket, absolute.
    """
    return narrowed(rejects, first_bracket(rejects, start=start, limit=limit), tol)[0]


def first_bracket(rejects: Callable[[float], bool], *, start: float, limit: float) -> tuple[float, float]:
    """Lower and upper end between which :func:`largest_rejected` halves; both are its answer where nothing is to halve.

    The test rejects at the lower end and accepts at the upper one.
    """
    if not rejects(0.0):
        return 0.0, 0.0
    low, high = 0.0, start
    while rejects(high):
        low = high
        if high >= limit:
            return limit, limit
        high = min(2 * high, limit)
    return low, high


def narrowed(rejects: Callable[[float], bool], bracket: tuple[float, float], tol: float) -> tuple[float, float]:
    """The bracket, halved until it is at most ``tol`` wide; narrowed in two calls it ends where one call ends."""
    low, high = bracket
    while high - low > tol:
        mid = 0.5 * (low + high)
        if rejects(mid):
            low = mid
        else:
            high = mid
    return low, high


def largest_not_above(
    value: Callable[[float], float], bound: float, *, start: float = 1.0, limit: float = 1e3, tol: float
) -> float:
    """Largest x >= 0 with ``value(x) <= bound``, for a value that grows with x; 0 when none.

    What :func:`largest_rejected` returns for the test ``value(x) <= bound``, in fewer evaluations: only points that its
    bisection could visit are looked at, and they are chosen by interpolating the value between the ends of the bracket.

    Parameters
    ----------
    value : callable
    bound : float
    start, limit, tol : float
        As for :func:`largest_rejected`.
    """
    below = value(0.0)
    if not below <= bound:
        return 0.0
    low, high, above = 0.0, start, value(start)
    while above <= bound:
        low, below = high, above
        if high >= limit:
            return limit
        high = min(2 * high, limit)
        above = value(high)
    cells, width = 1, high - low
    while width > tol:
        cells, width = 2 * cells, 0.5 * width
    first, last, same = 0, cells, 0
    under, over = bound - below, above - bound
    while last - first > 1:
        middle = (first + last) // 2
        if abs(same) < REPEATED and under + over > 0:
            share = under / (under + over)
            middle = min(max(first + round(share * (last - first)), first + 1), last - 1)
        found = value(low + middle * width) - bound
        # The Illinois rule: an end that stays counts half, so that the next point falls beyond the answer.
        if found <= 0:
            first, under, same = middle, -found, max(same, 0) + 1
            over *= 0.5 if same > 1 else 1.0
        else:
            last, over, same = middle, found, min(same, 0) - 1
            under *= 0.5 if same < -1 else 1.0
        if abs(same) > REPEATED:
            same = 0
    return low + first * width
