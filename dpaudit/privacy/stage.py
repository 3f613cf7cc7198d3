"""A stage: a run of identical steps of one mechanism, as a frozen value.

The meaning of a recorded field never changes; new fields are optional; what is unknown is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, UnsupportedStage


def joint_noise_multiplier(*multipliers: float) -> float:
    """Noise multiplier of the one Gaussian release that costs as much as several on the same data: (Σ σᵢ⁻²)^(−1/2).

    >>> round(joint_noise_multiplier(1.0, 10.0), 6)
    0.995037
    """
    if 0 in multipliers:
        return 0.0
    root = math.hypot(*(1 / sigma for sigma in multipliers))
    return 1 / root if root else math.inf


def remaining_noise_multiplier(whole: float, part: float) -> float:
    """Noise multiplier left for a second release beside one of ``part``, so that both cost as much as one of ``whole``.

    >>> round(remaining_noise_multiplier(1.0, 20.0), 6)
    1.001252
    """
    validate.positive(whole=whole, part=part)
    return whole / math.sqrt((1 - whole / part) * (1 + whole / part))


class Relation(StrEnum):
    """Neighbouring relation: which two data sets must be hard to tell apart."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"
    ZERO_OUT = "zero_out"

    @classmethod
    def parse(cls, value: str) -> Relation:
        """Read a relation by name; an unknown name is an :class:`InvalidValue`."""
        validate.one_of([r.value for r in cls], relation=str(value))
        return cls(value)


class Sampling(StrEnum):
    """How a step's minibatch is drawn."""

    POISSON = "poisson"
    TRUNCATED_POISSON = "truncated_poisson"
    NONE = "none"
    SHUFFLE = "shuffle"
    WITHOUT_REPLACEMENT = "without_replacement"


