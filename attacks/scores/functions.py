"""Membership scores as small functions of arrays. Higher = member, always.

Every function takes what the attacker computed (losses in nats, log-probabilities) and returns one score per record,
float64 (m,). Nothing here sees a coin.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy.errors import InvalidValue

BoolArray = NDArray[np.bool_]
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


def as_booleans(name: str, values: object) -> BoolArray:
    """Check flags: booleans, or 0 and 1; anything between or beyond is refused rather than read as True."""
    given = np.asarray(values)
    if given.dtype == np.bool_:
        return given
    try:
        numbers = given.astype(np.float64)
    except (TypeError, ValueError):
        raise InvalidValue(f"{name} must hold booleans or 0 and 1; give one for each entry.") from None
    if (odd := numbers[(numbers != 0) & (numbers != 1)]).size:
        raise InvalidValue(f"{name} holds {odd.ravel()[0]:g} and must hold booleans or 0 and 1; give one of them.")
    return np.asarray(numbers == 1)


def same_shape(name: str, array: NDArray[np.generic], expected: tuple[int, ...]) -> None:
    """Check a shape against the one that other arguments imply."""
    if array.shape != expected:
        raise InvalidValue(f"{name} has shape {array.shape} and must have shape {expected}, one entry per record.")


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
    same_shape("base_losses", base, target.shape)
    return base - target


def residual_scores(
    target_losses: object, base_losses: object, *, line_of: tuple[object, object] | None = None
) -> FloatArray:
    """What the base loss predicts minus the target loss, the line fitted over all records and no coin seen: (m,).

    The loss drop assumes that a record which was 10 nats harder before training stays 10 nats harder. Under
    differential privacy it rarely does: noise flattens the losses of rare tokens, the drop then ranks canaries by
    their base loss, and members are lost in it. The least-squares line takes out what the base loss does predict.

    Parameters
    ----------
    target_losses, base_losses : arrays (m,)
        At least 3 records, where the line is fitted over them.
    line_of : pair of arrays (n,), optional
        Target and base losses of other records to fit the line over, at least 3.

    Returns
    -------
    array (m,)
        Higher = member: lower losses than the line gives.

    Raises
    ------
    InvalidValue
        If a loss is not finite, shapes differ, or there are fewer than 3 records.

    Examples
    --------
    >>> residual_scores([1.0, 2.0, 2.0], [10.0, 30.0, 50.0]).round(2).tolist()
    [0.17, -0.33, 0.17]
    """
    target, base = as_finite("target_losses", target_losses), as_finite("base_losses", base_losses)
    same_shape("base_losses", base, target.shape)
    fitted, known = target, base
    if line_of is not None:
        fitted, known = (as_finite("line_of", values) for values in line_of)
        same_shape("line_of", known, fitted.shape)
    if len(fitted) < 3:
        raise InvalidValue(f"target_losses has {len(fitted)} records and a line needs at least 3; take the loss drop.")
    centred = known - known.mean()
    spread = float(centred @ centred)
    slope = float(centred @ fitted) / spread if spread > 0 else 0.0
    return np.asarray(fitted.mean() + slope * (base - known.mean()) - target)


def zlib_scores(losses: object, texts: Sequence[str]) -> FloatArray:
    """Minus the total loss per zlib-compressed byte (Carlini et al. 2021, arXiv:2012.07805).

    Parameters
    ----------
    losses : array (m,)
        Total (not mean) negative log-likelihoods.
    texts : sequence of m str
    """
    array = as_finite("losses", losses)
    same_shape("texts", np.empty(len(texts)), array.shape)
    return -array / np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts], dtype=np.float64)


def min_k_scores(log_probs: object, *, k: float = 0.2) -> FloatArray:
    """Mean of the k share of lowest token log-probabilities (Shi et al. 2024, arXiv:2310.16789).

    Parameters
    ----------
    log_probs : array (m, L)
        NaN where no token is scored; at least one token per record.
    k : float
        In (0, 1]; a record of n tokens uses max(1, floor(k n)) of them.

    Examples
    --------
    >>> min_k_scores([[-1.0, -5.0, -2.0, -3.0, float("nan")]], k=0.5).tolist()
    [-4.0]
    """
    if not 0 < k <= 1:
        raise InvalidValue(f"k={k} must be in (0, 1]; 0.2 is usual.")
    array = np.asarray(log_probs, dtype=np.float64)
    if array.ndim != 2 or np.isinf(array).any():
        raise InvalidValue(f"log_probs has shape {array.shape} and must be (m, L) without infinite values.")
    counts = (~np.isnan(array)).sum(axis=1)
    if array.size == 0 or (counts == 0).any():
        raise InvalidValue("log_probs has a record without a scored token; every record needs at least one.")
    used = np.maximum(1, np.floor(k * counts + 1e-9).astype(np.int64))
    lowest = np.sort(array, axis=1)  # NaN sorts last
    keep = np.arange(array.shape[1]) < used[:, None]
    return np.asarray(np.where(keep, lowest, 0.0).sum(axis=1) / used)


def min_k_plus_plus_scores(log_probs: object, means: object, deviations: object, *, k: float = 0.2) -> FloatArray:
    """Min-K%++: Min-K% of log-probabilities standardised over the vocabulary (Zhang et al. 2024, arXiv:2404.02936).

    Parameters
    ----------
    log_probs, means, deviations : arrays (m, L)
        As in ``TokenStatistics``; NaN where no token is scored.
    k : float
    """
    array, mean, sd = (np.asarray(a, dtype=np.float64) for a in (log_probs, means, deviations))
    same_shape("means", mean, array.shape)
    same_shape("deviations", sd, array.shape)
    # A one-point distribution has no spread and its only token is what the model expects, so its score is 0 instead of
    # 0/0.
    return min_k_scores(np.where(sd == 0, 0.0 * array, (array - mean) / np.where(sd == 0, 1.0, sd)), k=k)


def neighbourhood_scores(losses: object, neighbour_losses: object) -> FloatArray:
    """Mean loss of a record's neighbours minus its own (Mattern et al. 2023, arXiv:2305.18462).

    Parameters
    ----------
    losses : array (m,)
    neighbour_losses : array (m, n)
        Losses of n perturbations of each record, 25 to 100 usually.
    """
    own, around = as_finite("losses", losses), as_finite("neighbour_losses", neighbour_losses, ndim=2)
    same_shape("neighbour_losses", around[:, 0], own.shape)
    return np.asarray(around.mean(axis=1) - own)


def gradient_norm_scores(norms: object, base_norms: object | None = None) -> FloatArray:
    """Minus the squared gradient norm of each record's loss, as a drop from the base model's when given: (m,)."""
    own = as_finite("norms", norms)
    if base_norms is None:
        return -(own**2)
    base = as_finite("base_norms", base_norms)
    same_shape("base_norms", base, own.shape)
    return np.asarray(base**2 - own**2)


def logit_confidence(losses: object) -> FloatArray:
    """log(p / (1 - p)) of p = exp(-loss), the signal of LiRA: close to Gaussian over retrainings. (m,) or (S, m).

    Examples
    --------
    >>> float(logit_confidence([0.6931471805599453])[0])
    0.0
    """
    array = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise InvalidValue("losses must be finite and >= 0 for a logit; give per-record cross-entropies in nats.")
    # A loss of exactly 0 is p = 1 in floating point, whose logit is infinite, so losses are at least half a unit in the
    # last place.
    array = np.maximum(array, 2.0**-53)
    return np.asarray(-array - np.log(-np.expm1(-array)))


def projection_scores(projections: object, *, sampling_probability: object, noise_multiplier: object) -> FloatArray:
    """White-box log-likelihood ratio of a canary over the steps of a run.

    Under Poisson sampling a step's projection is N(0, s^2) without the canary, and with it N(1, s^2) with probability
    q: the sum over steps of log(1 - q + q exp((2 x - 1) / (2 s^2))) is the most powerful statistic, and the plain sum
    of x loses much (Nasr et al. 2023, arXiv:2302.07956, for the setting).

    Parameters
    ----------
    projections : array (m, T)
        <c, released gradient sum> / C at each step, c the canary's unit direction.
    sampling_probability, noise_multiplier : float or array (T,)
        q in (0, 1] and s > 0 (standard deviation of a projection's noise in units of C).

    Returns
    -------
    float64 array (m,), in nats
    """
    x = as_finite("projections", projections, ndim=2)
    q, s = np.asarray(sampling_probability, dtype=np.float64), np.asarray(noise_multiplier, dtype=np.float64)
    if not ((q > 0) & (q <= 1)).all() or not (s > 0).all():
        raise InvalidValue(
            f"sampling_probability={sampling_probability} must lie in (0, 1] and noise_multiplier={noise_multiplier} "
            "above 0; give the run's own."
        )
    with np.errstate(divide="ignore"):
        ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * s**2))
    return np.asarray(ratio.sum(axis=1))
