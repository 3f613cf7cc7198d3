"""Certified answers about a ledger: ε at δ, δ at ε, and points of the trade-off function.

Everything is read from tail sums of composed laws. For a discrete pair (A, B) on a lattice,

    ε(δ) = max_j log((A(≥j) − δ) / B(≥j))        δ(ε) = max_j A(≥j) − e^ε·B(≥j)

is exact when B = e^{-loss}·A (the dominating pair: an upper bound), and for any two laws of the same statistic every j
is a test, so the maximum is a lower bound (the dominated pair). Errors of the tails widen both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy.special import erfcx

from dpaudit._stage import Mechanism
from dpaudit.accounting._compose import WRAP, Law, Tails, Tilted, compose, tails
from dpaudit.accounting._gdp import gaussian_delta, gaussian_epsilon
from dpaudit.accounting._loss import Array, Cells, cells, ends, loss, origin, reach_for
from dpaudit.accounting._relations import Charges, Component, Step

LARGEST_WINDOW = 2**22
EXACT = 1e-12  # relative error allowed for the closed Gaussian form
_ROUNDS = 7

Run = tuple[Step, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """``lower ≤ truth ≤ upper``."""

    lower: float
    upper: float


# ---- the saddle point, approximately: it only says where to look -------------------------------------------------


@lru_cache(maxsize=1024)
def _rough(step: Step, reach: float) -> tuple[Array, Array]:
    """Quadrature of one step: log P-weights and losses. Not certified."""
    logs, losses = [], []
    for weight, part in step.components:
        low, high = ends(part, reach)
        if part.mechanism is Mechanism.LAPLACE:
            low, high = low - 40 * part.scale, high + 40 * part.scale
        x = np.linspace(low, high, min(4000, max(60, math.ceil((high - low) / (0.2 * part.scale)))))
        density = np.full_like(x, -np.inf)
        for j, w in enumerate(part.up):
            if w > 0:
                z = (x - j) / part.scale
                exponent = -0.5 * z * z if part.mechanism is Mechanism.GAUSSIAN else -np.abs(z)
                density = np.logaddexp(density, math.log(w) + exponent)
        density -= np.logaddexp.reduce(density)
        logs.append(density + math.log(weight))
        losses.append(loss(part, x))
    return np.concatenate(logs), np.concatenate(losses)


def _cumulants(runs: Sequence[Run], direction: int, thetas: Array, reach: float) -> tuple[Array, Array, Array]:
    """log E e^{θL} of the composed loss and its first two derivatives at each θ, approximately.

    The reverse pair's cumulant is K(−1 − θ).
    """
    own = thetas if direction > 0 else -1 - thetas
    value, mean, variance = np.zeros(len(own)), np.zeros(len(own)), np.zeros(len(own))
    for step, times in runs:
        logs, losses = _rough(step, reach)
        exponent = logs + own[:, None] * losses
        top = exponent.max(axis=1)
        weights = np.exp(exponent - top[:, None])
        total = weights.sum(axis=1)
        value += times * (top + np.log(total))
        m = weights @ losses / total
        mean += times * m
        variance += times * np.maximum(weights @ losses**2 / total - m * m, 0.0)
    return value, direction * mean, np.maximum(variance, 1e-300)


def _log_delta_saddle(value: Array, mean: Array, variance: Array, theta: Array) -> Array:
    """Saddle-point estimate of log δ at ε = K'(θ): the tilted law taken as Gaussian (2208.09595)."""
    spread = np.sqrt(variance)
    root = math.sqrt(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = 0.5 * (erfcx(theta * spread / root) - erfcx((1 + theta) * spread / root))
        return value - theta * mean + np.log(np.maximum(gap, 1e-300))


def _crossing(function: Callable[[Array], Array], target: float) -> float:
    """θ at which a decreasing function of θ falls to ``target``, by ever finer geometric grids."""
    low, high = 1e-4, 1e9
    for count in (40, 12, 12):
        grid = np.geomspace(low, high, count)
        under = function(grid) <= target
        first = int(np.argmax(under)) if under.any() else count - 1
        low, high = grid[max(first - 1, 0)], grid[first]
    return float(math.sqrt(low * high))


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """Where to put the window: tilt, centre and reach of the composed loss, and Chernoff slopes at its ends."""

    direction: int
    theta: float
    mean: float
    low: float
    high: float
    slopes: tuple[float, float]
    epsilon: float
    reach: float


def _aim(runs: Sequence[Run], direction: int, theta: float, epsilon: float | None, reach: float) -> Aim:
    spread = float(np.sqrt(_cumulants(runs, direction, np.array([theta]), reach)[2][0]))
    wrap = math.log(WRAP) - 5  # a margin for what the quadrature misses
    steps = np.geomspace(0.002, 2.0, 24) * (math.sqrt(-2 * wrap) / spread)
    thetas = np.concatenate(([theta], theta + steps, theta - steps))
    values, means, _ = _cumulants(runs, direction, thetas, reach)
    base, mean = float(values[0]), float(means[0])
    above, below = values[1 : len(steps) + 1], values[len(steps) + 1 :]
    reach_up = (above - base - steps * mean - wrap) / steps
    reach_down = (below - base + steps * mean - wrap) / steps
    up, down = int(np.nanargmin(reach_up)), int(np.nanargmin(reach_down))
    slopes = (float(steps[up]), float(steps[down]))
    low, high = mean - float(reach_down[down]), mean + float(reach_up[up])
    return Aim(direction, theta, mean, low, high, slopes, max(0.0, mean if epsilon is None else epsilon), reach)


def aim_at_delta(runs: Sequence[Run], direction: int, delta: float) -> Aim:
    """Aim at the ε of a δ: the tilt whose mean is, by the saddle point, that ε."""
    reach = reach_for(delta, sum(times for _, times in runs))
    theta = _crossing(lambda t: _log_delta_saddle(*_cumulants(runs, direction, t, reach), t), math.log(delta))
    return _aim(runs, direction, theta, None, reach)


def _aim_at_mean(runs: Sequence[Run], direction: int, epsilon: float, reach: float) -> Aim:
    """Aim by the tilt whose mean is a known ε."""
    theta = _crossing(lambda t: -_cumulants(runs, direction, t, reach)[1], -epsilon)
    return _aim(runs, direction, theta, epsilon, reach)


def aim_at_epsilon(runs: Sequence[Run], direction: int, epsilon: float) -> Aim:
    """Aim at the δ of an ε."""
    steps = sum(times for _, times in runs)
    reach, theta = 38.0, 1.0
    for _ in range(2):  # δ decides the reach, and is known only roughly

        def below_mean(thetas: Array, reach: float = reach) -> Array:
            return -_cumulants(runs, direction, thetas, reach)[1]

        theta = _crossing(below_mean, -epsilon)
        at = np.array([theta])
        log_delta = float(_log_delta_saddle(*_cumulants(runs, direction, at, reach), at)[0])
        reach = reach_for(math.exp(max(-600.0, min(0.0, log_delta))), steps)
    return _aim(runs, direction, theta, epsilon, reach)


# ---- laws of one step in a direction ------------------------------------------------------------------------------


def _above(cut: Cells, direction: int) -> tuple[Law, float, float]:
    """Dominating law of the first member, its mass where the second has none, and κ of its tails."""
    none = np.zeros(len(cut.above_index))
    if direction > 0:
        return Law(cut.above_index, cut.above_log_p, none, cut.origin), cut.p_at_infinity, cut.kappa
    log_q = cut.above_log_p - (cut.origin + cut.h * cut.above_index)
    return Law(-cut.above_index, log_q, none, -cut.origin), cut.q_at_infinity, cut.kappa_reverse


def _below(cut: Cells, direction: int) -> tuple[Law, Law]:
    """Dominated laws of the first and of the second member, as laws of one label."""
    start = direction * (cut.origin + cut.h / 2)
    p = Law(direction * cut.below_index, cut.below_log_p, cut.below_error, start)
    q = Law(direction * cut.below_index, cut.below_log_q, cut.below_error, start)
    return (p, q) if direction > 0 else (q, p)


def _smooth(n: float) -> int:
    """Smallest of 2^k·{4, 5, 6} at least n, and at least 256."""
    size = 64
    while True:
        for odd in (4, 5, 6):
            if size * odd >= n:
                return size * odd
        size *= 2


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Tails of the first and the second member of a composed pair.

    ``infinite``: first-mass at infinity. The truth is dominated once ε is raised by ``shift_error`` and δ divided by
    ``mass_factor`` (at most 1).
    """

    first: Tails
    second: Tails
    infinite: float
    shift_error: float
    mass_factor: float
    start: float
    h: float


def _window(laws: Sequence[tuple[Law, int]], aim: Aim, h: float) -> tuple[int, int]:
    """First lattice index and size, placed round the law's own tilted mean."""
    centre = 0.0
    for law, times in laws:
        exponent = law.log_mass + (aim.theta * h) * law.index
        weights = np.exp(exponent - exponent.max())
        centre += times * float(weights @ law.index) / float(weights.sum())
    size = min(_smooth((aim.high - aim.low) / h + 4), LARGEST_WINDOW)
    below = (aim.mean - aim.low) / (aim.high - aim.low)
    return math.floor(centre - below * size), size


def dominating(runs: Sequence[Run], aim: Aim, h: float, growth: float) -> Pair:
    """Composed tails of the pair from above."""
    laws, infinite, raised = [], 0.0, 0.0
    for step, times in runs:
        law, lost, kappa = _above(cells(step, h, growth, aim.reach), aim.direction)
        laws.append((law, times))
        infinite += times * lost
        raised += times * kappa
    first, size = _window(laws, aim, h)
    tilted = compose(laws, theta=aim.theta, h=h, first=first, size=size, slopes=aim.slopes)
    pivot = h * (first + size // 2)
    log_a = tilted.log_norm - aim.theta * pivot
    log_b = log_a - pivot - tilted.offset
    return Pair(
        tails(tilted, aim.theta, log_a),
        tails(tilted, aim.theta + 1, log_b),
        min(1.0, infinite * math.exp(min(raised, 700.0))),
        tilted.offset_error + raised,
        math.exp(-min(raised, 700.0)),
        tilted.offset + h * first,
        h,
    )


def dominated(runs: Sequence[Run], aim: Aim, h: float, growth: float) -> Pair:
    """Composed tails of the pair from below."""
    firsts, seconds = [], []
    for step, times in runs:
        p, q = _below(cells(step, h, growth, aim.reach), aim.direction)
        firsts.append((p, times))
        seconds.append((q, times))
    first, size = _window(firsts, aim, h)
    made: list[Tilted] = [
        compose(laws, theta=theta, h=h, first=first, size=size, slopes=aim.slopes)
        for laws, theta in ((firsts, aim.theta), (seconds, aim.theta + 1))
    ]
    pivot = h * (first + size // 2)
    p_tails, q_tails = (tails(t, t.theta, t.log_norm - t.theta * pivot) for t in made)
    return Pair(p_tails, q_tails, 0.0, 0.0, 1.0, made[0].offset + h * first, h)


def _epsilon_above(pair: Pair, delta: float) -> float:
    """Upper bound on ε at δ from the dominating pair; at least the window's first loss, never below 0."""
    scale = math.exp(min(700.0, -pair.first.log_scale))
    top = pair.first.value + pair.first.error + (pair.infinite - delta * pair.mass_factor) * scale
    bottom = pair.second.value - pair.second.error
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(top <= 0, -np.inf, np.where(bottom > 0, np.log(top) - np.log(bottom), np.inf))
    # δ(ε) only asks for tails at losses above ε: any ε at least loss j and every bound at i ≥ j will do.
    from_here = np.maximum.accumulate(each[::-1])[::-1] + (pair.first.log_scale - pair.second.log_scale)
    best = float(np.maximum(from_here, pair.start + pair.h * np.arange(len(each))).min())
    return max(0.0, best + pair.shift_error)


def _epsilon_below(pair: Pair, delta: float) -> float:
    """Lower bound on ε at δ from the dominated pair."""
    scale = math.exp(min(700.0, -pair.first.log_scale))
    top = pair.first.value - pair.first.error - delta * scale
    bottom = pair.second.value + pair.second.error
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(top > 0, np.log(top) - np.log(bottom), -np.inf)
    return max(0.0, float(each.max()) + pair.first.log_scale - pair.second.log_scale)


def _spacing(runs: Sequence[Run], aim: Aim, tolerance: float) -> float:
    """Lattice width whose two discretisations differ by about ``tolerance`` in ε, on a grid shared between calls."""
    steps = sum(times for _, times in runs)
    widest = (aim.high - aim.low) / 200
    h = min(math.sqrt(8 * tolerance / (steps * (1 + aim.theta))), widest)
    # Where most mass lies within one cell of the loss's lower end, far wider cells lose as little.
    while h < widest and _predicted_width(runs, aim, 1.5 * h) <= tolerance:
        h = min(1.5 * h, widest)
    return _on_grid(max(h, (aim.high - aim.low) / (LARGEST_WINDOW - 4)))


def _on_grid(h: float) -> float:
    """Largest 2^(k/8) at most h, so that cells can be shared between similar calls."""
    return float(2 ** (math.floor(8 * math.log2(h)) / 8))


def _predicted_width(runs: Sequence[Run], aim: Aim, h: float) -> float:
    """Roughly what cutting at width h costs: (1 + θ)/2 times the variance added above and lost below."""
    own = aim.theta if aim.direction > 0 else -1 - aim.theta
    total = 0.0
    for step, times in runs:
        logs, losses = _rough(step, aim.reach)
        weights = np.exp(logs + own * losses - (logs + own * losses).max())
        weights /= weights.sum()
        u = losses - origin(step)
        _, cell, count = np.unique(np.floor(u / h), return_inverse=True, return_counts=True)
        mass = np.bincount(cell, weights)
        centre = np.bincount(cell, weights * u) / np.maximum(mass, 1e-300)
        within = np.where(count[cell] > 2, (u - centre[cell]) ** 2, h * h / 12)
        part = u / h - np.floor(u / h)
        spread = np.where(count[cell] > 2, h * h * part * (1 - part), h * h / 6)
        total += times * float(weights @ (within + spread))
    return 0.5 * (1 + aim.theta) * total


def with_gaussian(cost: Charges) -> tuple[Run, ...]:
    """The sampled runs and, fused into one step, everything Gaussian."""
    if cost.mu_squared == 0:
        return cost.runs
    fused = Component(Mechanism.GAUSSIAN, cost.mu_squared**-0.5, (0.0, 1.0), (1.0,))
    return (*cost.runs, (Step(((1.0, fused),)), 1))


def _directions(cost: Charges) -> tuple[int, ...]:
    """Both, unless every pair is its own mirror image."""
    symmetric = all(
        part.up == part.down or (part.up == (0.0, 1.0) and part.down == (1.0,))
        for step, _ in cost.runs
        for _, part in step.components
    )
    return (1,) if symmetric else (1, -1)


def epsilon_interval(cost: Charges, delta: float, *, rtol: float = 5e-3, atol: float = 1e-6) -> Interval:
    """Certified ε at δ of the dominating pair of a ledger: width at most max(rtol·ε, atol) where float64 allows.

    Wider intervals are returned, never wrong ones, when the window would pass 2²² points.
    """
    if cost.infinite:
        return Interval(math.inf, math.inf)
    if not cost.runs:
        value = gaussian_epsilon(math.sqrt(cost.mu_squared), delta)
        return Interval(value * (1 - EXACT), value * (1 + EXACT))
    runs = with_gaussian(cost)
    aims = sorted((aim_at_delta(runs, d, delta) for d in _directions(cost)), key=lambda a: -a.epsilon)
    lower, upper = 0.0, 0.0
    for aim in aims:
        low, high = _refine(runs, aim, delta, rtol, atol, upper)
        lower, upper = max(lower, low), max(upper, high)
    return Interval(min(lower, upper), upper)


def _refine(
    runs: Sequence[Run], aim: Aim, delta: float, rtol: float, atol: float, ceiling: float
) -> tuple[float, float]:
    """Bounds in one direction; only an upper bound when it stays below ``ceiling``, the other direction's."""
    low, high, growth = 0.0, math.inf, 0.01
    h = _spacing(runs, aim, max(0.35 * rtol * aim.epsilon, 0.6 * atol))
    stalled = 0
    for _ in range(_ROUNDS):
        before = high - low
        high = min(high, _epsilon_above(dominating(runs, aim, h, growth), delta))
        if high <= ceiling or high == 0:
            return 0.0, high
        low = max(low, _epsilon_below(dominated(runs, aim, h, growth), delta))
        allowed = max(rtol * high, atol)
        if high - low <= allowed:
            break
        stalled = stalled + 1 if high - low > 0.7 * before else 0
        if stalled >= 2:
            break
        if high - low > 0.05 * high:
            # The window looks at the wrong place: aim again from what is now known.
            theta = 0.6 * aim.theta if math.isinf(high) else math.inf
            known = (low + high) / 2 if math.isfinite(high) else aim.epsilon
            again = _aim_at_mean(runs, aim.direction, known, aim.reach)
            if again.theta > theta or not again.theta < 0.99 * aim.theta:
                again = _aim(runs, aim.direction, 0.6 * aim.theta, known, aim.reach)
            aim = again
            h = _spacing(runs, aim, max(0.35 * rtol * aim.epsilon, 0.6 * atol))
            continue
        shrink = min(0.6, 0.9 * math.sqrt(0.7 * allowed / (high - low)))
        h = _on_grid(max(h * shrink, (aim.high - aim.low) / (LARGEST_WINDOW - 4)))
        growth = max(growth * shrink, 1e-4)
    return low, high


def delta_interval(cost: Charges, epsilon: float, *, rtol: float = 5e-3) -> Interval:
    """Certified δ at ε of the dominating pair of a ledger; ``rtol`` is the width aimed at in ε."""
    if cost.infinite:
        return Interval(1.0, 1.0)
    if not cost.runs:
        value = gaussian_delta(math.sqrt(cost.mu_squared), epsilon)
        return Interval(value * (1 - EXACT), min(1.0, value * (1 + EXACT)))
    runs = with_gaussian(cost)
    lower, upper = 0.0, 0.0
    for direction in _directions(cost):
        aim = aim_at_epsilon(runs, direction, epsilon)
        h = _spacing(runs, aim, max(0.1 * rtol * epsilon, 1e-5 * (aim.high - aim.low)))
        above, below = dominating(runs, aim, h, 0.01), dominated(runs, aim, h, 0.01)
        lower = max(lower, _delta_below(below, epsilon))
        upper = max(upper, _delta_above(above, epsilon))
    return Interval(min(lower, upper), upper)


def _delta_above(pair: Pair, epsilon: float) -> float:
    moved = epsilon - pair.shift_error
    factor = math.exp(min(700.0, moved + pair.second.log_scale - pair.first.log_scale))
    gain = pair.first.value + pair.first.error - factor * (pair.second.value - pair.second.error)
    gain = gain[max(0, math.floor((moved - pair.start) / pair.h) - 1) :]
    scale = math.exp(min(700.0, pair.first.log_scale))
    value = float(gain.max(initial=0.0)) * scale / pair.mass_factor + pair.infinite
    return min(1.0, value) if moved >= pair.start else 1.0


def _delta_below(pair: Pair, epsilon: float) -> float:
    factor = math.exp(min(700.0, epsilon + pair.second.log_scale - pair.first.log_scale))
    gain = pair.first.value - pair.first.error - factor * (pair.second.value + pair.second.error)
    return max(0.0, float(gain.max()) * math.exp(min(700.0, pair.first.log_scale)))
