"""Bounds from many independent runs with one canary each, where the trials really are independent.

The threshold is chosen on one half of the runs and judged on the other, so that no threshold is picked on the data
that judges it. The halves are fixed by the ids, not by scores or coins.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from dpaudit.auditing.rates import cp_epsilon_lower, epsilon_from_rates, rate_upper
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.scores import Scores, check_ids, check_member, check_scores

Counts = tuple[int, int, int, int]
"""(tp, n_pos, fp, n_neg) of a threshold."""


def counts_at(scores: NDArray[np.float64], member: NDArray[np.bool_], threshold: float) -> Counts:
    """Counts of the rule "in when score ≥ threshold"."""
    above = scores >= threshold
    return (
        int(np.count_nonzero(above & member)),
        int(np.count_nonzero(member)),
        int(np.count_nonzero(above & ~member)),
        int(np.count_nonzero(~member)),
    )


def halves(ids: Sequence[str]) -> NDArray[np.bool_]:
    """Which runs choose the threshold: those whose SHA-256(id) is in the lower half of the order."""
    digests = np.array([hashlib.sha256(i.encode("utf-8")).digest() for i in check_ids(ids)], dtype="S32")
    chooses = np.zeros(len(digests), dtype=np.bool_)
    chooses[np.argsort(digests, kind="stable")[: len(digests) // 2]] = True
    return chooses


def best_threshold(scores: ArrayLike, member: ArrayLike, delta: float, alpha: float) -> float:
    """Threshold whose Clopper-Pearson bound is largest; only for data that will not judge it."""
    values = check_scores(scores)
    coins = check_member(member, values.size)
    grid = np.unique(np.quantile(values, np.linspace(0.0, 1.0, 129), method="higher"))
    if coins.all() or not coins.any():
        return float(np.median(values))
    bounds = [cp_epsilon_lower(*counts_at(values, coins, t), delta, alpha) for t in grid]
    if max(bounds) == 0.0:
        # Where no threshold certifies anything all tie at 0, and the lowest score would be taken for the best; the
        # threshold whose smoothed rates are the most deviations apart decides instead.
        bounds = []
        for t in grid:
            tp, n_pos, fp, n_neg = counts_at(values, coins, t)
            tpr, fpr = (tp + 0.5) / (n_pos + 1), (fp + 0.5) / (n_neg + 1)
            bounds.append((tpr - fpr) / math.sqrt(tpr * (1 - tpr) / n_pos + fpr * (1 - fpr) / n_neg))
    return float(grid[int(np.argmax(bounds))])


def split_counts(scores: Scores, delta: float, alpha: float = 0.05) -> tuple[Counts, float]:
    """Counts on the judging half at the threshold chosen on the other half, and that threshold."""
    values, coins = scores.values, scores.members
    chooses = halves(scores.ids)
    judge = values[~chooses], coins[~chooses]
    n_pos = int(judge[1].sum())
    if n_pos in (0, judge[1].size):
        raise InvalidEvidence(
            f"the judging half of {values.size} runs holds {n_pos} members of {judge[1].size}; give more runs."
        )
    threshold = best_threshold(values[chooses], coins[chooses], delta, alpha)
    return counts_at(*judge, threshold), threshold


def cp_p_value(counts: Counts, epsilon: float, delta: float) -> float:
    """Smallest level at which the Clopper-Pearson bound exceeds ε; 1 when none does."""
    if cp_epsilon_lower(*counts, delta, 1 - 1e-9) <= epsilon:
        return 1.0
    low, high = math.log(1e-40), math.log(1 - 1e-9)
    while high - low > 1e-4:
        mid = 0.5 * (low + high)
        low, high = (low, mid) if cp_epsilon_lower(*counts, delta, math.exp(mid)) > epsilon else (mid, high)
    return math.exp(high)


def cp_ceiling(n_pos: int, n_neg: int, delta: float, alpha: float = 0.05) -> float:
    """Bound that a perfect attack would give with these trials."""
    return cp_epsilon_lower(n_pos, n_pos, 0, n_neg, delta, alpha)


def cp_expected(n: int, mu: float, delta: float, alpha: float) -> float:
    """Bound at the expected counts of the best threshold, N(±μ/2, 1) scores, n members and n non-members."""
    best = 0.0
    for cut in np.linspace(-4.0 - mu, 4.0 + mu, 161):
        tp, fp = round(n * float(ndtr(mu / 2 - cut))), round(n * float(ndtr(-mu / 2 - cut)))
        best = max(best, cp_epsilon_lower(tp, n, fp, n, delta, alpha))
    return best


def cp_power(n: int, mu: float, epsilon: float, delta: float, alpha: float) -> float:
    """Probability that the best threshold convicts ε, for scores N(±μ/2, 1), n members and n non-members."""
    return max(
        cp_power_at(n, n, float(ndtr(mu / 2 - cut)), float(ndtr(-mu / 2 - cut)), epsilon, delta, alpha)
        for cut in np.linspace(-2.0 - mu / 2, 2.0 + mu / 2, 33)
    )


def cp_power_at(n_pos: int, n_neg: int, tpr: float, fpr: float, epsilon: float, delta: float, alpha: float) -> float:
    """Probability that independent trials with these rates convict ε; both counts by normal quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    weights = weights / weights.sum()
    tps = np.clip(np.round(n_pos * tpr + math.sqrt(n_pos * tpr * (1 - tpr)) * nodes), 0, n_pos).astype(int)
    fps = np.clip(np.round(n_neg * fpr + math.sqrt(n_neg * fpr * (1 - fpr)) * nodes), 0, n_neg).astype(int)
    won = sum(
        wi * wj * (cp_epsilon_lower(int(tp), n_pos, int(fp), n_neg, delta, alpha) > epsilon)
        for wi, tp in zip(weights, tps)
        for wj, fp in zip(weights, fps)
    )
    return float(min(won, 1.0))


