"""Schedules of zeroth-order training: which plan each stage executes, and with which rates.

A method of the family is a list of stages and nothing more: MeZO is one stage without noise, DPZero one stage of one
direction, DP-AggZO one stage with a joint clip, DP-ZOSO several with a proximal anchor, DP-ZOPO the same under masks.
Schedules are fixed before the first step, so they cost no privacy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from dpaudit import Ledger
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.privacy.stage import Clip, Mechanism
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.zeroth_order.pruning import MaskRule


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZOStage:
    """One stage: the privacy it spends, and the rates it runs with.

    Parameters
    ----------
    plan : PrivacyPlan
        Sampling, σ, steps, ``clipping_norm`` C of this stage, ``releases_per_step`` P and ``clip``. C bounds the
        slope (f₊ − f₋)/2β, so that β may change without changing the sensitivity; a bound c on the raw difference
        f₊ − f₋ is C = c / 2β.
    learning_rate : float
        η.
    scale : float
        β > 0, half the distance between the two evaluations.
    proximal : float
        γ >= 0, pull towards the weights at the stage's start. It costs one copy of the moving weights.
    mask : MaskRule or None
        Which coordinates move; None for all trainable ones.
    """

    plan: PrivacyPlan
    learning_rate: float
    scale: float
    proximal: float = 0.0
    mask: MaskRule | None = None

    def __post_init__(self) -> None:
        validate.positive(scale=self.scale)
        validate.non_negative(learning_rate=self.learning_rate, proximal=self.proximal)
        validate.finite(scale=self.scale, learning_rate=self.learning_rate, proximal=self.proximal)
        if self.plan.clipping != "flat":
            raise InvalidValue(
                f"clipping={self.plan.clipping!r} has no meaning for slopes; zeroth-order plans take clipping='flat'."
            )
        if self.learning_rate * self.proximal >= 1:
            raise InvalidValue(
                f"learning_rate={self.learning_rate} times proximal={self.proximal} must be < 1; the pull would"
                " overshoot the anchor."
            )

    @property
    def clip(self) -> Clip:
        """What C bounds; one direction needs no choice."""
        return Clip(self.plan.clip) if self.plan.clip else Clip.PER_DIRECTION

    @property
    def mechanism(self) -> Mechanism:
        """Law of the noise, also where the plan holds it as a name."""
        return Mechanism(self.plan.mechanism)

    def schedule(self) -> dict[str, Any]:
        """The rates as a plain value, for the log; no privacy parameter is among them."""
        return {
            "steps": self.plan.steps,
            "directions": self.plan.releases_per_step,
            "learning_rate": self.learning_rate,
            "scale": self.scale,
            "proximal": self.proximal,
            "mask": None if self.mask is None else self.mask.to_dict(),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ZOPlan:
    """All stages of a run, calibrated together: every stage has the same σ, or keeps its ratio to the first."""

    stages: tuple[ZOStage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise InvalidValue("stages=() is empty; a run has at least one stage.")
        first = self.stages[0].plan
        for number, stage in enumerate(self.stages):
            for name in ("delta", "relation", "unit", "max_records_per_unit", "target_epsilon", "public_size"):
                if getattr(stage.plan, name) != getattr(first, name):
                    raise InvalidValue(
                        f"stage {number}: {name}={getattr(stage.plan, name)!r} differs from {getattr(first, name)!r} of"
                        " stage 0; all stages of one run make one claim."
                    )

    @property
    def target_epsilon(self) -> float | None:
        """ε of the claim."""
        return self.stages[0].plan.target_epsilon

    @property
    def delta(self) -> float:
        """δ of the claim."""
        return self.stages[0].plan.delta

    @property
    def public_size(self) -> int:
        """Declared number of records, one for all stages."""
        return self.stages[0].plan.public_size

    @property
    def is_calibrated(self) -> bool:
        """Whether every stage's σ is known."""
        return all(stage.plan.is_calibrated for stage in self.stages)

    @property
    def secure_noise(self) -> bool:
        """Whether any stage asks for the operating system's cryptographic generator."""
        return any(stage.plan.secure_noise for stage in self.stages)

    def with_noise_multiplier(self, noise_multiplier: float) -> ZOPlan:
        """The same run at another σ; stages that had σ in ratios keep them."""
        first = self.stages[0].plan.noise_multiplier
        changed = []
        for stage in self.stages:
            own = stage.plan.noise_multiplier
            ratio = own / first if first and own is not None else 1.0
            plan = stage.plan.with_noise_multiplier(noise_multiplier * ratio)
            changed.append(dataclasses.replace(stage, plan=plan))
        return ZOPlan(tuple(changed))

    def ledger(self) -> Ledger:
        """The planned ledger, one stage for each stage of the run."""
        whole = self.stages[0].plan.ledger()
        return dataclasses.replace(whole, stages=tuple(stage.plan.stage() for stage in self.stages))


