"""The scores as estimators in scikit-learn's style.

One contract for all: ``fit`` takes what is known without the target model (reference losses, texts, shadow signals),
``score_samples`` takes what the target model shows and returns one score per record, float64 (m,), higher = member.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from dpaudit.attacks.scores.functions import (
    FloatArray,
    as_booleans,
    as_finite,
    gradient_norm_scores,
    loss_drop_scores,
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    neighbourhood_scores,
    projection_scores,
    residual_scores,
    same_shape,
)
from dpaudit.attacks.scores.losses import TokenStatistics
from dpaudit.attacks.scores.parameters import Parameters, check_fitted
from dpaudit.attacks.scores.shadow import ShadowSignals, lira_offline_scores, lira_online_scores, rmia_scores
from dpaudit.privacy.validate import one_of


class LossAttack(Parameters):
    """Minus the loss; needs no ``fit``. See :func:`loss_scores`."""

    def fit(self, X: object = None, y: object = None) -> LossAttack:
        """Nothing to learn."""
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Losses (m,) to scores (m,)."""
        return loss_scores(X)


class CalibratedAttack(Parameters):
    """Loss compared with a base or reference model. See :func:`loss_drop_scores` and :func:`residual_scores`.

    Parameters
    ----------
    slope : {"one", "fitted"}, default="one"
        ``one`` subtracts; ``fitted`` subtracts what a least-squares line over all records predicts.

    Attributes
    ----------
    reference_losses_ : float64 array (m,)
        Mean over reference models when several were given.
    """

    def __init__(self, *, slope: str = "one") -> None:
        self.slope = slope

    def fit(self, X: object, y: object = None) -> CalibratedAttack:
        """Reference losses, (m,) or (S, m) for several reference models."""
        one_of(("one", "fitted"), slope=self.slope)
        array = np.asarray(X, dtype=np.float64)
        self.reference_losses_ = as_finite("reference losses", array, ndim=2 if array.ndim == 2 else 1)
        if array.ndim == 2:
            self.reference_losses_ = array.mean(axis=0)
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Target losses (m,) of the same records to scores (m,)."""
        check_fitted(self, "reference_losses_")
        score = loss_drop_scores if self.slope == "one" else residual_scores
        return score(X, self.reference_losses_)


class ZlibAttack(Parameters):
    """Loss per compressed byte. See :func:`zlib_scores`.

    Attributes
    ----------
    compressed_ : float64 array (m,)
        Bytes of each compressed text.
    """

    def fit(self, X: Sequence[str], y: object = None) -> ZlibAttack:
        """Texts of the records."""
        self.compressed_ = np.array([len(zlib.compress(text.encode("utf-8"))) for text in X], dtype=np.float64)
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Total losses (m,) of the same records to scores (m,)."""
        check_fitted(self, "compressed_")
        losses = as_finite("losses", X)
        same_shape("losses", losses, self.compressed_.shape)
        return -losses / self.compressed_


class MinKAttack(Parameters):
    """Min-K%, or Min-K%++ when ``standardise``. See :func:`min_k_scores` and :func:`min_k_plus_plus_scores`.

    Parameters
    ----------
    k : float, default=0.2
        Share of lowest tokens, in (0, 1].
    standardise : bool, default=False
    """

    def __init__(self, *, k: float = 0.2, standardise: bool = False) -> None:
        self.k = k
        self.standardise = standardise

    def fit(self, X: object = None, y: object = None) -> MinKAttack:
        """Nothing to learn."""
        return self

    def score_samples(self, X: TokenStatistics) -> FloatArray:
        """Token statistics of m records to scores (m,)."""
        if self.standardise:
            return min_k_plus_plus_scores(X.log_probs, X.means, X.deviations, k=self.k)
        return min_k_scores(X.log_probs, k=self.k)


