"""Membership scores as small functions of arrays. Higher = member, always."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit._errors import InvalidValue

FloatArray = NDArray[np.float64]


def as_finite(name: str, values: object, *, ndim: int = 1) -> FloatArray:
    """Check an array: the number of axes, at least one entry, no NaN or infinity."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise InvalidValue(f"{name} has shape {array.shape} and must be a non-empty array of {ndim} axes.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise InvalidValue(
            f"{name} holds {len(bad)} NaN or infinite values (first at index {bad[0].tolist()}); every value must be "
            "finite, so check the model's loss there."
        )
    return array


def _same_shape(name: str, array: FloatArray, other_name: str, other: FloatArray) -> None:
    if array.shape != other.shape:
        raise InvalidValue(f"{name} has shape {array.shape} and must have the shape {other.shape} of {other_name}.")


def loss_scores(losses: object) -> FloatArray:
    """Minus the loss (Yeom et al. 2018, arXiv:1709.01604): losses (m,) to scores (m,)."""
    return -as_finite("losses", losses)


def loss_drop_scores(target_losses: object, base_losses: object) -> FloatArray:
    """Base loss minus target loss, (m,): how much training lowered each record's loss.

    Calibrates away how easy a record is (Watson et al. 2022, arXiv:2111.08440). The base may be the model before
    fine-tuning, which costs nothing and is the default here, or any reference model.

    Examples
    --------
    >>> loss_drop_scores([1.0, 3.0], [4.0, 3.5]).tolist()
    [3.0, 0.5]
    """
    target, base = as_finite("target_losses", target_losses), as_finite("base_losses", base_losses)
    _same_shape("base_losses", base, "target_losses", target)
    return base - target