def as_plan(stages: ZOPlan | ZOStage | Sequence[ZOStage]) -> ZOPlan:
    """A plan of one stage or of several."""
    if isinstance(stages, ZOPlan):
        return stages
    return ZOPlan((stages,) if isinstance(stages, ZOStage) else tuple(stages))


def geometric(first: float, last: float, count: int) -> list[float]:
    """``count`` values from ``first`` to ``last`` in equal ratios.

    Examples
    --------
    >>> geometric(1e-6, 1e-4, 3)
    [1e-06, 1e-05, 0.0001]
    """
    validate.positive(first=first, last=last)
    if count == 1:
        return [first]
    values = [math.exp(math.log(first) + (math.log(last) - math.log(first)) * s / (count - 1)) for s in range(count)]
    return [first, *(float(f"{v:.14g}") for v in values[1:-1]), last]


def stage_steps(total: int, stages: int, *, growth: float = 2.0) -> list[int]:
    """``total`` steps split in proportion to 1, growth, growth², …; the last stage takes the remainder.

    Examples
    --------
    >>> stage_steps(7000, 3)
    [1000, 2000, 4000]
    """
    validate.integer_at_least(1, total=total, stages=stages)
    validate.positive(growth=growth)
    weights = [growth**s for s in range(stages)]
    steps = [max(1, int(total * w / sum(weights))) for w in weights]
    steps[-1] += total - sum(steps)
    if steps[-1] < 1:
        raise InvalidValue(f"steps={total} cannot fill stages={stages}; raise the steps or lower the stages.")
    return steps


def zoso(
    plan: PrivacyPlan,
    *,
    learning_rate: float,
    scale: float,
    stages: int = 3,
    growth: float = 2.0,
    decay: float = 0.5,
    last_scale: float | None = None,
    proximal: float | Sequence[float] = 0.0,
    clipping_norms: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    mask: MaskRule | None = None,
) -> ZOPlan:
    """DP-ZOSO (and with ``mask`` DP-ZOPO): stagewise training with a proximal anchor (2402.07818).

    Parameters
    ----------
    plan : PrivacyPlan
        The whole run; its ``steps`` are split over the stages, its σ and P hold in each.
    learning_rate, decay : float
        η of the first stage, and its factor from stage to stage (η_s = η·decay^s).
    scale, last_scale : float
        β of the first and of the last stage, geometric in between; constant by default.
    stages : int, default=3
        Number of stages.
    growth : float
        Ratio of step counts from stage to stage (2: T, 2T, 4T).
    proximal : float or sequence
        γ, one for all stages or one each.
    clipping_norms : sequence or None
        C of each stage; ``plan.clipping_norm`` by default. It does not change ε, since σ is relative to C.
    steps : sequence of int or None
        Explicit step counts instead of ``growth``; they must add up to ``plan.steps``.
    mask : MaskRule, optional
        DP-ZOPO: which coordinates move in each stage.

    Returns
    -------
    ZOPlan
        One ``ZOStage`` for each stage.

    Raises
    ------
    InvalidValue
        If a list has not one entry for each stage, the steps do not add up to the plan's, or a value is out of its
        bounds.
    """
    validate.integer_at_least(1, stages=stages)
    validate.positive(decay=decay)
    counts = stage_steps(plan.steps, stages, growth=growth) if steps is None else list(steps)
    pulls = [float(proximal)] * stages if isinstance(proximal, (int, float)) else [float(g) for g in proximal]
    norms = [plan.clipping_norm] * stages if clipping_norms is None else list(clipping_norms)
    scales = geometric(scale, scale if last_scale is None else last_scale, stages)
    for name, values in (("steps", counts), ("proximal", pulls), ("clipping_norms", norms)):
        if len(values) != stages:
            raise InvalidValue(f"{name} has {len(values)} entries and must have one for each of {stages} stages.")
    if sum(counts) != plan.steps:
        raise InvalidValue(f"steps={counts} add up to {sum(counts)} and must add up to the plan's {plan.steps}.")
    return ZOPlan(
        tuple(
            ZOStage(
                plan=dataclasses.replace(plan, steps=counts[s], clipping_norm=norms[s]),
                learning_rate=learning_rate * decay**s,
                scale=scales[s],
                proximal=pulls[s],
                mask=None if mask is None else mask.for_stage(s),
            )
            for s in range(stages)
        )
    )


