"""Bounds on ε from true and false positive rates of a threshold that was fixed beforehand.

Valid for INDEPENDENT trials: one canary in each of many runs. From one run the canaries share the noise, and these
numbers are heuristics without a verdict.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, betaincinv, ndtri

from dpaudit.auditing.gaussian import gdp_epsilon
from dpaudit.auditing.solve import largest_not_above
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue


def _check_counts(tp: int, n_pos: int, fp: int, n_neg: int) -> None:
    whole_at_least(0, tp=tp, fp=fp)
    whole_at_least(1, n_pos=n_pos, n_neg=n_neg)
    if tp > n_pos or fp > n_neg:
        raise InvalidValue(f"tp={tp} of n_pos={n_pos} and fp={fp} of n_neg={n_neg}: counts exceed their totals.")


def rate_upper(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson upper bound on a rate with confidence 1 − α; 1 when every trial succeeded."""
    if successes >= trials:
        return 1.0
    return float(betaincinv(successes + 1, trials - successes, 1.0 - alpha))


def rate_lower(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound on a rate with confidence 1 − α; 0 when no trial succeeded."""
    if successes <= 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, alpha))


def _log_ratio(numerator: float, denominator: float) -> float:
    return math.log(numerator / denominator) if numerator > 0 and denominator > 0 else -math.inf


def check_delta(delta: float) -> None:
    """Refuse a δ outside [0, 1): a negative one would raise every lower bound on ε."""
    if not 0 <= delta < 1:
        raise InvalidValue(f"delta={delta} must be in [0, 1); give the claimed delta.")


def epsilon_from_rates(tpr_lower: float, fpr_upper: float, delta: float, *, both_directions: bool = True) -> float:
    """Smallest ε of an (ε, δ)-DP mechanism that allows TPR ≥ ``tpr_lower`` at FPR ≤ ``fpr_upper``."""
    check_delta(delta)
    bound = _log_ratio(tpr_lower - delta, fpr_upper)
    if both_directions:
        bound = max(bound, _log_ratio(1.0 - fpr_upper - delta, 1.0 - tpr_lower))
    return max(0.0, bound)


def cp_epsilon_lower(
    tp: int, n_pos: int, fp: int, n_neg: int, delta: float, alpha: float = 0.05, *, both_directions: bool = True
) -> float:
    """Clopper-Pearson lower bound on ε from independent trials (Jagielski, Ullman and Oprea, arXiv:2006.07709).

    Parameters
    ----------
    tp, n_pos : int
        Members guessed "in", and members.
    fp, n_neg : int
        Non-members guessed "in", and non-members.
    delta : float
        The claimed δ.
    alpha : float
        Failure probability, half for each rate. Both directions rest on the same two intervals and cost nothing extra.
    both_directions : bool, default=True
        Also use the rates of guessing the other way round, non-members among the guesses "out".

    Returns
    -------
    float
        Lower bound on ε at δ, with confidence 1 − ``alpha``; 0 where nothing is shown.

    Raises
    ------
    InvalidValue
        If a count exceeds its total, or δ or α is out of its bounds.

    Examples
    --------
    >>> round(cp_epsilon_lower(900, 1000, 500, 1000, 1e-5), 6)
    1.359731
    """
    _check_counts(tp, n_pos, fp, n_neg)
    validate.open_unit(alpha=alpha)
    return epsilon_from_rates(
        rate_lower(tp, n_pos, alpha / 2), rate_upper(fp, n_neg, alpha / 2), delta, both_directions=both_directions
    )


def katz_epsilon_lower(
    tp: int, n_pos: int, fp: int, n_neg: int, alpha: float = 0.05, *, both_directions: bool = True
) -> float:
    """APPROXIMATION to a bound on ε at δ = 0 by Katz's log-ratio interval; too high at small counts, never a verdict.

    Normal quantile at α on the log of TPR/FPR, or at α/2 on the better of both directions; an empty cell counts one
    half.
    """
    _check_counts(tp, n_pos, fp, n_neg)
    validate.open_unit(alpha=alpha)
    z = -float(ndtri(alpha / 2 if both_directions else alpha))

    def direction(a: float, n_a: int, b: float, n_b: int) -> float:
        a, b = max(a, 0.5), max(b, 0.5)
        return math.log((a / n_a) / (b / n_b)) - z * math.sqrt((1 - a / n_a) / a + (1 - b / n_b) / b)

    bound = direction(tp, n_pos, fp, n_neg)
    if both_directions:
        bound = max(bound, direction(n_neg - fp, n_neg, n_pos - tp, n_pos))
    return max(0.0, bound)


def jeffreys_epsilon_lower(tp: int, n_pos: int, fp: int, n_neg: int, delta: float, alpha: float = 0.05) -> float:
    """CREDIBLE lower bound on ε from Jeffreys intervals for each rate at α/2; not a confidence bound."""
    _check_counts(tp, n_pos, fp, n_neg)
    tpr = float(betaincinv(tp + 0.5, n_pos - tp + 0.5, alpha / 2))
    fpr = float(betaincinv(fp + 0.5, n_neg - fp + 0.5, 1 - alpha / 2))
    return epsilon_from_rates(tpr, fpr, delta)


def bayesian_epsilon_lower(tp: int, n_pos: int, fp: int, n_neg: int, delta: float, alpha: float = 0.05) -> float:
    """CREDIBLE lower bound on ε from the joint posterior of both rates (Zanella-Béguelin et al., arXiv:2206.05199).

    FNR and FPR have independent Jeffreys posteriors; the bound is the smallest ε whose (ε, δ) region of error rates
    holds posterior mass ≥ α. A statement about the posterior, not a coverage guarantee. Rates worse than guessing count
    as private (scores are directed: higher = member), so that an attack that knows nothing gets 0.

    >>> round(bayesian_epsilon_lower(50, 100, 5, 100, 1e-5), 1)
    1.6
    """
    _check_counts(tp, n_pos, fp, n_neg)
    validate.open_unit(alpha=alpha)
    a_fpr, b_fpr = fp + 0.5, n_neg - fp + 0.5
    a_fnr, b_fnr = n_pos - tp + 0.5, tp + 0.5
    # The nodes are midpoints of 4096 shares of equal posterior mass of the FPR, so that a plain mean over them is the
    # integral over that posterior.
    nodes = (np.arange(4096) + 0.5) / 4096
    fpr = betaincinv(a_fpr, b_fpr, nodes)

    def mass(epsilon: float) -> float:
        grow = math.exp(min(epsilon, 700.0))
        boundary = np.clip(np.maximum(1.0 - delta - grow * fpr, (1.0 - delta - fpr) / grow), 0.0, 1.0)
        return float(np.mean(1.0 - betainc(a_fnr, b_fnr, boundary)))

    return largest_not_above(mass, math.nextafter(alpha, 0.0), start=2.0, limit=700.0, tol=1e-9)


def gdp_mu_lower(tp: int, n_pos: int, fp: int, n_neg: int, alpha: float = 0.05) -> float:
    """Lower bound on μ ASSUMING the mechanism is μ-GDP (Nasr et al., arXiv:2302.07956); independent trials.

    Conditional: it says nothing about (ε, δ) when the mechanism is not Gaussian, and is then often above the truth.

    >>> round(gdp_mu_lower(200, 1000, 10, 1000), 6)
    1.157719
    """
    _check_counts(tp, n_pos, fp, n_neg)
    validate.open_unit(alpha=alpha)
    fpr, fnr = rate_upper(fp, n_neg, alpha / 2), rate_upper(n_pos - tp, n_pos, alpha / 2)
    if fpr >= 1.0 or fnr >= 1.0:
        return 0.0
    return max(0.0, float(-ndtri(fpr) - ndtri(fnr)))


def gdp_epsilon_lower(tp: int, n_pos: int, fp: int, n_neg: int, delta: float, alpha: float = 0.05) -> float:
    """ε at δ of ``gdp_mu_lower``: "ε assuming the mechanism is Gaussian", conditional.

    Parameters
    ----------
    tp, n_pos : int
        Members guessed "in", and members.
    fp, n_neg : int
        Non-members guessed "in", and non-members.
    delta : float
        δ of the claim.
    alpha : float, default=0.05
        Failure probability, half for each rate.

    Returns
    -------
    float
        Lower bound on ε at δ with confidence 1 − ``alpha`` IF the mechanism is Gaussian; 0 where nothing is shown.

    Raises
    ------
    InvalidValue
        If a count exceeds its total, or δ or α is out of its bounds.
    """
    validate.open_unit(delta=delta)
    return gdp_epsilon(gdp_mu_lower(tp, n_pos, fp, n_neg, alpha), delta)
