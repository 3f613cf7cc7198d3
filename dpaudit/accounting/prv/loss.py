"""The privacy loss log dP/dQ of one step: its range, and its law discretised from above and from below.

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
with κ below 1e-13. From below labels rise with the output, and so does every test that asks whether their sum is large.
So tails of one label that are right up to a factor 1 ± κ bound those of the sum of T labels up to (1 ± κ)^T (stochastic
order): round-off is again counted on tails, whose differences the masses of cells are, and not cell by cell.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import erfcx, expit, ndtri_exp

from dpaudit.accounting.relations import Component, Step
from dpaudit.privacy.stage import Mechanism

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

UNIT = 2.0**-53
_ROOT_HALF = math.sqrt(0.5)
NOTHING = -5000.0
DENSE = 20000  # lattice points through one bulk, at most
# Share of δ that a whole run may lose to infinity: outputs in the far tails, whose losses are the largest.
TAIL_SHARE = 1e-4


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Discrete laws above and below one step's pair, on the lattice ``origin + h·index``.

    ``above_log_p``: log P-mass at ``above_index``; the Q-mass is e^{-loss} of it. ``log_p_at_infinity`` is the log of
    the P-mass where Q has none, ``log_q_at_infinity`` of the reverse. ``kappa`` is κ of the upper tails (for P against
    Q) and ``kappa_reverse`` that of the lower tails (for Q against P). ``below_log_p``, ``below_log_q``: log masses of
    the labels ``below_index``, which never fall (their nominal loss is ``origin + h·(index + 1/2)``); the relative
    errors of their upper and of their lower tails are ``below_error_p`` and ``below_error_q``.
    """

    origin: float
    h: float
    above_index: Integers
    above_log_p: Array
    kappa: float
    kappa_reverse: float
    log_p_at_infinity: float
    log_q_at_infinity: float
    below_index: Integers
    below_log_p: Array
    below_log_q: Array
    below_error_p: tuple[float, float]
    below_error_q: tuple[float, float]


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
    if component.mechanism is Mechanism.GAUSSIAN and len(shifts) > 2:
        return _tilt_and_slope(component, weights, x)[0]
    total: Array | None = None
    for j, log_w in shifts:
        if component.mechanism is Mechanism.GAUSSIAN:
            term = log_w + (j * x - 0.5 * j * j) / component.scale / component.scale
        else:
            term = log_w - np.abs(x - j) / component.scale
        total = term if total is None else np.logaddexp(total, term)
    assert total is not None
    return total


def _tilt_and_slope(component: Component, weights: tuple[float, ...], x: Array) -> tuple[Array, Array]:
    """log Σ_j w_j f(x − j) / f(x) for Gaussian noise, all shifts at once, and its derivative."""
    shift = np.array([float(j) for j, w in enumerate(weights) if w > 0])[:, None]
    log_w = np.array([math.log(w) for w in weights if w > 0])[:, None]
    terms = log_w + (shift * x - 0.5 * shift * shift) / component.scale / component.scale
    top = terms.max(axis=0)
    terms -= top
    np.exp(terms, out=terms)
    total = terms.sum(axis=0)
    slope: Array = (shift[:, 0] @ terms) / total / component.scale / component.scale
    return top + np.log(total), slope


def bulks(component: Component) -> list[tuple[float, float]]:
    """Intervals of outputs in which the pair has nearly all of its mass: round the means of either member."""
    two = 2.0 * component.scale
    means = {float(j) for j, w in enumerate(component.up) if w >= 0.2}
    means |= {-float(j) for j, w in enumerate(component.down) if w >= 0.2}
    return [(mean - two, mean + two) for mean in sorted(means)]


def reach_for(log_delta: float, steps: int) -> float:
    """σ beyond every mean where a tail holds at most TAIL_SHARE·δ/steps, in quarters so that cells can be shared."""
    return math.ceil(-4 * float(ndtri_exp(log_delta + math.log(TAIL_SHARE / max(steps, 1))))) / 4


def ends(component: Component, reach: float) -> tuple[float, float]:
    """Outputs ``reach`` σ beyond every mean, or (Laplace) where the loss stops growing."""
    up, down = len(component.up) - 1.0, len(component.down) - 1.0
    if component.mechanism is Mechanism.LAPLACE:
        return -down, up
    return -down - reach * component.scale, up + reach * component.scale


def loss_range(component: Component, reach: float) -> tuple[float, float]:
    """Losses of the outputs within ``reach`` σ of every mean."""
    low, high = loss(component, np.array(ends(component, reach)))
    return float(low), float(high)


