"""The one-run bound of Steinke, Nasr and Jagielski: the only unconditional bound on ε from a single run.

Fair independent coins decide which of m canaries enter the data; the auditor guesses r of the coins from the model and
abstains on the rest. If the mechanism is (ε, δ)-DP, the number of right guesses is dominated by a binomial count plus a
term in m·δ (Privacy Auditing with One (1) Training Run, Theorem 5.2, arXiv:2305.08846).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.special import betainc, gammaln

from dpaudit.auditing.rates import check_delta
from dpaudit.auditing.solve import largest_not_above
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue

# Half-width of the window of binomial counts that can matter: 12 standard deviations leave less than 1e-30 outside,
# and the constant covers the Poisson corner, where the standard deviation is below one count.
_WINDOW_SD = 12.0
_WINDOW_MIN = 60


def _check(m: int, guesses: int, correct: int, delta: float) -> None:
    whole_at_least(1, m=m)
    whole_at_least(0, guesses=guesses, correct=correct)
    if guesses > m:
        raise InvalidValue(f"guesses={guesses} exceeds m={m}; at most one guess for each canary.")
    if correct > guesses:
        raise InvalidValue(f"correct={correct} exceeds guesses={guesses}; count right guesses among those made.")
    check_delta(delta)


def snj_p_value(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Upper bound on P[at least ``correct`` right guesses] if the mechanism is (ε, δ)-DP.

    Parameters
    ----------
    m : int
        Number of ALL canaries that had a coin, guessed or not; it multiplies δ.
    guesses : int
        Number r of guesses, fixed without looking at the coins.
    correct : int
        Number v of right guesses.
    epsilon, delta : float
        The hypothesis to test.

    Returns
    -------
    float
        A valid p-value in [0, 1] for "the mechanism is (ε, δ)-DP"; small values speak against the claim.

    Notes
    -----
    With W ~ Bin(r, 1/(1+e^-ε)) the bound is P[W ≥ v] + 2mδ · max_{1≤i≤v} P[v−i ≤ W < v]/i.

    Examples
    --------
    >>> round(snj_p_value(1000, 200, 180, 2.0, 1e-4), 8)
    0.2535706
    """
    _check(m, guesses, correct, delta)
    validate.non_negative(epsilon=epsilon)
    return _p_value(m, guesses, correct, epsilon, delta)


def _p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    if v == 0:
        return 1.0
    q = 1.0 / (1.0 + math.exp(-epsilon))
    p = float(betainc(v, r - v + 1, q))
    if delta > 0:
        p += 2.0 * m * delta * _largest_average(r, v, epsilon)
    return min(p, 1.0)


def _largest_average(r: int, v: int, epsilon: float) -> float:
    """max over 1 ≤ i ≤ v of P[v−i ≤ W < v]/i, looked for only where the binomial has mass."""
    log_q, log_p = -math.log1p(math.exp(-epsilon)), -(epsilon + math.log1p(math.exp(-epsilon)))
    q = math.exp(log_q)
    centre, half = r * q, _WINDOW_SD * math.sqrt(r * q * (1.0 - q)) + _WINDOW_MIN
    high = min(v - 1, math.ceil(centre + half))
    low = max(0, min(math.floor(centre - half), high))
    w = np.arange(high, low - 1, -1, dtype=np.float64)
    log_mass = gammaln(r + 1.0) - gammaln(w + 1.0) - gammaln(r - w + 1.0) + w * log_q + (r - w) * log_p
    return float(np.max(np.cumsum(np.exp(log_mass)) / (v - w)))


@functools.lru_cache(maxsize=4096)
def _lower(m: int, r: int, v: int, delta: float, alpha: float, tol: float) -> float:
    def value(epsilon: float) -> float:
        """log p − log α, nearly straight where it crosses zero, with the sign that the comparison of p with α has."""
        p = _p_value(m, r, v, epsilon, delta)
        over = math.log(max(p, 1e-300) / alpha)
        return min(over, 0.0) if p <= alpha else max(over, 1e-300)

    return largest_not_above(value, 0.0, start=2.0, limit=700.0, tol=tol)


def snj_epsilon_lower(
    m: int, guesses: int, correct: int, delta: float, alpha: float = 0.05, *, tol: float = 1e-9
) -> float:
    """Lower bound on ε at δ with confidence 1 − α from one run; 0 when nothing is rejected.

    Unconditional: valid for every (ε, δ)-DP mechanism and every attack, however the canaries interfere, as long as the
    coins are fair, independent and secret, and the number of guesses was fixed without them (arXiv:2305.08846).

    Parameters
    ----------
    m, guesses, correct : int
        Canaries, guesses made and right guesses.
    delta : float
        δ of the claim.
    alpha : float
        Failure probability.
    tol : float
        Absolute accuracy of the answer, which is rounded down.

    Returns
    -------
    float
        Lower bound on ε at δ, with confidence 1 − ``alpha``; 0 where nothing is shown.

    Raises
    ------
    InvalidValue
        If the counts do not fit together (0 ≤ correct ≤ guesses ≤ m), or δ or α is out of its bounds.

    Examples
    --------
    >>> round(snj_epsilon_lower(1000, 1000, 700, 1e-5, 0.05), 4)
    0.7317
    """
    _check(m, guesses, correct, delta)
    validate.open_unit(alpha=alpha)
    validate.positive(tol=tol)
    return _lower(int(m), int(guesses), int(correct), float(delta), float(alpha), float(tol))


def snj_ceiling(m: int, guesses: int, delta: float, alpha: float = 0.05, *, tol: float = 1e-9) -> float:
    """Largest ε that a PERFECT attack could have shown with these guesses: the bound at ``correct = guesses``.

    An audit whose ceiling is at or below the claim could never have convicted.

    >>> round(snj_ceiling(1000, 1000, 1e-5, 0.05), 4)
    5.7823
    """
    return snj_epsilon_lower(m, guesses, guesses, delta, alpha, tol=tol)


def snj_critical_count(m: int, guesses: int, epsilon: float, delta: float, alpha: float) -> int | None:
    """Smallest number of right guesses that rejects (ε, δ) at level α; None when even a perfect attack does not."""
    _check(m, guesses, guesses, delta)
    if guesses == 0 or _p_value(m, guesses, guesses, epsilon, delta) > alpha:
        return None
    low, high = 0, guesses  # low does not reject (no right guess refutes nothing), high does
    while high - low > 1:
        mid = (low + high) // 2
        if _p_value(m, guesses, mid, epsilon, delta) <= alpha:
            high = mid
        else:
            low = mid
    return high
