"""Composition of discrete losses by a tilted, windowed FFT whose error is bounded, not guessed.

A law a(k) on the lattice is tilted to a(k)·e^{θ·loss}/M and composed with itself by the FFT, where the result is
centred on the ε of interest; untilting is exact algebra. So float64 keeps RELATIVE accuracy at δ = 1e-13. What the
FFT returns at lattice point j differs from the truth by at most

* ``sup``: round-off. One output of an FFT of size n is a sum over its inputs, each multiplied along its path by at
  most log₂ n twiddle factors, so its error is at most 16·log₂(n)·u·‖x‖₁ (u = 2⁻⁵³; tests compare with an FFT in
  extended precision). This passes through φ ↦ Π φ_s^{T_s} and back, frequency by frequency.
* ``total``, summed over all j: mass that wraps round the window (a Chernoff bound on the composed law, from the
  same masses) and the relative error of the cell masses, Σ_s T_s·E[error].

Both count in units of the tilted law.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dpaudit.accounting.prv.loss import UNIT, Array, Integers

FFT_CONSTANT = 4.0
_NEGLIGIBLE = -46.0  # log of spectrum values that cannot matter (1e-20)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Law:
    """Discrete law of one step: log masses at lattice points ``index``, errors in tilted units, and its origin."""

    index: Integers
    log_mass: Array
    error: Array
    origin: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tilted:
    """Composed law under the tilt ``theta``, on lattice points ``first .. first + n − 1``.

    ``mass[j]`` is the tilted mass at loss ``offset + h·(first + j)``; the law's own mass there is
    ``mass[j]·exp(log_norm − theta·h·(first + j))``, the offset not being tilted. Errors: see the module.
    """

    theta: float
    h: float
    first: int
    offset: float
    offset_error: float
    log_norm: float
    mass: Array
    sup: float
    total: float
    relative: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """A law under a tilt, normalised: its weights add up to one.

    Attributes
    ----------
    index : array of int
        Lattice points of the atoms.
    exponent : array
        Log masses times the tilt; ``weight`` is exp(exponent − norm).
    norm : float
        What was divided by, as a logarithm; any number would do, as long as the same one is added again.
    centre : int
        Lattice point nearest to the mean: sums taken from there have small phases.
    error : float
        Relative error of a path through frequent atoms, for one step.
    stray : float
        Mass of far atoms whose own error is not counted so, for one step.
    """

    index: Integers
    exponent: Array
    weight: Array
    norm: float
    centre: int
    error: float
    stray: float


def log_sum(values: Array) -> float:
    """log Σ e^values without overflow."""
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).sum()))


def weigh(law: Law, theta: float, h: float) -> Weighted:
    """Tilt a law by ``theta`` (mass times e^{theta·loss}) and normalise it."""
    exponent = law.log_mass + (theta * h) * law.index
    norm = log_sum(exponent)
    weight = np.exp(exponent - norm)
    with np.errstate(invalid="ignore"):
        rounding = UNIT * (6 + np.abs(law.log_mass) + abs(theta * h) * np.abs(law.index) + abs(norm))
        error = law.error + rounding
    # One factor covers every path through these atoms; the few in the far tails are charged by their mass.
    common = weight > 1e-25
    stray = float(np.minimum(weight[~common] * 1e3, 1e-22).sum())
    # Centring keeps the phases small where the spectrum matters, so that T·angle stays accurate.
    centre = round(float(weight @ law.index))
    return Weighted(law.index, exponent, weight, norm, centre, float(error[common].max()), stray)


def wrapping(
    laws: Sequence[Weighted], times: Sequence[int], h: float, first: int, size: int, slopes: tuple[float, float]
) -> float:
    """Chernoff's bound on the composed tilted mass outside the window of ``size`` points from ``first`` on."""
    over = under = 1e-14 * sum(times)  # the sums of exponentials are right to some dozens of units of round-off
    for law, count in zip(laws, times):
        over += count * (log_sum(law.exponent + slopes[0] * h * law.index) - law.norm)
        under += count * (log_sum(law.exponent - slopes[1] * h * law.index) - law.norm)
    last = first + size
    return math.exp(min(0.0, over - slopes[0] * h * last)) + math.exp(min(0.0, under + slopes[1] * h * first))


