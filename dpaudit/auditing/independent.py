"""Tests of a privacy profile by canaries whose trials are independent: sharper than one-run bounds, and conditional.

In-run canaries own a coordinate each. Given the releases' common part, each included one exceeds a threshold on its
score with a probability b and each left-out one with a probability a, and (ε, δ)-DP says b ≤ e^ε a + δ. Counts of
independent canaries therefore refute (ε, δ) by an exponential (Chernoff) bound on the one combination N_in − e^ε N_out.
A movement that all coordinates share changes a and b together and keeps the inequality, so it does no harm; canaries
that answer to one another's draws would.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.auditing.solve import largest_rejected
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue

THRESHOLDS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
"""Scores, in nats and of either sign, at which canaries are counted; fixed before any score is seen."""

_THETAS = np.logspace(-5, 2, 71)
"""Exponents of the Chernoff bound; it holds at each, and the smallest value is taken."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTest:
    """What the counts at all thresholds say about a declared privacy profile.

    Attributes
    ----------
    p_value : float
        Smallest of the tests' p-values times their number, at most 1. Valid if the canaries are independent.
    threshold : float
        Score at which the profile fits worst; negative where left-out canaries are counted below it.
    included, left_out : int
        Canaries beyond that threshold.
    expected : float
        Largest number of included canaries beyond it that the profile allows on average, given the left-out ones'
        rate.
    """

    p_value: float
    threshold: float
    included: int
    left_out: int
    expected: float


def independent_p_value(
    included: int, of_included: int, left_out: int, of_left_out: int, epsilon: float, delta: float
) -> float:
    """P-value for "(ε, δ)-DP", from how many independent canaries of either kind fall into one fixed event.

    Parameters
    ----------
    included, of_included : int
        Canaries in the data that fall into the event, of all that are in the data.
    left_out, of_left_out : int
        The same for canaries that were left out.
    epsilon, delta : float
        Hypothesis: the event's probability is at most e^ε times as large with the canary as without, plus δ.

    Returns
    -------
    float
        An upper bound on the probability of N_in − e^ε N_out at least as large as observed, in [0, 1]. Conditional on
        independent canaries and on an event that was fixed beforehand.

    >>> independent_p_value(90, 100, 20, 100, 1.0, 1e-5) < 0.05
    True
    """
    whole_at_least(0, included=included, of_included=of_included, left_out=left_out, of_left_out=of_left_out)
    if included > of_included or left_out > of_left_out:
        raise InvalidValue(f"{included} of {of_included} and {left_out} of {of_left_out} are no counts.")
    validate.non_negative(epsilon=epsilon)
    if not 0 <= delta <= 1:
        raise InvalidValue(f"delta={delta} must be in [0, 1].")
    return _p_value(included, of_included, left_out, of_left_out, epsilon, delta)


def _p_value(v: int, n: int, w: int, m: int, epsilon: float, delta: float) -> float:
    growth = math.exp(min(epsilon, 700.0))
    # The two rates are compared per canary, so left-out ones count n/m-fold, as if as many had been left out as put in.
    cost = growth * n / m if m else 0.0
    corner = (1.0 - delta) / growth  # beyond it b stays at 1, and a larger rate a only lowers the statistic
    rate = np.r_[0.0, np.logspace(-7, 0, 160)] * corner
    bounds = _log_moments(_THETAS[:, None], n, m, cost, rate, growth, delta)
    return float(min(1.0, math.exp(min(0.0, float(np.min(bounds - _THETAS * (v - cost * w)))))))


def _log_moments(
    theta: NDArray[np.float64], n: int, m: int, cost: float, rate: NDArray[np.float64], growth: float, delta: float
) -> NDArray[np.float64]:
    """Upper bounds on log E[exp(θ(N_in − cost·N_out))] over all a in [0, (1−δ)/e^ε] with b = e^ε a + δ, one for each θ.

    The logarithm is concave in a. On each cell of the grid it therefore lies below the value at either end plus the
    slope there times the cell's width, and the smaller of the two is a bound.
    """
    up, down = np.expm1(theta), -np.expm1(-np.minimum(theta * cost, 700.0))
    b = np.minimum(1.0, growth * rate + delta)
    kept = np.maximum(1.0 - rate * down, 1e-16)
    value = n * np.log1p(b * up) + m * np.log(kept)
    slope = n * growth * up / (1 + b * up) - m * down / kept
    width = np.diff(rate)
    left = value[:, :-1] + np.maximum(slope[:, :-1], 0) * width
    right = value[:, 1:] + np.maximum(-slope[:, 1:], 0) * width
    cells: NDArray[np.float64] = np.minimum(left, right).max(axis=1)
    bounds: NDArray[np.float64] = np.maximum(cells, value.max(axis=1))
    return bounds