def mezo(plan: PrivacyPlan, *, learning_rate: float, scale: float) -> ZOPlan:
    """MeZO (2305.17333): no clip and no noise, for comparison; ε is infinite and the ledger says so.

    Parameters
    ----------
    plan : PrivacyPlan
        Its steps and sampling count; C and σ are replaced by none.
    learning_rate : float
        η, constant.
    scale : float
        β, half the distance between the two evaluations of a difference.

    Returns
    -------
    ZOPlan
        One stage without clip and noise.
    """
    bare = dataclasses.replace(plan, clipping_norm=math.inf, noise_multiplier=0.0, target_epsilon=None)
    return ZOPlan((ZOStage(plan=bare, learning_rate=learning_rate, scale=scale),))


def dpzero(plan: PrivacyPlan, *, learning_rate: float, scale: float) -> ZOPlan:
    """DPZero (2310.09639) with honest Poisson sampling: one direction, one clipped and noised slope a step.

    Parameters
    ----------
    plan : PrivacyPlan
        The whole run, with P in ``releases_per_step``, C in ``clipping_norm`` and σ.
    learning_rate : float
        η, constant.
    scale : float
        β, half the distance between the two evaluations of a difference.

    Returns
    -------
    ZOPlan
        One stage.

    Raises
    ------
    PrivacyRefusal
        If the plan has more than one direction.
    """
    _one_direction("dpzero", plan)
    return ZOPlan((ZOStage(plan=plan, learning_rate=learning_rate, scale=scale),))


def dpzo_laplace(plan: PrivacyPlan, *, learning_rate: float, scale: float) -> ZOPlan:
    """DP-ZO (2401.04343) with the Laplace mechanism: pure ε, one direction; scale b = σC on the clipped sum."""
    _one_direction("dp-zo-laplace", plan)
    if Mechanism(plan.mechanism) is not Mechanism.LAPLACE:
        raise InvalidValue(f"mechanism={str(plan.mechanism)!r} must be 'laplace' for DP-ZO's pure guarantee.")
    return ZOPlan((ZOStage(plan=plan, learning_rate=learning_rate, scale=scale),))


def aggzo(plan: PrivacyPlan, *, learning_rate: float, scale: float) -> ZOPlan:
    """DP-AggZO (Bao et al., USENIX Security 2025): K = ``releases_per_step`` directions under a joint clip.

    The paper clips the vector (Δ_1 .. Δ_K)/K at c; this library clips (Δ_1 .. Δ_K) at C = K·c, which is the same
    update. Its rule c = c₀/√K reads C = c₀·√K here.

    Parameters
    ----------
    plan : PrivacyPlan
        The whole run, with P in ``releases_per_step``, C in ``clipping_norm`` and σ.
    learning_rate : float
        η, constant.
    scale : float
        β, half the distance between the two evaluations of a difference.

    Returns
    -------
    ZOPlan
        One stage.

    Raises
    ------
    InvalidValue
        If there are several directions and the clip is not joint.
    """
    if plan.releases_per_step > 1 and plan.clip != Clip.JOINT:
        raise InvalidValue(f"clip={plan.clip!s} must be 'joint' for DP-AggZO; use zoso() otherwise.")
    return ZOPlan((ZOStage(plan=plan, learning_rate=learning_rate, scale=scale),))


def _one_direction(method: str, plan: PrivacyPlan) -> None:
    if plan.releases_per_step != 1:
        raise PrivacyRefusal(
            f"method {method!r} with releases_per_step={plan.releases_per_step} must have releases_per_step=1; use"
            " aggzo() or zoso() for several directions."
        )
