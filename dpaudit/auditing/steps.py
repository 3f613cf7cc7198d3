"""Step-level bounds: many releases of one step, with and without a record, bound the step's sensitivity ÷ noise.

CONDITIONAL: they assume that a step is (sampled) Gaussian as declared, and composition is the accountant's. Against
the claim they can only contradict the declared mechanism, never (ε, δ) itself. A scalar mechanism can be released many
times on a batch that the examiner owns, which makes this the strongest audit of zeroth-order training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtr, gammaincinv, ndtr, ndtri

from dpaudit.auditing.at_level import AtLevel
from dpaudit.auditing.many_runs import counts_at
from dpaudit.auditing.rates import gdp_mu_lower
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.scores import check_scores

Compose = Callable[[float], float]
"""μ of one step (sensitivity ÷ noise, before sampling) to ε of the whole run; use an accountant's LOWER bound."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepBound:
    """Lower bound on one step's μ = sensitivity ÷ noise, and on ε if all steps are alike.

    Attributes
    ----------
    estimator : str
        ``means``, ``noise`` or ``rates``.
    mu, mu_lower : float
        Estimate and lower bound at ``confidence``.
    epsilon_lower : float or None
        Composed by the accountant that was handed in.
    releases : int
        Number of releases used.
    p_value : float or None
        Of "μ is at most the declared one".
    asymptotic : bool
        True where the bound's level holds only for many releases.
    """

    estimator: str
    kind: str = "conditional"
    mu: float
    mu_lower: float
    epsilon_lower: float | None
    confidence: float
    releases: int
    p_value: float | None
    asymptotic: bool

    def contradicts(self, alpha: float) -> bool:
        """Whether the declared step is refuted at level α."""
        return self.p_value is not None and AtLevel(self.p_value, alpha).rejected