def profile_test(
    scores: ArrayLike, coins: ArrayLike, deltas: Sequence[float], *, thresholds: Sequence[float] = THRESHOLDS
) -> ProfileTest:
    """Test a declared privacy profile at fixed thresholds on log-likelihood ratios, from above and from below.

    Parameters
    ----------
    scores : array (m,)
        Log-likelihood ratios in nats under the declared mechanism; higher = member.
    coins : array (m,)
        1 for canaries in the data, 0 for those left out.
    deltas : sequence of float
        The declared mechanism's certified δ(ε) at ε = each of ``thresholds``: at the score ε, where the likelihood
        ratio is e^ε, the declared event attains it.
    thresholds : sequence of float
        Fixed before any score is seen.
    """
    values = np.asarray(scores, dtype=np.float64)
    member = np.asarray(coins).astype(bool)
    if values.shape != member.shape or values.ndim != 1 or not len(values):
        raise InvalidValue(f"scores of shape {values.shape} and coins of shape {member.shape} must be one and alike.")
    if len(deltas) != len(thresholds) or not thresholds:
        raise InvalidValue(f"{len(deltas)} deltas and {len(thresholds)} thresholds must be as many, and at least 1.")
    n, m = int(member.sum()), int((~member).sum())
    tests = []
    for epsilon, delta in zip(thresholds, deltas, strict=True):
        # From below the roles are exchanged: the relation between neighbours is symmetric.
        for sign, (inside, outside), (of_in, of_out) in (
            (1.0, (member, ~member), (n, m)),
            (-1.0, (~member, member), (m, n)),
        ):
            beyond = sign * values > epsilon
            v, w = int((beyond & inside).sum()), int((beyond & outside).sum())
            p = _p_value(v, of_in, w, of_out, epsilon, delta) if of_in and of_out else 1.0
            allowed = of_in * min(1.0, math.exp(epsilon) * w / of_out + delta) if of_out else float(of_in)
            tests.append((p, sign * epsilon, v, w, allowed))
    p, threshold, v, w, allowed = min(tests)
    return ProfileTest(
        p_value=min(1.0, p * len(tests)),
        threshold=threshold,
        included=v if threshold > 0 else w,
        left_out=w if threshold > 0 else v,
        expected=allowed,
    )


def independent_epsilon_lower(
    scores: ArrayLike,
    coins: ArrayLike,
    delta: float,
    alpha: float = 0.05,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> float:
    """Lower bound on ε at δ with confidence 1 − α if the canaries are independent; conditional on that.

    Parameters
    ----------
    scores, coins : array (m,)
        As for :func:`profile_test`.
    delta : float
    alpha : float
        Failure probability, divided among the thresholds.
    thresholds : sequence of float
        Scores at which canaries are counted, fixed beforehand; here they need not equal the ε that is refuted.
    """
    values, member = np.asarray(scores, dtype=np.float64), np.asarray(coins).astype(bool)
    validate.open_unit(alpha=alpha)
    n, m = int(member.sum()), int((~member).sum())
    if not n or not m:
        return 0.0
    level = alpha / (2 * len(thresholds))
    best = 0.0
    for threshold in thresholds:
        for sign, inside, of_in, of_out in ((1.0, member, n, m), (-1.0, ~member, m, n)):
            beyond = sign * values > threshold
            v, w = int((beyond & inside).sum()), int((beyond & ~inside).sum())
            if v / of_in <= w / of_out + delta:
                continue

            def rejects(epsilon: float, counts: tuple[int, int, int, int] = (v, of_in, w, of_out)) -> bool:
                return _p_value(*counts, epsilon, delta) <= level

            best = max(best, largest_rejected(rejects, start=1.0, limit=100.0, tol=1e-4))
    return best
