"""Composition by the few Fourier coefficients that matter, with no window held in memory.

The tilted law of T steps has the Fourier coefficients Π_s φ_s(ω)^{T_s}, and once there are many steps all but some
dozens of them vanish. Those are summed directly over the atoms of every step; a tail sum at a lattice point is a
geometric series in each of them. So the cost does not depend on the number of lattice points in the window: 10⁹ steps
cost what 10⁴ do. Three errors are counted.

* ``error``: of every coefficient kept. The direct sum is right to a few dozen units of round-off, which pass through
  φ ↦ Π φ_s^{T_s} as in :mod:`dpaudit.accounting.prv.compose`.
* ``rest``: the sum of the moduli of all coefficients left out. For atoms of a law with weights w on the lattice,
  1 − |φ(ω)|² = Σ_{kl} w_k·w_l·(1 − cos ω(k − l)), and −log|φ| is at least half of that. Any subset of the atoms and of
  the runs gives less, so the most frequent ones give a lower bound Λ(ω) of −log of the modulus. |Λ''| is at most the
  variance V of those atoms, so that Λ is at least the smaller of its ends on an interval of width d, less V·d²/8.
  Λ is evaluated so densely that this proves every modulus left out to be below e^{-50}.
* ``total``: mass that wraps round the window, and far atoms, as in :mod:`dpaudit.accounting.prv.compose`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dpaudit.accounting.prv.compose import Weighted, wrapping
from dpaudit.accounting.prv.loss import UNIT, Array, Integers

Complex = npt.NDArray[np.complex128]

LEAST_DECAY = 50.0
"""Every coefficient left out has a modulus below e^-50."""
MOST_FREQUENCIES = 4096
_LARGEST_SIZE = 2**50  # lattice indices times frequencies stay exact integers
_FEW_STEPS = 20  # runs of fewer steps prove no decay worth having
_ENTRIES = 2**20  # atoms times powers held at once
_TINY = 1e-22  # weights below this are left out of sums, and counted as an error


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Composed law under the tilt ``theta`` on lattice points ``first .. first + size − 1``, by its coefficients.

    The tilted mass at point j is Re Σ_f value[f]·e^{iω_f(j − shift)}·(1 or 2)/size with ω_f = 2πf/size; the law's own
    mass there is that times ``exp(log_norm − theta·h·j)``, at loss ``offset + h·j``. Errors: see the module.
    """

    theta: float
    h: float
    first: int
    size: int
    offset: float
    offset_error: float
    log_norm: float
    value: Complex
    error: Array
    rest: float
    shift: int
    total: float
    relative: float


