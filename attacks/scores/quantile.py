"""Quantile regression: one auxiliary model gives every record its own threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpaudit.attacks.scores.functions import FloatArray, as_finite, same_shape
from dpaudit.attacks.scores.parameters import Parameters, check_fitted
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import open_unit


class QuantileAttack(Parameters):
    """Score minus the predicted (1 - fpr)-quantile of non-members' scores (Bertran et al. 2023, arXiv:2307.03694).

    Parameters
    ----------
    fpr : float, default=0.05
        False-positive rate of the threshold, in (0, 1).
    regressor : sklearn regressor, optional
        With a ``quantile`` loss already set to ``1 - fpr``; default gradient-boosted trees.
    random_state : int, default=0
        Seed of the default regressor.

    Attributes
    ----------
    regressor_ : fitted regressor

    Examples
    --------
    >>> import numpy as np
    >>> X = np.zeros((200, 1)); scores = np.arange(200.0)
    >>> attack = QuantileAttack(fpr=0.1).fit(X, scores)
    >>> float(np.mean(attack.score_samples(X, scores) > 0).round(1))
    0.1
    """

    def __init__(self, *, fpr: float = 0.05, regressor: Any = None, random_state: int = 0) -> None:
        self.fpr = fpr
        self.regressor = regressor
        self.random_state = random_state

    def fit(self, X: object, y: object) -> QuantileAttack:
        """Learn the quantile from non-members: features X (n, p), such as base loss and length, and scores y (n,)."""
        open_unit(fpr=self.fpr)
        features, scores = as_finite("X", X, ndim=2), as_finite("y", y)
        same_shape("y", scores, (len(features),))
        if len(features) * min(self.fpr, 1 - self.fpr) < 5:
            raise InvalidValue(
                f"{len(features)} non-members cannot show the quantile {1 - self.fpr:g}; give at least "
                f"{int(np.ceil(5 / min(self.fpr, 1 - self.fpr)))}."
            )
        if self.regressor is None:
            from sklearn.ensemble import HistGradientBoostingRegressor

            model = HistGradientBoostingRegressor(
                loss="quantile", quantile=1 - self.fpr, max_iter=100, random_state=self.random_state
            )
        else:
            from sklearn.base import clone

            model = clone(self.regressor)
        self.regressor_ = model.fit(features, scores)
        return self

    def score_samples(self, X: object, scores: object) -> FloatArray:
        """Scores (m,) minus each record's threshold: above 0 = called a member at rate fpr. Higher = member."""
        check_fitted(self, "regressor_")
        features, raw = as_finite("X", X, ndim=2), as_finite("scores", scores)
        same_shape("scores", raw, (len(features),))
        return raw - np.asarray(self.regressor_.predict(features), dtype=np.float64)
