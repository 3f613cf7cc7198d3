"""Exposure of the canaries of one run against those that the coins left out, as a certificate carries it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpaudit.auditing.exposure import exposure, mean_exposure_without_leakage, rank_sum_test
from dpaudit.privacy.scores import Scores


def exposure_summary(scores: Scores, *, copies: int) -> dict[str, Any]:
    """Exposure of inserted canaries, with the canaries that were left out as references.

    The references come from the same generator and were decided by the same coins; the loss ranked is minus the
    score, so that canaries whose tokens differ in difficulty can be compared.

    Parameters
    ----------
    scores : Scores
    copies : int
        Times an inserted canary stands in the data.

    Returns
    -------
    dict
        Plain JSON value: numbers of canaries and references, median, maximum and every exposure in bits (highest
        first), the mean without leakage, and a rank-sum test. Without both kinds of canary only the numbers.
    """
    inside, outside = -scores.values[scores.members], -scores.values[~scores.members]
    if not len(inside) or not len(outside):
        return {"references": len(outside), "canaries": len(inside), "copies": copies, "values": []}
    bits = exposure(inside, outside)
    p_value, exact = rank_sum_test(inside, outside)
    return {
        "references": len(outside),
        "canaries": len(inside),
        "copies": copies,
        "median": float(np.median(bits)),
        "maximum": float(bits.max()),
        "largest_possible": math.log2(len(outside)),
        "mean_without_leakage": mean_exposure_without_leakage(len(outside)),
        "rank_sum_p_value": p_value,
        "rank_sum_exact": exact,
        "values": sorted((round(float(v), 6) for v in bits), reverse=True),
    }
