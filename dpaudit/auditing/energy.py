"""The energy witness: the mean square of what a run released cannot lie below the noise it declared.

Every released coordinate is noise of standard deviation σC plus a clipped gradient. Gradients of records can only add
to the sum of squares: given everything released before, the sum of squares of a step is a non-central chi-square
variable in units of (σC)², and it dominates the central one whatever the gradients are and however they depend on
earlier releases. A sum of squares far below its number of coordinates therefore refutes the declared noise with an
exact p-value, without a canary and without a model.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, ndtr, ndtri

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import percent_upper, upper_text

ROUNDING = 2.0**-20
"""Relative slack on a mean square: releases are fp32, and each coordinate is rounded by at most 2^-24 of itself."""
_LEVELS = (1e-4, 1e-6, 1e-9, 1e-13)
"""Levels at which the records' own energy is bounded; the smallest of the p-values is multiplied by their number."""
_LARGE = 1_000_000
"""Degrees of freedom above which SciPy's incomplete gamma function loses digits in the tail (25% at 1e8)."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReleaseEnergy:
    """Sums of squares of the noisy sums that a run released, in units of the declared noise variance.

    r_t is the noisy SUM of step t (not the mean) divided by σ_t C_t, the declared deviation of its noise.

    Attributes
    ----------
    blocks : tuple of str
        Names of the K parameter blocks, such as the trained tensors.
    sizes : int64 array (K,)
        Coordinates in each block.
    step_squares : float64 array (T,)
        Sum of squares of r_t, over all blocks.
    block_squares : float64 array (K,)
        Sum over the steps of the squares in each block.
    probe : int64 array (K,)
        Leading coordinates of each block that the products below are taken over; all of them in a small model.
    probe_squares : float64 array (T,)
        Sum of squares of the probed coordinates of each step.
    lagged : float64 array (T,)
        ⟨r_t, r_{t-1}⟩ over the probe; 0 at the first step and after a resume, where no predecessor is known.
    within : float64 array (T, 2)
        Products of parts of one release that must be independent: the sum over neighbouring blocks of the product of
        their leading probed coordinates (as many as the smaller of the two has), and the product of the two halves of
        the probed vector.
    """

    blocks: tuple[str, ...]
    sizes: NDArray[np.int64]
    step_squares: NDArray[np.float64]
    block_squares: NDArray[np.float64]
    probe: NDArray[np.int64]
    probe_squares: NDArray[np.float64]
    lagged: NDArray[np.float64]
    within: NDArray[np.float64]

    def __post_init__(self) -> None:
        steps, blocks = len(self.step_squares), len(self.blocks)
        if not steps or not blocks:
            raise InvalidEvidence(f"an energy record of {steps} steps and {blocks} blocks is empty; record every step.")
        expected = {
            "sizes": (blocks,), "step_squares": (steps,), "block_squares": (blocks,), "probe": (blocks,),
            "probe_squares": (steps,), "lagged": (steps,), "within": (steps, 2),
        }  # fmt: skip
        for name, shape in expected.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise InvalidEvidence(
                    f"{name} has shape {values.shape} and must have {shape}; record every step alike."
                )
            if not np.isfinite(values).all() or (name not in ("lagged", "within") and (values < 0).any()):
                raise InvalidEvidence(f"{name} must be finite, and sums of squares and sizes at least 0.")
        if (self.sizes < 1).any() or (self.probe > self.sizes).any() or not self.probe.any():
            raise InvalidEvidence("every block needs a coordinate, and the probe is a part of the blocks.")
        whole, parts = float(self.step_squares.sum()), float(self.block_squares.sum())
        if abs(whole - parts) > 1e-6 * max(whole, parts):
            raise InvalidEvidence(f"the steps' squares add up to {whole:.6g} and the blocks' to {parts:.6g}.")

    @property
    def pairs(self) -> tuple[int, int]:
        """Number of coordinate pairs behind each column of ``within``."""
        return int(np.minimum(self.probe[1:], self.probe[:-1]).sum()), int(self.probe.sum()) // 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTest:
    """What the energy of a run's releases says against its declared noise.

    Attributes
    ----------
    p_value : float
        Upper bound on the probability of so little energy anywhere, or of so much likeness between neighbouring steps
        or between parts of one release, in a run with the declared noise; corrected for every test made.
    z_run, z_step, z_block, z_lag, z_within : float
        Standardised deviation of the whole run, of the weakest step, of the weakest block, of the most similar pair of
        neighbouring steps, and of the most similar parts of one release. Records push the first three up.
    weakest_step : int
        Number, from 0, of the step with the smallest p-value.
    weakest_block : str
        Name of the block with the smallest p-value.
    deviation : float
        Square root of the run's mean square: 1 for the declared noise alone, below 1 for less.
    where : str
        Which of ``run``, ``step``, ``block``, ``lag`` or ``within`` has the smallest corrected p-value.
    """

    p_value: float
    z_run: float
    z_step: float
    z_block: float
    z_lag: float
    z_within: float
    weakest_step: int
    weakest_block: str
    deviation: float
    where: str


def chi_square_lower_tail(value: float, degrees: float) -> float:
    """Upper bound on P[X ≤ value] for a chi-square variable X, tight to a relative 1e-3.

    Up to a million degrees of freedom it is the incomplete gamma function, and above that the saddle-point formula of
    Lugannani and Rice (1980), whose relative error there is below 1e-6.

    >>> round(chi_square_lower_tail(3.94, 10), 3)
    0.05
    """
    if value >= degrees:
        return 1.0
    if value <= 0:
        return 0.0
    if degrees <= _LARGE:
        return min(1.0, float(gammainc(degrees / 2, value / 2)) * (1 + 1e-6))
    x = max(value / degrees, 1e-300)
    u = (1 - x) * math.sqrt(degrees / 2)
    w = math.sqrt(degrees * max(0.0, (x - 1) - (math.log1p(x - 1) if x > 0.5 else math.log(x))))
    # For x near 1 both terms are large and nearly equal, so that their difference would be rounding alone; it is then
    # taken at its limit.
    correction = 1 / u - 1 / w if u > 1e-2 else math.sqrt(2 / degrees) / 3
    density = math.exp(-0.5 * w * w) / math.sqrt(2 * math.pi)
    return min(1.0, (float(ndtr(-w)) + density * max(correction, 0.0)) * 1.001)


def _excess(square: float, degrees: float, alpha: float) -> float:
    """Upper confidence bound on the energy that records added to a step, at level α.

    Given the gradients, |s + n|² with n standard normal is at least (|s|² + 2|s|·g) + (sum of squares of n), so with a
    probability of at least 1 − α the added energy λ satisfies λ − 2 z√λ ≤ excess + z√(2·degrees), z = Φ⁻¹(1 − α/2).
    """
    z = float(-ndtri(alpha / 2))
    right = max(0.0, square - degrees + z * math.sqrt(2 * degrees))
    return (z + math.sqrt(z * z + right)) ** 2


def _lag_p_values(energy: ReleaseEnergy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P-value and standardised deviation of ⟨r_t, r_{t-1}⟩ for every step with a predecessor.

    Given r_{t-1}, the product is ⟨s_t, r_{t-1}⟩ plus a normal variable of deviation |r_{t-1}|, and the first part is
    at most |s_t|·|r_{t-1}|. |s_t| is bounded from the energy of step t itself, at a level that joins the p-value.
    """
    totals, degrees = energy.probe_squares, float(energy.probe.sum())
    pairs = np.flatnonzero(energy.lagged != 0)
    pairs = pairs[pairs > 0]
    p, z = np.ones(len(pairs)), np.zeros(len(pairs))
    for row, t in enumerate(pairs):
        length = math.sqrt(float(totals[t - 1]))
        if length == 0:
            continue
        z[row] = float(energy.lagged[t]) / length
        best = 1.0
        for level in _LEVELS:
            beyond = abs(z[row]) - math.sqrt(_excess(float(totals[t]), degrees, level))
            best = min(best, level + 2 * float(ndtr(-beyond)) if beyond > 0 else 1.0)
        p[row] = min(1.0, len(_LEVELS) * best)
    return p, z


