"""Canaries without text: gradients, and scalar loss differences for zeroth-order training.

They stand for the worst record a white-box auditor may insert: each contributes exactly the clipping norm C to a
step's sum. Scores come from :func:`projection_scores` on their projections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.scores.functions import FloatArray, as_booleans, as_finite, same_shape
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Clip
from dpaudit.privacy.validate import integer_at_least, positive

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class GradientCanaries:
    """m unit directions in d dimensions, each worth the clipping norm.

    Attributes
    ----------
    dimension : int
        d, number of trainable parameters, flattened in a fixed order.
    clipping_norm : float
        C.
    coordinates : int64 array (m,), optional
        Dirac canaries: the coordinate that each owns.
    directions : float32 array (m, d), optional
        Random canaries: unit rows.
    """

    dimension: int
    clipping_norm: float
    coordinates: IntArray | None = None
    directions: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        chosen = self.coordinates if self.coordinates is not None else self.directions
        assert chosen is not None
        return len(chosen)

    def contribution(self, present: object) -> FloatArray:
        """Sum (d,) of the canaries' gradients, C times each direction, for those marked in ``present`` (m,)."""
        chosen = as_booleans("present", present)
        same_shape("present", chosen, (len(self),))
        if self.coordinates is not None:
            total = np.zeros(self.dimension)
            total[self.coordinates[chosen]] = self.clipping_norm
            return total
        assert self.directions is not None
        return np.asarray(self.clipping_norm * self.directions[chosen].astype(np.float64).sum(axis=0))

    def project(self, release: object) -> FloatArray:
        """<direction, release> / C for each canary, (m,): 1 more when the canary took part in this step's sum.

        Parameters
        ----------
        release : array (d,)
            The noisy clipped SUM (not the mean) of one step.
        """
        vector = as_finite("release", release)
        same_shape("release", vector, (self.dimension,))
        if self.coordinates is not None:
            return np.asarray(vector[self.coordinates] / self.clipping_norm)
        assert self.directions is not None
        return np.asarray(self.directions @ vector / self.clipping_norm)

    def cosines(self, update: object) -> FloatArray:
        """Cosine of an update (d,) with each direction, (m,); about N(0, 1/d) for a random canary that is absent.

        Andrew et al. 2023, arXiv:2302.03098.
        """
        vector = as_finite("update", update)
        norm = float(np.linalg.norm(vector))
        if norm == 0:
            raise InvalidValue("update is zero and has no direction; give the change of the trained parameters.")
        return self.project(vector) * self.clipping_norm / norm


def dirac_canaries(m: int, dimension: int, *, clipping_norm: float, rng: np.random.Generator) -> GradientCanaries:
    """Canaries on m distinct random coordinates: orthogonal, so that none disturbs another.

    Best on coordinates without any other gradient, such as the embedding rows of reserved tokens.
    """
    integer_at_least(1, m=m, dimension=dimension)
    positive(clipping_norm=clipping_norm)
    if m > dimension:
        raise InvalidValue(f"m={m} Dirac canaries need a coordinate each and dimension={dimension}; lower m.")
    chosen = rng.choice(dimension, size=m, replace=False).astype(np.int64)
    return GradientCanaries(dimension, clipping_norm, coordinates=chosen)


def random_direction_canaries(
    m: int, dimension: int, *, clipping_norm: float, rng: np.random.Generator
) -> GradientCanaries:
    """Canaries along m uniform unit directions (Andrew et al. 2023, arXiv:2302.03098); holds 4 m d bytes."""
    integer_at_least(1, m=m)
    integer_at_least(2, dimension=dimension)
    positive(clipping_norm=clipping_norm)
    rows = rng.standard_normal((m, dimension), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return GradientCanaries(dimension, clipping_norm, directions=rows)


@dataclass(frozen=True, slots=True, eq=False)
class ScalarCanaries:
    """Canaries of zeroth-order steps: loss differences of known sign at the clipping bound.

    A step releases P scalars y_p = sum of clipped loss differences + noise. Canary i adds s_{t,p,i} C to each under
    ``per_direction`` clipping and s_{t,p,i} C / sqrt(P) under ``joint`` clipping, with signs that the white-box
    auditor knows.

    Attributes
    ----------
    signs : int8 array (T, P, m)
        Each -1 or +1.
    clipping_norm : float
        C.
    clip : Clip
    """

    signs: NDArray[np.int8]
    clipping_norm: float
    clip: Clip

    def __len__(self) -> int:
        return int(self.signs.shape[2])

    @property
    def _amplitude(self) -> float:
        """What one canary adds to one scalar, in units of C."""
        return float(self.signs.shape[1] ** -0.5) if self.clip is Clip.JOINT else 1.0

    def contribution(self, step: int, present: object) -> FloatArray:
        """Sum (P,) of the loss differences of the canaries marked in ``present`` (m,) at a step."""
        chosen = as_booleans("present", present)
        same_shape("present", chosen, (len(self),))
        total = self.signs[step][:, chosen].sum(axis=1, dtype=np.float64)
        return np.asarray(total * self._amplitude * self.clipping_norm)

    def projections(self, releases: object) -> FloatArray:
        """Matched filter of the released scalars (T, P): (m, T), 1 more at a step where the canary took part."""
        y = as_finite("releases", releases, ndim=2)
        same_shape("releases", y, self.signs.shape[:2])
        scale = self.clipping_norm * self._amplitude * self.signs.shape[1]
        return np.asarray(np.einsum("tpm,tp->mt", self.signs, y) / scale)

    def noise_multiplier(self, noise_multiplier: float) -> float:
        """Standard deviation of a projection's noise in units of C: σ/√P (per_direction) or σ (joint).

        Parameters
        ----------
        noise_multiplier : float
            The stage's σ: noise of each released scalar over C.
        """
        positive(noise_multiplier=noise_multiplier)
        return noise_multiplier if self.clip is Clip.JOINT else noise_multiplier / self.signs.shape[1] ** 0.5


def scalar_canaries(
    m: int,
    steps: int,
    *,
    releases_per_step: int,
    clipping_norm: float,
    rng: np.random.Generator,
    clip: Clip | None = None,
) -> ScalarCanaries:
    """m canaries with independent random signs for every step and direction; holds T P m bytes.

    ``clip`` is required when P > 1. Keep m below :func:`recommended_canaries_zeroth_order`.
    """
    integer_at_least(1, m=m, steps=steps, releases_per_step=releases_per_step)
    positive(clipping_norm=clipping_norm)
    if releases_per_step > 1 and clip is None:
        raise InvalidValue(
            f"releases_per_step={releases_per_step} needs clip: per_direction or joint, as in the stage."
        )
    signs = rng.integers(2, size=(steps, releases_per_step, m), dtype=np.int8) * 2 - 1
    return ScalarCanaries(signs.astype(np.int8), clipping_norm, Clip.PER_DIRECTION if clip is None else Clip(clip))
