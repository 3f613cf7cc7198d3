"""Exposure of canaries against references that were never trained on (Carlini et al., The Secret Sharer, 2019).

Exposure is the number of bits by which a canary stands out: log2 of the references minus log2 of its rank, rank 1 being
the lowest loss. Without leakage the mean exposure is not 0 but, among many references, log2(e) bits (see
:func:`mean_exposure_without_leakage`), so every exposure comes with a p-value.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, ndtr

from dpaudit.auditing.rates import rate_lower
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.rounding import upper_text
from dpaudit.privacy.scores import check_scores

FEWEST_REFERENCES = 1000
"""Below this many references a fitted tail is guesswork, and the extrapolation is refused."""

FIT_P_VALUE = 0.05
_EXACT_WORK = 3e8


def exposure_from_rank(space: int, rank: int) -> float:
    """Exposure in bits of a canary of rank ``rank`` (1 = lowest loss) among ``space`` possible values.

    >>> round(exposure_from_rank(1000, 7), 4)
    7.1584
    """
    whole_at_least(1, space=space, rank=rank)
    return math.log2(space) - math.log2(rank)


def exposure_ranks(losses: ArrayLike, references: ArrayLike) -> NDArray[np.int64]:
    """Rank of each canary among the references, 1 = below all; equal losses count against the canary (pessimistic)."""
    values, others = check_scores(losses, name="losses"), np.sort(check_scores(references, name="references"))
    return (1 + np.searchsorted(others, values, side="right")).astype(np.int64)


def exposure(losses: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Sampled exposure in bits of each canary; at most log2 of the number of references, and just below 0 at worst.

    >>> exposure([0.0, 4.0], range(1, 17)).round(4).tolist()
    [4.0, 1.6781]
    """
    ranks = exposure_ranks(losses, references)
    bits: NDArray[np.float64] = math.log2(np.asarray(references).size) - np.log2(ranks)
    return bits


def mean_exposure_without_leakage(references: int) -> float:
    """Mean exposure in bits of a canary that is one more reference: log2 r − mean of log2 over ranks 1 … r + 1.

    Exact for any number r of references; it approaches log2(e) = 1.4427 from below.

    >>> round(mean_exposure_without_leakage(1), 4), round(mean_exposure_without_leakage(1000), 4)
    (-0.5, 1.4349)
    """
    whole_at_least(1, references=references)
    ranks = np.arange(1, references + 2, dtype=np.float64)
    return float(math.log2(references) - np.log2(ranks).mean())


def exposure_p_values(ranks: ArrayLike, references: int) -> NDArray[np.float64]:
    """Exact p-value of each rank if the canary were one more reference: rank ÷ (references + 1)."""
    whole_at_least(1, references=references)
    values: NDArray[np.float64] = np.asarray(ranks, dtype=np.float64) / (references + 1)
    return values


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SkewNormalFit:
    """Skew-normal distribution of reference losses, and whether it may be used.

    Attributes
    ----------
    shape, location, scale : float or None
        Maximum-likelihood parameters; None when the fit was not made.
    references : int
        Number of losses fitted.
    ks_statistic, ks_p_value : float or None
        Kolmogorov-Smirnov distance to the fit; the p-value is generous, since the parameters were fitted.
    used : bool
        Whether extrapolated exposures are given.
    reason : str
        Why not, else empty.
    """

    shape: float | None = None
    location: float | None = None
    scale: float | None = None
    references: int
    ks_statistic: float | None = None
    ks_p_value: float | None = None
    used: bool
    reason: str = ""


def fit_references(references: ArrayLike) -> SkewNormalFit:
    """Fit a skew-normal distribution to reference losses; refused below 1,000 references or when the fit is poor."""
    from scipy import stats

    values = check_scores(references, name="references")
    if not np.all(np.isfinite(values)):
        return SkewNormalFit(references=values.size, used=False, reason="a reference loss is infinite")
    if values.size < FEWEST_REFERENCES:
        return SkewNormalFit(
            references=values.size,
            used=False,
            reason=f"{values.size} references are fewer than the {FEWEST_REFERENCES} that a fitted tail needs",
        )
    if np.ptp(values) == 0:
        return SkewNormalFit(references=values.size, used=False, reason="all reference losses are equal")
    shape, location, scale = (float(x) for x in stats.skewnorm.fit(values))
    test = stats.kstest(values, stats.skewnorm(shape, location, scale).cdf)
    used = bool(test.pvalue >= FIT_P_VALUE)
    return SkewNormalFit(
        shape=shape,
        location=location,
        scale=scale,
        references=values.size,
        ks_statistic=float(test.statistic),
        ks_p_value=float(test.pvalue),
        used=used,
        reason=""
        if used
        else f"the references are not skew-normal (KS p={upper_text(test.pvalue, 2)} < {FIT_P_VALUE})",
    )


