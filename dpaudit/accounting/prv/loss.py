"""The privacy loss of one step: where it is, and its law cut into cells from above and from below.

For a pair (P, Q) with loss L = log dP/dQ, the loss axis is cut at nodes ``origin + h·k``. Two discrete pairs follow.

* Above: the (P, Q) masses of every cell are split over its two end nodes so that both are preserved. Convex
  functions of dQ/dP only grow, so this pair dominates (P, Q) (connect the dots, 2207.04380).
* Below: every cell is reported by one integer label near its own loss. This is post-processing, so the pair of
  label laws is dominated by (P, Q), whatever the labels are.

Outputs more than ``reach`` σ beyond every mean go to infinity (above) or to the last cell (below); reach is chosen so
that this costs a ten-thousandth of δ. It also keeps the tilted law free of jumps that cannot matter.

Round-off starts from the relative error of the normal distribution function, at most (8 + 3z²)·2⁻⁵³ at z (tested).
From above it is counted on tails: dominance only asks that P(L ≥ l) − e^l·Q(L ≥ l) is not understated at any node, so
tails that are right up to a factor 1 ± κ are dominated by (1 + κ)·P against Q: over T steps ε grows by T·log(1 + κ),
with κ below 1e-13. From below round-off is counted cell by cell.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_ndtr, ndtr, ndtri

from dpaudit.accounting.relations import Component, Step
from dpaudit.privacy.stage import Mechanism

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

UNIT = 2.0**-53
# Share of δ that a whole run may lose to infinity: outputs in the far tails, whose losses are the largest.
TAIL_SHARE = 1e-4


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Discrete laws above and below one step's pair, on the lattice ``origin + h·index``.

    ``above_log_p``: log P-mass at ``above_index``; the Q-mass is e^{-loss} of it. ``p_at_infinity`` is P-mass where Q
    has none, ``q_at_infinity`` the reverse. ``kappa`` is κ of the upper tails (for P against Q) and
    ``kappa_reverse`` that of the lower tails (for Q against P). ``below_log_p``, ``below_log_q``: log masses of the
    labels ``below_index`` (whose nominal loss is ``origin + h·(index + 1/2)``), with relative errors ``below_error``.
    """

    origin: float
    h: float
    above_index: Integers
    above_log_p: Array
    kappa: float
    kappa_reverse: float
    p_at_infinity: float
    q_at_infinity: float
    below_index: Integers
    below_log_p: Array
    below_log_q: Array
    below_error: Array


def origin(step: Step) -> float:
    """Lower end of the loss where it is finite, and 0 otherwise: the end carries most mass when q is small."""
    _, component = step.components[0]
    if component.mechanism is Mechanism.LAPLACE:
        return float(loss(component, np.array([-(len(component.down) - 1.0)]))[0])
    if len(component.down) == 1 and component.up[0] > 0:
        if len(component.up) == 2:
            return math.log1p(-component.up[1])
        return math.log(component.up[0])
    return 0.0


def loss(component: Component, x: Array) -> Array:
    """log dP/dQ at outputs ``x``; increasing in x."""
    return _tilt(component, component.up, x) - _tilt(component, component.down, -x)


def _tilt(component: Component, weights: tuple[float, ...], x: Array) -> Array:
    """log Σ_j w_j f(x − j) / f(x) for Gaussian noise, log Σ_j w_j f(x − j) up to a constant for Laplace."""
    shifts = [(j, math.log(w)) for j, w in enumerate(weights) if w > 0]
    total: Array | None = None
    for j, log_w in shifts:
        if component.mechanism is Mechanism.GAUSSIAN:
            term = log_w + (j * x - 0.5 * j * j) / component.scale**2
        else:
            term = log_w - np.abs(x - j) / component.scale
        total = term if total is None else np.logaddexp(total, term)
    assert total is not None
    return total


def bulk(component: Component) -> tuple[float, float]:
    """Outputs between which the pair has nearly all of its mass."""
    two = 2.0 * component.scale
    top = max((j for j, w in enumerate(component.up) if w >= 0.2), default=0)
    bottom = max((j for j, w in enumerate(component.down) if w >= 0.2), default=0)
    return -bottom - two, top + two