def _within_p_values(energy: ReleaseEnergy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P-values (T, 2) and standardised deviations of the products of parts of one release.

    With s the gradient part and λ ≥ |s|², a product of two parts is at most λ + 2 z √λ + |Q|: Q is a quadratic form of
    V products of normals, for which P[|Q| ≥ √(2 V x) + 2 x] ≤ 2 e^-x (Laurent and Massart 2000, lemma 1), and each
    mixed term is normal with deviation at most √λ.
    """
    totals, degrees = energy.probe_squares, float(energy.probe.sum())
    p, z = np.ones_like(energy.within), np.zeros_like(energy.within)
    for column, pairs in enumerate(energy.pairs):
        if not pairs:
            continue
        z[:, column] = energy.within[:, column] / math.sqrt(pairs)
        for level in _LEVELS:
            normal = float(-ndtri(level / 4))
            for t, product in enumerate(np.abs(energy.within[:, column])):
                length = math.sqrt(_excess(float(totals[t]), degrees, level))
                beyond = float(product) - length * length - 2 * normal * length
                if beyond <= 0:
                    continue
                # √x, where √(2·pairs·x) + 2x = beyond.
                root = (-math.sqrt(2 * pairs) + math.sqrt(2 * pairs + 8 * beyond)) / 4
                bound = len(_LEVELS) * (2 * level + 2 * math.exp(-root * root))
                p[t, column] = min(p[t, column], bound)
    return p, z


def energy_test(energy: ReleaseEnergy) -> EnergyTest:
    """Test that a run's releases carry at least the declared noise: in all, per step, per block, and each time anew.

    Five families are tested (run, steps, blocks, neighbouring steps, parts of a step); each takes a fifth of the level,
    and within a family the smallest p-value is multiplied by the number of its members (Bonferroni).

    Parameters
    ----------
    energy : ReleaseEnergy
        Of every step that the run released. An empty draw is a release like any other.

    Returns
    -------
    EnergyTest
        Compare ``p_value`` with the level that the audit plan set aside.
    """
    steps, blocks = energy.step_squares, energy.block_squares
    per_step, count = float(energy.sizes.sum()), len(steps)
    shrink = 1 + ROUNDING
    p_run = chi_square_lower_tail(float(steps.sum()) * shrink, per_step * count)
    p_steps = np.array([chi_square_lower_tail(float(e) * shrink, per_step) for e in steps])
    degrees = energy.sizes.astype(np.float64) * count
    p_blocks = np.array([chi_square_lower_tail(float(e) * shrink, float(n)) for e, n in zip(blocks, degrees)])
    p_lags, z_lags = _lag_p_values(energy)
    p_within, z_within = _within_p_values(energy)
    families = {
        "run": p_run,
        "step": float(p_steps.min()) * len(p_steps),
        "block": float(p_blocks.min()) * len(p_blocks),
        "lag": float(p_lags.min()) * len(p_lags) if len(p_lags) else 1.0,
        "within": float(p_within.min()) * p_within.size,
    }
    least = min(families.values())
    z_steps = (steps - per_step) / math.sqrt(2 * per_step)
    z_blocks = (blocks - degrees) / np.sqrt(2 * degrees)
    return EnergyTest(
        p_value=min(1.0, len(families) * least),
        z_run=float((steps.sum() - per_step * count) / math.sqrt(2 * per_step * count)),
        z_step=float(z_steps.min()),
        z_block=float(z_blocks.min()),
        z_lag=float(z_lags[np.argmax(np.abs(z_lags))]) if len(z_lags) else 0.0,
        z_within=float(z_within.flat[np.argmax(np.abs(z_within))]),
        weakest_step=int(np.argmin(p_steps)) if p_steps.min() < 1 else int(np.argmin(z_steps)),
        weakest_block=energy.blocks[int(np.argmin(p_blocks if p_blocks.min() < 1 else z_blocks))],
        deviation=math.sqrt(float(steps.sum()) / (per_step * count)),
        where=_place(families, p_steps, p_blocks),
    )


def _place(families: dict[str, float], p_steps: NDArray[np.float64], p_blocks: NDArray[np.float64]) -> str:
    """Name of the family that says best where noise is missing.

    A single step or block without noise lowers the energy of the whole run too. The narrower place is named where at
    least half of the steps (blocks) show nothing.
    """
    least = min(families.values())
    smallest = [name for name, p in families.items() if p <= max(least, 1e-9)]
    for name, p in (("step", p_steps), ("block", p_blocks)):
        if name in smallest and "run" in smallest and float(np.median(p)) > 0.01:
            return name
    return min(smallest, key=lambda name: families[name])


def smallest_visible_shortfall(energy: ReleaseEnergy, alpha: float, *, power: float = 0.95) -> float:
    """Smallest relative shortfall of the noise in the whole run that this test would have refuted with the power given.

    The records' own energy hides a shortfall; it is taken at its upper confidence limit, as measured in this run.

    Parameters
    ----------
    energy : ReleaseEnergy
    alpha : float
        Level of the whole test; the run's own test has a fifth of it.
    power : float, default=0.95

    Returns
    -------
    float
        1 − f, where noise of f times the declared deviation would be refuted; 1 when nothing would be.
    """
    validate.open_unit(alpha=alpha, power=power)
    total = float(energy.step_squares.sum())
    degrees = float(energy.sizes.sum()) * len(energy.step_squares)
    added = max(0.0, total - degrees) + float(ndtri(0.95)) * math.sqrt(2 * degrees)
    critical = degrees - float(-ndtri(alpha / 5)) * math.sqrt(2 * degrees)
    # With noise of f times the declared deviation the total has mean f²·degrees + added and variance 2·degrees·f⁴ +
    # 4·f²·added. The variance is taken at f = 1, where it is largest, so that f² follows from the mean alone.
    left = critical - added - float(ndtri(power)) * math.sqrt(2 * degrees + 4 * added)
    return 1.0 - math.sqrt(left / degrees) if left > 0 else 1.0


def finding_from_energy(test: EnergyTest, alpha: float, *, shortfall: float) -> Finding:
    """What the energy of the releases says at level α, with the shortfall of noise that it excludes.

    A refuted energy is ``violated`` for the declared mechanism; ``shortfall`` is
    :func:`smallest_visible_shortfall` of the same record.
    """
    rejected = test.p_value <= alpha
    place = {
        "run": f"the whole run has deviation {test.deviation:.6g} of the declared noise (z = {test.z_run:.3g})",
        "step": f"step {test.weakest_step} carries too little noise (z = {test.z_step:.3g})",
        "block": f"block {test.weakest_block} carries too little noise (z = {test.z_block:.3g})",
        "lag": f"neighbouring steps are alike (z = {test.z_lag:.3g}), as when noise is used twice",
        "within": f"parts of one release are alike (z = {test.z_within:.3g}), as when they share their noise",
    }[test.where]
    return Finding(
        name="release_energy",
        status="violated" if rejected else "note",
        claim="declared mechanism",
        p_value=test.p_value,
        power=None if rejected or shortfall >= 1 else 0.95,
        excludes=""
        if rejected or shortfall >= 1
        else (f"noise smaller than declared by {percent_upper(shortfall, 4)} or more"),
        text=(
            f"The released sums contradict the declared noise: {place} (p = {upper_text(test.p_value, 3)},"
            f" level {alpha:g})."
            if rejected
            else (
                f"The released sums carry at least the declared noise (p = {upper_text(test.p_value, 3)}, level"
                f" {alpha:g})."
            )
        ),
        detail={
            "z_run": test.z_run,
            "z_step": test.z_step,
            "z_block": test.z_block,
            "z_lag": test.z_lag,
            "z_within": test.z_within,
            "deviation": test.deviation,
            "where": test.where,
        },
    )
