"""Tests of a privacy profile by canaries whose trials are independent: sharper than one-run bounds, and conditional.

In-run canaries own a coordinate each. Given the releases' common part, each included one exceeds a threshold on its
score with a probability b and each left-out one with a probability a, and (ε, δ)-DP says b ≤ e^ε a + δ. Counts of
independent canaries therefore refute (ε, δ) by an exponential (Chernoff) bound on N_in − e^ε N_out.
Coordinates are drawn at random, so that unlike ones only average these rates.
A movement that all coordinates share changes a and b together and keeps the inequality, so it does no harm; canaries
that answer to one another's draws would.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.auditing.rates import rate_lower, rate_upper
from dpaudit.auditing.solve import largest_rejected
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue

EPSILONS = (0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Points ε at which a declared profile is tested; fixed before any score is seen."""

CHOOSING = 8
"""Every eighth canary chooses the events, and the others are counted in them."""
NEAR = 1e-12
"""Probability left to an interval for a canary's unknown rate."""
_PLAIN = 0.125
"""Point of the profile at which the event beyond the median is tested: a lack of noise shows best near it."""

_THETAS = np.logspace(-5, 2, 71)
"""Exponents of the Chernoff bound; it holds at each, and the smallest value is taken."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProfileCounts:
    """How many of the counted canaries fall into the one event that the others chose.

    Attributes
    ----------
    epsilon : float
        Point of the profile that is tested.
    cut : float
        Score at which the event ends.
    above : bool
        True for scores above the cut, where included canaries are to be found; False for scores below it, where the
        left-out ones are.
    inside, of_inside : int
        Canaries of the kind to be found there that are, and all of that kind.
    outside, of_outside : int
        The same for the other kind.
    """

    epsilon: float
    cut: float
    above: bool
    inside: int
    of_inside: int
    outside: int
    of_outside: int

    def __post_init__(self) -> None:
        whole_at_least(
            0, inside=self.inside, of_inside=self.of_inside, outside=self.outside, of_outside=self.of_outside
        )
        validate.non_negative(epsilon=self.epsilon)
        if self.inside > self.of_inside or self.outside > self.of_outside or not math.isfinite(self.cut):
            raise InvalidValue(
                f"{self.inside} of {self.of_inside} and {self.outside} of {self.of_outside} at cut={self.cut} are no"
                " counts."
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTest:
    """What the counted canaries say about a declared privacy profile.

    Attributes
    ----------
    p_value : float
        Smallest of the events' p-values times their number, at most 1. Valid if the canaries are independent.
    counts : ProfileCounts
        The event that fits worst, and its counts.
    expected : float
        Largest number of ``counts.inside`` that the profile allows on average, given the other kind's rate.
    """

    p_value: float
    counts: ProfileCounts
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

    Examples
    --------
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


def p_value_near(v: int, n: int, w: int, m: int, epsilon: float, delta: float) -> float:
    """As :func:`_p_value`, with the rate a kept in a confidence interval from w that fails with probability NEAR.

    A p-value for every rate in an interval, plus the probability that the interval fails, is a p-value (Berger and Boos
    1994). The worst rate of all can lie far from the one that was seen, and its variance with it.
    """
    low = rate_lower(w, m, NEAR / 2)
    high = rate_upper(w, m, NEAR / 2)
    return min(1.0, NEAR + _p_value(v, n, w, m, epsilon, delta, between=(low, high)))


def _p_value(
    v: int, n: int, w: int, m: int, epsilon: float, delta: float, *, between: tuple[float, float] = (0.0, 1.0)
) -> float:
    growth = math.exp(min(epsilon, 700.0))
    # Rates are compared, and m canaries were left out where n were put in, so each left-out one counts n/m-fold.
    cost = growth * n / m if m else 0.0
    # Beyond it the rate of the inserted stays at 1, so a larger rate of the left-out only lowers the statistic.
    corner = (1.0 - delta) / growth
    rate = np.r_[0.0, np.logspace(-7, 0, 160)] * corner
    if between != (0.0, 1.0):
        rate = np.linspace(min(between[0], corner), min(between[1], corner), 40)
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
    scores: ArrayLike, coins: ArrayLike, deltas: Sequence[float], *, epsilons: Sequence[float] = EPSILONS
) -> ProfileTest:
    """Test a declared privacy profile by two events, set by some canaries and counted on the others.

    An event is a side of a cut on the scores, with a point ε of the profile. Every eighth canary sets them: the scores
    above its median at ε = 0.125, and the event that the profile makes least likely (by a normal approximation). The
    others count in both, so that two p-values remain to be corrected for.

    Parameters
    ----------
    scores : array (m,)
        Higher = member.
    coins : array (m,)
        1 for canaries in the data, 0 for those left out.
    deltas : sequence of float
        The declared mechanism's certified δ(ε) at each of ``epsilons``.
    epsilons : sequence of float
        Fixed before any score is seen.
    """
    if len(deltas) != len(epsilons) or not epsilons:
        raise InvalidValue(f"{len(deltas)} deltas and {len(epsilons)} epsilons must be as many, and at least 1.")
    return profile_test_of_counts(profile_counts(scores, coins, deltas, epsilons=epsilons), deltas, epsilons=epsilons)


def profile_counts(
    scores: ArrayLike, coins: ArrayLike, deltas: Sequence[float], *, epsilons: Sequence[float] = EPSILONS
) -> tuple[ProfileCounts, ProfileCounts]:
    """Set the two events of ``profile_test`` and count in them."""
    values, member = _scored(scores, coins)
    choosing = np.arange(len(values)) % CHOOSING == 0
    chooser = _Events(values[choosing], member[choosing])
    chosen = max(
        (chooser.most_excessive(epsilon, delta) for epsilon, delta in zip(epsilons, deltas, strict=True)),
        key=lambda event: event[0],
    )
    counted = values[~choosing], member[~choosing]
    plain = _PLAIN if _PLAIN in epsilons else epsilons[0]
    return (
        _count(*counted, plain, float(np.median(values[choosing])), True),
        _count(*counted, chosen[1], chosen[2], chosen[3]),
    )


def profile_test_of_counts(
    counts: Sequence[ProfileCounts], deltas: Sequence[float], *, epsilons: Sequence[float] = EPSILONS
) -> ProfileTest:
    """As ``profile_test``, from the counts alone."""
    table = dict(zip(epsilons, deltas, strict=True))
    tests = []
    for event in counts:
        if event.epsilon not in table:
            raise InvalidValue(f"the counts are for epsilon={event.epsilon}, which is none of {tuple(epsilons)}.")
        delta = table[event.epsilon]
        v, n, w, m = event.inside, event.of_inside, event.outside, event.of_outside
        p = p_value_near(v, n, w, m, event.epsilon, delta) if n and m else 1.0
        allowed = n * min(1.0, math.exp(event.epsilon) * w / m + delta) if m else float(n)
        tests.append(ProfileTest(p_value=min(1.0, p * len(counts)), counts=event, expected=allowed))
    return min(tests, key=lambda test: test.p_value)


def independent_epsilon_lower(scores: ArrayLike, coins: ArrayLike, delta: float, alpha: float = 0.05) -> float:
    """Lower bound on ε at δ with confidence 1 − α if the canaries are independent; conditional on that.

    Every eighth canary chooses the cut on the scores, and the others are counted beyond it.

    Parameters
    ----------
    scores, coins : array (m,)
        As for ``profile_test``.
    delta : float
    alpha : float
        Failure probability.
    """
    values, member = _scored(scores, coins)
    validate.open_unit(alpha=alpha)
    choosing = np.arange(len(values)) % CHOOSING == 0
    cut, above = _Events(values[choosing], member[choosing]).most_telling(delta)
    c = _count(values[~choosing], member[~choosing], 0.0, cut, above)
    if not c.of_inside or not c.of_outside or c.inside / c.of_inside <= c.outside / c.of_outside + delta:
        return 0.0

    def rejects(epsilon: float) -> bool:
        return p_value_near(c.inside, c.of_inside, c.outside, c.of_outside, epsilon, delta) <= alpha

    return largest_rejected(rejects, start=1.0, limit=100.0, tol=1e-4)


def _scored(scores: ArrayLike, coins: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, member = np.asarray(scores, dtype=np.float64), np.asarray(coins).astype(bool)
    if values.shape != member.shape or values.ndim != 1 or not len(values):
        raise InvalidValue(f"scores of shape {values.shape} and coins of shape {member.shape} must be one and alike.")
    return values, member


def _count(
    values: NDArray[np.float64], member: NDArray[np.bool_], epsilon: float, cut: float, above: bool
) -> ProfileCounts:
    beyond = values > cut if above else values < cut
    kind = member if above else ~member
    return ProfileCounts(
        epsilon=float(epsilon),
        cut=float(cut),
        above=bool(above),
        inside=int((beyond & kind).sum()),
        of_inside=int(kind.sum()),
        outside=int((beyond & ~kind).sum()),
        of_outside=int((~kind).sum()),
    )


class _Events:
    """Shares of either kind of canary beyond each of some cuts, on either side, among those that choose."""

    def __init__(self, values: NDArray[np.float64], member: NDArray[np.bool_]) -> None:
        inside, outside = np.sort(values[member]), np.sort(values[~member])
        self._n, self._m = max(1, len(inside)), max(1, len(outside))
        cuts = np.unique(np.quantile(values, np.linspace(0.002, 0.998, 250)))
        above = [(len(v) - np.searchsorted(v, cuts, side="right")) / max(1, len(v)) for v in (inside, outside)]
        below = [np.searchsorted(v, cuts, side="left") / max(1, len(v)) for v in (outside, inside)]
        self._cuts = np.r_[cuts, cuts]
        self._above = np.arange(len(self._cuts)) < len(cuts)
        self._high, self._low = np.r_[above[0], below[0]], np.r_[above[1], below[1]]

    def _excess(self, epsilon: float, delta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Excess of one rate over what (ε, δ) allows, and its squared deviation for one canary of each kind."""
        cost = math.exp(epsilon)
        # A rate of 0 seen on few canaries is no rate of 0, so half a canary is added to either kind.
        high = (self._high * self._n + 0.5) / (self._n + 1)
        low = (self._low * self._m + 0.5) / (self._m + 1)
        return high - cost * low - delta, high * (1 - high) + cost * cost * low * (1 - low)

    def most_excessive(self, epsilon: float, delta: float) -> tuple[float, float, float, bool]:
        """Standardised excess of the likeliest violation at (ε, δ), with ε, its cut and its side."""
        excess, square = self._excess(epsilon, delta)
        z = excess / np.sqrt(square)
        at = int(np.argmax(z))
        return float(z[at]), epsilon, float(self._cuts[at]), bool(self._above[at])

    def most_telling(self, delta: float) -> tuple[float, bool]:
        """Cut and side that show the largest ε with some certainty already among those that choose."""
        best = (float(self._cuts[0]), True)
        for epsilon in np.arange(0.0, 12.0, 0.05):
            excess, square = self._excess(float(epsilon), delta)
            z = excess - 2.5 * np.sqrt(square / min(self._n, self._m))
            at = int(np.argmax(z))
            if z[at] <= 0:
                break
            best = (float(self._cuts[at]), bool(self._above[at]))
        return best
