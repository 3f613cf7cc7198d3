"""Bounds on ε from the few Fourier coefficients of a composed pair, read off at the lattice points that matter.

With the tilted law W of the dominating pair, A(≥j) − e^{loss j}·B(≥j) is one sum with positive terms,

    e^{log_norm − θ·h·j}·Σ_{i≥0} W(j + i)·e^{-θhi}·(1 − e^{-hi}),

which is δ at ε = loss j exactly; so no difference of two tails is taken and no digit lost. A geometric series in every
Fourier coefficient sums it. The dominated pair is read by its tails, P(≥j) and Q(≥j), each under its own tilt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from dpaudit.accounting.prv.compose import weigh
from dpaudit.accounting.prv.loss import UNIT, Array, Integers, cells
from dpaudit.accounting.prv.pair import above_law, below_laws, log_less
from dpaudit.accounting.prv.saddle import Aim, Run
from dpaudit.accounting.prv.spectrum import Complex, Spectrum, spectra

_GRID = 33  # lattice points looked at in one round of a search


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Series:
    """Sum over the window from j on, Σ_{i=0}^{m−1} W(j + i)·kernel(i), for a kernel that is a sum of powers.

    ``inner`` are the coefficients of e^{iω_f(j − shift)}, in rows of one length; each of ``ends`` is a constant to
    subtract, times e^{-power·h·m}, with its power. ``error`` and ``error_ends`` bound what round-off does to them.
    """

    inner: Complex
    ends: tuple[tuple[float, float], ...]
    error: float
    error_ends: tuple[float, ...]


def _twice(law: Spectrum) -> Array:
    """Weight of every Fourier coefficient: 1 for the first, 2 for each other, which stands for a conjugate pair."""
    weight: Array = np.full(len(law.value), 2.0 / law.size)
    weight[0] = 1.0 / law.size
    return weight


def _omega(law: Spectrum) -> Array:
    return (2 * math.pi / law.size) * np.arange(len(law.value), dtype=np.float64)


def _one_less(law: Spectrum, power: float) -> Complex:
    """1 − e^{-power·h + iω_f} at every frequency ω_f, without cancellation."""
    found: Complex = -np.expm1(-power * law.h + 1j * _omega(law))
    return found


def _series(law: Spectrum, powers: tuple[float, ...]) -> _Series:
    """Σ W·e^{-power·h·i} for one power; for two, the difference of the first and the second."""
    weight = _twice(law)
    # Coefficient times e^{iω_f(first + size − shift)}: the phase at the end of the window, where the series stop.
    number = np.arange(len(law.value))
    turns = (number * ((law.first - law.shift) % law.size)) % law.size
    at_end = law.value * np.exp((2j * math.pi / law.size) * turns)
    ones = [_one_less(law, power) for power in powers]
    if len(powers) == 1:
        kernel = 1 / ones[0]
    else:
        kernel = np.exp(-powers[0] * law.h + 1j * _omega(law)) * (-np.expm1(-law.h)) / ones[0] / ones[1]
    modulus, rounding = np.abs(law.value), (128 + 2 * len(number)) * UNIT
    unsure = weight * (law.error + rounding * modulus)
    inner = weight * law.value * kernel
    width = 2 ** (math.isqrt(len(number)).bit_length())
    rows = np.zeros((-(-len(number) // width), width), dtype=np.complex128)
    rows.reshape(-1)[: len(number)] = inner
    # Coefficients left out are worth at most their moduli times the largest kernel, that of ω = 0.
    error = float(unsure @ np.abs(kernel)) + law.rest / law.size * float(np.abs(kernel[0]))
    ends, error_ends = [], []
    for sign, power, one in zip((1.0, -1.0), powers, ones):
        ends.append((sign * float((weight * at_end / one).real.sum()), power))
        error_ends.append(float(unsure @ np.abs(1 / one)) + law.rest / law.size * float(np.abs(1 / one[0])))
    return _Series(rows, tuple(ends), error, tuple(error_ends))


def _phases(law: Spectrum, places: Integers, number: int, stride: int) -> Complex:
    """e^{iω_f(j − shift)} at lattice points j for f = 0, stride, 2·stride, …, a row for each of the points."""
    half = law.size // 2
    turns = (np.multiply.outer((places - law.shift) % law.size, stride * np.arange(number)) + half) % law.size - half
    found: Complex = np.exp((2j * math.pi / law.size) * turns)
    return found


def _sums(law: Spectrum, series: _Series, places: Integers, largest: float, exact: bool) -> tuple[Array, Array]:
    """The series at lattice points, and how far each may be off; ``largest`` is the largest value of the kernel."""
    # The phase of coefficient f = width·r + c is a product of two, of the row and of the column.
    rows, width = series.inner.shape
    within = np.einsum("jc,rc->jr", _phases(law, places, width, 1), series.inner)
    value: Array = np.einsum("jr,jr->j", within, _phases(law, places, rows, width)).real
    error: Array = np.full(len(places), series.error)
    left = (law.first + law.size - places).astype(np.float64)
    for (constant, power), off in zip(series.ends, series.error_ends):
        decay = np.exp(-power * law.h * left)
        value -= constant * decay
        error += off * decay
    if exact:
        return value, np.zeros(len(places))
    error += law.total * largest
    error += (np.abs(value) + error) * (law.relative + 16 * UNIT)
    return value, error


def _log_scale(law: Spectrum, places: Integers) -> tuple[Array, Array]:
    """log of what the sums at lattice points are to be multiplied by, and how far it may be off."""
    point = law.theta * law.h * places.astype(np.float64)
    off: Array = 4 * UNIT * (abs(law.log_norm) + np.abs(point) + 1)
    return law.log_norm - point, off


def _log(values: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(values > 0, np.log(np.maximum(values, 5e-324)), -np.inf)
    return found


def _between(low: int, high: int) -> Integers:
    """A few lattice points from ``low`` to ``high``, both ends included."""
    if high - low < 2 * _GRID:
        return np.arange(low, high + 1, dtype=np.int64)
    return np.linspace(low, high, _GRID).astype(np.int64)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Above:
    """Composed pair that dominates the ledger's: its law, mass at infinity, and what rounding of cells adds to ε."""

    law: Spectrum
    log_infinite: float
    raised: float

    def upper(self, log_delta: float, exact: bool = False) -> float:
        """Upper bound on ε at δ; ``exact`` leaves out round-off, which makes it a diagnosis and no bound."""
        law = self.law
        log_budget = log_less(log_delta - self.raised, self.log_infinite)
        if log_budget == -math.inf:
            return math.inf
        both = _series(law, (law.theta, law.theta + 1))
        theta = law.theta
        largest = math.exp(theta * math.log(theta / (1 + theta))) / (1 + theta) * (1 + 1e-12)

        def excess(places: Integers) -> Array:
            value, error = _sums(law, both, places, largest, exact)
            scale, off = _log_scale(law, places)
            return np.asarray(_log(np.maximum(value, 0.0) + error) + scale + off - log_budget)

        place = _first_met(excess, law)
        if place is None:
            return math.inf
        return max(0.0, self._within(place, log_budget, excess, exact)) + self.raised + law.offset_error

    def _within(self, place: int, log_budget: float, excess: Callable[[Integers], Array], exact: bool) -> float:
        """ε between the loss before ``place`` and its own, where δ(ε) = A(≥place) − e^ε·B(≥place)."""
        law = self.law
        here = np.array([place], dtype=np.int64)
        loss = law.offset + law.h * place
        value, error = _sums(law, _series(law, (law.theta + 1,)), here, 1.0, exact)
        second = float(value[0] + error[0])
        scale, off = _log_scale(law, here)
        left = log_budget - float(scale[0] + off[0])
        spent = left + min(0.0, float(excess(here)[0]))
        if not (0 < second < math.inf and left < 700):
            return loss
        share = (math.exp(left) - math.exp(spent)) / second * (1 - 1e-12)
        return loss + max(-law.h, math.log1p(-share) if share < 1 else -math.inf)


