"""A ledger's composed pair (P, Q), bounded from above and from below by certified tail sums in one window."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dpaudit.accounting.prv.compose import Law, Tails, Tilted, compose, tails
from dpaudit.accounting.prv.loss import Array, Cells, cells, origin
from dpaudit.accounting.prv.saddle import Aim, Run, rough

LARGEST_WINDOW = 3 * 2**19
_WORK = 2.5e7  # lattice points times runs of one composition: about 10 s


def largest_window(runs: int) -> int:
    """Number of points of the largest window for so many runs, which bounds the work for any ledger."""
    return int(min(LARGEST_WINDOW, max(4096, _WORK / max(runs, 1))))


def above_law(cut: Cells, direction: int) -> tuple[Law, float, float]:
    """Law of P that dominates one step's, log of its mass where Q has none, and κ of its tails."""
    none = np.zeros(len(cut.above_index))
    if direction > 0:
        return Law(cut.above_index, cut.above_log_p, none, cut.origin), cut.log_p_at_infinity, cut.kappa
    log_q = cut.above_log_p - (cut.origin + cut.h * cut.above_index)
    return Law(-cut.above_index, log_q, none, -cut.origin), cut.log_q_at_infinity, cut.kappa_reverse


def below_laws(cut: Cells, direction: int) -> tuple[Law, Law]:
    """Laws of P and Q that one step's pair dominates, as laws of one label."""
    start = direction * (cut.origin + cut.h / 2)
    index, side = direction * cut.below_index, 0 if direction > 0 else 1
    none = np.zeros(len(index))
    p = Law(index, cut.below_log_p, none + cut.below_error_p[side], start)
    q = Law(index, cut.below_log_q, none + cut.below_error_q[side], start)
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
    """Tail sums of the two members P and Q of a composed pair.

    ``log_infinite``: log of the first-mass at infinity. The truth is dominated once ε is raised by ``shift_error`` and
    δ divided by ``e^{log_mass_factor}`` (at most 1).
    """

    first: Tails
    second: Tails
    log_infinite: float
    shift_error: float
    log_mass_factor: float
    start: float
    h: float


def _window(laws: Sequence[tuple[Law, int]], aim: Aim, h: float) -> tuple[int, int, int]:
    """First lattice index, size, and the place of the ε aimed at, all relative to the law's own tilted mean.

    Relative, because labels from below are not losses: rounding moves their sum.
    """
    centre = 0.0
    for law, times in laws:
        exponent = law.log_mass + (aim.theta * h) * law.index
        weights = np.exp(exponent - exponent.max())
        centre += times * float(weights @ law.index) / float(weights.sum())
    size = _smooth(min((aim.high - aim.low) / h + 4, LARGEST_WINDOW))
    below = (aim.mean - aim.low) / (aim.high - aim.low)
    first = math.floor(centre - below * size)
    place = round(centre + (aim.epsilon - aim.mean) / h) - first
    return first, size, min(max(place, 0), size - 1)


def dominating(runs: Sequence[Run], aim: Aim, h: float, growth: float) -> Pair:
    """Tail sums of a composed pair that dominates the ledger's: upper bounds follow from it."""
    laws, log_infinite, raised = [], -math.inf, 0.0
    for step, times in runs:
        law, lost, kappa = above_law(cells(step, h, growth, aim.reach), aim.direction)
        laws.append((law, times))
        log_infinite = _log_add(log_infinite, lost + math.log(times))
        raised += times * kappa
    first, size, pivot = _window(laws, aim, h)
    tilted = compose(laws, theta=aim.theta, h=h, first=first, size=size, slopes=aim.slopes)
    return Pair(
        tails(tilted, aim.theta, pivot),
        tails(tilted, aim.theta + 1, pivot, extra=-tilted.offset),
        min(0.0, log_infinite + raised),
        tilted.offset_error + raised,
        -raised,
        tilted.offset + h * first,
        h,
    )


def _log_add(a: float, b: float) -> float:
    return float(np.logaddexp(a, b))


_TILTS = tuple(np.geomspace(0.05, 2.0, 12))


def chernoff(
    runs: Sequence[Run], aim: Aim, h: float, growth: float, log_delta: float, tilts: tuple[float, ...] = _TILTS
) -> float:
    """Upper bound on ε at δ from moments of the dominating laws alone: loose, but it never depends on a window.

    δ(ε) = E max(0, 1 − e^{ε−L}) is at most c·E e^{θ(L−ε)} with c the largest value of (1 − e^{-x})·e^{-θx}.

    Parameters
    ----------
    tilts : tuple of float
        Values of θ to try, in units of the aim's.
    """
    thetas = aim.theta * np.array(tilts)
    total, log_infinite, raised = _moments(runs, aim, h, growth, thetas)
    log_left = log_less(log_delta - raised, log_infinite)
    if log_left == -math.inf:
        return math.inf
    constant = -thetas * np.log1p(1 / thetas) - np.log1p(thetas) + 1e-12
    return max(0.0, float(((total + constant - log_left) / thetas).min()) + raised) * (1 + 1e-9)


