"""One-run tests of a trade-off curve: conditional on the mechanism's curve, never a statement on (ε, δ) itself.

Mahloujifar, Melis and Chaudhuri, Auditing f-Differential Privacy in One Run, arXiv:2410.22235.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from dpaudit.auditing.gaussian import gdp_epsilon
from dpaudit.auditing.one_run import _check
from dpaudit.auditing.solve import first_bracket, narrowed
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue

TradeOff = Callable[[float], float]
"""f(x): smallest false-negative rate of any test with false-positive rate x; convex, decreasing, symmetric."""


def gaussian_trade_off(mu: float) -> TradeOff:
    """Trade-off curve of a μ-GDP mechanism, f(x) = Φ(Φ⁻¹(1 − x) − μ)."""
    validate.non_negative(mu=mu)

    def curve(fpr: float) -> float:
        return float(ndtr(-ndtri(fpr) - mu))

    return curve


def profile_trade_off(epsilons: ArrayLike, deltas: ArrayLike) -> TradeOff:
    """Trade-off curve that a certified privacy profile implies: the upper envelope of its (ε, δ) points.

    Parameters
    ----------
    epsilons, deltas : arrays of equal shape
        Points at which the mechanism is certified (ε, δ)-DP, such as an accountant's upper ε at many δ.

    Returns
    -------
    callable
        f(x) = max over the points of max(0, 1 − δ − e^ε x, e^-ε (1 − δ − x)): a mechanism with this profile lies on or
        above it, so that refuting the curve refutes the mechanism. More points give more power.

    Examples
    --------
    >>> curve = profile_trade_off([0.0, 1.0], [0.3, 0.0])
    >>> round(curve(0.5), 4)
    0.2
    """
    eps = np.asarray(epsilons, dtype=np.float64).ravel()
    dels = np.asarray(deltas, dtype=np.float64).ravel()
    if eps.size != dels.size or not eps.size or np.isnan(eps).any() or not ((dels >= 0) & (dels <= 1)).all():
        raise InvalidValue(
            f"a privacy profile needs as many epsilons as deltas in [0, 1]; got {eps.size} and {dels.size}."
        )
    keep = np.isfinite(eps)
    grow, shrink, room = np.exp(np.clip(eps[keep], 0, 700)), np.exp(-np.clip(eps[keep], 0, 700)), 1.0 - dels[keep]

    def curve(fpr: float) -> float:
        if not room.size:
            return 0.0
        return max(0.0, float(np.max(room - grow * fpr)), float(np.max(shrink * (room - fpr))))

    return curve


def _rejects(m: int, r: int, c: int, alpha: float, inverse: Callable[[float], float], alphabet: int) -> bool:
    """Whether c right of r guesses are too many at level ``alpha``, by the paper's backward recursion.

    ``inverse(x)`` is the smallest false-positive rate at which a test can reach power x. Both running sums only grow,
    and stay for good once ``h`` stands still, so that the loop ends long before it has counted down to zero.
    """
    h, mass = alpha * (r - c) / m, alpha * c / m
    limit = r / m
    for i in range(c - 1, -1, -1):
        if mass + h > limit:
            return True
        grown = max(h, (alphabet - 1) * inverse(mass)) if mass < 1.0 else 1.0
        if grown == h:
            return False
        mass += i / (r - i) * (grown - h)
        h = grown
    return mass + h > limit


def f_dp_rejects(
    m: int, guesses: int, correct: int, curve: TradeOff, alpha: float = 0.05, *, alphabet: int = 2
) -> bool:
    """Whether ``correct`` right guesses refute that the mechanism obeys the trade-off curve, at level α, from one run.

    Parameters
    ----------
    m, guesses, correct : int
        All canaries, guesses made, and right ones; the number of guesses is fixed without the coins.
    curve : callable
        The declared mechanism's symmetric trade-off curve f (see :data:`TradeOff`).
    alphabet : int
        Number of equally likely values each secret can take; 2 for in/out coins.

    Notes
    -----
    Rejection contradicts the DECLARED MECHANISM only; an implementation can break its curve and still be (ε, δ)-DP.
    """
    _check(m, guesses, correct, 0.0)
    validate.open_unit(alpha=alpha)
    whole_at_least(2, alphabet=alphabet)
    return guesses > 0 and _rejects(m, guesses, correct, alpha, lambda x: curve(1.0 - x), alphabet)


def f_dp_p_value(m: int, guesses: int, correct: int, curve: TradeOff, *, alphabet: int = 2) -> float:
    """Smallest level at which ``f_dp_rejects`` rejects (rounded up, relative accuracy 1e-3); 1 when none does."""
    if not f_dp_rejects(m, guesses, correct, curve, 0.999999, alphabet=alphabet):
        return 1.0
    low, high = -40.0 * 2.302585092994046, 0.0  # natural logarithms of 1e-40 and 1
    if f_dp_rejects(m, guesses, correct, curve, math.exp(low), alphabet=alphabet):
        return math.exp(low)
    while high - low > 1e-3:
        mid = 0.5 * (low + high)
        low, high = (
            (low, mid) if f_dp_rejects(m, guesses, correct, curve, math.exp(mid), alphabet=alphabet) else (mid, high)
        )
    return math.exp(high)


def f_dp_mu_lower(
    m: int, guesses: int, correct: int, alpha: float = 0.05, *, alphabet: int = 2, tol: float = 1e-9
) -> float:
    """Lower bound on μ from one run ASSUMING the mechanism is μ-GDP; conditional."""
    return f_dp_mu_bracket(m, guesses, correct, alpha, alphabet=alphabet, tol=tol)[0]


def f_dp_mu_bracket(
    m: int,
    guesses: int,
    correct: int,
    alpha: float = 0.05,
    *,
    alphabet: int = 2,
    tol: float = 1e-9,
    within: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Two values of μ, at most ``tol`` apart, between which :func:`f_dp_mu_lower` lies for every smaller ``tol``.

    Parameters
    ----------
    m, guesses, correct : int
        All canaries, guesses made, and right ones.
    alpha : float
        Failure probability.
    alphabet : int
        Number of equally likely values each secret can take.
    tol : float
        Width of the bracket, absolute.
    within : (float, float), optional
        The answer of an earlier call with a larger ``tol``, which is narrowed further.

    Returns
    -------
    (float, float)
        μ that the run refutes, and μ that it does not; equal where the search ended at 0 or at its limit of 100.
    """
    _check(m, guesses, correct, 0.0)
    validate.open_unit(alpha=alpha)
    if guesses == 0:
        return 0.0, 0.0

    def rejects(mu: float) -> bool:
        return _rejects(m, guesses, correct, alpha, lambda x: float(ndtr(ndtri(x) - mu)), alphabet)

    return narrowed(rejects, within or first_bracket(rejects, start=1.0, limit=100.0), tol)