def _first_met(excess: Callable[[Integers], Array], law: Spectrum) -> int | None:
    """A lattice point at which ``excess`` is at most zero and just before which it is not."""
    low, high, found = law.first, law.first + law.size - 1, None
    while True:
        places = _between(low, high)
        met = np.flatnonzero(excess(places) <= 0)
        if len(met) == 0:
            return found
        first = int(met[0])
        found = int(places[first])
        if first == 0 or len(places) == high - low + 1:
            return found
        low, high = int(places[first - 1]), found


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Below:
    """The composed pair that a ledger's dominates: the laws of its first member P and its second member Q."""

    first: Spectrum
    second: Spectrum

    def lower(self, log_delta: float, exact: bool = False) -> float:
        """Lower bound on ε at δ; with ``exact`` a diagnosis and no bound."""
        p, q = self.first, self.second
        tails = _series(p, (p.theta,)), _series(q, (q.theta,))
        low, high, best = p.first, p.first + p.size - 1, 0.0
        while True:
            places = _between(low, high)
            (one, one_off), (two, two_off) = (
                _sums(law, series, places, 1.0, exact) for law, series in zip((p, q), tails)
            )
            (p_scale, p_off), (q_scale, q_off) = _log_scale(p, places), _log_scale(q, places)
            log_p = _log(one - one_off) + p_scale - p_off
            log_q = _log(np.maximum(two, 0.0) + two_off) + q_scale + q_off
            with np.errstate(divide="ignore", invalid="ignore"):
                # log(P − δ), where P exceeds δ.
                left = log_p + np.log(-np.expm1(np.minimum(log_delta - log_p, 0.0)))
                each = np.where((log_p > log_delta) & (log_q > -np.inf), left - log_q, -np.inf)
            top = int(np.argmax(each))
            best = max(best, float(each[top]) - 16 * UNIT * (1 + abs(log_delta)))
            if len(places) == high - low + 1:
                return best
            low, high = int(places[max(top - 1, 0)]), int(places[min(top + 1, len(places) - 1)])