def reach_for(delta: float, steps: int) -> float:
    """σ beyond every mean where a tail holds at most TAIL_SHARE·δ/steps, in quarters so that cells can be shared."""
    return math.ceil(-4 * float(ndtri(max(TAIL_SHARE * delta / max(steps, 1), 1e-280)))) / 4


def ends(component: Component, reach: float) -> tuple[float, float]:
    """Outputs ``reach`` σ beyond every mean, or (Laplace) where the loss stops growing."""
    up, down = len(component.up) - 1.0, len(component.down) - 1.0
    if component.mechanism is Mechanism.LAPLACE:
        return -down, up
    return -down - reach * component.scale, up + reach * component.scale


def outputs_at(component: Component, start: float, u: Array, reach: float) -> tuple[Array, Array]:
    """Outputs whose loss is ``start + u``, and what a misplaced cut may understate a tail by, relative to the tail.

    A cut at x + dx instead of x misjudges only the sliver between, and there only by how far the loss moves: second
    order in dx.
    """
    sigma, sigma2 = component.scale, component.scale**2
    gaussian = component.mechanism is Mechanism.GAUSSIAN
    level = start + u
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        match component.up, component.down:
            case (0.0, _), (_,) if gaussian:
                x = sigma2 * level + 0.5
                dx, slope = 4 * UNIT * (np.abs(x) + 1), np.ones_like(x)
            case (_, q), (_,) if gaussian and start == math.log1p(-q):
                # Two forms of log((e^loss − 1 + q) / q): one accurate near the lower end, one near loss 0.
                odds = math.log1p(-q) - math.log(q)
                far = u + np.log(-np.expm1(-u)) + odds
                ratio = np.expm1(np.minimum(level, 1.0)) / q
                near = (ratio > -0.5) & (level < 1.0)
                ratio = np.where(near, ratio, 0.0)
                logs = np.where(near, np.log1p(ratio), far)
                error = np.where(near, 8 * (1 + np.abs(ratio)) / (1 + ratio), 8 * (2 + u + abs(odds) + np.abs(far)))
                x, slope = sigma2 * logs + 0.5, -np.expm1(-u)
                dx = UNIT * (sigma2 * (error + np.abs(logs)) + 1)
            case (_, q), (_, p) if gaussian and p == q and start == 0.0:
                shift = math.log1p(-q) - math.log(q) + 0.5 / sigma2
                doubled = np.abs(u) / 2 + np.log(-np.expm1(-np.abs(u))) + shift  # log of 2·sinh(|u|/2)·e^shift
                half = np.where(doubled > 20, doubled, np.arcsinh(np.exp(np.minimum(doubled, 30.0)) / 2))
                y = np.sign(u) * (np.abs(u) / 2 + half)
                x, slope = sigma2 * y, expit(y - shift) + expit(-y - shift)
                dx = 8 * UNIT * sigma2 * (np.abs(u) + np.abs(half) + abs(shift) + 1)
            case _:
                return _outputs_by_search(component, level, reach)
        sliver = np.minimum(1.0, (1 + (np.abs(x) + 1) / sigma) * dx / sigma)
        moved = sliver * (slope * dx / sigma2 + 4 * UNIT * np.abs(level))
    return np.where(np.isfinite(x), x, -np.inf), np.where(np.isfinite(x), moved, 0.0)


def _outputs_by_search(component: Component, target: Array, reach: float) -> tuple[Array, Array]:
    """The same by interpolation and safeguarded Newton steps; losses out of reach give ±infinity."""
    low_end, high_end = ends(component, reach + 1)
    grid = np.linspace(low_end, high_end, 4097)
    values = loss(component, grid)
    place = np.clip(np.searchsorted(values, target), 1, len(grid) - 1)
    low, high = grid[place - 1].copy(), grid[place].copy()
    x = (low + high) / 2
    step = 1e-6 * component.scale
    slope = np.ones_like(x)
    for iteration in range(60):
        gap = loss(component, x) - target
        low, high = np.where(gap <= 0, x, low), np.where(gap >= 0, x, high)
        slope = (loss(component, x + step) - loss(component, x - step)) / (2 * step)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x - gap / slope
        if iteration > 3 and np.all((np.abs(newton - x) <= 4 * UNIT * np.abs(x)) | (high == low)):
            break
        usable = (newton > low) & (newton < high) & (iteration % 4 != 3)
        x = np.where(usable, newton, (low + high) / 2)
    floor, ceiling = float(values[0]), float(values[-1])
    # The loss is evaluated with this error, so that is how well a cut can be placed.
    moved = np.abs(loss(component, x) - target) + 32 * UNIT * (np.abs(target) + 1)
    dx = moved / np.maximum(slope, 1e-300) / component.scale
    moved = moved * np.minimum(1.0, (1 + (np.abs(x) + 1) / component.scale) * dx)
    tiny = 64 * UNIT * (abs(floor) + abs(ceiling) + 1)
    below, beyond = target <= floor + tiny, target > ceiling
    return np.where(below, -np.inf, np.where(beyond, np.inf, x)), np.where(below | beyond, tiny, moved)


