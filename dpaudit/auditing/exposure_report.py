"""The exposure report: every canary, by copies, with the tests that one run allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.auditing.exposure import (
    SkewNormalFit,
    exposure,
    exposure_extrapolated,
    exposure_p_values,
    exposure_p_values_under_claim,
    exposure_ranks,
    fit_references,
    mean_exposure_without_leakage,
    rank_sum_test,
)
from dpaudit.auditing.exposure_checks import LEVEL, REVERSED_WORDS, look_reversed, refuse_own_references
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.scores import check_ids, check_scores, refuse_unequal
from dpaudit.privacy.validate import name_some

EXPOSURE_SCHEMA = "dpaudit.exposure/1"

NOTE = (
    "Exposure is evidence of memorisation, not a bound on epsilon: no theorem covers many canaries of one run. Canaries"
    " with k copies concern the claim for groups of k records."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExposureReport:
    """Exposure of a set of canaries against one set of references; see :func:`dpaudit.auditing.exposure_report`."""

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
    under_claim: NDArray[np.float64] | None
    looks_reversed: bool = False
    """Whether scores were probably given for losses; a remark, never a reason to turn them round."""

    def __str__(self) -> str:
        from dpaudit.auditing.text import exposure_text

        return exposure_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.exposure/1``."""
        far = self.extrapolated
        return {
            "schema": EXPOSURE_SCHEMA,
            "references": self.references,
            "largest_exposure": math.log2(self.references),
            "mean_exposure_without_leakage": mean_exposure_without_leakage(self.references),
            "canaries": [
                {
                    "id": self.ids[i],
                    "loss": float(self.losses[i]),
                    "copies": int(self.copies[i]),
                    "rank": int(self.ranks[i]),
                    "exposure": float(self.exposures[i]),
                    "exposure_extrapolated": None if far is None else float(far[i]),
                    "p_value": float(self.p_values[i]),
                    "p_value_under_claim": _finite(self.under_claim, i),
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
            "level": LEVEL,
            "single_p_values": {
                "at_or_below_level": int(np.count_nonzero(self.p_values <= LEVEL)),
                "expected_by_chance": LEVEL * len(self.ids),
            },
            "looks_reversed": self.looks_reversed,
            "epsilon_lower": None,
            "note": " ".join([*([REVERSED_WORDS] if self.looks_reversed else []), NOTE]),
        }


def _finite(values: NDArray[np.float64] | None, i: int) -> float | None:
    return None if values is None or math.isnan(values[i]) else float(values[i])


def _counts(copies: ArrayLike | None, size: int) -> NDArray[np.int64]:
    """Copies of each canary as whole numbers >= 1."""
    given = np.ones(size) if copies is None else np.asarray(copies, dtype=np.float64)
    if given.shape != (size,) or not np.all((given >= 1) & (given < 2**31) & (given == np.floor(given))):
        raise InvalidEvidence("column copies must hold one whole number >= 1 for each canary; mend it.")
    return given.astype(np.int64)


def exposure_report(
    ids: Sequence[str],
    losses: ArrayLike,
    references: ArrayLike,
    *,
    copies: ArrayLike | None = None,
    group_claims: Mapping[int, float] | None = None,
    delta: float | None = None,
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
    group_claims : mapping, optional
        ε for groups of k records, by k, at ``delta`` (both from the accountant): adds p-values under the claim.
    delta : float, optional
        δ of ``group_claims``; both are given or neither.

    Returns
    -------
    ExposureReport
        Ranks, exposures (bits) and p-values, of shape (n,), the fit of the references, and the combined test.

    Raises
    ------
    InvalidValue
        If lengths differ, or ``group_claims`` and ``delta`` do not belong together.
    InvalidEvidence
        If an id appears twice, a loss is not finite, all losses are equal, or the references hold the canaries' own
        losses.
    """
    names, values = check_ids(ids), check_scores(losses, name="losses")
    refuse_unequal(names, values, what="loss", plural="losses")
    others = check_scores(references, name="references")
    counts = _counts(copies, values.size)
    if others.size > 1 and np.all(others == others[0]) and np.all(values == others[0]):
        raise InvalidEvidence(f"all losses equal {others[0]:g}; a constant loss ranks nothing, mend the attack.")
    refuse_own_references(values, others)
    if (group_claims is None) != (delta is None):
        raise InvalidValue("group_claims and delta belong together; give both, from the accountant, or neither.")
    claims = dict(group_claims or {})
    sizes = np.unique(counts)
    if unused := sorted(set(claims) - set(sizes.tolist())):
        raise InvalidValue(
            f"group_claims names {unused[0]} copies and no canary has so many (they have {name_some(sizes.tolist())});"
            " give the claim for the copies that were inserted."
        )
    ranks, bits = exposure_ranks(values, others), exposure(values, others)
    under = _under_claims(ranks, counts, int(others.size), claims, delta)
    fit = fit_references(others)
    combined, exact = rank_sum_test(values, others)
    groups = [
        _group(
            int(k), values[counts == k], bits[counts == k], others, len(sizes), claims.get(int(k)), under[counts == k]
        )
        for k in sizes
    ]
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
        under_claim=under if claims else None,
        looks_reversed=look_reversed(values, others),
    )


def _under_claims(
    ranks: NDArray[np.int64],
    copies: NDArray[np.int64],
    references: int,
    claims: Mapping[int, float],
    delta: float | None,
) -> NDArray[np.float64]:
    """P-value of each canary under the claim for its number of copies; NaN where there is no claim."""
    under = np.full(ranks.size, np.nan)
    for k, claim in claims.items():
        if delta is not None:
            under[copies == k] = exposure_p_values_under_claim(ranks[copies == k], references, claim, delta)
    return under


def _group(
    copies: int,
    losses: NDArray[np.float64],
    bits: NDArray[np.float64],
    references: NDArray[np.float64],
    groups: int,
    claim: float | None,
    under: NDArray[np.float64],
) -> dict[str, Any]:
    """What the canaries with one number of copies show together, corrected for the number of ``groups``."""
    p, exact = rank_sum_test(losses, references)
    return {
        "copies": copies,
        "canaries": losses.size,
        "mean_exposure": float(bits.mean()),
        "largest_exposure": float(bits.max()),
        "p_value": p,
        "exact": exact,
        "p_value_corrected": min(1.0, p * groups),
        "stands_out": p * groups <= LEVEL,
        "claim": "(epsilon, delta)" if copies == 1 else f"group of {copies} records",
        "group_epsilon": claim,
        "p_value_under_claim": None if claim is None else min(1.0, float(under.min()) * under.size),
    }
