"""The one tolerance with which two values of ε are compared, wherever one may not exceed the other."""

from __future__ import annotations

RELATIVE_TOLERANCE = 1e-9
"""A claim equal to its bound must survive printing and reading back; nothing beyond that is forgiven."""


def exceeds(value: float, bound: float) -> bool:
    """Whether ``value`` lies above ``bound`` by more than rounding.

    Planning, auditing, certifying and verifying all ask this function, so that no two of them can disagree about one
    run.

    >>> exceeds(3.0, 3.0), exceeds(3.0000005, 3.0), exceeds(3.0, float("inf"))
    (False, True, False)
    """
    return value > bound * (1 + RELATIVE_TOLERANCE)