def outputs_at(component: Component, start: float, u: Array, reach: float) -> tuple[Array, Array]:
    """Outputs whose loss is ``start + u``, and what a misplaced cut may understate a tail by, relative to the tail.

    If a cut is placed at x + dx instead of x, only outputs between the two fall into the wrong cell. Their probability
    is O(dx) and their loss is wrong by O(dx), so the tail changes by O(dx²).
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
                # log((e^loss − 1 + q) / q) loses digits in either form, so it is taken in two: one is accurate near the
                # lower end, the other near loss 0.
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
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (target - values[place - 1]) / (values[place] - values[place - 1])
    x = low + np.clip(np.nan_to_num(share, nan=0.5), 0.0, 1.0) * (high - low)
    slope = np.ones_like(x)
    for _ in range(60):
        value, slope = _loss_and_slope(component, x)
        gap = value - target
        low, high = np.where(gap <= 0, x, low), np.where(gap >= 0, x, high)
        if np.all((np.abs(gap) <= 8 * UNIT * (np.abs(target) + 1)) | (high - low <= 4 * UNIT * np.abs(x))):
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x - gap / slope
        x = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
    floor, ceiling = float(values[0]), float(values[-1])
    # The loss is evaluated with this error, so that is how well a cut can be placed.
    terms = len(component.up) + len(component.down)
    moved = np.abs(loss(component, x) - target) + (32 + 2 * terms) * UNIT * (np.abs(target) + 1)
    dx = moved / np.maximum(slope, 1e-300) / component.scale
    moved = moved * np.minimum(1.0, (1 + (np.abs(x) + 1) / component.scale) * dx)
    tiny = 64 * UNIT * (abs(floor) + abs(ceiling) + 1)
    below, beyond = target <= floor + tiny, target > ceiling
    return np.where(below, -np.inf, np.where(beyond, np.inf, x)), np.where(below | beyond, tiny, moved)


def _loss_and_slope(component: Component, x: Array) -> tuple[Array, Array]:
    """The loss and its derivative, which only has to be good enough to find a place by."""
    if component.mechanism is Mechanism.GAUSSIAN:
        above, rise = _tilt_and_slope(component, component.up, x)
        below, fall = _tilt_and_slope(component, component.down, -x)
        return above - below, rise + fall
    step = 1e-6 * component.scale
    return loss(component, x), (loss(component, x + step) - loss(component, x - step)) / (2 * step)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Masses:
    """Mass of a mixture between n cuts: ``log`` and its relative ``error`` (n+1,), and the tails at the cuts (n,).

    ``log_above`` and ``log_below``: log mass above and below every cut; ``above`` and ``below``: their relative errors.
    """

    log: Array
    error: Array
    log_above: Array
    log_below: Array
    above: Array
    below: Array


_Piece = tuple[Array, Array, Array, Array, Array, Array]


def _pieces(component: Component, x: Array) -> dict[int, _Piece]:
    """What :func:`_between` says of the noise round each mean of the pair; both members have the mean 0."""
    cuts = np.concatenate(([-np.inf], x, [np.inf]))
    means = {j for j, w in enumerate(component.up) if w > 0} | {-j for j, w in enumerate(component.down) if w > 0}
    return {mean: _between(component, (cuts - mean) / component.scale) for mean in means}


def _log_masses(weights: tuple[float, ...], sign: int, pieces: dict[int, _Piece]) -> _Masses:
    """Log masses of Σ_j w_j f(· − sign·j) between consecutive cuts: no tail is too small to be right."""
    each = [(math.log(weight), *pieces[sign * j]) for j, weight in enumerate(weights) if weight > 0]
    rounding = (4 + len(each)) * UNIT
    if len(each) == 1 and each[0][0] == 0.0:
        _, log, error, above, below, thin, at_cut = each[0]
        with np.errstate(invalid="ignore"):
            share = [np.where(thin > -np.inf, np.minimum(thin - tail, 0.0), -np.inf) for tail in (above, below)]
        at_above, at_below = at_cut * np.exp(share[0]), at_cut * np.exp(share[1])
        return _Masses(log, error + rounding, above, below, at_above + rounding, at_below + rounding)
    log = _log_total([log_w + mass for log_w, mass, *_ in each])
    above = _log_total([log_w + upper for log_w, _, _, upper, *_ in each])
    below = _log_total([log_w + lower for log_w, _, _, _, lower, *_ in each])
    error, at_above, at_below = np.zeros(len(log)), np.zeros(len(above)), np.zeros(len(above))
    with np.errstate(invalid="ignore", over="ignore"):
        for log_w, mass, relative, _, _, thin, at_cut in each:
            error += relative * np.exp(np.where(mass > -np.inf, log_w + mass - log, -np.inf))
            at_above += at_cut * np.exp(np.where(thin > -np.inf, np.minimum(log_w + thin - above, 0.0), -np.inf))
            at_below += at_cut * np.exp(np.where(thin > -np.inf, np.minimum(log_w + thin - below, 0.0), -np.inf))
    return _Masses(log, error + rounding, above, below, at_above + rounding, at_below + rounding)


def _log_total(terms: list[Array]) -> Array:
    if len(terms) <= 2:
        return terms[0] if len(terms) == 1 else np.asarray(np.logaddexp(terms[0], terms[1]))
    whole = np.array(terms)
    top = whole.max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(top > -np.inf, top + np.log(np.exp(whole - top).sum(axis=0)), -np.inf)
    return found


def _between(component: Component, z: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Log mass of the standard noise between cuts z (n+2,) with its relative error, and log tails at the inner cuts.

    The tails: above, below, the smaller of the two, and the relative error of the smaller.
    """
    distance = np.abs(z)
    thin = log_tail(component, distance)
    far = np.where(np.isfinite(z), distance, 0.0)
    at_cut = UNIT * (8 + 3 * far * far + (1 + far) * far)  # the function's own error, and that of rounding z
    low, high = thin[:-1], thin[1:]
    left, right = z[1:] <= 0, z[:-1] > 0
    inside = left | right
    # Differences of numbers near 1 lose digits, so they are taken on the side where both are small: tails keep their
    # relative accuracy.
    larger, smaller = np.where(left, high, low), np.where(left, low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(inside & (smaller > -np.inf), np.minimum(smaller - larger, 0.0), -np.inf)
        one_sided = larger + np.log(-np.expm1(ratio))
        both = np.log1p(-np.minimum(np.exp(low) + np.exp(high), 1.0))
        mass = np.where(inside, one_sided, both)
        share = np.exp(ratio)
        error = np.where(
            inside,
            (np.where(left, at_cut[1:], at_cut[:-1]) + share * np.where(left, at_cut[:-1], at_cut[1:])) / (1 - share),
            (at_cut[:-1] * np.exp(low) + at_cut[1:] * np.exp(high)) / np.exp(both),
        )
    inner, rest = thin[1:-1], np.log1p(-np.exp(thin[1:-1]))
    positive = z[1:-1] > 0
    upper, lower = np.where(positive, inner, rest), np.where(positive, rest, inner)
    mass = np.where(np.isnan(mass), -np.inf, mass)
    return mass, np.minimum(np.where(np.isnan(error), 1.0, error), 1.0), upper, lower, inner, at_cut[1:-1]


def log_tail(component: Component, distance: Array) -> Array:
    """Log mass of the standard noise beyond ``distance`` ≥ 0."""
    if component.mechanism is Mechanism.GAUSSIAN:
        with np.errstate(divide="ignore", over="ignore"):
            found: Array = np.log(0.5 * erfcx(distance * _ROOT_HALF)) - 0.5 * distance * distance
        return found
    return math.log(0.5) - distance


def _nodes(component: Component, start: float, h: float, growth: float, reach: float) -> Integers:
    """Cuts: every lattice point through the bulk, then ever wider cells towards the ends.

    Any set of lattice points gives a dominating and a dominated pair; the widths only decide how tight they are.
    """
    first_x, last_x = ends(component, reach)
    around = [(max(low, first_x), min(high, last_x)) for low, high in bulks(component)]
    points = loss(component, np.array([first_x, *(x for pair in around for x in pair), last_x]))
    first, *inner, last = (float(v) for v in (points - start) / h)
    one_sided = len(component.down) == 1 and component.up[0] > 0 and start != 0.0
    first_k = max(0, math.floor(first)) if one_sided else math.floor(first)
    last_k = math.ceil(last)
    if math.ceil(inner[-1]) - math.floor(inner[0]) <= DENSE:
        inner = [inner[0], inner[-1]]
    parts: list[Integers] = []
    for low, high in zip(inner[::2], inner[1::2]):
        low_k, high_k = max(first_k, math.floor(low)), math.ceil(high)
        stride = max(1, (high_k - low_k) // DENSE)
        dense = np.arange(low_k, high_k + stride, stride, dtype=np.int64)
        above = dense[-1] + _growing(max(0, last_k - int(dense[-1])), growth)
        below = low_k - _growing(low_k - first_k, growth)[::-1]
        parts += [below, dense, above]
    found = np.concatenate(parts) if len(parts) == 3 else np.sort(np.concatenate(parts))
    return found[np.concatenate(([True], found[1:] > found[:-1]))]


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
        float(np.logaddexp.reduce([w + c.log_p_at_infinity for w, c in zip(logs, each)])),
        float(np.logaddexp.reduce([w + c.log_q_at_infinity for w, c in zip(logs, each)])),
        np.concatenate([c.below_index for c in each]),
        np.concatenate([c.below_log_p + w for c, w in zip(each, logs)]),
        np.concatenate([c.below_log_q + w for c, w in zip(each, logs)]),
        (max(c.below_error_p[0] for c in each), max(c.below_error_p[1] for c in each)),
        (max(c.below_error_q[0] for c in each), max(c.below_error_q[1] for c in each)),
    )


def _component_cells(component: Component, start: float, h: float, growth: float, reach: float) -> Cells:
    index = _nodes(component, start, h, growth, reach)
    u = np.multiply(h, index, dtype=np.float64)
    x, moved = outputs_at(component, start, u, reach)
    pieces = _pieces(component, x)
    p, q = _log_masses(component.up, 1, pieces), _log_masses(component.down, -1, pieces)
    level = start + u
    # A share that is off by r/width moves r of the cell's mass past its lower node; r is what logarithms round to.
    depth = float(np.max(-p.log, where=p.log > NOTHING, initial=0.0))
    base = (16 + 2 * depth + 4 * np.abs(level)) * UNIT + moved
    # Below e^{-5000} no δ that a float can hold sees the first member's tail, nor how wrong it is.
    kappa = np.where(p.log_above > NOTHING, base + p.above + q.above, 0.0)
    reverse = np.where(q.log_below > NOTHING, base + p.below + q.below, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = p.log - q.log
        # A cell's masses are split over its end nodes so that P and Q both stay as they are; in logarithms, because the
        # lower node may hold next to none of P and yet all of Q.
        width = np.diff(u)
        height = np.clip(own[1:-1] - level[:-1], 0.0, width)
        height = np.where(np.isnan(height), 0.0, height)
        whole = np.log(-np.expm1(-width))
        to_upper = p.log[1:-1] + np.log(-np.expm1(-height)) - whole
        to_lower = p.log[1:-1] - height + np.log(-np.expm1(height - width)) - whole
        top = min(float(q.log[-1] + level[-1]), float(p.log[-1]))
        bottom = min(float(p.log[0] - level[0]), float(q.log[0]))
        own = (own - start) / h
    mass = np.full(len(index), -np.inf)
    mass[:-1] = to_lower
    mass[1:] = np.logaddexp(mass[1:], to_upper)
    mass[0] = np.logaddexp(mass[0], p.log[0])
    mass[-1] = np.logaddexp(mass[-1], top)
    keep = mass > -np.inf
    edges = np.concatenate(([index[0] - 1], index))
    label = np.clip(np.floor(np.nan_to_num(own, nan=0.0, posinf=0.0, neginf=0.0)), edges, np.append(index, index[-1]))
    some = (p.log > -np.inf) | (q.log > -np.inf)
    relative = np.minimum(p.error + q.error + 8 * UNIT, 1.0)
    return Cells(
        start,
        h,
        index[keep],
        mass[keep],
        float(kappa.max()),
        float(reverse.max()),
        _rest(float(p.log[-1]), top, float(relative[-1])),
        _rest(float(q.log[0]), bottom, float(relative[0])),
        np.maximum.accumulate(label[some].astype(np.int64)),
        p.log[some],
        q.log[some],
        _tail_errors(p),
        _tail_errors(q),
    )


def _tail_errors(masses: _Masses) -> tuple[float, float]:
    """Relative errors of sums of cells above, and below, any cut: those of the tails, and of taking differences."""
    found = []
    for logs, errors in ((masses.log_above, masses.above), (masses.log_below, masses.below)):
        some = logs > -np.inf
        found.append(min(float(np.max(errors - 4 * UNIT * logs, where=some, initial=0.0)) + 16 * UNIT, 1.0))
    return found[0], found[1]


def _rest(whole: float, part: float, relative: float) -> float:
    """log of e^whole − e^part, rounded up."""
    if whole == -math.inf:
        return -math.inf
    left = -math.expm1(min(part - whole, 0.0)) if part > -math.inf else 1.0
    return whole + math.log(left + 2 * relative + 4 * UNIT * abs(whole))