def _two(inside: ArrayLike, outside: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = check_scores(inside, name="inside"), check_scores(outside, name="outside")
    if min(a.size, b.size) < 2:
        raise InvalidEvidence(f"{a.size} releases inside and {b.size} outside; give at least 2 of each.")
    return a, b


def step_means_bound(
    inside: ArrayLike,
    outside: ArrayLike,
    *,
    alpha: float = 0.05,
    declared_mu: float | None = None,
    compose: Compose | None = None,
) -> StepBound:
    """Bound μ by the shift of the mean in standard deviations; needs to know nothing of the record's contribution.

    Parameters
    ----------
    inside, outside : arrays
        The step's scalar release, projected on the record's direction so that the record RAISES it, with and without
        the record; any unit.
    alpha : float
        Failure probability.
    declared_mu : float, optional
        1 ÷ noise multiplier of the step as declared (√P ÷ σ for P directions of per-direction clipping), to test.
    compose : callable, optional
        See ``Compose``.

    Notes
    -----
    Normal approximation of the noncentral t: the variance of the shift is 1/n₁ + 1/n₀ + μ²/(2·degrees of freedom).
    """
    a, b = _two(inside, outside)
    validate.open_unit(alpha=alpha)
    freedom = a.size + b.size - 2
    pooled = math.sqrt(((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / freedom)
    if pooled == 0:
        raise InvalidEvidence("the releases do not vary: the step adds no noise; report it as a deterministic witness.")
    correction = 1.0 - 3.0 / (4.0 * freedom - 1.0)
    mu = max(0.0, correction * float(a.mean() - b.mean()) / pooled)
    share = 1.0 / a.size + 1.0 / b.size

    def sd(value: float) -> float:
        return math.sqrt(share + value * value / (2.0 * freedom))

    lower = max(0.0, mu + float(ndtri(alpha)) * sd(mu))
    p = None if declared_mu is None else float(ndtr(-(mu - declared_mu) / sd(declared_mu)))
    return _bound("means", mu, lower, compose, alpha, a.size + b.size, p, asymptotic=True)


def step_noise_bound(
    residuals: ArrayLike,
    *,
    sensitivity: float = 1.0,
    alpha: float = 0.05,
    declared_mu: float | None = None,
    compose: Compose | None = None,
) -> StepBound:
    """Bound μ by the noise alone, for a batch whose exact signal the examiner knows; exact for Gaussian noise.

    Parameters
    ----------
    residuals : array of shape (n,)
        Releases minus their exact signal; for P directions all P·n scalars.
    sensitivity : float
        How far one record CAN move the release, shown by a witness (a clipped record that reaches it), in the
        residuals' unit: C for one scalar, C·√P for P directions of per-direction clipping.
    alpha : float, default=0.05
        Failure probability of the bound.
    declared_mu : float, optional
        μ of one step by its plan, sensitivity over noise; adds a p-value against more noise than it allows.
    compose : callable, optional
        ``compose(mu)``, ε of the whole run for a step of μ; adds ε to the bound.

    Returns
    -------
    StepBound
        μ as measured, and its lower bound with confidence 1 − ``alpha``.

    Raises
    ------
    InvalidValue
        If a value is out of its bounds.
    InvalidEvidence
        If there are fewer than 2 residuals, one is not finite, or all are 0.
    """
    values = check_scores(residuals, name="residuals")
    validate.open_unit(alpha=alpha)
    validate.positive(sensitivity=sensitivity)
    if values.size < 2:
        raise InvalidEvidence(f"{values.size} residuals are too few; give at least 2.")
    n, square = values.size, float(np.dot(values, values))
    if square == 0:
        raise InvalidEvidence("all residuals are 0: the step adds no noise; report it as a deterministic witness.")
    mu = sensitivity / math.sqrt(square / n)
    # square / sd² is chi-squared with n degrees of freedom, so its α-quantile bounds sd from above.
    sd_upper = math.sqrt(square / (2.0 * float(gammaincinv(n / 2.0, alpha))))
    p = None
    if declared_mu is not None:
        validate.positive(declared_mu=declared_mu)
        p = float(chdtr(n, square * (declared_mu / sensitivity) ** 2))
    return _bound("noise", mu, sensitivity / sd_upper, compose, alpha, n, p, asymptotic=False)


def step_rates_bound(
    inside: ArrayLike,
    outside: ArrayLike,
    threshold: float,
    *,
    alpha: float = 0.05,
    compose: Compose | None = None,
) -> StepBound:
    """Bound μ from error rates at a pre-registered threshold (Nasr et al., arXiv:2302.07956); exact, but weaker."""
    a, b = _two(inside, outside)
    values = np.concatenate([a, b])
    member = np.arange(values.size) < a.size
    tp, n_pos, fp, n_neg = counts_at(values, member, threshold)
    fnr, fpr = (n_pos - tp + 0.5) / (n_pos + 1), (fp + 0.5) / (n_neg + 1)
    mu = max(0.0, float(-ndtri(fpr) - ndtri(fnr)))
    lower = gdp_mu_lower(tp, n_pos, fp, n_neg, alpha)
    return _bound("rates", mu, lower, compose, alpha, values.size, None, asymptotic=False)


def _bound(
    estimator: str,
    mu: float,
    lower: float,
    compose: Compose | None,
    alpha: float,
    releases: int,
    p_value: float | None,
    *,
    asymptotic: bool,
) -> StepBound:
    return StepBound(
        estimator=estimator,
        mu=mu,
        mu_lower=lower,
        epsilon_lower=None if compose is None else (compose(lower) if lower > 0 else 0.0),
        confidence=1.0 - alpha,
        releases=releases,
        p_value=p_value,
        asymptotic=asymptotic,
    )


def smallest_visible_fault(releases: int, alpha: float, power: float = 0.8) -> float:
    """Factor by which noise must be too small for the noise bound's test to convict with probability ``power``.

    >>> round(smallest_visible_fault(1000, 0.005), 3)
    1.081
    """
    whole_at_least(2, releases=releases)
    validate.open_unit(alpha=alpha, power=power)
    half = releases / 2.0
    return math.sqrt(float(gammaincinv(half, power)) / float(gammaincinv(half, alpha)))
