"""Bounds on ε that need no lattice: how often one record takes part, and what that many releases cost.

They hold for every noise, however small or large, and cost next to nothing. Three facts are used.

* Hockey-stick divergence is jointly convex: a step that takes part with a chance is dominated by the mixture of taking
  part and of not doing so, with the largest shift that it can cause.
* More than k of a run's steps take part with a chance of at most e^{-T·KL(k/T ‖ p)} (Chernoff).
* Counting the steps whose output passes a cut is a test, and every test bounds ε from below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtrc, erf, gammaln, log_ndtr

from dpaudit.accounting.relations import Charges, Component, Step
from dpaudit.privacy.gaussian import gaussian_delta, gaussian_epsilon
from dpaudit.privacy.stage import Mechanism

Run = tuple[Step, int]
LARGEST = 1.7976931348623157e308
_SAFE = 1 + 1e-11  # covers the rounding of the few operations here


def shift(part: Component) -> float:
    """Largest distance of the two means of a component."""
    return len(part.up) + len(part.down) - 2.0


def takes_part(step: Step) -> float:
    """Probability that a step uses at least one of the records in which two neighbouring data sets differ."""
    return min(1.0, sum(weight * (1 - part.up[0]) for weight, part in step.components))


def step_variation(step: Step) -> float:
    """Upper bound on the total variation of one step's pair, by coupling the records sampled on both sides."""
    total = 0.0
    for weight, part in step.components:
        both = len(part.down) > 1
        for j, w in enumerate(part.up):
            moved = (2 if both else 1) * j / part.scale
            near = -math.expm1(-moved / 2) if part.mechanism is Mechanism.LAPLACE else float(erf(moved / math.sqrt(8)))
            total += weight * w * near
    return total * _SAFE


def total_variation(cost: Charges) -> float:
    """Upper bound on δ(0): total variation adds up over steps."""
    exact = gaussian_delta(cost.mu, 0.0) if cost.mu else 0.0
    return sum(times * step_variation(step) for step, times in cost.runs) + exact * _SAFE


def epsilon_above(cost: Charges, delta: float) -> float:
    """Upper bound on ε at δ: every step takes part, or only as many as may without spending a part of δ."""
    best = _releases(cost, [times for _, times in cost.runs], delta)
    for part in (0.5, 0.99):
        spent, left = part * delta, (1 - part) * delta
        if cost.runs and spent / len(cost.runs) > 0 and left > 0:
            log_chance = math.log(spent / len(cost.runs))
            counts = [_most(times, takes_part(step), log_chance) for step, times in cost.runs]
            best = min(best, _releases(cost, counts, left))
    return best


def _releases(cost: Charges, counts: Sequence[int], delta: float) -> float:
    """ε at δ of so many full releases of every run, beside the exact Gaussian part."""
    squares, pure = [cost.mu], 0.0
    for (step, _), count in zip(cost.runs, counts):
        gaussian = [shift(part) / part.scale for _, part in step.components if part.mechanism is Mechanism.GAUSSIAN]
        laplace = [shift(part) / part.scale for _, part in step.components if part.mechanism is Mechanism.LAPLACE]
        squares.append(math.sqrt(count) * max(gaussian, default=0.0))
        pure += count * max(laplace, default=0.0)
    mu = math.hypot(*squares) * _SAFE
    return ((gaussian_epsilon(mu, delta) if mu < math.inf else math.inf) + pure) * _SAFE


def _kl(share: float, p: float, log_p: float | None = None) -> float:
    """Kullback-Leibler divergence KL(share ‖ p) of two coins, for a share of at least p."""
    log_p = math.log(p) if log_p is None else log_p
    rest = (1 - share) * (math.log1p(-share) - math.log1p(-p)) if share < 1 else 0.0
    return share * (math.log(share) - log_p) + rest


def _most(times: int, p: float, log_chance: float) -> int:
    """A number k that more than k of ``times`` coins of chance p pass with at most e^{log_chance}."""
    if p >= 1:
        return times
    if p == 0:
        return 0
    low, high = min(times, math.ceil(times * p)), times
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _log_more_than(times, p, middle) <= log_chance else (middle + 1, high)
    return high


def _log_more_than(times: int, p: float, k: int) -> float:
    """Upper bound on log P(Binomial(times, p) > k): Chernoff's, or the distribution function where it has digits."""
    if k >= times:
        return -math.inf
    share = (k + 1) / times
    bound = -times * _kl(share, p) * (1 - 1e-11) if share > p else 0.0
    exact = float(bdtrc(k, times, p)) if times < 10**7 else 1.0
    return min(bound, math.log(exact) + 1e-6) if exact > 1e-250 else bound


def epsilon_below(cost: Charges, delta: float) -> float:
    """Lower bound on ε at δ: the exact part alone, or the best counting test of a single run."""
    best = gaussian_epsilon(cost.mu, delta) / _SAFE if cost.mu < math.inf else LARGEST
    for step, times in cost.runs:
        if len(step.components) == 1 and step.components[0][1].mechanism is Mechanism.GAUSSIAN:
            best = max(best, _counting(step.components[0][1], times, math.log(delta)))
    return min(best, LARGEST)


def _counting(part: Component, times: int, log_delta: float) -> float:
    """log((P(count ≥ k) − δ)/Q(count ≥ k)) at the best of a few cuts and k."""
    best = 0.0
    top = len(part.up) - 1
    for back in (0.0, 1.0, 2.0, 3.0):
        for mean in {1, top}:
            first = _log_above(part.up, 1, part.scale, mean, back)
            second = _log_above(part.down, -1, part.scale, mean, back)
            if not (first < 0 and math.exp(first) > 0):
                continue
            p = math.exp(first) * (1 - 1e-9)
            for k in _counts(times, p, log_delta):
                log_a = _log_tail_below(times, p, k)
                if log_a <= log_delta:
                    continue
                share = k / times
                if second >= math.log(share):
                    continue
                log_b = -times * _kl(share, min(math.exp(second), 0.5), second)
                gain = log_a + math.log(-math.expm1(log_delta - log_a)) - log_b
                best = max(best, gain * (1 - 1e-11) - 1e-6)
    return best


def _log_above(weights: Sequence[float], sign: int, scale: float, mean: int, back: float) -> float:
    """Log probability of an output above ``mean`` − ``back``·σ."""
    cuts = [(math.log(w), (mean - sign * j) / scale - back) for j, w in enumerate(weights) if w > 0]
    terms = [log_w + float(log_ndtr(-z)) for log_w, z in cuts]
    return float(np.logaddexp.reduce(terms))


def _counts(times: int, p: float, log_delta: float) -> list[int]:
    """The largest count whose chance passes δ, and a few below it."""
    low, high = 1, times
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _log_tail_below(times, p, middle) > log_delta else (low, middle - 1)
    return sorted({max(1, low - back) for back in (0, 1, 2, low // 10)})


def _log_tail_below(times: int, p: float, k: int) -> float:
    """Lower bound on log P(Binomial(times, p) ≥ k): some of its terms, each rounded down."""
    if k <= math.floor(times * p * (1 - 1e-12)):
        return math.log(0.5) - 1e-6  # a median of the count is at least ⌊times·p⌋
    js = np.arange(k, min(times, k + 400) + 1, dtype=np.float64)
    log_choose = gammaln(times + 1.0) - gammaln(js + 1) - gammaln(times - js + 1)
    terms = log_choose + js * math.log(p) + (times - js) * math.log1p(-p)
    rounding = 1e-15 * (float(gammaln(times + 1.0)) + times)
    return float(np.logaddexp.reduce(terms)) - 1e-5 - rounding
