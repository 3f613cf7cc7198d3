"""Bisection for the largest value that a monotone test still rejects."""

from __future__ import annotations

from collections.abc import Callable


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
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, start
    while rejects(high):
        low = high
        if high >= limit:
            return limit
        high = min(2 * high, limit)
    while high - low > tol:
        mid = 0.5 * (low + high)
        if rejects(mid):
            low = mid
        else:
            high = mid
    return low
