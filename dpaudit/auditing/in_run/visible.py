"""The smallest shortfall of noise that in-run canaries would have shown, from the declared mechanism alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dpaudit.auditing.in_run.plan import ControlDesign
from dpaudit.auditing.independent import CHOOSING, p_value_near
from dpaudit.privacy.stage import Stage

_Rates = tuple[NDArray[np.float64], NDArray[np.float64]]
_HIDDEN = float(ndtri(0.95))
"""Deviations between what a run's scores show of the records' influence and its upper confidence limit."""
_CELLS = 2**15
_STEP = 2e-3
"""Resolution of a shortfall."""
_FACTORS = (0.9, 0.8, 0.5, 0.25, 0.1)
"""Noise factors that a control may have, from the hardest to see."""
_REPEATS = 20
"""Repetitions of a control: all of them convicting puts the lower end of the power's 95 % interval at 0.83."""
_WORK = 60_000_000
"""Canaries times steps that all repetitions of a control may take: some seconds."""


def canary_rates(
    stages: Sequence[Stage], noise_factor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Cuts (n,) on the scores, and rates of scores above each of them of included and of left-out canaries.

    Each canary's score is a sum of independent terms, whose distributions are convolved on a grid; nothing but the
    noise moves the canary's coordinate. An approximation for planning and for the report, never for a conviction.

    Parameters
    ----------
    stages : sequence of Stage
        The declared steps: q, σ and their number.
    noise_factor : float
        True noise as a share of the declared one, above 0.
    """
    z = np.linspace(-9.5, 9.5, 3001)
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    laws = []
    for stage in stages:
        q, s = stage.sampling_probability, stage.noise_multiplier
        terms = []
        for x in (noise_factor * s * z, 1.0 + noise_factor * s * z):
            with np.errstate(divide="ignore"):
                terms.append(np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * s * s)))
        laws.append((stage.steps, q, terms[0], terms[1]))
    mean, spread = 0.0, 0.0
    for steps, q, out, inside in laws:
        center = float(weight @ out)
        mean += steps * center
        square = (1 - q) * float(weight @ (out - center) ** 2) + q * float(weight @ (inside - center) ** 2)
        spread += steps * square
    half = 14 * math.sqrt(spread) + 1
    cell = 2 * half / _CELLS
    grid = mean + cell * (np.arange(_CELLS) - _CELLS // 2)
    shift = round(grid[0] / cell)  # the transform begins at a score of 0, so the law is rolled to begin there
    found = []
    for included in (True, False):
        transform = np.ones(_CELLS // 2 + 1, dtype=np.complex128)
        for steps, q, out, inside in laws:
            share = q if included else 0.0
            law = _on_grid(out, (1 - share) * weight, cell) + _on_grid(inside, share * weight, cell)
            transform = transform * np.fft.rfft(law) ** steps
        law = np.roll(np.fft.irfft(transform, _CELLS), -shift)
        found.append(np.clip(1.0 - np.cumsum(law), 0.0, 1.0))
    cuts = cell * (shift + np.arange(_CELLS))
    near = slice(_CELLS // 4, 3 * _CELLS // 4, 16)
    return cuts[near], found[0][near], found[1][near]


def _on_grid(values: NDArray[np.float64], weight: NDArray[np.float64], cell: float) -> NDArray[np.float64]:
    """Weights at values, each split between its two neighbours on a circular grid so that the mean is kept."""
    place = values / cell
    low = np.floor(place).astype(np.int64)
    part = place - low
    left = np.bincount(low % _CELLS, weights=weight * (1 - part), minlength=_CELLS)
    right = np.bincount((low + 1) % _CELLS, weights=weight * part, minlength=_CELLS)
    return np.asarray(left + right, dtype=np.float64)


def expected_auc(stages: Sequence[Stage]) -> float:
    """Area under the curve of scores in a run that does as declared, where only the noise moves a coordinate."""
    _, inside, outside = canary_rates(stages, 1.0)
    return float(np.sum((inside[1:] + inside[:-1]) / 2 * (outside[:-1] - outside[1:])))


def smallest_visible_canary_shortfall(
    m: int,
    stages: Sequence[Stage],
    deltas: Sequence[float],
    epsilons: Sequence[float],
    alpha: float,
    *,
    power: float = 0.95,
    seen_in: tuple[NDArray[np.float64], NDArray[np.bool_]] | None = None,
) -> float:
    """Smallest relative shortfall of noise that the profile test would have refuted with the power given.

    Records move the canaries' coordinates too, and hide a shortfall. With the scores of a run, what they hid in it is
    taken at its upper confidence limit: how far included and left-out canaries stand closer than the declared steps
    alone would set them.

    Parameters
    ----------
    m : int
        Canaries, half of them taken as included.
    stages, deltas, epsilons
        The declared steps, and their certified δ at each of the ``epsilons``.
    alpha : float
        Level of the profile test.
    seen_in : (scores, coins), optional
        Arrays (m,) of the run itself. Without them nothing but the noise moves a canary's coordinate.

    Returns
    -------
    float
        1 − f in steps of 0.002; 1 when even a tenth of the noise would not be seen.
    """
    low, high = 0.0, 0.9
    alike = None if seen_in is None or not m else _observed(canary_rates(stages, 1.0), *seen_in)

    def seen(shortfall: float) -> bool:
        return _refuted(m, canary_rates(stages, 1 - shortfall), deltas, epsilons, alpha, power, alike)

    if not m or not seen(high):
        return 1.0
    while high - low > _STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def _events(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> _Rates:
    """Rates of the kind to be found, and of the other, above each cut and then below each."""
    return np.r_[inside, 1 - outside], np.r_[outside, 1 - inside]


def _observed(
    declared: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    scores: NDArray[np.float64],
    coins: NDArray[np.bool_],
) -> tuple[_Rates, _Rates]:
    """Declared rates, and a run's at cuts with as many canaries beyond them: a movement that all share is no loss."""
    _, inside, outside = declared
    share = float(coins.mean())
    beyond = share * inside + (1 - share) * outside
    cuts = np.quantile(scores, np.clip(1 - beyond, 0.0, 1.0))
    own = []
    for kind in (np.sort(scores[coins]), np.sort(scores[~coins])):
        own.append(1 - np.searchsorted(kind, cuts, side="right") / max(1, len(kind)))
    return _events(inside, outside), _events(own[0], own[1])


def _refuted(
    m: int,
    rates: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    deltas: Sequence[float],
    epsilons: Sequence[float],
    alpha: float,
    power: float,
    alike: tuple[_Rates, _Rates] | None,
) -> bool:
    """Whether the best event's test rejects at the likeliest counts on the edge of the power asked for."""
    n = m * (CHOOSING - 1) // CHOOSING // 2
    best = (0.0, 0, 0, 0.0, 0.0)
    v, w = _events(rates[1], rates[2])
    for epsilon, delta in zip(epsilons, deltas, strict=True):
        cost = math.exp(epsilon)
        of_v, of_w = n * v * (1 - v), cost * cost * n * w * (1 - w)
        spread = np.sqrt(of_v + of_w + 1.0)
        z = n * (v - cost * w - delta) / spread
        away = np.full(len(z), float(ndtri(power)))
        if alike is not None:
            (v1, w1), (v2, w2) = alike
            away += np.maximum(0.0, n * ((v1 - cost * w1) - (v2 - cost * w2)) / spread + _HIDDEN)
        at = int(np.argmax(z - away))
        if z[at] - away[at] > best[0]:
            seen_v = n * v[at] - away[at] * of_v[at] / spread[at]
            seen_w = n * w[at] + away[at] * of_w[at] / spread[at] / cost
            counts = max(0, math.floor(seen_v)), min(n, math.ceil(seen_w))
            best = (float(z[at] - away[at]), *counts, epsilon, delta)
    if best[0] <= 0:
        return False
    return p_value_near(best[1], n, best[2], n, best[3], best[4]) <= alpha / 2


def control_for(
    m: int, stages: Sequence[Stage], deltas: Sequence[float], epsilons: Sequence[float], alpha: float
) -> ControlDesign | None:
    """The simulated control of a run: the smallest named shortfall that it can be expected to show every time.

    Parameters
    ----------
    m : int
        Canaries of the run. The control takes fewer where the run is long; what they show, more would show.

    Returns
    -------
    ControlDesign or None
        None where not even a tenth of the noise would be seen.
    """
    steps = sum(stage.steps for stage in stages)
    canaries = min(m, max(5_000, _WORK // (_REPEATS * max(1, steps))))
    least = smallest_visible_canary_shortfall(canaries, stages, deltas, epsilons, alpha)
    for factor in _FACTORS:
        if 1 - factor >= 1.3 * least:
            return ControlDesign(noise_factor=factor, canaries=canaries, repeats=_REPEATS)
    return None
