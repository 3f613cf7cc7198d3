"""One-run Gaussian bound by dominance of the sorted privacy losses: conditional on μ-GDP.

Xiang, Wang and colleagues, arXiv:2509.08704: errors among the r most confident guesses are dominated by independent
Bernoulli(v_k), where v_k = E[1/(1 + e^|L_(k)|)] over the k-th largest of m privacy losses drawn from the mixture.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from dpaudit.auditing.one_run import _check
from dpaudit.auditing.rates import rate_lower
from dpaudit.auditing.solve import largest_not_above
from dpaudit.privacy import validate

_NODES = 16
_EXACT_M = 5000


def _order_quantiles(m: int, r: int) -> NDArray[np.float64]:
    """Probability levels of the r largest of m order statistics, shape (r, nodes): midpoints of equal mass each."""
    k = np.arange(m, m - r, -1, dtype=np.float64)[:, None]
    if m > _EXACT_M:
        levels: NDArray[np.float64] = (k - 0.5) / m
    else:
        levels = betaincinv(k, m - k + 1, (np.arange(_NODES) + 0.5)[None, :] / _NODES)
    return levels


def _error_rates(mu: float, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """v_k for each of the r most confident guesses; |L| = μ|y| with y from the mixture of N(±μ/2, 1)."""
    grid = np.linspace(0.0, mu / 2 + 12.0, 8193)
    below = ndtr(grid - mu / 2) - ndtr(-grid - mu / 2)
    size = np.interp(levels, below, grid)
    rates: NDArray[np.float64] = (1.0 / (1.0 + np.exp(mu * size))).mean(axis=1)
    return rates


def _log_p(errors: int, rates: NDArray[np.float64]) -> float:
    """Chernoff bound on log P[Σ Bernoulli(v_k) ≤ errors]."""
    if errors >= rates.sum():
        return 0.0
    if errors == 0:
        return float(np.log1p(-rates).sum())
    # The bound is convex in the tilt l, so its minimum is where the tilted mean equals the number of errors.
    low, high = -60.0, 0.0
    for _ in range(60):
        mid = 0.5 * (low + high)
        tilted = rates * math.exp(mid) / (1 - rates + rates * math.exp(mid))
        low, high = (low, mid) if tilted.sum() > errors else (mid, high)
    l = 0.5 * (low + high)
    return float(-l * errors + np.log1p(rates * math.expm1(l)).sum())


def xiang_mu_lower(m: int, guesses: int, correct: int, alpha: float = 0.05, *, tol: float = 1e-6) -> float:
    """Lower bound on μ from one run ASSUMING the mechanism is μ-GDP, by sorted privacy losses; conditional.

    Parameters
    ----------
    m, guesses, correct : int
        All canaries, the most confident guesses made among them, and right ones.
    alpha : float
        Failure probability.
    tol : float, default=1e-6
        Absolute accuracy of the answer, which is rounded down.

    Returns
    -------
    float
        Lower bound on μ with confidence 1 − ``alpha`` IF the mechanism is μ-GDP; 0 where nothing is shown.

    Raises
    ------
    InvalidValue
        If the counts do not fit together (0 ≤ correct ≤ guesses ≤ m), or δ or α is out of its bounds.

    Examples
    --------
    >>> round(xiang_mu_lower(1000, 1000, 700), 2)
    0.85
    """
    _check(m, guesses, correct, 0.0)
    validate.open_unit(alpha=alpha)
    if guesses == 0:
        return 0.0
    levels = _order_quantiles(m, guesses)

    def log_p(mu: float) -> float:
        return _log_p(guesses - correct, _error_rates(mu, levels))

    return largest_not_above(log_p, math.log(alpha), start=1.0, limit=60.0, tol=tol)


def accuracy_mu_lower(m: int, correct: int, alpha: float = 0.05) -> float:
    """Lower bound on μ from one run ASSUMING μ-GDP, when ALL m coins are guessed: 2Φ⁻¹(lower bound on the accuracy).

    The same dominance with r = m: the Bernoulli rates then average Φ(−μ/2), and a sum of unequal Bernoulli variables
    has a lighter lower tail than the binomial with their mean (Hoeffding 1956), so the exact binomial test replaces
    the Chernoff bound. Guess "in" above a cut that was fixed beforehand, such as the claim's μ/2.

    >>> round(accuracy_mu_lower(1000, 700), 2)
    0.91
    """
    _check(m, m, correct, 0.0)
    validate.open_unit(alpha=alpha)
    p = rate_lower(correct, m, alpha)
    return max(0.0, 2.0 * float(ndtri(p))) if 0 < p < 1 else 0.0
