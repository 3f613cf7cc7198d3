"""What Gaussian DP says about attacks: a reference, and bounds conditional on the mechanism being Gaussian.

The curve itself has its home in :mod:`dpaudit.privacy.gaussian`; here its numbers are rounded as lower bounds need.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from dpaudit.privacy import validate
from dpaudit.privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
from dpaudit.privacy.meaning import largest_advantage

gdp_delta = gaussian_delta


def gdp_epsilon(mu: float, delta: float) -> float:
    """ε at δ of a μ-GDP mechanism, rounded down as a lower bound has to be.

    >>> round(gdp_epsilon(0.5, 1e-5), 6)
    1.993091
    """
    return gaussian_epsilon(mu, delta, below=True)


def gdp_mu(epsilon: float, delta: float) -> float:
    """Largest μ whose Gaussian mechanism is still (ε, δ)-DP.

    >>> round(gdp_mu(4.0, 1e-5), 6)
    0.924931
    """
    return _largest_mu(epsilon, delta)


@functools.lru_cache(maxsize=64)
def _largest_mu(epsilon: float, delta: float) -> float:
    """The root itself. A plan, its audit and its verification ask for that of one claim, each several times."""
    return gaussian_mu(epsilon, delta, below=True)


def gdp_accuracy_at_top(mu: float, share: float) -> float:
    """Expected share of members among the top ``share`` of scores, for scores N(±μ/2, 1) with fair coins.

    Parameters
    ----------
    mu : float
        Distance of the two score distributions in standard deviations.
    share : float
        Fraction of all canaries that is guessed "in", in (0, 1/2]; by symmetry the bottom share is as accurate.

    Examples
    --------
    >>> round(gdp_accuracy_at_top(1.0, 0.5), 4)
    0.6915
    """
    validate.non_negative(mu=mu)
    validate.positive(share=share)
    low, high = -40.0, 40.0 + mu
    for _ in range(80):
        mid = 0.5 * (low + high)
        tail = 0.5 * (ndtr(mu / 2 - mid) + ndtr(-mu / 2 - mid))
        low, high = (mid, high) if tail > share else (low, mid)
    cut = 0.5 * (low + high)
    return float(1.0 / (1.0 + np.exp(log_ndtr(-mu / 2 - cut) - log_ndtr(mu / 2 - cut))))


def dp_attack_limits(epsilon: float, delta: float, fpr: float = 0.01) -> dict[str, float]:
    """What every attack on the mechanism must obey: upper limits on attack quality implied by a claim.

    Returns
    -------
    dict
        ``max_balanced_accuracy``, ``max_advantage`` (TPR − FPR) and ``tpr_at_fpr`` of any (ε, δ)-DP mechanism, and with
        prefix ``gaussian_`` (plus ``mu`` and ``gaussian_auc``) those of the Gaussian mechanism with exactly that claim.
    """
    validate.non_negative(epsilon=epsilon)
    validate.probability(fpr=fpr)
    mu = gdp_mu(epsilon, delta)
    advantage = largest_advantage(epsilon, delta)
    tpr = min(math.exp(epsilon) * fpr + delta, 1.0 - math.exp(-epsilon) * (1.0 - delta - fpr), 1.0)
    return {
        "max_balanced_accuracy": 0.5 * (1.0 + advantage),
        "max_advantage": advantage,
        "tpr_at_fpr": max(tpr, 0.0),
        "mu": mu,
        "gaussian_max_balanced_accuracy": float(ndtr(mu / 2)),
        "gaussian_max_advantage": float(2 * ndtr(mu / 2) - 1),
        "gaussian_auc": float(ndtr(mu / math.sqrt(2))),
        "gaussian_tpr_at_fpr": float(ndtr(ndtri(fpr) + mu)),
    }
