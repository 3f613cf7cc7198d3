"""Approximate saddle point of a composed privacy loss, which says where to place the certified FFT window.

The tilt θ whose mean is the ε of interest centres the window there; the same estimate starts calibrations. Nothing here
is certified: an error costs time and never correctness.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy.special import erfcx

from dpaudit.accounting.prv.loss import Array, ends, loss, reach_for
from dpaudit.accounting.relations import Component, Step
from dpaudit.privacy.stage import Mechanism

Run = tuple[Step, int]
SMALLEST_LOG_DELTA = -744.0  # of the smallest float


@lru_cache(maxsize=1024)
def rough(step: Step, reach: float) -> tuple[Array, Array]:
    """Quadrature of one step's pair (P, Q): log weights under P, and losses log dP/dQ. Not certified."""
    logs, losses = [], []
    for weight, part in step.components:
        x, width = _points(part, reach)
        density = np.full_like(x, -np.inf)
        for j, w in enumerate(part.up):
            if w > 0:
                z = (x - j) / part.scale
                with np.errstate(over="ignore"):
                    exponent = -0.5 * z * z if part.mechanism is Mechanism.GAUSSIAN else -np.abs(z)
                density = np.logaddexp(density, math.log(w) + exponent)
        density += np.log(width)
        density -= np.logaddexp.reduce(density)
        logs.append(density + math.log(weight))
        losses.append(loss(part, x))
    return np.concatenate(logs), np.concatenate(losses)


def _points(part: Component, reach: float) -> tuple[Array, Array]:
    """Quadrature nodes about σ/5 apart wherever the pair has mass, and the width that each stands for."""
    low, high = ends(part, reach)
    if part.mechanism is Mechanism.LAPLACE:
        low, high = low - 40 * part.scale, high + 40 * part.scale
    count = max(60, math.ceil((high - low) / (0.2 * part.scale)))
    if count <= 4000:
        x = np.linspace(low, high, count)
    else:
        # Noise far narrower than the shifts has no mass between the means, so only points round the means are taken.
        around = part.scale * np.arange(-5 * max(reach, 40.0), 5 * max(reach, 40.0) + 1) / 5
        x = np.unique(np.concatenate([j + around for j in range(-len(part.down) + 1, len(part.up))]))
    width = np.gradient(x)
    return x, np.minimum(width, 0.2 * part.scale) if count > 4000 else width


def _cumulants(runs: Sequence[Run], direction: int, thetas: Array, reach: float) -> tuple[Array, Array, Array]:
    """log E e^{θL} of the composed loss and its first two derivatives at each θ, approximately.

    The reverse pair's cumulant is K(−1 − θ).
    """
    own = thetas if direction > 0 else -1 - thetas
    value, mean, variance = np.zeros(len(own)), np.zeros(len(own)), np.zeros(len(own))
    for logs, losses, times in _tables(tuple(runs), reach):
        exponent = logs + own[:, None, None] * losses
        top = exponent.max(axis=2)
        weights = np.exp(exponent - top[:, :, None])
        total = weights.sum(axis=2)
        value += (top + np.log(total)) @ times
        weights *= losses
        m = weights.sum(axis=2) / total
        mean += m @ times
        weights *= losses
        variance += np.maximum(weights.sum(axis=2) / total - m * m, 0.0) @ times
    return value, direction * mean, np.maximum(variance, 1e-300)


_TABLE = 8192  # points of runs taken together


@lru_cache(maxsize=16)
def _tables(runs: tuple[Run, ...], reach: float) -> list[tuple[Array, Array, Array]]:
    """Log weights and losses of the runs, some runs to a table whose rows have one length, with the steps of each."""
    each = sorted(((*rough(step, reach), times) for step, times in runs), key=lambda run: len(run[0]))
    found, start = [], 0
    while start < len(each):
        end = start + 1
        while end < len(each) and len(each[end][0]) * (end + 1 - start) <= _TABLE:
            end += 1
        part = each[start:end]
        logs = np.full((len(part), len(part[-1][0])), -np.inf)
        losses = np.zeros_like(logs)
        for row, (log, loss_, _) in enumerate(part):
            logs[row, : len(log)], losses[row, : len(log)] = log, loss_
        found.append((logs, losses, np.array([float(times) for *_, times in part])))
        start = end
    return found


