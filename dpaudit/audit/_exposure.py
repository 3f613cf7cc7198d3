"""Exposure of canaries against references that were never trained on (Carlini et al., The Secret Sharer, 2019).

Exposure is the number of bits by which a canary stands out: log2 of the references minus log2 of its rank, rank 1 being
the lowest loss. Without leakage the mean exposure is about 1.44 bits, not 0, so every exposure comes with a p-value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, ndtr

from dpaudit import _validate
from dpaudit._errors import InvalidEvidence, InvalidValue
from dpaudit.audit._guess import check_ids, check_scores
from dpaudit.audit._rates import rate_lower
from dpaudit.audit._whole import whole_at_least

EXPOSURE_SCHEMA = "dpaudit.exposure/1"
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
        reason="" if used else f"the references are not skew-normal (KS p={test.pvalue:.2g} < {FIT_P_VALUE})",
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

    >>> round(exposure_epsilon_lower(1, 1, 20, 0.0), 1)
    10.9
    """
    whole_at_least(1, runs=runs)
    whole_at_least(0, hits=hits)
    _validate.non_negative(bits=bits, delta=delta)
    _validate.open_unit(alpha=alpha)
    if hits > runs:
        raise InvalidValue(f"hits={hits} exceeds runs={runs}; count runs once.")
    excess = rate_lower(hits, runs, alpha) - delta
    return max(0.0, math.log(excess) + bits * math.log(2.0)) if excess > 0 else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExposureReport:
    """Exposure of a set of canaries against one set of references; see :func:`exposure_report`."""

    ids: tuple[str, ...]
    losses: NDArray[np.float64]
    copies: NDArray[np.int64]
    references: int
    ranks: NDArray[np.int64]
    exposures: NDArray[np.float64]
    extrapolated: NDArray[np.float64] | None
    p_values: NDArray[np.float64]
    fit: SkewNormalFit
    combined_p_value: float
    combined_exact: bool
    by_copies: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.exposure/1``."""
        far = self.extrapolated
        return {
            "schema": EXPOSURE_SCHEMA,
            "references": self.references,
            "largest_exposure": math.log2(self.references),
            "mean_exposure_without_leakage": _null_mean(self.references),
            "canaries": [
                {
                    "id": self.ids[i],
                    "loss": float(self.losses[i]),
                    "copies": int(self.copies[i]),
                    "rank": int(self.ranks[i]),
                    "exposure": float(self.exposures[i]),
                    "exposure_extrapolated": None if far is None else float(far[i]),
                    "p_value": float(self.p_values[i]),
                }
                for i in range(len(self.ids))
            ],
            "extrapolation": dataclasses.asdict(self.fit),
            "combined": {
                "test": "rank_sum",
                "p_value": self.combined_p_value,
                "exact": self.combined_exact,
                "canaries": len(self.ids),
            },
            "by_copies": [dict(row) for row in self.by_copies],
            "epsilon_lower": None,
            "note": (
                "Exposure is evidence of memorisation, not a bound on epsilon: no theorem covers many canaries of one"
                " run. Canaries with k copies concern the claim for groups of k records."
            ),
        }


def _null_mean(references: int) -> float:
    """Mean exposure of a canary that is one more reference."""
    ranks = np.arange(1, references + 2, dtype=np.float64)
    return float(math.log2(references) - np.log2(ranks).mean())


def exposure_report(
    ids: Sequence[str], losses: ArrayLike, references: ArrayLike, *, copies: ArrayLike | None = None
) -> ExposureReport:
    """Exposure, extrapolated exposure and p-value of every canary, and an exact test of all of them together.

    Parameters
    ----------
    ids : sequence of str, length n
        Unique canary ids.
    losses : array of shape (n,)
        Loss of each inserted canary; LOWER = memorised.
    references : array of shape (r,)
        Losses of secrets from the same generator that were never trained on.
    copies : array of shape (n,), optional
        How often each canary was inserted; results are grouped by it, since k copies concern groups of k records.
    """
    names, values, others = (
        check_ids(ids),
        check_scores(losses, name="losses"),
        check_scores(references, name="references"),
    )
    if len(names) != values.size:
        raise InvalidValue(f"{len(names)} ids stand beside {values.size} losses; give one loss for each id.")
    counts = np.ones(values.size, dtype=np.int64) if copies is None else np.asarray(copies).astype(np.int64)
    if counts.shape != values.shape or (counts < 1).any():
        raise InvalidEvidence("column copies must hold one whole number >= 1 for each canary; mend it.")
    if others.size > 1 and np.all(others == others[0]) and np.all(values == others[0]):
        raise InvalidEvidence(f"all losses equal {others[0]:g}; a constant loss ranks nothing, mend the attack.")
    ranks, bits = exposure_ranks(values, others), exposure(values, others)
    fit = fit_references(others)
    combined, exact = rank_sum_test(values, others)
    groups = []
    for k in np.unique(counts):
        chosen = counts == k
        p, is_exact = rank_sum_test(values[chosen], others)
        groups.append(
            {
                "copies": int(k),
                "canaries": int(chosen.sum()),
                "mean_exposure": float(bits[chosen].mean()),
                "largest_exposure": float(bits[chosen].max()),
                "p_value": p,
                "exact": is_exact,
                "claim": "(epsilon, delta)" if k == 1 else f"group of {int(k)} records",
            }
        )
    return ExposureReport(
        ids=tuple(names),
        losses=values,
        copies=counts,
        references=int(others.size),
        ranks=ranks,
        exposures=bits,
        extrapolated=exposure_extrapolated(values, fit) if fit.used else None,
        p_values=exposure_p_values(ranks, int(others.size)),
        fit=fit,
        combined_p_value=combined,
        combined_exact=exact,
        by_copies=tuple(groups),
    )
