"""A slow second accountant: everything as logarithms, by direct convolution, without tilt, window or FFT.

Nothing here is shared with the package. Every mass is kept as its logarithm, so that no δ and no ε is out of range, and
sums are taken term by term. A pair of mixtures P = Σ up[j] f(x − j), Q = Σ down[j] f(x + j) is cut into cells of the
output x. From above the masses of a cell are split over its two end losses so that both stay as they are (a dominating
pair); from below a cell becomes one label (post-processing). The grid is made coarser while composing, by the same two
rules, so that the interval stays an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

Array = npt.NDArray[np.float64]
Run = tuple[Sequence[float], Sequence[float], float, int]  # up, down, scale, times
NODES = 2048


def _log_cdf(z: Array, laplace: bool) -> Array:
    if laplace:
        with np.errstate(divide="ignore"):
            return np.where(z < 0, math.log(0.5) + np.minimum(z, 0), np.log1p(-0.5 * np.exp(-np.maximum(z, 0))))
    return log_ndtr(z)


def _log_difference(a: Array, b: Array) -> Array:
    """log(e^a − e^b) for a ≥ b."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.minimum(b - a, 0.0)
        return np.where(np.isneginf(a), -np.inf, a + np.log(-np.expm1(np.where(np.isnan(gap), 0.0, gap))))


def _cell_masses(weights: Sequence[float], sign: int, scale: float, cuts: Array, laplace: bool) -> Array:
    total = np.full(len(cuts) - 1, -np.inf)
    for j, w in enumerate(weights):
        if w == 0:
            continue
        z = (cuts - sign * j) / scale
        below, above = _log_cdf(z, laplace), _log_cdf(-z, laplace)
        left = _log_difference(below[1:], below[:-1])
        right = _log_difference(above[:-1], above[1:])
        total = np.logaddexp(total, math.log(w) + np.where(z[1:] <= 0, left, right))
    return total


def _loss(up: Sequence[float], down: Sequence[float], scale: float, x: Array, laplace: bool) -> Array:
    def mix(weights: Sequence[float], sign: int) -> Array:
        terms = []
        for j, w in enumerate(weights):
            if w > 0:
                z = (x - sign * j) / scale
                gaussian = (2 * sign * j * x - j * j) / (2 * scale**2)
                terms.append(math.log(w) + (-np.abs(z) + np.abs(x) / scale if laplace else gaussian))
        found: Array = np.logaddexp.reduce(terms)
        return found

    return mix(up, 1) - mix(down, -1)


def _cuts(up: Sequence[float], down: Sequence[float], scale: float, reach: float, laplace: bool, count: int) -> Array:
    lo, hi = -(len(down) - 1.0), len(up) - 1.0
    if laplace:
        inner = np.linspace(lo, hi, count)
        return inner
    pieces = [np.linspace(lo - reach * scale, hi + reach * scale, count)]
    for j in range(-len(down) + 1, len(up)):
        pieces.append(j + scale * np.linspace(-reach, reach, count))
    return np.unique(np.concatenate(pieces))


class Grid:
    """Log masses of one or two laws at losses h·(first + k)."""

    def __init__(self, h: float, first: int, laws: list[Array], infinite: float = -math.inf) -> None:
        self.h, self.first, self.laws, self.infinite = h, first, laws, infinite

    @property
    def n(self) -> int:
        return len(self.laws[0])


def _gather(index: Any, values: Array, first: int, n: int) -> Array:
    out = np.full(n, -np.inf)
    order = np.argsort(index, kind="stable")
    index, values = index[order], values[order]
    starts = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))
    out[index[starts] - first] = np.logaddexp.reduceat(values, starts)
    return out