def chernoff_delta(runs: Sequence[Run], aim: Aim, h: float, growth: float, epsilon: float) -> float:
    """Upper bound on δ at ε from moments of the dominating laws alone: loose, but independent of any window."""
    thetas = aim.theta * np.geomspace(0.05, 1e4, 25)
    total, log_infinite, raised = _moments(runs, aim, h, growth, thetas)
    # δ(ε) is at most the mass of losses above ε.
    log_above = float((total - thetas * (epsilon - raised)).min())
    return max(5e-324, math.exp(min(0.0, _log_add(log_above, log_infinite) + raised + 1e-9)))


def _moments(runs: Sequence[Run], aim: Aim, h: float, growth: float, thetas: Array) -> tuple[Array, float, float]:
    """log E e^{θL} of the dominating laws, log of the mass at infinity, and what round-off adds."""
    total, log_infinite, raised = np.zeros(len(thetas)), -math.inf, 0.0
    for step, times in runs:
        law, lost, kappa = above_law(cells(step, h, growth, aim.reach), aim.direction)
        losses = law.origin + h * law.index
        exponents = law.log_mass + np.multiply.outer(thetas, losses)
        tops = exponents.max(axis=1)
        exponents -= tops[:, None]
        total += times * (tops + np.log(np.exp(exponents, out=exponents).sum(axis=1)))
        log_infinite = _log_add(log_infinite, lost + math.log(times))
        raised += times * (kappa + 1e-13)
    return total + 1e-12 * np.abs(total), log_infinite, raised


def log_less(a: float, b: float) -> float:
    """log(e^a − e^b); −∞ where nothing is left."""
    return a + math.log(-math.expm1(b - a)) if b < a else -math.inf


def dominated(runs: Sequence[Run], aim: Aim, h: float, growth: float) -> Pair:
    """Tail sums of a composed pair that the ledger's dominates: lower bounds follow from it."""
    firsts, seconds = [], []
    for step, times in runs:
        p, q = below_laws(cells(step, h, growth, aim.reach), aim.direction)
        firsts.append((p, times))
        seconds.append((q, times))
    first, size, pivot = _window(firsts, aim, h)
    made: list[Tilted] = [
        compose(laws, theta=theta, h=h, first=first, size=size, slopes=aim.slopes)
        for laws, theta in ((firsts, aim.theta), (seconds, aim.theta + 1))
    ]
    p_tails, q_tails = (tails(t, t.theta, pivot) for t in made)
    return Pair(p_tails, q_tails, -math.inf, 0.0, 0.0, made[0].offset + h * first, h)


def spacing(runs: Sequence[Run], aim: Aim, tolerance: float) -> float:
    """Lattice width whose two discretisations differ by about ``tolerance`` in ε, on a grid shared between calls."""
    widest = (aim.high - aim.low) / 200
    h = wanted_spacing(runs, aim, tolerance)
    # Where most mass lies within one cell of the loss's lower end, far wider cells lose as little.
    while h < widest and _predicted_width(runs, aim, 1.5 * h) <= tolerance:
        h = min(1.5 * h, widest)
    return max(on_grid(h), (aim.high - aim.low) / (largest_window(len(runs)) - 4))


def wanted_spacing(runs: Sequence[Run], aim: Aim, tolerance: float) -> float:
    """Lattice width for ``tolerance`` where mass is spread smoothly, and however many points it takes."""
    steps = sum(times for _, times in runs)
    return min(math.sqrt(8 * tolerance / (steps * (1 + aim.theta))), (aim.high - aim.low) / 200)


def on_grid(h: float) -> float:
    """Largest 2^(k/8) at most h, so that cells can be shared between similar calls."""
    return float(2 ** (math.floor(8 * math.log2(h)) / 8))


def _predicted_width(runs: Sequence[Run], aim: Aim, h: float) -> float:
    """Rough width in ε that cells of width h cause: (1 + θ)/2 times the variance added above and lost below."""
    own = aim.theta if aim.direction > 0 else -1 - aim.theta
    total = 0.0
    for step, times in runs:
        logs, losses = rough(step, aim.reach)
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