class Mechanism(StrEnum):
    """Noise added to the clipped sum."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"


class Clip(StrEnum):
    """What ``clipping_norm`` bounds when a step releases several scalars of one minibatch."""

    PER_DIRECTION = "per_direction"
    JOINT = "joint"


LARGEST_STEPS = 2**53
"""Steps of one stage, at most: double precision counts every whole number up to here, and no further."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A run of ``steps`` identical steps.

    Parameters
    ----------
    sampling_probability : float
        q, probability that one record takes part in one step, in [0, 1].
    noise_multiplier : float
        σ = standard deviation of the noise added to each released coordinate of the clipped SUM, divided by
        the clipping norm (scale b / C for ``laplace``). Never includes P, the relation or the normaliser.
        0 means no privacy (ε = ∞); infinity means nothing is released.
    steps : int
        T, number of noisy releases executed, >= 0.
    sampling : Sampling
        ``none`` requires q = 1.
    mechanism : Mechanism
        ``laplace`` requires ``releases_per_step`` = 1.
    releases_per_step : int
        P, directions that share ONE minibatch (1 for first-order methods). A step with P directions is one
        subsampled Gaussian with multiplier σ/√P (``per_direction``) or σ (``joint``), never P steps.
    clip : Clip or None
        Required when P > 1.
    max_batch : int or None
        Cap of ``truncated_poisson``.
    clipping_norm, expected_batch_size, public_size : optional
        Recorded for re-derivation; they do not change ε (``public_size`` does for ``truncated_poisson``).
    quantile_sigma : float or None
        Noise multiplier of adaptive clipping's count query on the same minibatch (sensitivity 1/2 after centring,
        Andrew et al. 1905.03871), relative to a count of sensitivity 1.
    stop_reason : str or None
        Why the stage ended, when not by its planned step count.

    Raises
    ------
    InvalidValue
        If a value is out of its bounds, or what another one needs is missing; names the key.
    UnsupportedStage
        For Laplace noise on more than one release a step.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int
    sampling: Sampling
    mechanism: Mechanism = Mechanism.GAUSSIAN
    releases_per_step: int = 1
    clip: Clip | None = None
    max_batch: int | None = None
    clipping_norm: float | None = None
    expected_batch_size: float | None = None
    public_size: int | None = None
    quantile_sigma: float | None = None
    stop_reason: str | None = None

    if TYPE_CHECKING:  # for type checkers: the constructor also takes the members' names

        def __init__(
            self,
            *,
            sampling_probability: float,
            noise_multiplier: float,
            steps: int,
            sampling: Sampling | str,
            mechanism: Mechanism | str = Mechanism.GAUSSIAN,
            releases_per_step: int = 1,
            clip: Clip | str | None = None,
            max_batch: int | None = None,
            clipping_norm: float | None = None,
            expected_batch_size: float | None = None,
            public_size: int | None = None,
            quantile_sigma: float | None = None,
            stop_reason: str | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        for name, kind in (("sampling", Sampling), ("mechanism", Mechanism), ("clip", Clip)):
            value = getattr(self, name)
            if (value is not None or name != "clip") and not isinstance(value, kind):
                validate.one_of([member.value for member in kind], **{name: str(value)})
                object.__setattr__(self, name, kind(value))
        validate.probability(sampling_probability=self.sampling_probability)
        validate.non_negative(noise_multiplier=self.noise_multiplier)
        validate.integer_at_least(0, steps=self.steps)
        if self.steps > LARGEST_STEPS:
            raise InvalidValue(
                f"steps={self.steps} must be <= {LARGEST_STEPS} (2^53): beyond it accountants cannot tell one step from"
                " none; give the steps that ran."
            )
        validate.integer_at_least(1, releases_per_step=self.releases_per_step)
        if self.sampling is Sampling.NONE and self.sampling_probability != 1:
            raise InvalidValue(
                f"sampling='none' with sampling_probability={self.sampling_probability} must have"
                " sampling_probability=1; name the sampler that draws the minibatch."
            )
        if self.releases_per_step > 1 and self.clip is None:
            raise InvalidValue(
                f"releases_per_step={self.releases_per_step} needs clip='per_direction' or clip='joint';"
                " say what the clipping norm bounds."
            )
        if self.mechanism is Mechanism.LAPLACE and self.releases_per_step != 1:
            raise UnsupportedStage(
                f"mechanism='laplace' with releases_per_step={self.releases_per_step} must have"
                " releases_per_step=1; use one direction or the gaussian mechanism."
            )
        if self.sampling is Sampling.TRUNCATED_POISSON and self.max_batch is None:
            raise InvalidValue("sampling='truncated_poisson' needs max_batch; give the cap of a minibatch.")
        if self.max_batch is not None:
            validate.integer_at_least(1, max_batch=self.max_batch)
        if self.public_size is not None:
            validate.integer_at_least(1, public_size=self.public_size)
        if self.clipping_norm is not None:
            validate.positive(clipping_norm=self.clipping_norm)
        if self.expected_batch_size is not None:
            validate.positive(expected_batch_size=self.expected_batch_size)
        if self.quantile_sigma is not None:
            validate.positive(quantile_sigma=self.quantile_sigma)
        if self.stop_reason is not None:
            validate.label(stop_reason=self.stop_reason)

    @property
    def effective_noise_multiplier(self) -> float:
        """Noise multiplier of the step as ONE release of unit sensitivity: σ/√P per direction, σ joint.

        Excludes the quantile query; see :attr:`combined_noise_multiplier`.
        """
        if self.clip is Clip.PER_DIRECTION:
            return self.noise_multiplier / math.sqrt(self.releases_per_step)
        return self.noise_multiplier

    @property
    def combined_noise_multiplier(self) -> float:
        """Noise multiplier of the step as one release, the quantile query of adaptive clipping included.

        The query counts on the same minibatch with sensitivity 1/2 after centring, so that its own multiplier is 2σ_b
        (Andrew et al., 1905.03871) and 1/σ² = 1/σ_g² + 1/(2σ_b)². Both parts double under replacement.
        """
        if self.quantile_sigma is None:
            return self.effective_noise_multiplier
        return joint_noise_multiplier(self.effective_noise_multiplier, 2 * self.quantile_sigma)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value; fields that are None are left out."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: (str(v) if isinstance(v, StrEnum) else v) for k, v in plain.items() if v is not None}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Stage:
        """Read :meth:`to_dict`'s form; an unknown key is refused, never ignored.

        Parameters
        ----------
        value : mapping
            Plain JSON value.

        Returns
        -------
        Stage
            Equal to the one that was written.

        Raises
        ------
        InvalidValue
            If a key is unknown or missing, or a value out of its bounds; names it.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(value, Mapping):
            raise InvalidValue(
                f"a stage is {value!r:.60} and must be an object with sampling_probability and the rest."
            )
        if unknown := sorted(set(value) - known):
            raise InvalidValue(f"stage key {unknown[0]!r} is unknown; known keys are {', '.join(sorted(known))}.")
        missing = [k for k in ("sampling_probability", "noise_multiplier", "steps", "sampling") if k not in value]
        if missing:
            raise InvalidValue(f"stage key {missing[0]!r} is missing; a stage states it explicitly.")
        for name in (
            "sampling_probability",
            "noise_multiplier",
            "clipping_norm",
            "expected_batch_size",
            "quantile_sigma",
        ):
            if value.get(name) is not None and (
                isinstance(value[name], bool) or not isinstance(value[name], (int, float))
            ):
                raise InvalidValue(f"stage key {name}={value[name]!r} must be a number.")
        return cls(**value)


def merge_identical(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Add up the steps of consecutive stages that are equal in everything but steps and stop reason."""
    merged: list[Stage] = []
    for stage in stages:
        if merged:
            last = merged[-1]
            if dataclasses.replace(last, steps=0, stop_reason=None) == dataclasses.replace(
                stage, steps=0, stop_reason=None
            ):
                # Restarts of a shuffled sampler each draw a fresh permutation, so they are not one stage.
                if stage.sampling is not Sampling.SHUFFLE:
                    merged[-1] = dataclasses.replace(
                        last, steps=last.steps + stage.steps, stop_reason=stage.stop_reason or last.stop_reason
                    )
                    continue
        merged.append(stage)
    return tuple(merged)