class NeighbourhoodAttack(Parameters):
    """Mean loss of neighbours minus own loss. See :func:`neighbourhood_scores`.

    Both come from the target model: X is (m, 1 + n), the record's own loss first. Needs no ``fit``.
    """

    def fit(self, X: object = None, y: object = None) -> NeighbourhoodAttack:
        """Nothing to learn."""
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Losses (m, 1 + n) to scores (m,)."""
        array = as_finite("X", X, ndim=2)
        return neighbourhood_scores(array[:, 0], array[:, 1:])


class GradientNormAttack(Parameters):
    """Minus the squared gradient norm, less the base model's when fitted. See :func:`gradient_norm_scores`."""

    def fit(self, X: object = None, y: object = None) -> GradientNormAttack:
        """Gradient norms (m,) under the base model, or nothing."""
        self.base_norms_ = None if X is None else as_finite("base norms", X)
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Gradient norms (m,) under the target model to scores (m,)."""
        return gradient_norm_scores(X, getattr(self, "base_norms_", None))


class LiraAttack(Parameters):
    """Likelihood-ratio attack from shadow models. See :func:`lira_online_scores` and :func:`lira_offline_scores`.

    Parameters
    ----------
    mode : {"online", "offline"}, default="online"
    fixed_variance : bool, optional
        One variance for all records; by default below 64 shadows on either side.

    Attributes
    ----------
    shadows_ : ShadowSignals
    """

    def __init__(self, *, mode: str = "online", fixed_variance: bool | None = None) -> None:
        self.mode = mode
        self.fixed_variance = fixed_variance

    def fit(self, X: object, y: object) -> LiraAttack:
        """Shadow signals X (S, m) and memberships y (S, m)."""
        one_of(("online", "offline"), mode=self.mode)
        self.shadows_ = ShadowSignals(as_finite("X", X, ndim=2), as_booleans("y", y))
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Target signals (m,) to scores (m,)."""
        check_fitted(self, "shadows_")
        score = lira_online_scores if self.mode == "online" else lira_offline_scores
        return score(X, self.shadows_, fixed_variance=self.fixed_variance)


class RmiaAttack(Parameters):
    """Robust membership inference from reference models and population records. See :func:`rmia_scores`.

    Parameters
    ----------
    gamma : float, default=1.0
    offline_a : float in [0, 1], optional
        None is the online attack; see :func:`choose_offline_a`.

    Attributes
    ----------
    references_, population_references_ : float64 arrays (S, m) and (S, Z)
    """

    def __init__(self, *, gamma: float = 1.0, offline_a: float | None = None) -> None:
        self.gamma = gamma
        self.offline_a = offline_a

    def fit(self, X: object, population: object) -> RmiaAttack:
        """Reference log-probabilities of the m records (S, m) and of the population (S, Z)."""
        self.references_ = as_finite("X", X, ndim=2)
        self.population_references_ = as_finite("population", population, ndim=2)
        return self

    def score_samples(self, X: object, population: object) -> FloatArray:
        """Target log-probabilities of the records (m,) and of the population (Z,) to scores (m,)."""
        check_fitted(self, "references_")
        return rmia_scores(
            X, self.references_, population, self.population_references_, gamma=self.gamma, offline_a=self.offline_a
        )


class ProjectionAttack(Parameters):
    """White-box log-likelihood ratio over steps; needs no ``fit``. See :func:`projection_scores`.

    Parameters
    ----------
    sampling_probability, noise_multiplier : float or array (T,)
    """

    def __init__(self, *, sampling_probability: object, noise_multiplier: object) -> None:
        self.sampling_probability = sampling_probability
        self.noise_multiplier = noise_multiplier

    def fit(self, X: object = None, y: object = None) -> ProjectionAttack:
        """Nothing to learn."""
        return self

    def score_samples(self, X: object) -> FloatArray:
        """Projections (m, T) to scores (m,)."""
        return projection_scores(
            X, sampling_probability=self.sampling_probability, noise_multiplier=self.noise_multiplier
        )