def _masses(component: Component, weights: tuple[float, ...], sign: int, x: Array) -> tuple[Array, Array, Array]:
    """Mass of Σ_j w_j f(· − sign·j) between consecutive cuts, (n+1,) for n cuts.

    Also the absolute error of every mass (n+1,) and of the distribution function at every cut (n,).
    """
    cuts = np.concatenate(([-np.inf], x, [np.inf]))
    total, error, cut_error = np.zeros(len(cuts) - 1), np.zeros(len(cuts) - 1), np.zeros(len(x))
    for j, weight in enumerate(weights):
        if weight == 0:
            continue
        z = (cuts - sign * j) / component.scale
        # Differences are taken on the side where they are small, so that tails keep their relative accuracy.
        right = z > 0
        lower, upper = _tail(component, z), _tail(component, -z)
        flip = right[:-1]
        mass = np.where(flip, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
        thin = np.where(right, upper, lower)
        far = np.where(np.isfinite(z), np.abs(z), 0.0)
        at_cut = UNIT * thin * (8 + 3 * far * far + (1 + far) * far)  # the function's own error, and that of rounding z
        total += weight * np.maximum(mass, 0.0)
        error += weight * (at_cut[:-1] + at_cut[1:] + 2 * UNIT * np.where(flip, upper[:-1], lower[1:]))
        cut_error += weight * at_cut[1:-1]
    return total, error, cut_error


def _tail(component: Component, z: Array) -> Array:
    """Distribution function of the standard noise at z, accurate in the lower tail."""
    if component.mechanism is Mechanism.GAUSSIAN:
        small = z < -37.0
        low: Array = ndtr(z)
        if small.any():
            low = np.where(small, np.exp(log_ndtr(np.where(small, z, 0.0))), low)
        return low
    half = 0.5 * np.exp(-np.abs(z))
    return np.where(z < 0, half, 1 - half)


def _nodes(component: Component, start: float, h: float, growth: float, reach: float) -> Integers:
    """Cuts: every lattice point through the bulk, then ever wider cells towards the ends.

    Any set of lattice points gives a dominating and a dominated pair; the widths only decide how tight they are.
    """
    low_x, high_x = bulk(component)
    first_x, last_x = ends(component, reach)
    points = loss(component, np.array([first_x, max(low_x, first_x), min(high_x, last_x), last_x]))
    first, low, high, last = (float(v) for v in (points - start) / h)
    one_sided = len(component.down) == 1 and component.up[0] > 0 and start != 0.0
    first_k = max(0, math.floor(first)) if one_sided else math.floor(first)
    low_k, high_k, last_k = max(first_k, math.floor(low)), math.ceil(high), math.ceil(last)
    stride = max(1, (high_k - low_k) // 20000)
    dense = np.arange(low_k, high_k + stride, stride, dtype=np.int64)
    above = dense[-1] + _growing(max(0, last_k - int(dense[-1])), growth)
    below = low_k - _growing(low_k - first_k, growth)[::-1]
    return np.unique(np.concatenate((below, dense, above)))


def _growing(reach: int, growth: float) -> Integers:
    """0 = d_0 < d_1 < … = reach, with steps of about max(1, growth·d)."""
    if reach <= 0:
        return np.zeros(1, dtype=np.int64)
    turn = 1 / growth
    if reach <= turn:
        return np.arange(reach + 1, dtype=np.int64)
    count = math.ceil(math.log(reach / turn) / growth)
    far = turn * np.exp(np.linspace(0.0, math.log(reach / turn), count + 1))
    return np.concatenate((np.arange(math.ceil(turn), dtype=np.int64), np.rint(far).astype(np.int64)))


@lru_cache(maxsize=512)
def cells(step: Step, h: float, growth: float, reach: float) -> Cells:
    """Cut one step's loss into cells of width ``h`` in the bulk and ``growth`` relative to distance outside."""
    start = origin(step)
    parts = [(weight, _component_cells(component, start, h, growth, reach)) for weight, component in step.components]
    if len(parts) == 1:
        return parts[0][1]
    # A public label picks the component, so its cells simply stand side by side with their weights.
    logs = [math.log(weight) for weight, _ in parts]
    each = [part for _, part in parts]
    return Cells(
        start,
        h,
        np.concatenate([c.above_index for c in each]),
        np.concatenate([c.above_log_p + w for c, w in zip(each, logs)]),
        max(c.kappa for c in each),
        max(c.kappa_reverse for c in each),
        sum(w * c.p_at_infinity for w, c in parts),
        sum(w * c.q_at_infinity for w, c in parts),
        np.concatenate([c.below_index for c in each]),
        np.concatenate([c.below_log_p + w for c, w in zip(each, logs)]),
        np.concatenate([c.below_log_q + w for c, w in zip(each, logs)]),
        np.concatenate([c.below_error for c in each]),
    )


def _component_cells(component: Component, start: float, h: float, growth: float, reach: float) -> Cells:
    index = _nodes(component, start, h, growth, reach)
    u = np.multiply(h, index, dtype=np.float64)
    x, moved = outputs_at(component, start, u, reach)
    p, p_error, p_cut = _masses(component, component.up, 1, x)
    q, q_error, q_cut = _masses(component, component.down, -1, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(p > 0, p_error / p, 0.0) + np.where(q > 0, q_error / q, 0.0) + 8 * UNIT
    relative = np.minimum(relative, 1.0)
    level = start + u
    base = (16 + np.abs(level)) * UNIT + moved
    kappa = base + _share(p_cut, _above_cuts(p)) + _share(q_cut, _above_cuts(q))
    reverse = base + _share(p_cut, np.cumsum(p)[:-1]) + _share(q_cut, np.cumsum(q)[:-1])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        log_q = np.log(q)
        # Q-mass of a cell, in P-mass at its lower node; in two ways because e^loss or Q may leave the floats' range.
        direct = q[1:-1] * np.exp(np.minimum(level[:-1], 600.0))
        scaled = np.where(level[:-1] < 600, direct, np.exp(log_q[1:-1] + level[:-1]))
        width = -np.expm1(-np.diff(u))
        to_upper = np.clip((p[1:-1] - scaled) / width, 0.0, p[1:-1])
        top = min(float(np.exp(log_q[-1] + level[-1])), float(p[-1]))
    mass = np.zeros(len(index))
    mass[:-1] += p[1:-1] - to_upper
    mass[1:] += to_upper
    mass[0] += p[0]
    mass[-1] += top
    bottom = float(np.exp(np.log(p[0]) - level[0])) if p[0] > 0 else 0.0
    keep = mass > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        own = (np.log(p) - log_q - start) / h
    edges = np.concatenate(([index[0] - 1], index))
    label = np.clip(np.floor(np.nan_to_num(own, nan=0.0, posinf=0.0, neginf=0.0)), edges, np.append(index, index[-1]))
    some = (p > 0) | (q > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Cells(
            start,
            h,
            index[keep],
            np.log(mass[keep]),
            float(kappa.max()),
            float(reverse.max()),
            max(0.0, float(p[-1]) - top) * (1 + float(relative[-1])),
            max(0.0, float(q[0]) - bottom) * (1 + float(relative[0])),
            label[some].astype(np.int64),
            np.log(p[some]),
            log_q[some],
            relative[some],
        )


def _above_cuts(mass: Array) -> Array:
    """Total mass above every cut."""
    return np.cumsum(mass[::-1])[::-1][1:]


def _share(error: Array, tail: Array) -> Array:
    """Error relative to a tail; 1 where the tail has left the range of floats."""
    return np.minimum(1.0, np.divide(error, tail, out=(error > 0).astype(np.float64), where=tail > 0))
