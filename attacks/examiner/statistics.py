"""Exact tail probabilities that the examiner's tests rest on. Every p-value here is an upper bound under the null."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, betainc, chdtr, chdtrc, chdtri, fdtr, fdtrc, ndtr, ndtri

Array = NDArray[np.float64]


def chi2_lower(statistic: float, df: float) -> float:
    """P(χ²_df ≤ statistic)."""
    return float(chdtr(df, max(statistic, 0.0)))


def chi2_upper(statistic: float, df: float) -> float:
    """P(χ²_df ≥ statistic)."""
    return float(chdtrc(df, max(statistic, 0.0)))


def two_sided(lower: float, upper: float) -> float:
    """Twice the smaller tail, at most 1."""
    return min(1.0, 2 * min(lower, upper))


def binomial_two_sided(count: int, trials: int, probability: float) -> float:
    """Exact two-sided p-value of a binomial count, by doubling the smaller tail."""
    if trials <= 0:
        return 1.0
    if probability <= 0 or probability >= 1:
        return 1.0 if count == trials * probability else 0.0
    return two_sided(binomial_lower(count, trials, probability), binomial_upper(count, trials, probability))


def binomial_lower(count: int, trials: int, probability: float) -> float:
    """P(Bin ≤ count)."""
    return float(bdtr(count, trials, probability)) if count < trials else 1.0


def binomial_upper(count: int, trials: int, probability: float) -> float:
    """P(Bin ≥ count)."""
    return float(bdtrc(count - 1, trials, probability)) if count > 0 else 1.0


def variance_ratio(first: float, first_df: float, second: float, second_df: float) -> float:
    """Two-sided p-value of equal variances, from two mean squares of independent Gaussians."""
    if first <= 0 or second <= 0:
        return 0.0 if first != second else 1.0
    ratio = first / second
    return two_sided(float(fdtr(first_df, second_df, ratio)), float(fdtrc(first_df, second_df, ratio)))


def gaussian_two_sided(z: float) -> float:
    """P(|N(0, 1)| ≥ |z|)."""
    return float(2 * ndtr(-abs(z)))


def cosine_two_sided(cosine: float, d: int) -> float:
    """P(|cos| ≥ |cosine|) of the angle between a fixed direction and a uniform one in d dimensions, d ≥ 2."""
    return float(betainc((d - 1) / 2, 0.5, max(1.0 - cosine * cosine, 0.0)))


def lag_p_values(correlations: Array, products: Array, comparisons: int) -> Array:
    """Bounds on P(max over ``comparisons`` of |Σ over ``products`` of x·y| ≥ |correlation|) for Gaussian noise.

    The products x_j x_{j+lag} share factors. Their sum is a quadratic form whose matrix has Frobenius norm √(n/2)
    and spectral norm at most 1, so Laurent and Massart (2000, Lemma 1) bound its tail:
    P(S ≥ √(2 n t) + 2 t) ≤ e^{-t}.
    """
    size = np.abs(correlations)
    root = (-np.sqrt(2 * products) + np.sqrt(2 * products + 8 * size)) / 4  # √t of √(2 n) √t + 2 t = size
    bound = 2 * comparisons * np.exp(-np.square(np.maximum(root, 0.0)))
    return np.asarray(np.minimum(1.0, bound), dtype=np.float64)


def autocorrelation(rows: Array) -> Array:
    """Σ over rows of Σ_j x_j x_{j+lag} for lags 0 .. length−1, along the last axis."""
    length = rows.shape[-1]
    padded = 1 << (2 * length - 1).bit_length()
    chunk = max(1, (1 << 22) // padded)
    power = np.zeros(padded // 2 + 1)
    for start in range(0, len(rows), chunk):
        spectrum = np.fft.rfft(rows[start : start + chunk], padded, axis=-1)
        power += (spectrum.real**2 + spectrum.imag**2).sum(axis=0)
    return np.asarray(np.fft.irfft(power, padded)[:length], dtype=np.float64)


def kolmogorov(values: Array, *, laplace: bool = False) -> tuple[float, float]:
    """Distance of the empirical distribution from N(0, 1) (or the Laplace law of variance 1), and its p-value."""
    from scipy.stats import kstwo

    ordered = np.sort(values)
    if laplace:
        root = math.sqrt(2)
        half = 0.5 * np.exp(-root * np.abs(ordered))
        cdf = np.where(ordered < 0, half, 1 - half)
    else:
        cdf = ndtr(ordered)
    count = len(ordered)
    grid = np.arange(count)
    distance = float(max(np.max(cdf - grid / count), np.max((grid + 1) / count - cdf)))
    return distance, float(kstwo.sf(distance, count))


def excluded_shrink(df: float, alpha: float, power: float = 0.99) -> float:
    """Largest share of the planned noise that a lower χ² test with ``df`` degrees convicts with this power.

    Noise smaller than the returned share of the plan is convicted with probability at least ``power``.

    >>> round(excluded_shrink(20000, 1e-5), 2)
    0.97
    """
    threshold = chdtri(df, 1 - alpha)  # P(χ² ≤ threshold) = alpha
    return math.sqrt(float(threshold) / float(chdtri(df, 1 - power)))


def normal_quantile(p: float) -> float:
    """Φ⁻¹(p)."""
    return float(ndtri(p))
