"""How well scores separate members from non-members: AUC and TPR at a fixed FPR, with intervals. Descriptive only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from dpaudit.auditing.rates import rate_lower, rate_upper
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.scores import check_member, check_scores


def _split(scores: ArrayLike, member: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_], int, int]:
    values = check_scores(scores)
    coins = check_member(member, values.size)
    n_pos = int(coins.sum())
    n_neg = values.size - n_pos
    if not n_pos or not n_neg:
        raise InvalidEvidence(
            f"column member holds one class only ({n_pos} members, {n_neg} non-members); score both kinds of canary."
        )
    return values, coins, n_pos, n_neg


def _midranks(values: NDArray[np.float64], order: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing their mean rank; ``order`` sorts the values, where it is known."""
    order = np.argsort(values) if order is None else order
    ends = _ends(values[order])
    counts = np.diff(ends, prepend=0)
    mid = np.empty(values.size, dtype=np.float64)
    mid[order] = np.repeat(ends - (counts - 1) / 2.0, counts)
    return mid


def _ends(rising: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places after the last of each run of equal values."""
    return np.append(np.flatnonzero(rising[1:] != rising[:-1]) + 1, rising.size).astype(np.int64)


def auc(scores: ArrayLike, member: ArrayLike) -> float:
    """Probability that a member scores above a non-member, ties counted one half (Mann-Whitney); higher = leak.

    >>> auc([1, 2, 3, 5, 0, 4, 6, 7], [0, 0, 0, 0, 1, 1, 1, 1])
    0.6875
    """
    values, coins, n_pos, n_neg = _split(scores, member)
    return float((_midranks(values)[coins].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def auc_interval(scores: ArrayLike, member: ArrayLike, alpha: float = 0.05) -> tuple[float, float]:
    """Two-sided 1 − α interval for the AUC by DeLong's variance; asymptotic.

    With perfectly separated scores the variance is 0; the open end is then the exact bound (α/2)^(1/n) of the smaller
    class, so that no interval is a point.
    """
    validate.open_unit(alpha=alpha)
    values, coins, n_pos, n_neg = _split(scores, member)
    # Both classes are needed in order, and a part of a sorted array is sorted, so all scores are sorted once.
    order = np.argsort(values)
    inside, place = coins[order], np.cumsum(coins) - 1
    every = _midranks(values, order)
    above = (every[coins] - _midranks(values[coins], place[order[inside]])) / n_neg
    place = np.cumsum(~coins) - 1
    below = 1.0 - (every[~coins] - _midranks(values[~coins], place[order[~inside]])) / n_pos
    area = float(above.mean())
    variance = (np.var(above, ddof=1) / n_pos if n_pos > 1 else 0.25) + (
        np.var(below, ddof=1) / n_neg if n_neg > 1 else 0.25
    )
    edge = (alpha / 2) ** (1.0 / min(n_pos, n_neg))
    if area in (0.0, 1.0):
        return (edge, 1.0) if area == 1.0 else (0.0, 1.0 - edge)
    half = float(ndtri(1 - alpha / 2)) * math.sqrt(float(variance))
    return max(0.0, area - half), min(1.0, area + half)


def rank_sum_p_value(scores: ArrayLike, member: ArrayLike) -> float:
    """One-sided p-value of "scores know nothing of membership", by the rank sum with tie-corrected variance.

    Normal approximation with continuity correction; small values mean that members score higher.
    """
    values, coins, n_pos, n_neg = _split(scores, member)
    n = n_pos + n_neg
    order = np.argsort(values)
    counts = np.diff(_ends(values[order]), prepend=0)
    ties = float(np.sum(counts.astype(np.float64) ** 3 - counts))
    variance = n_pos * n_neg / 12.0 * (n + 1 - ties / (n * (n - 1)))
    if variance <= 0:
        return 1.0
    excess = _midranks(values, order)[coins].sum() - n_pos * (n + 1) / 2.0 - 0.5
    return float(ndtr(-excess / math.sqrt(variance)))


def tpr_at_fpr(scores: ArrayLike, member: ArrayLike, fpr: float) -> float:
    """Largest TPR among thresholds whose FPR is at most ``fpr``; tied scores pass a threshold together.

    The empirical ROC itself, not its convex hull.

    >>> tpr_at_fpr([1, 2, 3, 5, 0, 4, 6, 7], [0, 0, 0, 0, 1, 1, 1, 1], 0.25)
    0.75
    """
    validate.probability(fpr=fpr)
    values, coins, n_pos, n_neg = _split(scores, member)
    negatives = np.sort(values[~coins])[::-1]
    allowed = math.floor(fpr * n_neg + 1e-9)
    if allowed >= n_neg:
        return 1.0
    # The first non-member that may not pass is the threshold, so only what lies strictly above it passes.
    return float(np.count_nonzero(values[coins] > negatives[allowed]) / n_pos)


def auc_summary(
    scores: ArrayLike, member: ArrayLike, alpha: float = 0.05, fprs: Sequence[float] = (0.001, 0.01, 0.1)
) -> dict[str, Any]:
    """AUC and TPR at fixed FPRs with 1 − α intervals, as a plain JSON value.

    The TPR interval is Clopper-Pearson at the threshold found in the same data, so it is descriptive.
    """
    coins = check_member(member, np.asarray(scores).size)
    n_pos = int(coins.sum())
    rows = []
    for fpr in fprs:
        tpr = tpr_at_fpr(scores, member, fpr)
        hits = round(tpr * n_pos)
        rows.append(
            {
                "fpr": fpr,
                "tpr": tpr,
                "interval": [rate_lower(hits, n_pos, alpha / 2), rate_upper(hits, n_pos, alpha / 2)],
            }
        )
    return {
        "value": auc(scores, member),
        "interval": list(auc_interval(scores, member, alpha)),
        "p_value": rank_sum_p_value(scores, member),
        "tpr_at_fpr": rows,
    }