def _log_delta_saddle(value: Array, mean: Array, variance: Array, theta: Array) -> Array:
    """Saddle-point estimate of log δ at ε = K'(θ): the tilted law taken as Gaussian (2208.09595)."""
    spread = np.sqrt(variance)
    root = math.sqrt(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = 0.5 * (erfcx(theta * spread / root) - erfcx((1 + theta) * spread / root))
        found: Array = value - theta * mean + np.log(np.maximum(gap, 1e-300))
    return found


def _range(runs: Sequence[Run], direction: int, reach: float) -> tuple[float, float]:
    """Range of tilts θ to search, in units of the untilted loss's standard deviation."""
    _, mean, variance = _cumulants(runs, direction, np.zeros(1), reach)
    spread = min(max(math.sqrt(float(variance[0])), 1e-8 * abs(float(mean[0])), 1e-140), 1e140)
    return 1e-3 / spread, 1e10 / spread


def _crossing(
    function: Callable[[Array], Array],
    target: float,
    between: tuple[float, float],
    grids: Sequence[int] = (24, 10, 10),
) -> float:
    """θ at which a decreasing function of θ falls to ``target``, by ever finer geometric grids."""
    low, high = between
    for count in grids:
        grid = np.geomspace(low, high, count)
        under = function(grid) <= target
        first = int(np.argmax(under)) if under.any() else count - 1
        low, high = grid[max(first - 1, 0)], grid[first]
    return math.sqrt(low) * math.sqrt(high)


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """Where to put the window: tilt, centre, reach and spread of the composed loss, and Chernoff slopes at its ends."""

    direction: int
    theta: float
    mean: float
    low: float
    high: float
    slopes: tuple[float, float]
    epsilon: float
    reach: float
    spread: float


def aim_by(
    runs: Sequence[Run], direction: int, theta: float, epsilon: float | None, reach: float, wrap: float = 1.0
) -> Aim:
    """Where to put the window for a tilt; ``wrap`` caps the mass that may lie outside the window.

    That mass is an error of both tails, of which δ is a difference: about one part in θ of either.
    """
    wrap = min(wrap, 1e-7, max(1e-13, 1e-5 / (1 + theta)))
    spread = float(np.sqrt(_cumulants(runs, direction, np.array([theta]), reach)[2][0]))
    log_wrap = math.log(wrap) - 5  # a margin for what the quadrature misses
    steps = np.geomspace(0.002, 2.0, 24) * (math.sqrt(-2 * log_wrap) / spread)
    thetas = np.concatenate(([theta], theta + steps, theta - steps))
    values, means, _ = _cumulants(runs, direction, thetas, reach)
    base, mean = float(values[0]), float(means[0])
    above, below = values[1 : len(steps) + 1], values[len(steps) + 1 :]
    reach_up = (above - base - steps * mean - log_wrap) / steps
    reach_down = (below - base + steps * mean - log_wrap) / steps
    up, down = int(np.nanargmin(reach_up)), int(np.nanargmin(reach_down))
    slopes = (float(steps[up]), float(steps[down]))
    low, high = mean - float(reach_down[down]), mean + float(reach_up[up])
    return Aim(direction, theta, mean, low, high, slopes, max(0.0, mean if epsilon is None else epsilon), reach, spread)


def aim_at_delta(runs: Sequence[Run], direction: int, log_delta: float) -> Aim:
    """Where to put the window for ε at a given δ: by the tilt whose mean is that ε in the saddle-point estimate."""
    reach = reach_for(log_delta, sum(times for _, times in runs))
    between = _range(runs, direction, reach)
    theta = _crossing(lambda t: _log_delta_saddle(*_cumulants(runs, direction, t, reach), t), log_delta, between)
    theta = min(theta, _useful(runs, direction, reach, between, log_delta))
    return aim_by(runs, direction, theta, None, reach)


def _useful(runs: Sequence[Run], direction: int, reach: float, between: tuple[float, float], log_delta: float) -> float:
    """Largest tilt worth using: where the largest loss has more mass than δ, a larger tilt only costs digits."""

    def chernoff(thetas: Array) -> Array:
        value, mean, _ = _cumulants(runs, direction, thetas, reach)
        return value - thetas * mean

    last = float(chernoff(np.array([between[1]]))[0])
    return _crossing(chernoff, last + 0.5, between) if last > log_delta else between[1]


def aim_at_epsilon(runs: Sequence[Run], direction: int, epsilon: float) -> Aim:
    """Where to put the window for δ at a given ε."""
    steps = sum(times for _, times in runs)
    reach, theta = 38.0, 1.0
    for _ in range(2):  # δ decides the reach, and is known only roughly

        def below_mean(thetas: Array, reach: float = reach) -> Array:
            return -_cumulants(runs, direction, thetas, reach)[1]

        between = _range(runs, direction, reach)
        theta = min(
            _crossing(below_mean, -epsilon, between), _useful(runs, direction, reach, between, SMALLEST_LOG_DELTA)
        )
        at = np.array([theta])
        log_delta = float(_log_delta_saddle(*_cumulants(runs, direction, at, reach), at)[0])
        reach = reach_for(max(SMALLEST_LOG_DELTA, min(-1e-3, log_delta)), steps)
    return aim_by(runs, direction, theta, epsilon, reach)


def aim_at_rate(runs: Sequence[Run], direction: int, rate: float) -> Aim:
    """Where to put the window for the loss at which Q's tail is ``rate`` (a false-positive rate)."""
    reach = reach_for(math.log(rate), sum(times for _, times in runs))
    between = _range(runs, direction, reach)

    def log_rate(power: Array) -> Array:
        value, mean, variance = _cumulants(runs, direction, power - 1, reach)
        found: Array = value - power * mean + np.log(0.5 * erfcx(power * np.sqrt(variance / 2)))
        return found

    power = _crossing(log_rate, math.log(rate), (min(between[0], 1e-4), max(between[1], 1e9)), (60, 12, 12))
    return aim_by(runs, direction, max(power - 1, between[0]), None, reach)


def spread_of(runs: Sequence[Run], direction: int, wrap: float = 1e-13) -> float:
    """Roughly the width of losses outside which the composed loss has a mass of ``wrap``."""
    reach = reach_for(math.log(wrap), sum(times for _, times in runs))
    theta = _range(runs, direction, reach)[0]
    aim = aim_by(runs, direction, theta, None, reach, wrap)
    return aim.high - aim.low


def aim_at_mean(runs: Sequence[Run], direction: int, epsilon: float, reach: float) -> Aim:
    """Where to put the window for a known ε: by the tilt whose mean it is, however sharply the mean rises there."""
    between = _range(runs, direction, reach)
    theta = _crossing(lambda t: -_cumulants(runs, direction, t, reach)[1], -epsilon, between, (48, 12, 12, 12, 12))
    return aim_by(runs, direction, theta, epsilon, reach, 1e-13)