def compose(
    laws: Sequence[tuple[Law, int]],
    *,
    theta: float,
    h: float,
    first: int,
    size: int,
    slopes: tuple[float, float],
) -> Tilted:
    """Compose all laws, each with itself as often as its number of steps, in the window of ``size`` points.

    Parameters
    ----------
    theta : float
        Tilt.
    first : int
        First lattice index of the window.
    slopes : pair of float
        Steps s > 0 of the Chernoff bounds, at θ + s above the window and at θ − s below it.
    """
    half = size // 2 + 1
    fft_error = FFT_CONSTANT * math.log2(size) * UNIT
    log_size, ceiling, phase = np.zeros(half), np.zeros(half), np.zeros(half)
    log_norm, relative, stray, offset, offset_error, shift = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    each = [weigh(law, theta, h) for law, _ in laws]
    for (law, times), tilted in zip(laws, each):
        relative += times * tilted.error
        stray += times * tilted.stray
        place = (tilted.index - tilted.centre) % size
        spectrum = np.fft.rfft(np.bincount(place, weights=tilted.weight, minlength=size))
        modulus = np.abs(spectrum)
        logs = np.log(np.maximum(modulus, 1e-300))
        log_size += times * logs
        needed = (log_size > _NEGLIGIBLE) if len(laws) == 1 else np.ones(half, dtype=bool)
        angle = np.zeros(half)
        angle[needed] = np.arctan2(spectrum.imag[needed], spectrum.real[needed])
        phase += times * angle
        ceiling += times * (np.log(modulus + fft_error) + 4 * UNIT * (2 + np.abs(logs) + np.abs(angle)))
        log_norm += times * tilted.norm
        shift += times * tilted.centre
        offset += times * law.origin
        offset_error += 2 * UNIT * (abs(times * law.origin) + abs(offset))
    alive = log_size > _NEGLIGIBLE
    modulus = np.exp(log_size[alive])
    spectrum = np.zeros(half, dtype=np.complex128)
    spectrum[alive] = modulus * np.exp(1j * phase[alive])
    # A coefficient φ is known to within an error e, and |Π(φ + e)^T − Πφ^T| ≤ Π(|φ| + |e|)^T − Π|φ|^T. Where the
    # product was left out, all of Π(|φ| + |e|)^T is lost.
    highest = np.exp(np.minimum(ceiling, 1.0))
    lost = highest.copy()
    lost[alive] = highest[alive] * -np.expm1(np.minimum(log_size[alive] - ceiling[alive], 0.0))
    sup = 2 / size * (float(lost.sum()) + (fft_error + 8 * UNIT) * float(modulus.sum()))
    mass = np.roll(np.fft.irfft(spectrum, size), -((first - shift) % size))
    wrapped = wrapping(each, [times for _, times in laws], h, first, size, slopes)
    offset_error += 4 * UNIT * h * (abs(first) + size)
    relative = math.expm1(min(relative, 50.0))
    return Tilted(theta, h, first, offset, offset_error, log_norm, mass, sup, stray + 1.01 * wrapped, relative)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """Suffix sums of one law with its errors, scaled: true tail at j is ``value[j] ± error[j]`` times e^{log_scale}.

    ``value[j]`` sums the masses at lattice points ≥ j, each multiplied by e^{-power·h·(j' − pivot)} (the untilting);
    ``log_scale`` itself is right to ``scale_error``.
    """

    value: Array
    error: Array
    log_scale: float
    scale_error: float


_FAR = 600.0  # weights e^{±600} and beyond are not computed


def tails(law: Tilted, power: float, pivot: int, extra: float = 0.0) -> Tails:
    """Tail sums Σ_{i≥j} mass_i·e^{-power·h·(i − pivot)} with certified errors, for a power of at least 0.

    Parameters
    ----------
    pivot : int
        Place in the window (0 is its first point) whose weight is one: where the answer is expected.
    extra : float
        Added to ``log_scale``.
    """
    n = len(law.mass)
    # These arrays are the largest there are, so they are changed in place.
    decay = np.arange(n, dtype=np.float64)
    decay -= pivot
    decay *= -power * law.h
    beyond = np.abs(decay) > _FAR
    np.clip(decay, -_FAR, _FAR, out=decay)
    np.exp(decay, out=decay)
    value = np.cumsum((law.mass * decay)[::-1])[::-1]
    per_point = min(float(n), 1 / -math.expm1(-power * law.h)) if power > 0 else float(n)
    # Weights fall, so every point above j weighs at most what j does. Weights that were cut off count as e^{-600}.
    error = decay
    error *= law.sup * per_point + law.total
    error += 2 * math.exp(-_FAR) * (1 + law.sup * n + law.total)
    slack = np.abs(value)
    slack += error
    slack *= law.relative + UNIT * (8 + n + power * law.h * n)
    error += slack
    # A weight beyond the range of floats is not known, so nothing is claimed there.
    error[beyond] = np.inf
    point = power * law.h * (law.first + pivot)
    scale_error = 4 * UNIT * (abs(law.log_norm) + abs(point) + abs(extra))
    return Tails(value, error, law.log_norm - point + extra, scale_error)
