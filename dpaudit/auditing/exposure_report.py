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
from dpaudit.auditing.exposure_checks import REVERSED_WORDS, look_reversed, refuse_own_references
from dpaudit.auditing.guess import check_ids, check_scores
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import name_some

EXPOSURE_SCHEMA = "dpaudit.exposure/1"

LEVEL = 0.05
"""Level at which a group of canaries is said to stand out, after Bonferroni's correction for the number of groups."""


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
    """
    names, values, others = (
        check_ids(ids),
        check_scores(losses, name="losses"),
        check_scores(references, name="references"),
    )
    if len(names) != values.size:
        raise InvalidValue(f"{len(names)} ids stand beside {values.size} losses; give one loss for each id.")
    counts = _counts(copies, values.size)
    if others.size > 1 and np.all(others == others[0]) and np.all(values == others[0]):
        raise InvalidEvidence(f"all losses equal {others[0]:g}; a constant loss ranks nothing, mend the attack.")
    refuse_own_references(values, others)
    ranks, bits = exposure_ranks(values, others), exposure(values, others)
    fit = fit_references(others)
    combined, exact = rank_sum_test(values, others)
    if (group_claims is None) != (delta is None):
        raise InvalidValue("group_claims and delta belong together; give both, from the accountant, or neither.")
    under = np.full(values.size, np.nan) if group_claims else None
    groups = []
    sizes = np.unique(counts)
    if unused := sorted(set(group_claims or ()) - set(sizes.tolist())):
        raise InvalidValue(
            f"group_claims names {unused[0]} copies and no canary has so many (they have {name_some(sizes.tolist())});"
            " give the claim for the copies that were inserted."
        )
    for k in sizes:
        chosen = counts == k
        p, is_exact = rank_sum_test(values[chosen], others)
        claim = (group_claims or {}).get(int(k))
        smallest = None
        if under is not None and claim is not None and delta is not None:
            under[chosen] = exposure_p_values_under_claim(ranks[chosen], int(others.size), claim, delta)
            smallest = min(1.0, float(under[chosen].min()) * int(chosen.sum()))
        groups.append(
            {
                "copies": int(k),
                "canaries": int(chosen.sum()),
                "mean_exposure": float(bits[chosen].mean()),
                "largest_exposure": float(bits[chosen].max()),
                "p_value": p,
                "exact": is_exact,
                "p_value_corrected": min(1.0, p * len(sizes)),
                "stands_out": p * len(sizes) <= LEVEL,
                "claim": "(epsilon, delta)" if k == 1 else f"group of {int(k)} records",
                "group_epsilon": claim,
                "p_value_under_claim": smallest,
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
        under_claim=under,
        looks_reversed=look_reversed(values, others),
    )
