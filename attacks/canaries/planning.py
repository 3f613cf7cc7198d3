"""How many canaries to insert: more give more guesses, but each adds noise to the scores of all others.

Inserted canaries are noise to one another. With gradients in d dimensions this interference is spread over d
coordinates; with zeroth-order releases all canaries share the P scalars of a step, so that the useful number is small.
"""

from __future__ import annotations

import math

from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Clip
from dpaudit.privacy.validate import integer_at_least, open_unit, positive


def signal_strength(sampling_probability: float, steps: int, noise_multiplier: float) -> float:
    """Signal-to-noise μ of one canary over a run of Poisson-sampled Gaussian steps.

    The central-limit value q sqrt(T (exp(1/σ²) - 1)) (Bu et al. 2020, arXiv:1911.11607): an approximation, good for
    planning and never for a bound.

    Examples
    --------
    >>> round(signal_strength(0.0128, 1000, 0.8025), 3)
    0.781
    """
    positive(sampling_probability=sampling_probability, noise_multiplier=noise_multiplier)
    integer_at_least(1, steps=steps)
    if sampling_probability > 1:
        raise InvalidValue(f"sampling_probability={sampling_probability} must be in (0, 1]; give q.")
    return sampling_probability * math.sqrt(steps * math.expm1(noise_multiplier**-2))


def interference_factor(m: int, mu: float, dimension: int) -> float:
    """Share of a canary's μ that is left among m random canaries: 1 / sqrt(1 + m μ² / (4 d)).

    For random unit directions in d dimensions with mean-centred scores: half the canaries are inserted, and the
    projection of the others' fair-coin sum has variance m μ² / (4 d) where the noise has variance 1. A heuristic of
    second moments; orthogonal (Dirac) canaries have factor 1 while m <= d.

    Examples
    --------
    >>> round(interference_factor(1000, 1.0, 100_000), 4)
    0.9988
    """
    integer_at_least(1, m=m, dimension=dimension)
    positive(mu=mu)
    return 1 / math.sqrt(1 + m * mu**2 / (4 * dimension))


def recommended_canaries(dimension: int, mu: float, *, tolerated_loss: float = 0.05) -> int:
    """Largest number of random canaries for a first-order run: m well below 4 d / μ².

    Parameters
    ----------
    dimension : int
        d, number of trainable parameters the canaries spread over.
    mu : float
        Signal-to-noise of one canary, such as :func:`signal_strength`.
    tolerated_loss : float
        Share of μ given up to interference, in (0, 1).

    Returns
    -------
    int
        Largest m with ``interference_factor(m, mu, dimension) >= 1 - tolerated_loss``, at least 1.

    Examples
    --------
    >>> recommended_canaries(100_000, 1.0)
    43213
    >>> recommended_canaries(1000, 1.0)
    432
    """
    integer_at_least(1, dimension=dimension)
    positive(mu=mu)
    open_unit(tolerated_loss=tolerated_loss)
    return max(1, math.floor(4 * dimension / mu**2 * ((1 - tolerated_loss) ** -2 - 1)))


def recommended_canaries_zeroth_order(
    noise_multiplier: float, sampling_probability: float, *, releases_per_step: int, clip: Clip | None = None
) -> int:
    """Largest useful number of canaries for a zeroth-order run: m about 2 σ² P / q.

    Here σ is the multiplier of the whole step, σ/√P of each released scalar's (``per_direction``) or σ itself
    (``joint``). At this m the canaries that share a step add as much variance, m q / 2, to its scalars as the noise
    does; beyond it more canaries only interfere with each other, and more runs or step-level tests are the way.

    Parameters
    ----------
    noise_multiplier : float
        As in a stage: noise standard deviation of each released scalar over C.
    sampling_probability : float
        q in (0, 1].
    releases_per_step : int
        P.
    clip : Clip
        Required when P > 1, as in a stage.

    Returns
    -------
    int, at least 1

    Examples
    --------
    >>> recommended_canaries_zeroth_order(0.8, 0.0128, releases_per_step=1)
    100
    >>> recommended_canaries_zeroth_order(3.2, 0.0128, releases_per_step=16, clip=Clip.PER_DIRECTION)
    1600
    """
    positive(noise_multiplier=noise_multiplier, sampling_probability=sampling_probability)
    integer_at_least(1, releases_per_step=releases_per_step)
    if sampling_probability > 1:
        raise InvalidValue(f"sampling_probability={sampling_probability} must be in (0, 1]; give q.")
    if releases_per_step > 1 and clip is None:
        raise InvalidValue(
            f"releases_per_step={releases_per_step} needs clip: per_direction or joint, as in the stage."
        )
    per_direction = clip is not None and Clip(clip) is Clip.PER_DIRECTION
    squared = noise_multiplier**2 / (releases_per_step if per_direction else 1)
    return max(1, math.floor(2 * squared * releases_per_step / sampling_probability * (1 + 1e-12)))