def spectra(
    members: Sequence[Sequence[Weighted]],
    runs: Sequence[tuple[float, int]],
    *,
    thetas: Sequence[float],
    h: float,
    first: int,
    size: int,
    slopes: tuple[float, float],
) -> tuple[Spectrum, ...] | None:
    """Compose all laws, each with itself as often as its number of steps; None where too many coefficients matter.

    Parameters
    ----------
    members : sequence of sequences of Weighted
        For each composed law wanted its runs' laws, tilted. The laws of one run have the same atoms in all members, so
        that the powers of e^{-iω} at their places are made once.
    runs : sequence of (origin, steps)
        Loss at lattice point 0 of one step of each run, and its number of steps.
    thetas : sequence of float
        Tilt of every member.
    h, first, size, slopes
        As for :func:`dpaudit.accounting.prv.compose.compose`.
    """
    if size > _LARGEST_SIZE:
        return None
    times = [count for _, count in runs]
    weights = [np.array([member[i].weight for member in members]) for i in range(len(runs))]
    places = [members[0][i].index - members[0][i].centre for i in range(len(runs))]
    # Weights no larger than those of any member prove for every member how small its coefficients are.
    last = _last_frequency(list(zip(places, (w.min(axis=0) for w in weights), times)), size)
    if last is None:
        return None
    shape = len(members), last + 1
    log_size, unsure, phase = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    log_mass = np.zeros(len(members))
    offset, offset_error = 0.0, 0.0
    for place, weight, (origin, count) in zip(places, weights, runs):
        mass = weight.sum(axis=1)
        less, error = _coefficients(place, weight, last, size)
        less, error = less / mass[:, None], error / mass[:, None]
        logs = 0.5 * np.log1p(np.maximum(less.real * (2 + less.real) + np.square(less.imag), -1 + 1e-15))
        angle = np.arctan2(less.imag, 1 + less.real)
        log_size += count * logs
        phase += count * angle
        off = np.log1p((error + 4 * UNIT * np.abs(less)) * np.exp(-logs))
        unsure += count * (off + 8 * UNIT * (np.abs(logs) + np.abs(angle)))
        log_mass += count * np.log(mass)
        offset += count * origin
        offset_error += 2 * UNIT * (abs(count * origin) + abs(offset))
    modulus = np.exp(log_size)
    value = modulus * np.exp(1j * phase)
    # A coefficient φ is known to within an error e, and |Π(φ + e)^T − Πφ^T| ≤ Π(|φ| + |e|)^T − Π|φ|^T, where neither
    # product is above one.
    lost = np.minimum(modulus * np.expm1(np.minimum(unsure, 1.0)), 2.0) + 8 * UNIT * modulus
    lost[unsure > 1] = 2.0
    offset_error += 4 * UNIT * h * (abs(first) + size)
    shift = sum(count * law.centre for law, count in zip(members[0], times))
    found = []
    for i, member in enumerate(members):
        norm = sum(count * law.norm for law, count in zip(member, times)) + float(log_mass[i])
        relative = sum(count * (law.error + 32 * UNIT) for law, count in zip(member, times))
        stray = sum(count * law.stray for law, count in zip(member, times))
        found.append(
            Spectrum(
                theta=thetas[i],
                h=h,
                first=first,
                size=size,
                offset=offset,
                offset_error=offset_error,
                log_norm=norm,
                value=value[i],
                error=lost[i],
                rest=size * math.exp(-LEAST_DECAY),
                shift=shift,
                total=stray + 1.01 * wrapping(member, times, h, first, size, slopes),
                relative=math.expm1(min(relative, 50.0)),
            )
        )
    return tuple(found)