def exposure_extrapolated(losses: ArrayLike, fit: SkewNormalFit) -> NDArray[np.float64]:
    """Extrapolated exposure −log2 F(loss) in bits under a fitted skew-normal F; an estimate, not a bound."""
    from scipy import stats

    if not fit.used or fit.shape is None:
        raise InvalidValue(f"the extrapolation is refused because {fit.reason}; use the sampled exposure.")
    log_tail = stats.skewnorm.logcdf(check_scores(losses, name="losses"), fit.shape, fit.location, fit.scale)
    bits: NDArray[np.float64] = np.maximum(-log_tail / math.log(2.0), 0.0)
    return bits


def rank_sum_test(losses: ArrayLike, references: ArrayLike) -> tuple[float, bool]:
    """One-sided test that canaries have lower losses than references: ``(p_value, exact)``.

    Exact null distribution of the rank sum (Mann-Whitney) while it is affordable, ties counted against the canaries,
    so that the p-value is valid; otherwise the normal approximation. Unlike Fisher's combination of single p-values it
    stays exact although all canaries share their references.
    """
    n, r = np.asarray(losses).size, np.asarray(references).size
    u = int((exposure_ranks(losses, references) - 1).sum())  # pairs in which the reference is at or below the canary
    lower, flip = (u, False) if u <= n * r // 2 else (n * r - u - 1, True)
    if n * max(lower, 1) <= _EXACT_WORK and gammaln(n + r + 1) - gammaln(n + 1) - gammaln(r + 1) < 650:
        p = _rank_sum_cdf(lower, n, r) if lower >= 0 else 0.0
        return (1.0 - p if flip else p), True
    sd = math.sqrt(n * r * (n + r + 1) / 12.0)
    return float(ndtr((u + 0.5 - n * r / 2.0) / sd)), False


def _rank_sum_cdf(u: int, n: int, r: int) -> float:
    """P[U ≤ u] under the null, by the generating function of U kept up to degree u.

    The function is the product over i = 1..n of (1 − x^(r+i))/(1 − x^i) · i/(r+i). Dividing first keeps every term
    positive in the tail, where small p-values live.
    """
    mass = np.zeros(u + 1)
    mass[0] = 1.0
    for i in range(1, n + 1):
        padded = np.zeros(-(-(u + 1) // i) * i)
        padded[: u + 1] = mass
        mass = np.cumsum(padded.reshape(-1, i), axis=0).ravel()[: u + 1]
        if u >= r + i:
            mass[r + i :] -= mass[: u + 1 - r - i].copy()
        mass *= i / (r + i)
    return float(min(1.0, max(0.0, mass.sum())))


def exposure_p_values_under_claim(
    ranks: ArrayLike, references: int, epsilon: float, delta: float
) -> NDArray[np.float64]:
    """p-value of each rank if the canary's copies were protected by (ε, δ): min(1, e^ε · rank ÷ (references + 1) + δ).

    Without the canary its rank is uniform, and group privacy for its k copies allows no more than this; ε and δ are
    those of groups of k records. Valid in one run for a single canary, and for n canaries after Bonferroni.
    """
    validate.non_negative(epsilon=epsilon, delta=delta)
    log_p = epsilon + np.log(exposure_p_values(ranks, references))
    values: NDArray[np.float64] = np.minimum(1.0, np.exp(np.minimum(log_p, 0.0)) + delta)
    return values


def exposure_epsilon_lower(runs: int, hits: int, bits: float, delta: float, alpha: float = 0.05) -> float:
    """Lower bound on the GROUP ε of a canary from independent runs, ``hits`` of which had exposure ≥ ``bits``.

    Under (ε, δ)-DP for the canary's k copies, P[exposure ≥ b] ≤ e^ε 2^-b + δ, with ε and δ those of groups of k
    records. Covers one canary in many independent runs, each with fresh references; never many canaries of one run.

    Parameters
    ----------
    runs, hits : int
        Independent runs, and those with exposure at or above ``bits``.
    bits : float
        Threshold b, fixed beforehand.
    delta : float
        δ of the group claim.

    Examples
    --------
    >>> round(exposure_epsilon_lower(1, 1, 20, 0.0), 1)
    10.9
    """
    whole_at_least(1, runs=runs)
    whole_at_least(0, hits=hits)
    validate.non_negative(bits=bits, delta=delta)
    validate.open_unit(alpha=alpha)
    if hits > runs:
        raise InvalidValue(f"hits={hits} exceeds runs={runs}; count runs once.")
    excess = rate_lower(hits, runs, alpha) - delta
    return max(0.0, math.log(excess) + bits * math.log(2.0)) if excess > 0 else 0.0