def _window(aim: Aim, h: float, mean: float) -> tuple[int, int]:
    """First lattice index and size of the window, relative to the laws' own tilted mean."""
    size = math.ceil((aim.high - aim.low) / h) + 8
    return math.floor(mean - (aim.mean - aim.low) / h) - 4, size


def above(runs: Sequence[Run], aim: Aim, h: float, growth: float) -> Above | None:
    """The composed dominating pair; None where its spectrum has too many coefficients."""
    laws, log_infinite, raised = [], -math.inf, 0.0
    for step, times in runs:
        law, lost, kappa = above_law(cells(step, h, growth, aim.reach), aim.direction)
        laws.append((law, times))
        log_infinite = float(np.logaddexp(log_infinite, lost + math.log(times)))
        raised += times * kappa
    weighed = [weigh(law, aim.theta, h) for law, _ in laws]
    mean = sum(times * float(w.weight @ w.index) for w, (_, times) in zip(weighed, laws))
    first, size = _window(aim, h, mean)
    origins = [(law.origin, times) for law, times in laws]
    found = spectra([weighed], origins, thetas=(aim.theta,), h=h, first=first, size=size, slopes=aim.slopes)
    return None if found is None else Above(found[0], min(0.0, log_infinite + raised), raised)


def below(runs: Sequence[Run], aim: Aim, h: float, growth: float) -> Below | None:
    """The composed dominated pair; None where a spectrum has too many coefficients."""
    each = [(*below_laws(cells(step, h, growth, aim.reach), aim.direction), times) for step, times in runs]
    firsts = [weigh(p, aim.theta, h) for p, _, _ in each]
    seconds = [weigh(q, aim.theta + 1, h) for _, q, _ in each]
    mean = sum(times * float(w.weight @ w.index) for w, (*_, times) in zip(firsts, each))
    first, size = _window(aim, h, mean)
    origins, thetas = [(p.origin, times) for p, _, times in each], (aim.theta, aim.theta + 1)
    found = spectra([firsts, seconds], origins, thetas=thetas, h=h, first=first, size=size, slopes=aim.slopes)
    return None if found is None else Below(*found)