def _split(loss: Array, log_p: Array, h: float) -> tuple[int, Array]:
    """Chord split of P-atoms (Q-mass e^{-loss}·P) onto lattice points."""
    k = np.floor(loss / h).astype(np.int64)
    d = np.clip(loss - k * h, 0.0, h)
    share = -np.expm1(-d) / -math.expm1(-h)
    share = np.clip(share * (1 + 1e-12), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        index = np.concatenate((k, k + 1))
        values = np.concatenate((log_p + np.log1p(-share), log_p + np.log(share)))
    keep = np.isfinite(values)
    index, values = index[keep], values[keep]
    first = int(index.min())
    return first, _gather(index, values, first, int(index.max()) - first + 1)


def _merge(label: Any, laws: list[Array]) -> tuple[int, list[Array]]:
    first = int(label.min())
    n = int(label.max()) - first + 1
    return first, [_gather(label, law, first, n) for law in laws]


def _single(
    run: Run, direction: int, above: bool, log_tail: float, laplace: bool
) -> tuple[Array, Array, Array | None, float]:
    up, down, scale, _ = run
    reach = 4.0 + math.sqrt(max(0.0, -2 * log_tail)) if not laplace else 0.0
    x = _cuts(up, down, scale, reach, laplace, 2500)
    cuts = np.concatenate(([-np.inf], x, [np.inf]))
    p, q = _cell_masses(up, 1, scale, cuts, laplace), _cell_masses(down, -1, scale, cuts, laplace)
    ends = _loss(up, down, scale, x, laplace)
    if direction < 0:
        p, q, ends = q[::-1], p[::-1], -ends[::-1]
    if not above:
        with np.errstate(invalid="ignore"):
            own = p - q
        ok = np.isfinite(p) | np.isfinite(q)
        own = np.nan_to_num(own, nan=0.0, posinf=ends[-1], neginf=ends[0])[ok]
        return np.clip(own, ends[0], ends[-1]), p[ok], q[ok], -np.inf
    lo, hi = ends[:-1], ends[1:]
    width = np.maximum(hi - lo, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.clip(p[1:-1] - q[1:-1] - lo, 0.0, width)
        share = np.where(width > 1e-9, -np.expm1(-gap) / -np.expm1(-width), 1.0)
        share = np.clip(share + 1e-9, 0.0, 1.0)
        to_low, to_high = p[1:-1] + np.log1p(-share), p[1:-1] + np.log(share)
    top = min(q[-1] + ends[-1], p[-1])
    infinite = float(_log_difference(np.array([p[-1]]), np.array([top]))[0])
    loss = np.concatenate((lo, hi, [ends[0], ends[-1]]))
    mass = np.concatenate((to_low, to_high, [p[0], top]))
    keep = np.isfinite(mass)
    return loss[keep], mass[keep], None, infinite


def _trim(grid: Grid, log_floor: float, above: bool) -> Grid:
    """Give up P-mass below the floor at both ends."""
    p = grid.laws[0]
    upper = np.logaddexp.accumulate(p[::-1])[::-1]
    lower = np.logaddexp.accumulate(p)
    keep = np.flatnonzero((upper > log_floor) & (lower > log_floor))
    if len(keep) == 0:
        return grid
    a, b = int(keep[0]), int(keep[-1]) + 1
    laws, infinite = [], grid.infinite
    if above:
        law = p[a:b].copy()
        if a > 0:
            law[0] = np.logaddexp(law[0], lower[a - 1])
        if b < grid.n:
            infinite = np.logaddexp(infinite, upper[b])
        laws = [law]
    else:
        for law in grid.laws:
            cut = law[a:b].copy()
            if a > 0:
                cut[0] = np.logaddexp.reduce(law[: a + 1])
            if b < grid.n:
                cut[-1] = np.logaddexp.reduce(law[b - 1 :])
            laws.append(cut)
    return Grid(grid.h, grid.first + a, laws, infinite)


def _coarser(grid: Grid, above: bool) -> Grid:
    loss_index = grid.first + np.arange(grid.n)
    if above:
        first, law = _split(grid.h * loss_index, grid.laws[0], 2 * grid.h)
        return Grid(2 * grid.h, first, [law], grid.infinite)
    first, laws = _merge(loss_index // 2, grid.laws)
    return Grid(2 * grid.h, first, laws, grid.infinite)


def _conv(a: Array, b: Array) -> Array:
    """log of the convolution of e^a and e^b, term by term: blocks of 64 share a scale and are multiplied as floats."""
    size = 64
    if len(a) < len(b):
        a, b = b, a

    def blocks(x: Array) -> tuple[Array, Array]:
        padded = np.full(-(-len(x) // size) * size, -np.inf)
        padded[: len(x)] = x
        rows = padded.reshape(-1, size)
        top = rows.max(axis=1)
        top = np.where(np.isfinite(top), top, 0.0)
        return np.exp(rows - top[:, None]), top

    if _steep(a, size) or _steep(b, size):
        out = np.full(len(a) + len(b) - 1, -np.inf)
        for i in np.flatnonzero(np.isfinite(b)):
            np.logaddexp(out[i : i + len(a)], a + b[i], out=out[i : i + len(a)])
        return out
    (x, x_top), (y, y_top) = blocks(a), blocks(b)
    out = np.full((len(x_top) + len(y_top)) * size, -np.inf)
    for i in range(len(y_top)):
        toeplitz = np.zeros((size, 2 * size))
        for r in range(size):
            toeplitz[r, r : r + size] = y[i]
        product = x @ toeplitz  # row j: block j of x times block i of y
        with np.errstate(divide="ignore"):
            logs = np.log(product) + (x_top + y_top[i])[:, None]
        for half in (0, 1):
            part = logs[:, half * size : (half + 1) * size].ravel()
            place = out[(i + half) * size : (i + half) * size + len(part)]
            np.logaddexp(place, part, out=place)
    return out[: len(a) + len(b) - 1]


def _steep(x: Array, size: int) -> bool:
    """Whether a block spans more than floats hold beside each other."""
    padded = np.full(-(-len(x) // size) * size, np.nan)
    padded[: len(x)] = np.where(np.isfinite(x), x, np.nan)
    rows = padded.reshape(-1, size)
    high, low = np.where(np.isnan(rows), -np.inf, rows).max(1), np.where(np.isnan(rows), np.inf, rows).min(1)
    return bool((high - low > 300).any())


def _small(grid: Grid, floor: float, above: bool) -> Grid:
    grid = _trim(grid, floor, above)
    while grid.n > NODES:
        grid = _trim(_coarser(grid, above), floor, above)
    return grid


def _times(a: Grid, b: Grid, floor: float, above: bool) -> Grid:
    while a.h < b.h * 0.75:
        a = _coarser(a, above)
    while b.h < a.h * 0.75:
        b = _coarser(b, above)
    laws = [_conv(x, y) for x, y in zip(a.laws, b.laws)]
    return _small(Grid(a.h, a.first + b.first, laws, np.logaddexp(a.infinite, b.infinite)), floor, above)


def _power(grid: Grid, times: int, floor: float, above: bool) -> Grid:
    result = None
    while True:
        if times & 1:
            result = grid if result is None else _times(result, grid, floor, above)
        times >>= 1
        if not times:
            return result
        grid = _times(grid, grid, floor, above)


def composed(runs: Sequence[Run], direction: int, above: bool, log_delta: float, laplace: bool = False) -> Grid:
    steps = sum(r[3] for r in runs)
    floor = log_delta - 14 - math.log(steps)
    total = None
    for run in runs:
        loss, p, q, infinite = _single(run, direction, above, floor, laplace)
        heavy = p > floor
        span = float(loss[heavy].max() - loss[heavy].min()) if heavy.any() else 1.0
        h = 2.0 ** math.floor(math.log2(max(span, 1e-9 * float(np.abs(loss[heavy]).max()), 1e-290) / (4 * NODES)))
        if above:
            lost = loss > loss[heavy].max()
            infinite = np.logaddexp(infinite, np.logaddexp.reduce(p[lost])) if lost.any() else infinite
            loss, p = np.clip(loss[~lost], loss[heavy].min(), None), p[~lost]
            first, law = _split(loss, p, h)
            grid = Grid(h, first, [law], infinite)
        else:
            low, high = loss[heavy].min(), loss[heavy].max()
            label = np.floor(np.clip(loss, low, high) / h).astype(np.int64)
            first, laws = _merge(label, [p, q])
            grid = Grid(h, first, laws)
        grid = _power(_small(grid, floor, above), run[3], floor, above)
        total = grid if total is None else _times(total, grid, floor, above)
    return total


def epsilon_above(grid: Grid, log_delta: float) -> float:
    loss = grid.h * (grid.first + np.arange(grid.n))
    p = grid.laws[0]

    def log_d(eps: float) -> float:
        over = loss > eps
        with np.errstate(divide="ignore"):
            terms = p[over] + np.log(-np.expm1(eps - loss[over]))
        return np.logaddexp(grid.infinite, np.logaddexp.reduce(terms)) if len(terms) else grid.infinite

    if grid.infinite >= log_delta:
        return math.inf
    if log_d(0.0) <= log_delta:
        return 0.0
    low, high = 0.0, max(float(loss[-1]), 0.0)
    for _ in range(100):
        mid = (low + high) / 2
        low, high = (mid, high) if log_d(mid) > log_delta else (low, mid)
    return high


def epsilon_below(grid: Grid, log_delta: float) -> float:
    a = np.logaddexp.accumulate(grid.laws[0][::-1])[::-1]
    b = np.logaddexp.accumulate(grid.laws[1][::-1])[::-1]
    good = a > log_delta
    if not good.any():
        return 0.0
    return max(0.0, float((_log_difference(a[good], np.full(good.sum(), log_delta)) - b[good]).max()))


def epsilon(runs: Sequence[Run], log_delta: float, laplace: bool = False) -> tuple[float, float]:
    """Interval that holds ε at δ = e^{log_delta} (rounding apart: 1e-9 relative)."""
    low = high = 0.0
    for direction in (1, -1):
        high = max(high, epsilon_above(composed(runs, direction, True, log_delta, laplace), log_delta))
        low = max(low, epsilon_below(composed(runs, direction, False, log_delta, laplace), log_delta))
    return low, high