def grid_epsilon_lower(
    scores: ArrayLike, member: ArrayLike, thresholds: Sequence[float], delta: float, alpha: float = 0.05
) -> float:
    """Largest Clopper-Pearson bound over a DECLARED grid of thresholds, each at α ÷ size of the grid (Bonferroni).

    The grid must be written down before the scores are seen; its declared size is what is paid for, not the number of
    thresholds that turn out to differ. Independent trials (one canary per run).
    """
    values = check_scores(scores)
    coins = check_member(member, values.size)
    validate.open_unit(alpha=alpha)
    if not len(thresholds):
        raise InvalidEvidence("the declared grid has no thresholds; declare at least one.")
    share = alpha / len(thresholds)
    return max(cp_epsilon_lower(*counts_at(values, coins, float(t)), delta, share) for t in thresholds)


def dkw_epsilon_lower(scores: ArrayLike, member: ArrayLike, delta: float, alpha: float = 0.05) -> float:
    """Bound valid over ALL thresholds at once, from Dvoretzky-Kiefer-Wolfowitz bands at α/2 per class.

    Each class's empirical distribution is within √(ln(1/(α/2))/(2n)) of the truth on the side that matters (Massart's
    one-sided constant, valid for α/2 ≤ 1/2). Loose in the tails, where ε lives. Independent trials only.
    """
    values = check_scores(scores)
    coins = check_member(member, values.size)
    validate.open_unit(alpha=alpha)
    n_pos = int(coins.sum())
    n_neg = values.size - n_pos
    if not n_pos or not n_neg:
        raise InvalidEvidence(f"column member holds one class only ({n_pos} of {values.size} are members).")
    slack = math.log(2.0 / alpha) / 2.0
    cuts = np.unique(values)
    tpr = 1.0 - np.searchsorted(np.sort(values[coins]), cuts, side="left") / n_pos
    fpr = 1.0 - np.searchsorted(np.sort(values[~coins]), cuts, side="left") / n_neg
    tpr_low = np.clip(tpr - math.sqrt(slack / n_pos), 0.0, 1.0)
    fpr_high = np.clip(fpr + math.sqrt(slack / n_neg), 0.0, 1.0)
    return max(epsilon_from_rates(float(a), float(b), delta) for a, b in zip(tpr_low, fpr_high))


def rates_curve_p_value(counts: Counts, curve: Callable[[float], float]) -> float:
    """p-value of "the mechanism obeys the trade-off curve", from one pre-registered threshold over independent runs.

    The smallest level at which the upper bounds of both error rates (Clopper-Pearson, half the level each) lie below
    the curve: FNR_up < f(FPR_up). Contradicts the DECLARED MECHANISM only.
    """
    tp, n_pos, fp, n_neg = counts

    def rejects(alpha: float) -> bool:
        return rate_upper(n_pos - tp, n_pos, alpha / 2) < curve(rate_upper(fp, n_neg, alpha / 2))

    if not rejects(1 - 1e-9):
        return 1.0
    low, high = math.log(1e-40), 0.0
    while high - low > 1e-4:
        mid = 0.5 * (low + high)
        low, high = (low, mid) if rejects(math.exp(mid)) else (mid, high)
    return math.exp(high)