def _coefficients(place: Integers, weights: Array, last: int, size: int) -> tuple[Complex, Array]:
    """Σ_k w_k·(e^{-iω_f·place_k} − 1) for f = 0 .. last and each row of weights, and how far each may be off.

    Less one, because of many steps each is near one, and what it is raised to multiplies its error: of e^{iy} − 1 that
    is a few units of |y|. Powers follow by doubling, with ab − 1 = (a − 1)(b − 1) + (a − 1) + (b − 1); the last time
    with all high powers a and all low powers b at once, where the three terms are summed over the atoms each by itself.
    Their moduli add up to at most 2·|y|, and an error of a − 1 is only turned by b, so that errors still add.
    """
    kept = weights.max(axis=0) > _TINY
    some, at = weights[:, kept], place[kept]
    powers = 1 << np.arange(max(1, last.bit_length()), dtype=np.int64)
    split = (len(powers) + 1) // 2
    rows, columns = (last >> split) + 1, 2**split
    found = np.zeros((len(weights), rows, columns), dtype=np.complex128)
    width = max(1, _ENTRIES // (rows + columns))
    for start in range(0, len(at), width):
        here = at[start : start + width]
        turn = (np.multiply.outer(powers, here) + size // 2) % size - size // 2  # exact, and reduced before rounding
        y = (-2 * math.pi / size) * turn
        steps = -2 * np.square(np.sin(0.5 * y)) + 1j * np.sin(y)
        low, high = _powers(steps[:split], columns), _powers(steps[split:], rows)
        for both, weight in zip(found, some[:, start : start + width]):
            weighted = high * weight
            both += np.einsum("hk,lk->hl", weighted, low)  # on this thread alone, unlike a matrix product
            both += weighted.sum(axis=1)[:, None]
            both += np.einsum("lk,k->l", low, weight)
    distance = weights @ np.abs(place)
    omega = (2 * math.pi / size) * np.arange(last + 1, dtype=np.float64)
    units = 64 + 12 * len(powers) + 4 * len(at)  # a sum of n terms is right to n units, in whatever order
    error: Array = UNIT * units * (1 + 1e-9) * np.multiply.outer(distance, omega)
    return found.reshape(len(weights), -1)[:, : last + 1], error + 2 * _TINY * (len(place) - len(at))


def _powers(steps: Complex, count: int) -> Complex:
    """a^0 − 1, a^1 − 1, … for ``count`` powers, a row each, from a^1 − 1, a^2 − 1, a^4 − 1, … ."""
    rows = np.empty((count, steps.shape[1]), dtype=np.complex128)
    rows[0] = 0
    have = 1
    for step in steps:
        more = min(have, count - have)
        new = rows[have : have + more]
        np.multiply(rows[:more], 1 + step, out=new)
        new += step
        have += more
    return rows


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Core:
    """The most frequent atoms of one run's law: places, weights, their sum, variance, and the number of steps."""

    place: Integers
    weight: Array
    mass: float
    variance: float
    times: int


def _core(place: Integers, weight: Array, times: int) -> _Core:
    """Atoms round the mean that hold nearly all mass; the range is narrowed while rare atoms make up the variance."""
    mass = float(weight.sum())
    mean = float(weight @ place) / mass
    variance = float(weight @ np.square(place - mean)) / mass
    for _ in range(8):
        near = np.abs(place - mean) <= 5 * math.sqrt(variance) + 1
        some = weight[near]
        inner = float(some.sum())
        if inner < 0.9:
            break
        at = place[near]
        inner_mean = float(some @ at) / inner
        inner_variance = float(some @ np.square(at - inner_mean)) / inner
        shrunk = inner_variance < 0.7 * variance
        place, weight, mass, mean, variance = at, some, inner, inner_mean, inner_variance
        if not shrunk:
            break
    return _Core(place, weight, mass, variance, times)


def _last_frequency(runs: Sequence[tuple[Integers, Array, int]], size: int) -> int | None:
    """Number of the last coefficient to keep: the moduli of all later ones are proven to be below e^-50."""
    cores = [_core(place, weight, times) for place, weight, times in runs if times >= _FEW_STEPS]
    variance = sum(core.times * core.mass**2 * core.variance for core in cores) * (1 + 1e-9)
    if not variance > 0 or not math.isfinite(variance):
        return None
    # Rounding of |φ|² (a sum of n terms is right to n units), and weights that add up to a little more than one.
    rounding = UNIT * sum(core.times * (4 * len(core.place) + 200) for core in cores)
    target = LEAST_DECAY + 1 + rounding + 1e-14 * sum(times for *_, times in runs)
    begin = _proven_from(cores, variance, target)
    if begin is None:
        return None
    last = math.ceil(begin * size / (2 * math.pi))
    return last if last <= min(MOST_FREQUENCIES, max(128, size // 16)) else None


def _proven_from(cores: Sequence[_Core], variance: float, target: float) -> float | None:
    """Smallest tried frequency from which on, up to π, the decay Λ is proven to be at least ``target``."""
    points = 2 ** min(13, max(8, math.ceil(math.log2(3 * math.sqrt(variance)))))
    turn = 2 * math.pi / points
    grid = np.zeros(points // 2 + 1)
    for core in cores:
        folded = np.fft.rfft(np.bincount(core.place % points, weights=core.weight, minlength=points))
        grid += (0.5 * core.times) * (core.mass**2 - np.square(folded.real) - np.square(folded.imag))
    bad = np.flatnonzero(np.minimum(grid[:-1], grid[1:]) - variance * turn * turn / 8 < target)
    begin = int(bad[-1]) + 1
    if begin > len(grid) // 2:
        return None
    edge = math.sqrt(2 * target / variance)
    if edge >= 0.8 * begin * turn:
        return float(begin * turn)
    # The grid is too wide near zero: come down from there in steps of a fifth.
    omega = np.geomspace(edge, begin * turn, math.ceil(math.log(begin * turn / edge) / math.log(1.2)) + 1)
    near = np.zeros(len(omega))
    for core in cores:
        angles = np.multiply.outer(omega, core.place)
        cosine, sine = np.cos(angles) @ core.weight, np.sin(angles) @ core.weight
        near += (0.5 * core.times) * (core.mass**2 - np.square(cosine) - np.square(sine))
    bad = np.flatnonzero(np.minimum(near[1:], near[:-1]) - variance * np.square(np.diff(omega)) / 8 < target)
    first = int(bad[-1]) + 1 if len(bad) else 0
    return float(omega[first]) * (1 + 1e-12)