def f_dp_epsilon_lower(
    m: int, guesses: int, correct: int, delta: float, alpha: float = 0.05, *, alphabet: int = 2, tol: float = 1e-9
) -> float:
    """ε at δ of ``f_dp_mu_lower``: "ε assuming the mechanism is Gaussian", conditional.

    Parameters
    ----------
    m, guesses, correct : int
        All canaries, guesses made, and right ones; the number of guesses is fixed without the coins.
    delta : float
        δ at which ε is stated.
    alpha : float, default=0.05
        Failure probability.
    alphabet : int, default=2
        Number of equally likely values that each secret can take; 2 for in/out coins.
    tol : float
        Width of the last bracket of μ; its lower end is taken.

    Returns
    -------
    float
        Lower bound on ε at δ with confidence 1 − ``alpha`` IF the mechanism is Gaussian; 0 where nothing is shown.

    Raises
    ------
    InvalidValue
        If the counts do not fit together (0 ≤ correct ≤ guesses ≤ m), or δ or α is out of its bounds.

    Examples
    --------
    >>> round(f_dp_epsilon_lower(1000, 1000, 700, 1e-5), 3)
    1.372
    """
    validate.open_unit(delta=delta)
    mu = f_dp_mu_lower(m, guesses, correct, alpha, alphabet=alphabet, tol=tol)
    return gdp_epsilon(mu, delta) if mu > 0 else 0.0


def check_curve(curve: TradeOff) -> None:
    """Refuse a callable that is not a trade-off curve: values outside [0, 1 − x] at a rate x, or not decreasing."""
    previous = 1.0
    for step in range(1, 20):
        fpr = step / 20
        value = curve(fpr)
        if not 0.0 <= value <= 1.0 - fpr + 1e-9 or value > previous + 1e-9:
            raise InvalidValue(
                f"declared curve has f({fpr:g})={value}, which no trade-off curve has; it must decrease from 1 to 0"
                " and stay at or below 1 - fpr."
            )
        previous = value
